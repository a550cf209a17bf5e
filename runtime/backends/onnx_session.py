"""Runs the bundle's ONNX graph with ONNX Runtime, on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.base import Backend
from runtime.errors import EngineLoadError, MissingDependencyError, UsageError, one_line
from runtime.machine import usable_cpus
from runtime.names import is_utf8, name_bytes, printable_name
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONLY_ERRORS = 3


class OnnxSession(Backend):
    """An ONNX Runtime session that runs where it was asked to, or does not open.

    Args:
        path: the ONNX file; external weights beside it are found by ONNX Runtime.
        device: "cpu" or "cuda".
        embed_dim: width D that the manifest states.
        profile: (min, opt, max) batch size that the manifest states.
        threads: CPU threads inside one operator; None for one per core that this process may use.
        prepack: whether weights are reordered at open for the CPU's kernels. Without it a session opens in a
            fraction of the time and each run takes longer: right for a handful of pictures.
        spin: whether its threads keep their cores while they wait for work. It makes runs shorter, but slows
            down whatever else needs those cores.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineLoadError: the file cannot be loaded, breaks the graph contract, or opened on another device.
        UsageError: ``threads`` is below 1, or the path cannot be given to onnxruntime.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str,
        embed_dim: int,
        profile: tuple[int, int, int],
        threads: int | None = None,
        prepack: bool = True,
        spin: bool = True,
    ) -> None:
        super().__init__(f"onnxruntime:{device}", embed_dim, profile)
        if threads is not None and threads < 1:
            raise UsageError(f"threads: found {threads}, expected at least 1")
        self._path = text_path(path)
        self._session: onnxruntime.InferenceSession | None = _open_session(
            self._path, device, threads, prepack=prepack, spin=spin
        )
        self._check_contract(self._session)

    def close(self) -> None:
        """Frees the session."""
        if self.owner.is_this_process:
            self._session = None

    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._session is None:
            raise EngineLoadError(f"{self._path}: the session is closed; open the bundle again")
        try:
            logit, embedding = self._session.run([LOGIT_NAME, EMBEDDING_NAME], {INPUT_NAME: images})
        except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
            raise EngineLoadError(f"{self._path}: {self.name} failed ({one_line(err)})") from err
        return np.asarray(logit), np.asarray(embedding)

    def _check_contract(self, session: onnxruntime.InferenceSession) -> None:
        inputs = {INPUT_NAME: ("tensor(uint8)", [None, MOSAIC_SIDE, MOSAIC_SIDE, 3])}
        outputs = {
            LOGIT_NAME: ("tensor(float)", [None]),
            EMBEDDING_NAME: ("tensor(float)", [None, self.embed_dim]),
        }
        for kind, expected, nodes in (
            ("input", inputs, session.get_inputs()),
            ("output", outputs, session.get_outputs()),
        ):
            try:
                # A size that is not a number is a free axis, whatever the exporter called it.
                found = {
                    n.name: (n.type, [s if isinstance(s, int) else None for s in n.shape]) for n in nodes
                }
            except UnicodeDecodeError as err:
                raise EngineLoadError(
                    f"{self._path}: found an {kind} whose name is no text; rebuild the bundle"
                ) from err
            if found != expected:
                raise EngineLoadError(
                    f"{self._path}: found {kind}s {found}, expected {expected}; rebuild the bundle"
                )


def import_onnxruntime() -> Any:
    """Returns the onnxruntime package, its telemetry off. The only import of it outside the tests.

    The official wheels report to Microsoft and keep a device id below ~/.cache. The switch is read when the
    package loads; ``disable_telemetry_events`` comes too late for both. A value that the caller set stays.

    Raises:
        MissingDependencyError: it does not import.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as err:
        raise MissingDependencyError(
            f'onnxruntime does not import ({one_line(err)}); pip install "dgsnet[cpu]"'
        ) from err
    return onnxruntime


def text_path(path: str | os.PathLike[str]) -> str:
    """Returns a path that onnxruntime can take: it takes text alone, and not every name is text to Python.

    Raises:
        UsageError: its bytes are no text in this locale, or in none.
    """
    text = os.fspath(path)
    if is_utf8(text):
        return text
    name = printable_name(text)
    if is_utf8(name_bytes(text).decode("utf-8", "surrogateescape")):
        raise UsageError(f"{name}: this locale cannot name the path to onnxruntime; set PYTHONUTF8=1")
    raise UsageError(f"{name}: onnxruntime opens no path that is not UTF-8; rename it")


def intra_op_threads(asked: int | None) -> int | None:
    """Returns how many threads to ask ONNX Runtime for, None to leave it to its own default.

    Its default is one a core of the machine, each bound to its core, even to one that this process may not
    run on (taskset, a container's cpuset). So a restricted process asks for as many as it has.
    """
    if asked is not None:
        return asked
    usable = usable_cpus()
    return usable if usable < (os.cpu_count() or 1) else None


def _open_session(path: str, device: str, threads: int | None, *, prepack: bool, spin: bool) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_ERRORS
    if (count := intra_op_threads(threads)) is not None:
        options.intra_op_num_threads = count
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # With its fallback on it prints some errors on standard output, among the verdicts, and tries again.
        session = onnxruntime.InferenceSession(
            path, options, providers=[PROVIDERS[device]], enable_fallback=0
        )
    except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
        raise EngineLoadError(
            f"{path}: onnxruntime cannot load it ({one_line(err)}); rebuild the bundle"
        ) from err
    # Without this a failing GPU run would silently be repeated on the CPU.
    session.disable_fallback()
    # Asked for CUDA alone, it opens on the CPU when CUDA does not load, and says so in a warning only.
    opened = session.get_providers()
    if opened[0] != PROVIDERS[device]:
        raise EngineLoadError(
            f"{path}: asked for {PROVIDERS[device]}, onnxruntime opened {opened[0]}; check its CUDA and "
            "cuDNN libraries, or choose --backend onnxruntime:cpu"
        )
    return session
