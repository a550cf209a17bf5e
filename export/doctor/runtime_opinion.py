"""Asks the runtime itself whether it would run an engine made for exactly this machine."""

from __future__ import annotations

from runtime.backends.selection import select_engine
from runtime.bundle.engine_entry import EngineEntry
from runtime.bundle.manifest import Manifest
from runtime.decision import Decision
from runtime.errors import MissingDependencyError
from runtime.spec import Preprocessing


def refusal(backend: str, version: str, target: str, gpu: str | None) -> str | None:
    """Returns the runtime's reason against an engine of this machine, None when it would take it.

    Args:
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        version: of the backend as installed.
        target: "cpu", "cuda" or "sm_<NN>".
        gpu: name of the GPU, None without one.
    """
    entry = EngineEntry(
        file="engines/any.engine",
        backend=backend,
        precision="fp32",
        profiles=((1, 1, 1),),
        targets=(target,),
        version=version,
        gpu=gpu,
        driver=None,
        verified="not-run",
    )
    manifest = Manifest(
        embed_dim=1,
        preprocessing=Preprocessing(),
        decision=Decision(),
        tolerances={},
        golden_file="",
        golden_reference="",
        files={},
        engines=(entry,),
        digest="",
        raw={},
    )
    asked = f"{backend}:{target}" if backend == "onnxruntime" else backend
    try:
        select_engine(manifest, asked)
    except MissingDependencyError as err:
        # The message opens with what was asked and ends with a flag of another command.
        reason = str(err).partition(" cannot run here: ")[2] or str(err)
        return reason.rpartition("; choose another")[0] or reason
    return None
