"""The ways to run one model on a CPU: each takes uint8 mosaics and gives logits and embeddings.

Each is opened in a process of its own, which imports nothing that the others need.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.onnxruntime_cpu.graphs import (
    Graphs,
    torch_model,
    with_standard_attention,
    with_transformers_optimizer,
)
from runtime.backends.onnx_session import OnnxSession, import_onnxruntime
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8]], Outputs]
SHIPPED = "shipped: model.onnx"
EAGER = "PyTorch eager"
COMPILED = "torch.compile"
OPENVINO = "OpenVINO"
HUGE_PAGES = "shipped, huge pages"
ATTENTION = "opset-23 Attention"
REWRITTEN = "rewritten: Gemm and FusedMatMul"
# What a contestant's process finds set from its start; glibc reads it once. Linux alone acts on it.
ENVIRONMENT = {HUGE_PAGES: {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
_MAX_BATCH = 64


@dataclass(frozen=True)
class Setting:
    """A session of ONNX Runtime that is not the shipped one.

    Attributes:
        level: suffix of GraphOptimizationLevel.
        options: attributes of SessionOptions.
        entries: configuration entries of the session.
    """

    level: str = "ENABLE_ALL"
    options: Mapping[str, Any] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)


def _shipped(graphs: Graphs, threads: int) -> Run:
    profile = (1, 8, _MAX_BATCH)
    session = OnnxSession(
        graphs.contract, device="cpu", embed_dim=graphs.embed_dim, profile=profile, threads=threads
    )
    return session.run


def _session(
    graphs: Graphs,
    threads: int,
    *,
    path: Callable[[Graphs], Path] = lambda graphs: graphs.contract,
    setting: Setting | None = None,
) -> Run:
    onnxruntime = import_onnxruntime()
    setting = setting or Setting()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{setting.level}")
    for name, value in setting.options.items():
        setattr(options, name, value)
    for name, value in setting.entries.items():
        options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(str(path(graphs)), options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> Outputs:
        logit, embedding = session.run([LOGIT_NAME, EMBEDDING_NAME], {INPUT_NAME: images})
        return np.asarray(logit), np.asarray(embedding)

    return run


def _torch(graphs: Graphs, threads: int, *, is_compiled: bool = False) -> Run:
    # Compiled once for all rounds: only the laps are timed.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(graphs.contract.with_name("compiled"))
    import torch

    torch.set_num_threads(threads)
    model = torch_model(graphs)
    forward = torch.compile(model, dynamic=False) if is_compiled else model

    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            logit, embedding = forward(torch.from_numpy(images))
        return logit.numpy(), embedding.numpy()

    return run


def _openvino(graphs: Graphs, threads: int) -> Run:
    openvino: Any = importlib.import_module("openvino")

    core = openvino.Core()
    # Its own choice would be bfloat16 where the CPU has it: no FP32 parity.
    limits = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    hint = {"PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(graphs.contract), "CPU", limits | hint)
    request = compiled.create_infer_request()

    def run(images: NDArray[np.uint8]) -> Outputs:
        found = request.infer({INPUT_NAME: images})
        return np.array(found[LOGIT_NAME]), np.array(found[EMBEDDING_NAME])

    return run


_MAIN: dict[str, Callable[[Graphs, int], Run]] = {
    SHIPPED: _shipped,
    HUGE_PAGES: _shipped,
    ATTENTION: partial(_session, path=with_standard_attention),
    REWRITTEN: partial(_session, path=lambda graphs: graphs.cpu),
    EAGER: _torch,
    COMPILED: partial(_torch, is_compiled=True),
    OPENVINO: _openvino,
}
# All on the contract graph.
_SETTINGS = {
    "level DISABLE_ALL": Setting("DISABLE_ALL"),
    "level ENABLE_BASIC": Setting("ENABLE_BASIC"),
    "level ENABLE_EXTENDED": Setting("ENABLE_EXTENDED"),
    "no prepacking": Setting(entries={"session.disable_prepacking": "1"}),
    "no spinning": Setting(entries={"session.intra_op.allow_spinning": "0"}),
    "dynamic blocks of 4": Setting(entries={"session.dynamic_block_base": "4"}),
    "denormals are zero": Setting(entries={"session.set_denormal_as_zero": "1"}),
    "no arena": Setting(options={"enable_cpu_mem_arena": False}),
    "no memory pattern": Setting(options={"enable_mem_pattern": False}),
}
_OTHER: dict[str, Callable[[Graphs, int], Run]] = {
    "onnxruntime.transformers": partial(_session, path=with_transformers_optimizer),
    **{name: partial(_session, setting=setting) for name, setting in _SETTINGS.items()},
}


def contestants(*, is_all: bool, compiles: bool) -> list[str]:
    """Returns the names of those that take part; OpenVINO does where it is installed.

    Args:
        is_all: also every other setting of ONNX Runtime.
        compiles: also torch.compile.
    """
    absent = set() if importlib.util.find_spec("openvino") else {OPENVINO}
    if not compiles:
        absent.add(COMPILED)
    return [name for name in (*_MAIN, *(_OTHER if is_all else ())) if name not in absent]


def open_contestant(name: str, graphs: Graphs, threads: int) -> Run:
    """Opens one of ``contestants``; a package that cannot raises what it raises."""
    return (_MAIN | _OTHER)[name](graphs, threads)
