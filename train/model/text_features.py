"""Text features of the captions: computed once, kept on disk, held without the text tower.

The text tower is never trained: f_x = encode_text(caption; theta_0) is a constant of the run. Nothing here
keeps a reference to the model, so the caller's ``del clip`` frees the tower.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.console import Progress
from runtime.errors import SpecError, one_line
from runtime.files import write_atomically
from runtime.names import printable_name
from train.model.backbone import tokenizer

logger = logging.getLogger("dgsnet")

CACHE_NAME = "text_features.safetensors"
TEXT_BATCH = 256
# Raised whenever the same inputs would give other features or another file.
_CACHE_SCHEMA = 1
_KEY, _DIGEST, _ROWS, _INDEX = "key", "digest", "rows", "index"


@dataclass(frozen=True)
class TextFeatures:
    """Text features of N captions, equal captions held once.

    Attributes:
        rows: of the distinct captions, float32 ``[U, D]`` on the CPU, not normalised.
        index: row of each caption, int64 ``[N]`` on the CPU.
    """

    rows: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, captions: Tensor | Sequence[int] | slice) -> Tensor:
        """Returns f_x of some captions, float32 ``[B, D]`` on the CPU; ``[:]`` of all, ``[N, D]``."""
        return self.rows[self.index[captions]]


def encode_captions(clip: Any, backbone: str, captions: Sequence[str], device: str) -> Tensor:
    """Returns f_x, the frozen text feature of every caption, float32 ``[N, D]`` on the CPU, not normalised.

    Args:
        clip: open_clip model with its text tower, in eval mode and float32, on ``device``. Its text
            parameters are frozen by this call.
        backbone: model name, for its tokenizer.
        captions: one per sample.
        device: where ``clip`` is.

    Raises:
        SpecError: the text tower is not float32, or holds or would receive a gradient.
    """
    return text_features_from_captions(clip, backbone, captions, device)[:]


def text_features_from_captions(
    clip: Any, backbone: str, captions: Sequence[str], device: str
) -> TextFeatures:
    """Encodes every distinct caption once; arguments and errors as of ``encode_captions``."""
    distinct = sorted(set(captions))
    place = {text: row for row, text in enumerate(distinct)}
    tokenize = tokenizer(backbone)
    for parameter in text_parameters(clip).values():
        parameter.requires_grad_(False)
    _check_frozen(clip)
    width = clip.visual.output_dim
    rows = torch.empty((len(distinct), width), dtype=torch.float32)
    autocast = torch.autocast(torch.device(device).type, enabled=False)
    with torch.no_grad(), autocast, Progress("encoding captions", len(distinct)) as progress:
        for start in range(0, len(distinct), TEXT_BATCH):
            texts = distinct[start : start + TEXT_BATCH]
            rows[start : start + len(texts)] = clip.encode_text(tokenize(texts).to(device)).cpu()
            progress.advance(len(texts))
    _check_frozen(clip)
    return TextFeatures(rows, torch.tensor([place[text] for text in captions], dtype=torch.int64))


def cached_text_features(
    path: Path, clip: Any, backbone: str, captions: Sequence[str], device: str
) -> TextFeatures:
    """Returns the features from the file at ``path``, or encodes the captions and writes that file.

    A file that is damaged, or was made from other weights or captions, is replaced, and the log says so: it
    is a cache, and what it holds follows from the arguments.

    Args:
        path: safetensors file; its folder exists.
        clip: as of ``encode_captions``.
        backbone: as of ``encode_captions``.
        captions: one per sample.
        device: where ``clip`` is.

    Raises:
        SpecError: as of ``encode_captions``.
        OSError: the file cannot be written.
    """
    key = features_key(clip, backbone, captions)
    stored = _read(path, key) if path.exists() else None
    if stored is not None:
        logger.info("text features: %s, nothing to encode", printable_name(str(path)))
        return stored
    from safetensors.torch import save

    features = text_features_from_captions(clip, backbone, captions, device)
    facts = {_KEY: key, _DIGEST: _digest(features)}
    write_atomically(path, save({_ROWS: features.rows, _INDEX: features.index}, metadata=facts))
    return features


def features_key(clip: Any, backbone: str, captions: Sequence[str]) -> str:
    """Returns the SHA-256 (hex) over all that text features follow from.

    That is: the backbone's name (its tokenizer), the kinds of the text tower's modules (two models of the
    same weights may differ in their activation alone), its weights, open_clip's version, and the captions
    in order.
    """
    import open_clip

    digest = hashlib.sha256()
    digest.update(f"{_CACHE_SCHEMA}\0{open_clip.__version__}\0{backbone}\0".encode())
    for name, module in clip.named_modules():
        if name and not name.startswith("visual"):
            digest.update(f"{name}={type(module).__name__}\0".encode())
    for name, parameter in sorted(text_parameters(clip).items()):
        digest.update(f"{name}{tuple(parameter.shape)}\0".encode())
        digest.update(parameter.detach().cpu().float().contiguous().numpy().tobytes())
    for caption in captions:
        encoded = caption.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def text_parameters(clip: Any) -> dict[str, nn.Parameter]:
    """Returns the parameters of a CLIP that are not its vision tower's, by open_clip's names."""
    return {name: p for name, p in clip.named_parameters() if not name.startswith("visual.")}


def _check_frozen(clip: Any) -> None:
    found: Iterator[str] = (
        f"{name} ({'trainable' if p.requires_grad else 'with a gradient' if p.grad is not None else p.dtype})"
        for name, p in text_parameters(clip).items()
        if p.requires_grad or p.grad is not None or p.dtype != torch.float32
    )
    first = next(found, None)
    if first is not None:
        raise SpecError(f"text tower: found {first}, expected frozen float32 weights that no loss reaches")


def _read(path: Path, key: str) -> TextFeatures | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            facts = stored.metadata() or {}
            if facts.get(_KEY) != key:
                reason = "made from other weights or captions"
            else:
                features = TextFeatures(stored.get_tensor(_ROWS), stored.get_tensor(_INDEX))
                if facts.get(_DIGEST) == _digest(features):
                    return features
                reason = "damaged (its values have changed)"
    except (SafetensorError, OSError, ValueError) as err:
        reason = f"damaged ({one_line(err, 200)})"
    logger.warning("text features: %s is %s; encoding the captions again", printable_name(str(path)), reason)
    return None


def _digest(features: TextFeatures) -> str:
    digest = hashlib.sha256()
    for tensor in (features.rows, features.index):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
