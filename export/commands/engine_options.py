"""The options of build-engine that say how an engine is built."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.bundle.engine_entry import BACKENDS, HARDWARE_LEVELS
from runtime.errors import UsageError

if TYPE_CHECKING:
    from export.engine.options import BuildOptions
    from export.precision.policy import PrecisionPolicy

_PRECISION = (
    click.option(
        "--precision", type=click.Choice(["fp16", "fp32"]), help="of TensorRT engines; default fp16"
    ),
)
DEFAULT_MIN_BATCH, DEFAULT_OPT_BATCH, DEFAULT_MAX_BATCH = 1, 8, 32
_BATCH = (
    click.option("--min-batch", type=int, help=f"default {DEFAULT_MIN_BATCH}"),
    click.option(
        "--opt-batch",
        type=int,
        help=f"fastest at this size; default {DEFAULT_OPT_BATCH}, or the nearest that the other two allow",
    ),
    click.option("--max-batch", type=int, default=DEFAULT_MAX_BATCH, show_default=True),
    click.option(
        "--batch-1-profile/--no-batch-1-profile",
        default=True,
        show_default=True,
        help="a second profile for single images, where --min-batch is 1 and --max-batch more",
    ),
)
_WHERE = (
    click.option(
        "--backend", "backends", multiple=True, help=f"repeated or comma-separated: {', '.join(BACKENDS)}"
    ),
    click.option(
        "--target", "targets", multiple=True, help="GPU architectures of tensorrt-rtx, such as sm_86,sm_89"
    ),
    click.option("--version-compatible", is_flag=True, help="runs on later TensorRT too; tensorrt only"),
    click.option(
        "--hardware-compatible",
        type=click.Choice(["none", *HARDWARE_LEVELS]),
        default="none",
        show_default=True,
        help="runs on other GPUs too, slower; tensorrt only",
    ),
)
_EFFORT = (
    click.option("--workspace", help="limit of scratch memory with its unit, such as 2G or 512M"),
    click.option(
        "--optimization-level", type=click.IntRange(0, 5), help="0 builds fastest, 5 runs fastest; default 3"
    ),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path),
        help="kernel timings to load and update, tensorrt only; default a file in the user's cache folder",
    ),
    click.option("--no-timing-cache", is_flag=True, help="keep no kernel timings"),
)


@dataclass(frozen=True)
class EngineFlags:
    """What the options of this module were given, as given."""

    backends: tuple[str, ...]
    precision: str | None
    min_batch: int | None
    opt_batch: int | None
    max_batch: int
    batch_1_profile: bool
    targets: tuple[str, ...]
    version_compatible: bool
    hardware_compatible: str
    workspace: str | None
    optimization_level: int | None
    timing_cache: Path | None
    no_timing_cache: bool

    @property
    def profile(self) -> tuple[int, int, int]:
        """The (min, opt, max) batch size; what was not given makes room for what was."""
        least = DEFAULT_MIN_BATCH if self.min_batch is None else self.min_batch
        best = self.opt_batch
        if best is None:
            best = max(least, min(DEFAULT_OPT_BATCH, self.max_batch))
        return least, best, self.max_batch

    def chosen_backends(self) -> tuple[str, ...]:
        """Returns the backends, each once; onnxruntime where none was named.

        Raises:
            UsageError: an unknown backend, or an option that only onnxruntime would have to act on.
        """
        chosen = tuple(dict.fromkeys(split_names(self.backends))) or ("onnxruntime",)
        for backend in chosen:
            if backend not in BACKENDS:
                raise UsageError(f"--backend: found {backend!r}, expected one of {', '.join(BACKENDS)}")
        if chosen == ("onnxruntime",):
            self._refuse_engine_options()
        return chosen

    def build_options(self, policy: PrecisionPolicy | None = None) -> BuildOptions:
        """Returns the options of a build.

        Args:
            policy: what may be FP32 in an FP16 graph; None takes the default.

        Raises:
            UsageError: a value is out of range, or two contradict each other.
        """
        from export.engine.options import BuildOptions
        from export.precision.policy import PrecisionPolicy

        return BuildOptions(
            precision=self.precision or "fp16",
            profiles=(self.profile,),
            targets=split_names(self.targets),
            workspace_bytes=_bytes(self.workspace),
            policy=policy or PrecisionPolicy(),
            batch_1_profile=self.batch_1_profile,
            timing_cache=self.timing_cache,
            use_timing_cache=not self.no_timing_cache,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            optimization_level=self.optimization_level,
        )

    def command(self, name: str) -> tuple[str, ...]:
        """Returns the options that decide the result, for the provenance: no path of this machine."""
        words = ["build-engine", "--backend", ",".join(self.chosen_backends())]
        words += ["--precision", self.precision or "fp16"]
        for flag, size in zip(("--min-batch", "--opt-batch", "--max-batch"), self.profile, strict=True):
            words += [flag, str(size)]
        if not self.batch_1_profile:
            words.append("--no-batch-1-profile")
        if self.targets:
            words += ["--target", ",".join(split_names(self.targets))]
        if self.version_compatible:
            words.append("--version-compatible")
        if self.hardware_compatible != "none":
            words += ["--hardware-compatible", self.hardware_compatible]
        if self.workspace is not None:
            words += ["--workspace", f"{(_bytes(self.workspace) or 0) // 2**20}M"]
        if self.optimization_level is not None:
            words += ["--optimization-level", str(self.optimization_level)]
        return (*words, "--name", name) if name else tuple(words)

    def _refuse_engine_options(self) -> None:
        if self.precision == "fp16":
            raise UsageError(
                "--precision fp16: onnxruntime on a CPU always computes FP32; add --backend tensorrt-rtx"
            )
        given = {
            "--target": self.targets,
            "--workspace": self.workspace,
            "--timing-cache": self.timing_cache,
            "--no-timing-cache": self.no_timing_cache,
            "--no-batch-1-profile": not self.batch_1_profile,
            "--version-compatible": self.version_compatible,
            "--hardware-compatible": self.hardware_compatible != "none",
            "--optimization-level": self.optimization_level is not None,
        }
        for flag, value in given.items():
            if value:
                raise UsageError(
                    f"{flag}: onnxruntime builds no engine that it could act on; add a --backend"
                )


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which gets them as one argument: ``engine``, an ``EngineFlags``."""

    @functools.wraps(command)
    def with_flags(**given: Any) -> Any:
        flags = EngineFlags(**{field.name: given.pop(field.name) for field in fields(EngineFlags)})
        return command(engine=flags, **given)

    wrapped: Callable[..., Any] = with_flags
    for option in reversed((*_WHERE, *_PRECISION, *_BATCH, *_EFFORT)):
        wrapped = option(wrapped)
    return wrapped


def split_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the words of an option that takes several, each value with commas or without."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG])i?B?", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"--workspace: found {text!r}, expected a number with its unit, such as 2G or 512M")
    return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[match[2].upper()])
