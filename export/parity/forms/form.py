"""The forms of one model that parity compares, each behind the same two names: ``name`` and ``run``.

A form may also be one that cannot run here; it then stands in the chain with its reason and is never passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.parity.forms.graph_as_written import GraphAsWritten
from export.parity.statistics.compare import Outputs
from runtime.errors import DgsNetError, MissingDependencyError, kind_and_line

# The keys of the chain, in its order; an engine's and a file hop's key goes on with the backend's name.
UNMERGED, MERGED, ONNX_FP32, FP16 = "pytorch", "merged", "onnx-fp32", "fp16-emulated"
ENGINE, FILES = "engine", "files"
# What a graph is run at in one piece, whatever its profile allows.
CHUNK = 16


class Runnable(Protocol):
    """What a form must offer: any object with these two."""

    @property
    def name(self) -> str:
        """What ran, as reports show it."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Returns logits ``[n]`` and embeddings ``[n, D]`` of mosaics uint8 ``[n, 224, 224, 3]``."""


@dataclass(frozen=True)
class Form:
    """One form of the model, in the chain.

    Attributes:
        key: stable name of its hop, such as "onnx-fp32" or "engine onnxruntime:cpu".
        title: for a person.
        parent: key of the form that it is made from, None for the first; what it is compared with.
        precision: "fp32" or "fp16": which tolerance holds against its parent.
        runnable: what computes; None where it cannot run here.
        reason: why it cannot.
        is_missing: whether what lacks is this machine's, so that asking for it by name ends with exit code 3;
            else it failed where it should have worked, which fails the gate.
        profile: (min, opt, max) batch size for the batch laws; None when they do not apply.
    """

    key: str
    title: str
    parent: str | None
    precision: str
    runnable: Runnable | None
    reason: str = ""
    is_missing: bool = False
    profile: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Computed:
    """A function as something runnable."""

    name: str
    function: Callable[[NDArray[np.uint8]], Outputs]

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Returns what the function gives."""
        return self.function(images)


class TorchForms(Protocol):
    """What the chain needs of a checkpoint: both its forms in PyTorch."""

    def reference(self, images: NDArray[np.uint8]) -> Outputs:
        """Returns logits and embeddings, adapters beside the weights."""

    def merged_reference(self, images: NDArray[np.uint8]) -> Outputs:
        """Returns logits and embeddings, adapters merged into the weights."""


@dataclass(frozen=True)
class Graphs:
    """The graphs of a bundle, or of one that is being built.

    Attributes:
        fp32: model.onnx.
        fp16: model_fp16.onnx, None where the bundle has none.
        embed_dim: width D.
        profile: (min, opt, max) batch size that is promised.
    """

    fp32: Path
    fp16: Path | None
    embed_dim: int
    profile: tuple[int, int, int]


def model_forms(checkpoint: TorchForms | None, graphs: Graphs, stack: ExitStack) -> list[Form]:
    """Opens every form before the engines, from PyTorch to the emulated FP16 graph.

    Args:
        checkpoint: None leaves PyTorch out: the chain then begins with the FP32 graph.
        graphs: the graphs.
        stack: closes what is opened.
    """
    forms = []
    if checkpoint is None:
        reason = "no --checkpoint"
        forms.append(Form(UNMERGED, "PyTorch FP32", None, "fp32", None, reason, is_missing=True))
        forms.append(Form(MERGED, "LoRA merged", UNMERGED, "fp32", None, reason, is_missing=True))
    else:
        unmerged = Computed("pytorch", checkpoint.reference)
        merged = Computed("pytorch, LoRA merged", checkpoint.merged_reference)
        forms.append(Form(UNMERGED, "PyTorch FP32", None, "fp32", unmerged))
        forms.append(Form(MERGED, "LoRA merged", UNMERGED, "fp32", merged))
    parent = MERGED if checkpoint is not None else None

    def as_written() -> Runnable:
        opened = GraphAsWritten(graphs.fp32, embed_dim=graphs.embed_dim, profile=(1, *graphs.profile[1:]))
        return stack.enter_context(opened)

    low, best, most = graphs.profile
    onnx_form = opened_form(ONNX_FP32, "ONNX FP32", parent, "fp32", as_written, profile=(low, best, most))
    forms.append(onnx_form)
    fp16 = graphs.fp16
    if fp16 is None:
        reason = "the bundle holds no FP16 graph"
        forms.append(Form(FP16, "FP16 emulated", ONNX_FP32, "fp16", None, reason, is_missing=True))
        return forms

    def emulated() -> Runnable:
        from export.precision.watching import open_emulation

        return stack.enter_context(open_emulation(fp16))

    forms.append(opened_form(FP16, "FP16 emulated", ONNX_FP32, "fp16", emulated))
    return forms


def opened_form(
    key: str,
    title: str,
    parent: str | None,
    precision: str,
    opener: Callable[[], Runnable],
    *,
    profile: tuple[int, int, int] | None = None,
) -> Form:
    """Opens one form; what cannot open becomes a form with its reason instead of the end of the report."""
    try:
        return Form(key, title, parent, precision, opener(), profile=profile)
    except DgsNetError as err:
        is_missing = isinstance(err, MissingDependencyError)
        return Form(key, title, parent, precision, None, str(err), is_missing=is_missing)


def run_in_chunks(form: Runnable, images: NDArray[np.uint8], size: int) -> Outputs:
    """Returns logits ``[N]`` and embeddings ``[N, D]`` of the mosaics, run ``size`` at a time."""
    parts = [form.run(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def ancestors(forms: Sequence[Form], key: str) -> list[str]:
    """Returns the keys of the forms that a form is made from, nearest first."""
    parents = {form.key: form.parent for form in forms}
    chain = []
    parent = parents.get(key)
    while parent is not None:
        chain.append(parent)
        parent = parents.get(parent)
    return chain


def failure_text(err: Exception) -> str:
    """Returns why a form broke, on one line; what none of ours raised carries its kind."""
    if isinstance(err, DgsNetError):
        return str(err)
    return kind_and_line(err)
