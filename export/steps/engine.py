"""Building an engine in a process of its own: TensorRT keeps gigabytes that later steps can use."""

from __future__ import annotations

from pathlib import Path

from export.engine.options import BuildOptions, BuiltEngine
from export.steps.child import run_in_child


def build_engine(onnx_path: Path, output_path: Path, options: BuildOptions, *, backend: str) -> BuiltEngine:
    """Builds an engine as ``export.engine.builder.build_engine`` does, with its arguments and errors.

    Raises:
        EngineBuildError: also when the process is killed or crashes.
    """
    title = f"{backend} {options.precision} engine"
    return run_in_child(title, _build, onnx_path, output_path, options, backend)


def _build(onnx_path: Path, output_path: Path, options: BuildOptions, backend: str) -> BuiltEngine:
    from export.engine import builder

    return builder.build_engine(onnx_path, output_path, options, backend=backend)
