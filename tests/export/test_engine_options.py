"""From the flags of build-engine to the options of a build, and to the command that a manifest keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from export.commands.engine_options import EngineFlags, engine_options
from export.engine.options import BuildOptions
from runtime.errors import UsageError


def flags(*words: str) -> EngineFlags:
    """Returns what a command with these options gets."""
    given: list[EngineFlags] = []

    @click.command()
    @engine_options
    def command(engine: EngineFlags) -> None:
        given.append(engine)

    done = CliRunner().invoke(command, list(words))
    assert done.exit_code == 0, done.output
    return given[0]


def test_engine_options__arrive(tmp_path: Path) -> None:
    engine = flags(
        "--backend", "tensorrt,tensorrt-rtx", "--precision", "fp32", "--min-batch", "2", "--opt-batch", "4",
        "--max-batch", "6", "--no-batch-1-profile", "--target", "sm_86,sm_89", "--target", "8.0",
        "--version-compatible", "--hardware-compatible", "ampere-plus", "--workspace", "1.5G",
        "--optimization-level", "5", "--timing-cache", str(tmp_path / "t"),
    )  # fmt: skip
    assert engine.chosen_backends() == ("tensorrt", "tensorrt-rtx")
    assert engine.build_options() == BuildOptions(
        precision="fp32",
        profiles=((2, 4, 6),),
        targets=("sm_86", "sm_89", "8.0"),
        workspace_bytes=3 << 29,
        batch_1_profile=False,
        timing_cache=tmp_path / "t",
        version_compatible=True,
        hardware_compatible="ampere-plus",
        optimization_level=5,
    )
    assert flags("--no-timing-cache", "--backend", "tensorrt").build_options().use_timing_cache is False
    assert flags().build_options() == BuildOptions()


@pytest.mark.parametrize(
    ("words", "profile"),
    [
        ((), (1, 8, 32)),
        (("--max-batch", "4"), (1, 4, 4)),
        (("--max-batch", "1"), (1, 1, 1)),
        (("--max-batch", "64"), (1, 8, 64)),
        (("--min-batch", "16"), (16, 16, 32)),
        (("--min-batch", "2", "--max-batch", "4"), (2, 4, 4)),
        (("--opt-batch", "16"), (1, 16, 32)),
    ],
)
def test_engine_options__a_batch_size_that_was_not_given_makes_room(
    words: tuple[str, ...], profile: tuple[int, int, int]
) -> None:
    engine = flags(*words)
    assert engine.build_options().profiles == (profile,)
    spelled = [str(size) for size in profile]
    assert engine.command("")[5:11:2] == ("--min-batch", "--opt-batch", "--max-batch")
    assert list(engine.command("")[6:12:2]) == spelled


@pytest.mark.parametrize(
    "words",
    [
        ("--opt-batch", "8", "--max-batch", "4"),
        ("--min-batch", "5", "--max-batch", "4"),
        ("--max-batch", "0"),
    ],
    ids=lambda words: "".join(words),
)
def test_engine_options__sizes_that_were_given_and_contradict_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"batch sizes: found .*expected 1 <= min <= opt <= max"):
        flags(*words).build_options()


def test_engine_flags__the_command_holds_what_decides_and_no_path(tmp_path: Path) -> None:
    words = (
        "--backend", "tensorrt", "--precision", "fp16", "--min-batch", "1", "--opt-batch", "2", "--max-batch",
        "4", "--no-batch-1-profile", "--target", "sm_87", "--version-compatible", "--hardware-compatible",
        "same-compute-capability", "--workspace", "512M", "--optimization-level", "1",
    )  # fmt: skip
    engine = flags(*words, "--timing-cache", str(tmp_path / "t"))
    assert engine.command("vit") == ("build-engine", *words, "--name", "vit")
    assert flags(*engine.command("")[1:]).command("") == engine.command("")


@pytest.mark.parametrize(
    "words",
    [
        ("--target", "sm_86"),
        ("--workspace", "1G"),
        ("--no-batch-1-profile",),
        ("--version-compatible",),
        ("--hardware-compatible", "ampere-plus"),
        ("--optimization-level", "0"),
        ("--no-timing-cache",),
        ("--precision", "fp16"),
    ],
    ids=lambda words: words[0],
)
def test_engine_flags__what_onnxruntime_cannot_act_on_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=rf"^{words[0]}.*add "):
        flags(*words).chosen_backends()


@pytest.mark.parametrize(
    ("words", "found"),
    [(("--workspace", "2"), "'2'"), (("--timing-cache", "t", "--no-timing-cache"), "none")],
)
def test_engine_flags__nonsense_is_one_line(words: Any, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        flags("--backend", "tensorrt", *words).build_options()
