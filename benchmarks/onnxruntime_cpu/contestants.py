"""The ways to run one model on a CPU: each takes uint8 mosaics and gives logits and embeddings."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.onnxruntime_cpu.graphs import Graphs, with_standard_attention, with_transformers_optimizer
from runtime.backends.onnx_session import OnnxSession
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8]], Outputs]
SHIPPED = "shipped: model.onnx"
REWRITTEN = "rewritten: Gemm and FusedMatMul"
EAGER = "PyTorch eager"
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


_LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED")
# All of them on the contract graph.
_SETTINGS = {
    "no prepacking": Setting(entries={"session.disable_prepacking": "1"}),
    "no spinning": Setting(entries={"session.intra_op.allow_spinning": "0"}),
    "dynamic blocks of 4": Setting(entries={"session.dynamic_block_base": "4"}),
    "denormals are zero": Setting(entries={"session.set_denormal_as_zero": "1"}),
    "no arena": Setting(options={"enable_cpu_mem_arena": False}),
    "no memory pattern": Setting(options={"enable_mem_pattern": False}),
}


def main_contestants(graphs: Graphs, threads: int) -> dict[str, Run]:
    """Returns the engine as shipped, the rewritten graph, PyTorch twice and, if installed, OpenVINO."""
    torch.set_num_threads(threads)
    made = {
        SHIPPED: _shipped(graphs, graphs.contract, threads),
        REWRITTEN: _session_run(graphs.cpu, threads, Setting()),
        EAGER: _torch_run(graphs.model),
        "torch.compile": _torch_run(torch.compile(graphs.model, dynamic=False)),
    }
    if importlib.util.find_spec("openvino"):
        made["OpenVINO"] = _openvino_run(graphs.contract, threads)
    return made


def other_contestants(graphs: Graphs, threads: int) -> dict[str, Callable[[], Run]]:
    """Returns every other configuration of ONNX Runtime; each is opened when it is called."""
    made: dict[str, Callable[[], Run]] = {
        "opset-23 Attention": lambda: _session_run(with_standard_attention(graphs), threads, Setting()),
        "onnxruntime.transformers": lambda: _session_run(
            with_transformers_optimizer(graphs), threads, Setting()
        ),
    }
    for level in _LEVELS:
        made[f"level {level}"] = lambda level=level: _session_run(  # type: ignore[misc]
            graphs.contract, threads, Setting(level=level)
        )
    for name, setting in _SETTINGS.items():
        made[name] = lambda setting=setting: _session_run(graphs.contract, threads, setting)  # type: ignore[misc]
    return made


def _shipped(graphs: Graphs, path: Path, threads: int) -> Run:
    embed_dim = graphs.model.head_image.in_features
    session = OnnxSession(
        path, device="cpu", embed_dim=embed_dim, profile=(1, 8, _MAX_BATCH), threads=threads
    )
    return session.run


def _torch_run(model: Any) -> Run:
    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            logit, embedding = model(torch.from_numpy(images))
        return logit.numpy(), embedding.numpy()

    return run


def _session_run(path: Path, threads: int, setting: Setting) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{setting.level}")
    for name, value in setting.options.items():
        setattr(options, name, value)
    for name, value in setting.entries.items():
        options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> Outputs:
        logit, embedding = session.run([LOGIT_NAME, EMBEDDING_NAME], {INPUT_NAME: images})
        return np.asarray(logit), np.asarray(embedding)

    return run


def _openvino_run(path: Path, threads: int) -> Run:
    openvino: Any = importlib.import_module("openvino")

    core = openvino.Core()
    # Its own choice would be bfloat16 where the CPU has it: no FP32 parity.
    limits = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    hint = {"PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(path), "CPU", limits | hint).create_infer_request()

    def run(images: NDArray[np.uint8]) -> Outputs:
        found = request.infer({INPUT_NAME: images})
        return np.array(found[LOGIT_NAME]), np.array(found[EMBEDDING_NAME])

    return run
