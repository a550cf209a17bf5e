"""ONNX Runtime on the CPU for graphs that are checked and not served: the one way to open them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.backends.onnx_session import import_onnxruntime, intra_op_threads, text_path
from runtime.errors import EngineLoadError, one_line

# What goes wrong comes back as an exception, and then once more in colour on standard error.
_ONLY_FATAL = 4


def open_cpu_session(
    graph: str | bytes,
    name: str,
    *,
    optimised: bool = True,
    folder: Path | None = None,
    threads: int | None = None,
    is_frugal: bool = False,
) -> Any:
    """Returns an ``onnxruntime.InferenceSession`` that runs on the CPU, or fails.

    Args:
        graph: path of an ONNX file, or a serialised model.
        name: for messages.
        optimised: by the basic level, which folds constants, or not at all. Higher levels crash the process
            on FP16 vision transformers (onnxruntime 1.23 to 1.31) and measured no faster for the emulation.
        folder: where the data file of a serialised model lies; None when it has none.
        threads: inside one operator; None for one per core that this process may use.
        is_frugal: whether tensors are freed as early as can be. In the default order ONNX Runtime takes the
            reductions of a watched tensor last, and so keeps every tensor alive: ViT-L/14 at batch 1 then
            peaks at 3.5 GB, in this order at 1.3 GB (1.2 GB are weights).

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineLoadError: the graph cannot be loaded.
        UsageError: its path cannot be given to onnxruntime.
    """
    source = text_path(graph) if isinstance(graph, str) else graph
    onnxruntime = import_onnxruntime()
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ONLY_FATAL
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimised else levels.ORT_DISABLE_ALL
    if is_frugal:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
    if (count := intra_op_threads(threads)) is not None:
        options.intra_op_num_threads = count
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", text_path(folder.resolve())
        )
    try:
        # With its fallback on it prints some errors on standard output, among the results, and tries again.
        session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
        raise EngineLoadError(f"{name}: onnxruntime cannot load the graph ({one_line(err)})") from err
    session.disable_fallback()
    return session
