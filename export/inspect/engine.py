"""The facts of an engine: its name, its header, its bundle, and its layers where a GPU can open it."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Any

from export.doctor.child import ProbeError, ask_child
from export.inspect.engine_layers import layers_summary
from export.inspect.hashes import hashed_files
from export.inspect.listing import bundle_listing
from runtime.errors import SpecError
from runtime.machine import cuda_device
from runtime.names import printable_name

_NAME = re.compile(
    r"(?P<slug>[a-z0-9.-]+)_(?P<precision>fp16|fp32)_b(?P<profile>\d+-\d+-\d+)_(?P<targets>sm\d+(?:\+sm\d+)*)_"
    r"(?P<backend>trt|rtx)(?P<version>\d+(?:\.\d+){3})(?:-r\d+)?\.(?:engine|plan|trt)"
)
_BACKENDS = {"trt": "tensorrt", "rtx": "tensorrt-rtx"}
_RTX_MAGIC = b"vtrt"
_HEADER_BYTES = 64
# TensorRT-RTX names the fused kernel so in the engine's bytes; an FP32 engine, which has none, does not.
_FUSED_KERNEL = re.compile(rb"_gemm_mha_v2_0x[0-9a-f]{16,64}")


def engine_facts(path: Path) -> dict[str, Any]:
    """Returns what an engine's file says, and its layers where this machine can open it.

    Raises:
        SpecError: it is text, zeros, or shorter than its header says.
        OSError: it cannot be read.
    """
    header = _header(path)
    (entry,) = hashed_files([path])
    listing = bundle_listing(path, entry)
    name = _facts_of_name(path.name)
    backend = _backend(header, name, listing)
    return {
        "schema": 1,
        "kind": "engine",
        "path": printable_name(str(path)),
        "size": entry.size,
        "sha256": entry.sha256,
        "header": header,
        "name": name,
        "bundle": listing,
        "backend": backend,
        "fused_attention": _fused_kernels(path, header),
        "opened": _opened(path, backend),
    }


def _header(path: Path) -> dict[str, Any]:
    """Returns the magic, and what the header of TensorRT-RTX states; that of TensorRT is not documented."""
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    name, size = printable_name(path.name), path.stat().st_size
    if len(head) < _HEADER_BYTES or not any(head) or not any(byte < 9 or byte > 126 for byte in head):
        found = "zeros" if not any(head) else f"{head[:12]!r}"
        raise SpecError(f"{name}: found {found}, expected the bytes of an engine; build or copy it again")
    magic = head[:4].decode("latin-1")
    if head[:4] != _RTX_MAGIC:
        return {"magic": printable_name(magic), "version": None, "size": None}
    stated = int.from_bytes(head[16:24], "little")
    if stated != size:
        raise SpecError(f"{name}: found {size} bytes, its header says {stated}; it is cut off, copy it again")
    return {"magic": magic, "version": ".".join(str(byte) for byte in head[24:28]), "size": stated}


def _facts_of_name(name: str) -> dict[str, Any] | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return {
        "slug": match["slug"],
        "precision": match["precision"],
        "profile": [int(size) for size in match["profile"].split("-")],
        "targets": [f"sm_{target.removeprefix('sm')}" for target in match["targets"].split("+")],
        "backend": _BACKENDS[match["backend"]],
        "version": match["version"],
    }


def _backend(
    header: dict[str, Any], name: dict[str, Any] | None, listing: dict[str, Any] | None
) -> str | None:
    if header["magic"] == _RTX_MAGIC.decode():
        return "tensorrt-rtx"
    if listing and listing["engines"]:
        return str(listing["engines"][0]["backend"])
    return str(name["backend"]) if name else None


def _fused_kernels(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """Returns whether the bytes name fused attention kernels; in TensorRT's own engines none says nothing."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        kernels = {match[0].decode() for match in _FUSED_KERNEL.finditer(content)}
    is_known = bool(kernels) or header["magic"] == _RTX_MAGIC.decode()
    return {"found": bool(kernels) if is_known else None, "kernels": sorted(kernels)}


def _opened(path: Path, backend: str | None) -> dict[str, Any]:
    """Returns tensors and layers, or the reason why the engine was not opened.

    Without a device TensorRT returns nothing or crashes, so it is not tried; with one, a child tries.
    """
    closed: dict[str, Any] = {"reason": None, "tensors": [], "layers": None}
    if cuda_device() is None:
        return closed | {"reason": "no GPU here: engines open on a GPU only"}
    if backend is None:
        return closed | {"reason": "neither its name nor a manifest says which TensorRT built it"}
    try:
        argument = json.dumps({"path": str(path.absolute()), "backend": backend})
        answer = ask_child("export.inspect.opening", argument)
        return {"reason": None, "tensors": answer["tensors"], "layers": layers_summary(answer["information"])}
    except (ProbeError, SpecError) as err:
        return closed | {"reason": f"{backend} does not open it ({err})"}
