"""What the parts of a checkpoint give in PyTorch, seen by hooks on its modules; no torch is imported here."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.parity.bisect.boundaries import HEAD, PATCHES, POOL, PREPROCESS, PROJECTION, STEM
from export.parity.bisect.forcing import Values
from export.parity.statistics.compare import Outputs


class HookableCheckpoint(Protocol):
    """What is needed of a checkpoint."""

    @property
    def tower(self) -> Any:
        """The vision transformer that ``reference`` runs, adapters beside the weights."""

    def reference(self, images: NDArray[np.uint8]) -> Outputs:
        """Returns logits and embeddings."""


def torch_values(checkpoint: HookableCheckpoint, images: NDArray[np.uint8]) -> Values:
    """Returns the result of every part by its name, as ``boundaries_of`` names them, float32.

    Blocks and stem are ``[n, tokens, D]``, the patch embedding ``[n, D, rows, columns]``, pool ``[n, D]``.

    Args:
        checkpoint: an opened one, unmerged.
        images: mosaics, uint8 ``[n, 224, 224, 3]``.
    """
    tower = checkpoint.tower
    values: dict[str, list[NDArray[np.float32]]] = {}
    handles = []

    def keep(name: str, tensor: Any) -> None:
        values.setdefault(name, []).append(np.array(tensor.detach().numpy(), np.float32))

    def watch(module: Any, name: str, change: Any = None) -> None:
        def hook(_module: Any, _given: Any, result: Any) -> None:
            keep(name, result if change is None else change(result))

        handles.append(module.register_forward_hook(hook))

    def batch_first(result: Any) -> Any:
        return result if getattr(tower.transformer, "batch_first", True) else result.transpose(0, 1)

    def class_token(result: Any) -> Any:
        return result[:, 0] if result.dim() == 3 else result

    try:
        handles.append(tower.conv1.register_forward_pre_hook(lambda _m, given: keep(PREPROCESS, given[0])))
        watch(tower.conv1, PATCHES)
        watch(tower.ln_pre, STEM)
        for number, block in enumerate(tower.transformer.resblocks):
            watch(block, f"block_{number}", batch_first)
        watch(tower.ln_post, POOL, class_token)
        logit, embedding = checkpoint.reference(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: np.concatenate(parts) for name, parts in values.items()} | {
        PROJECTION: embedding,
        HEAD: logit,
    }
