"""Opens an engine and asks its inspector, in a child process: an engine is compiled code, and may crash it.

Run by ``export/doctor/child.py``, on a machine with a GPU only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.doctor.child import answer_with
from export.engine.trt_module import load_trt
from runtime.backends.tensorrt.log import make_log
from runtime.errors import EngineLoadError


def main(argument: str) -> None:
    """Answers with the tensors of an engine and the inspector's JSON; ``argument`` names path and backend."""
    answer_with(lambda: _inspected(**json.loads(argument)))


def _inspected(path: str, backend: str) -> dict[str, Any]:
    trt = load_trt(backend)
    log = make_log(trt.api)
    runtime = trt.api.Runtime(log)
    # Code inside a plan stays switched off, which is the default: reading what it holds needs none of it.
    engine = runtime.deserialize_cuda_engine(Path(path).read_bytes())
    if engine is None:
        raise EngineLoadError(f"{trt.backend} {trt.version}: {log.take_errors() or 'no reason given'}")
    inspector = engine.create_engine_inspector()
    information = inspector.get_engine_information(trt.api.LayerInformationFormat.JSON)
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    return {
        "tensors": [
            {
                "name": name,
                "mode": engine.get_tensor_mode(name).name.lower(),
                "dtype": engine.get_tensor_dtype(name).name.lower(),
                "shape": list(engine.get_tensor_shape(name)),
            }
            for name in names
        ],
        "information": json.loads(information),
    }
