"""One opened engine: the primary context, TensorRT's runtime, the engine, and the source of its contexts."""

from __future__ import annotations

import hashlib
import mmap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.backends.tensorrt.compatibility import HOST_CODE_REASON, mismatch
from runtime.backends.tensorrt.contexts import ContextSource, plain_contexts, rtx_contexts
from runtime.backends.tensorrt.contract import check_contract
from runtime.backends.tensorrt.log import make_log
from runtime.backends.tensorrt.module import four_part_version, import_tensorrt
from runtime.backends.tensorrt.plan import check_header
from runtime.bundle.engine_entry import EngineEntry
from runtime.cuda.interface import CudaApi, Device
from runtime.cuda.releases import Releases
from runtime.errors import EngineLoadError

if TYPE_CHECKING:
    import tensorrt

    from runtime.backends.tensorrt.log import TensorRtLog


@dataclass(frozen=True)
class EngineFile:
    """An engine and what it is opened with.

    Attributes:
        path: the plan.
        entry: its line in the manifest.
        embed_dim: width D of the embedding that the manifest states.
        sha256: of the plan, as the manifest states it.
        cache: the user's cache folder.
        allow_host_code: whether the plan may bring machine code for the CPU.
        rtx_kernels: see ``rtx_contexts``.
    """

    path: Path
    entry: EngineEntry
    embed_dim: int
    sha256: str
    cache: Path
    allow_host_code: bool
    rtx_kernels: str


class EngineHost:
    """Opens an engine in the thread that will close it, and hands out its execution contexts.

    Args:
        file: the engine.
        cuda: the CUDA binding.

    Attributes:
        file: the engine.
        cuda: the CUDA binding.
        device: where it runs, once opened.
    """

    def __init__(self, file: EngineFile, cuda: CudaApi) -> None:
        self.file = file
        self.cuda = cuda
        self.device: Device | None = None
        self._backend = file.entry.backend
        self._api = import_tensorrt(self._backend)
        self._version = four_part_version(self._api, self._backend)
        self._releases = Releases()
        self._making = threading.Lock()
        # Held here alone, so that giving one up frees it: what an exception passes through keeps its locals.
        self._log: TensorRtLog | None = None
        self._runtime: tensorrt.Runtime | None = None
        self._engine: tensorrt.ICudaEngine | None = None
        self._source: ContextSource | None = None

    def open(self) -> None:
        """Takes the primary context for this thread, and opens and checks the engine.

        Raises:
            EngineLoadError: manifest and machine disagree, or the engine does not load or breaks its
                contract.
            MissingDependencyError: there is no driver or no device.
        """
        self.device = self.cuda.open_device()
        self._check_match(self.device)
        check_header(self.file.path, self.file.entry)
        self.cuda.retain()
        self._releases.add(self.cuda.release)
        self.cuda.bind_thread()
        self._releases.add(self.cuda.unbind_thread)
        self._releases.add(self._forget)
        self._log = make_log(self._api)
        self._runtime = self._api.Runtime(self._log)
        if self._runtime is None:
            raise self._failed("TensorRT's runtime does not start")
        self._runtime.engine_host_code_allowed = self.file.allow_host_code
        self._engine = self._deserialize(self._runtime)
        if self._engine is None:
            raise self._failed(f"it cannot be opened on {self.device.name}")
        check_contract(self._api, self._engine, self.file.entry, self.file.embed_dim, self.file.path.name)
        if self._backend == "tensorrt-rtx":
            self._source = rtx_contexts(self._api, self._engine, self.file.rtx_kernels, self._cache_path())
        else:
            self._source = plain_contexts(self._api, self._engine)
        self._releases.add(self._source.save)

    def close(self) -> None:
        """Frees engine, runtime and primary context, in this order; its contexts must be gone."""
        self._releases.close()

    def scratch_bytes(self) -> int:
        """Returns how much device memory a context needs while it runs, at most."""
        if self._engine is None:
            raise self._closed()
        return int(self._engine.device_memory_size_v2)

    def new_context(self) -> tensorrt.IExecutionContext:
        """Returns an execution context that has no memory, profile or addresses yet.

        Raises:
            EngineLoadError: TensorRT refuses.
        """
        if self._source is None:
            raise self._closed()
        with self._making:
            context = self._source.make()
        if context is None:
            raise self._failed(
                "no execution context can be made", "free memory on the GPU, or lower --contexts"
            )
        return context

    def refused(self, call: str) -> EngineLoadError:
        """Returns the error for a call of TensorRT that answered no."""
        return self._failed(f"{call} was refused", "open the bundle again, or build the engine again here")

    def _check_match(self, device: Device) -> None:
        reason = mismatch(self.file.entry, version=self._version, gpu=device.name, target=device.target)
        if reason is None and self.file.entry.version_compatible and not self.file.allow_host_code:
            reason = HOST_CODE_REASON
        if reason is not None:
            raise EngineLoadError(f"{self.file.path.name}: {reason}; choose another --engine or --backend")

    def _deserialize(self, runtime: tensorrt.Runtime) -> tensorrt.ICudaEngine | None:
        try:
            with (
                open(self.file.path, "rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as plan,
            ):
                return runtime.deserialize_cuda_engine(plan)
        except (OSError, ValueError) as err:
            raise EngineLoadError(f"{self.file.path}: cannot be read ({err}); get the bundle again") from err

    def _cache_path(self) -> Path:
        device = self.device.name if self.device else ""
        key = "\n".join((self.file.sha256, self._version, device, self.file.rtx_kernels))
        return self.file.cache / "rtx-kernels" / hashlib.sha256(key.encode()).hexdigest()

    def _forget(self) -> None:
        self._source = None
        self._engine = None
        self._runtime = None
        self._log = None

    def _closed(self) -> EngineLoadError:
        return EngineLoadError(f"{self.file.path.name}: the engine is closed; open the bundle again")

    def _failed(self, what: str, cure: str = "") -> EngineLoadError:
        said = self._log.take_errors() if self._log is not None else ""
        cure = cure or f"build it again on this machine, or choose another --backend than {self._backend}"
        if not self.file.allow_host_code and "hostcode" in said.lower().replace(" ", "").replace("_", ""):
            cure = "if you trust where it comes from, add --allow-engine-host-code"
        return EngineLoadError(
            f"{self.file.path.name}: {what} ({self._backend} {self._version}: {said or 'no reason given'}); "
            f"{cure}"
        )
