"""The one exception tree of dgsnet and the exit code that each branch means on a command line.

Every message is one line: what was found, what was expected, what to do. This module imports nothing.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_GATE_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_ENVIRONMENT = 3


class DgsNetError(Exception):
    """Root of every error that dgsnet raises on purpose.

    Attributes:
        exit_code: what a command returns when this error ends it.
        code: short, stable, kebab-case name of the kind, used in JSON output.
    """

    exit_code = EXIT_BAD_INPUT
    code = "error"


class UsageError(DgsNetError):
    """The arguments contradict each other or ask for something that does not exist."""

    code = "usage"


class SpecError(DgsNetError):
    """A tensor, graph or preprocessing description breaks the contract."""

    code = "spec"


class ImageError(DgsNetError):
    """One picture cannot be read or is outside the limits."""

    code = "image"


class ImageReadError(ImageError):
    """The bytes of one picture could not be had: permissions, a drive, memory. Another try may succeed."""

    code = "image-read"


class DataError(DgsNetError):
    """A data set on disk is incomplete, inconsistent or unusable."""

    code = "data"


class CheckpointError(DgsNetError):
    """A checkpoint is damaged, incomplete or of another architecture."""

    code = "checkpoint"


class ManifestError(DgsNetError):
    """A bundle is damaged, incomplete, hostile or from a newer version."""

    code = "manifest"


class EngineBuildError(DgsNetError):
    """An engine or an ONNX graph could not be built as asked."""

    code = "engine-build"


class EngineLoadError(DgsNetError):
    """An engine cannot be opened or run on this machine."""

    code = "engine-load"


class MissingDependencyError(DgsNetError):
    """Something asked for by name is not installed or not present on this machine."""

    exit_code = EXIT_ENVIRONMENT
    code = "missing-dependency"


class GateFailedError(DgsNetError):
    """A check ran and its result is over the limit."""

    exit_code = EXIT_GATE_FAILED
    code = "gate-failed"


class ParityError(GateFailedError):
    """Two forms of the same model decide differently."""

    code = "parity"


class SelfTestError(GateFailedError):
    """A bundle does not reproduce its own golden logits on this machine."""

    code = "self-test"


def one_line(err: BaseException, most: int = 300) -> str:
    """Returns a foreign exception's message on one line, shortened; its class's name if it has none."""
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= most else text[:most] + "..."


def kind_and_line(err: BaseException, most: int = 300) -> str:
    """Returns a foreign exception's class and message on one line, shortened; its class alone if none."""
    kind, line = type(err).__name__, one_line(err, most)
    return kind if line == kind else f"{kind}: {line}"
