"""The commands as a shell sees them: exit code, one line of error, what is on standard output."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.console import run_cli
from runtime.decision import Decision
from runtime.errors import MissingDependencyError, UsageError
from train.checkpoint import load_checkpoint, read_record
from train.cli import cli
from train.data.layout import find_samples
from train.data.mosaics import MosaicSet
from train.device import require_device
from train.scores import score_mosaics


class Shell:
    """Runs one command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, list[str]]:
        self._monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_cli(cli, "train")
        output = self._capsys.readouterr()
        return int(stopped.value.code or 0), output.out, output.err.splitlines()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def two_generators(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test pictures twice: once as they are, once with the labels the wrong way round."""
    root = tmp_path_factory.mktemp("generators")
    for name, folders in (("right", ("0_real", "1_fake")), ("wrong", ("1_fake", "0_real"))):
        for source, target in zip(("0_real", "1_fake"), folders, strict=True):
            shutil.copytree(data_set / "test" / "blur" / source, root / name / target)
    return root


def verdicts(run: Path, data: Path, decision: Decision) -> dict[str, list[tuple[int, bool]]]:
    """Returns (label, called generated) by generator, one picture at a time as the runtime decides."""
    model = load_checkpoint(run).model
    samples = find_samples(data)
    mosaics = MosaicSet(samples, read_config(run).data, seed=0, title="test")
    found: dict[str, list[tuple[int, bool]]] = {}
    for sample, logit in zip(samples, score_mosaics(model, mosaics, "cpu"), strict=True):
        is_called = decision.judge(float(logit)).label == "generated"
        found.setdefault(sample.generator, []).append((sample.label, is_called))
    return found


def read_config(run: Path) -> Any:
    return load_checkpoint(run).config


def test_evaluate__scores_at_the_stored_or_the_given_threshold(
    shell: Shell, run: Path, data_set: Path, two_generators: Path
) -> None:
    code, _, errors = shell("calibrate", run, data_set / "val", "--fpr", "0.2")
    assert code == 0, errors
    stored = Decision.from_json(read_record(run)["decision"])
    assert stored != Decision()
    record = read_record(run)["calibration"]
    assert (record["fpr"], record["pictures"]) == (0.2, 12)
    called = [is_called for label, is_called in verdicts(run, data_set / "val", stored)["blur"] if label == 0]
    assert sum(called) == 1  # floor(0.2 * 6)

    for arguments, threshold in (((), stored.threshold), (("--threshold", "0.5"), 0.5)):
        code, output, errors = shell("evaluate", run, two_generators, "--json", *arguments)
        assert code == 0, errors
        content = json.loads(output)
        assert content["threshold"] == threshold
        expected = verdicts(run, two_generators, Decision(threshold, stored.temperature))
        for row in content["generators"]:
            right = [(label, is_called == bool(label)) for label, is_called in expected[row["name"]]]
            assert row["accuracy"] == pytest.approx(sum(ok for _, ok in right) / 12)
            assert row["real_accuracy"] == pytest.approx(sum(ok for label, ok in right if label == 0) / 6)
            assert row["fake_accuracy"] == pytest.approx(sum(ok for label, ok in right if label == 1) / 6)
        assert content["mean"]["ap"] == pytest.approx(sum(row["ap"] for row in content["generators"]) / 2)


def test_evaluate__is_a_gate(shell: Shell, run: Path, two_generators: Path) -> None:
    code, output, _ = shell("evaluate", run, two_generators, "--json")
    ap = {row["name"]: row["ap"] for row in json.loads(output)["generators"]}
    assert code == 0
    assert ap["right"] > ap["wrong"]
    between = (ap["right"] + ap["wrong"]) / 2
    code, output, errors = shell("evaluate", run, two_generators, "--min-ap", between)
    assert code == 1
    assert errors[-1].startswith(f"error: AP: found wrong {ap['wrong']:.3f}, expected at least")
    assert "at a threshold of 0.5" in output
    assert shell("evaluate", run, two_generators, "--min-ap", between, "--gate", "right")[0] == 0
    assert shell("evaluate", run, two_generators, "--min-ap", between, "--gate", "wrong")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--min-ap", "nan"), "--min-ap: found nan, expected 0 to 1"),
        (("evaluate", "--min-ap", "1.5"), "--min-ap: found 1.5"),
        (("evaluate", "--gate", "right"), "--gate: found right without --min-ap"),
        (("evaluate", "--gate", "other", "--min-ap", "0.5"), "--gate: found ['other']"),
        (("evaluate", "--threshold", "nan"), "--threshold: found nan"),
        (("evaluate", "--threshold", "1"), "--threshold: found 1.0"),
        (("calibrate", "--fpr", "nan"), "--fpr: found nan"),
        (("calibrate", "--fpr", "0.01"), "calibration: 12 real pictures cannot show"),
        (("evaluate", "--device", "foo"), "device: found 'foo', expected cpu, cuda or cuda:N"),
        (("calibrate", "--device", "foo"), "device: found 'foo'"),
        (("fit", "--device", "foo"), "device: found 'foo'"),
        (("fit", "--set", "optim.beta1=nan"), "optim.beta1: found nan"),
    ],
)
def test_commands__refuse_bad_usage_in_one_line(
    shell: Shell, run: Path, two_generators: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, output, errors = command(shell, run, two_generators, *arguments)
    assert (code, output) == (2, "")
    assert [line for line in errors if line.startswith("error: ")] == errors[-1:]
    assert errors[-1].startswith(f"error: {message}")


@pytest.mark.parametrize("name", ["fit", "evaluate", "calibrate"])
def test_commands__exit_3_without_the_device(
    shell: Shell, run: Path, two_generators: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, errors = command(shell, run, two_generators, name, "--device", "cuda")
    assert (code, len(errors)) == (3, 1)  # before anything was read
    assert errors[0].startswith("error: device: found 0 CUDA GPUs")


def command(shell: Shell, run: Path, data: Path, name: str, *rest: str) -> tuple[int, str, list[str]]:
    places = (data, "-o", run.parent / "new") if name == "fit" else (run, data)
    return shell(name, *places, *rest)


def test_require_device__counts_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for text in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert require_device(text) == text
    with pytest.raises(MissingDependencyError, match=r"found 2 CUDA GPUs .* cuda:2 was asked for"):
        require_device("cuda:2")
    for text in ("", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA", "cuda\n"):
        with pytest.raises(UsageError, match="device: found"):
            require_device(text)
