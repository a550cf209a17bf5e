"""Finding the CUDA binding that was asked for by name. There is no second try with another."""

from __future__ import annotations

import importlib.util
from importlib import import_module

from runtime.cuda.interface import CudaApi
from runtime.errors import MissingDependencyError, UsageError, one_line

CUDA_APIS = ("cuda-python", "pycuda")
_MODULES = {"cuda-python": "cuda.bindings.driver", "pycuda": "pycuda.driver"}
_CURE = {
    "cuda-python": 'pip install "cuda-python>=12.6,<14", on JetPack 6 its release 12',
    "pycuda": 'pip install "dgsnet[pycuda]", which needs a CUDA toolkit and a compiler',
}


def load_cuda(name: str) -> CudaApi:
    """Imports a binding; nothing of CUDA is started yet.

    Raises:
        UsageError: ``name`` is none of ``CUDA_APIS``.
        MissingDependencyError: it does not import.
    """
    if name not in CUDA_APIS:
        raise UsageError(f"cuda-api: found {name!r}, expected one of {', '.join(CUDA_APIS)}")
    try:
        driver = import_module(_MODULES[name])
    except (ImportError, OSError) as err:
        raise MissingDependencyError(f"{name} does not import ({one_line(err, 200)}); {_CURE[name]}") from err
    if name == "pycuda":
        from runtime.cuda.pycuda_api import PyCuda

        return PyCuda(driver)
    from runtime.cuda.cuda_python import CudaPython

    return CudaPython(driver)


def missing_binding(name: str) -> str | None:
    """Returns why a binding cannot be imported as far as can be said without doing it, None if it can."""
    top, *rest = _MODULES[name].split(".")
    module = ".".join([top, *rest[:-1]])
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    return None if found is not None else f"{name} is not installed; {_CURE[name]}"
