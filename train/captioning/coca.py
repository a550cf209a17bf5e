"""Captions from a CoCa model of open_clip, decoded greedily by a loop over the model's own forward."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import DataError, UsageError, kind_and_line
from runtime.names import printable_name
from train.captioning.preprocessing import CaptionPreprocessing
from train.model.backbone import RANDOM, UNREADABLE, import_open_clip

logger = logging.getLogger("dgsnet")


class CocaCaptioner:
    """A CoCa model with its tokenizer and its preprocessing.

    Attributes:
        model: open_clip's CoCa in float32, in eval mode, without gradients.
        preprocessing: from a decoded picture to the model's input.
    """

    def __init__(self, name: str, pretrained: str, *, device: str = "cpu", max_tokens: int = 30) -> None:
        """Builds the model.

        Args:
            name: open_clip's model name, such as "coca_ViT-B-32".
            pretrained: tag, path of a weight file, or "random", whose captions mean nothing.
            device: where it runs; must be present.
            max_tokens: longest caption, in tokens.

        Raises:
            UsageError: an unknown name or tag, a model without CLIP's vocabulary, or a caption longer than
                the model can write.
            DataError: the weights cannot be fetched or read.
            MissingDependencyError: open_clip is not installed.
        """
        self.model, self._tokenizer = load_coca(name, pretrained)
        longest = int(self.model.context_length)
        if not 1 <= max_tokens <= longest:
            raise UsageError(f"--max-tokens: found {max_tokens}, expected 1 to {longest} for {name}")
        self.preprocessing = CaptionPreprocessing.from_config(name, self.model.visual.preprocess_cfg)
        self.model.to(device)
        self._device = device
        self._max_tokens = max_tokens

    def describe(self, inputs: Sequence[NDArray[np.float32]]) -> list[str]:
        """Returns one caption per input, in their order; may be empty where the model has nothing to say.

        Args:
            inputs: float32 ``[3, S, S]`` each, as ``preprocessing.apply`` returns them.

        Raises:
            UsageError: they do not fit into the device's memory together.
        """
        try:
            tokens = greedy_tokens(
                self.model,
                torch.from_numpy(np.stack(inputs)).to(self._device),
                start=self._tokenizer.sot_token_id,
                end=self._tokenizer.eot_token_id,
                max_tokens=self._max_tokens,
            )
        except torch.OutOfMemoryError as err:
            raise UsageError(
                f"--batch: found {len(inputs)}, too many pictures at once for the memory of {self._device}; "
                "lower it"
            ) from err
        return [self._text(row) for row in tokens.tolist()]

    def _text(self, row: list[int]) -> str:
        """Words of one row ``[start, token, ..., end, pad, ...]``."""
        words = row[1:]
        if self._tokenizer.eot_token_id in words:
            words = words[: words.index(self._tokenizer.eot_token_id)]
        words = [token for token in words if token != self._tokenizer.sot_token_id]
        return " ".join(self._tokenizer.decode(words).split())


@torch.no_grad()
def greedy_tokens(model: Any, images: Tensor, *, start: int, end: int, max_tokens: int) -> Tensor:
    """Writes captions token by token, each time the likeliest one, until every row has ended.

    The images are encoded once. A row that has ended is filled with the model's padding token, which changes
    nothing in the other rows.

    Args:
        model: open_clip's CoCa, in eval mode.
        images: float32 ``[B, 3, S, S]``, on the model's device.
        start: token that every caption begins with.
        end: token that ends a caption.
        max_tokens: longest caption without ``start``, at most the model's context length.

    Returns:
        int64 ``[B, T]`` on the CPU, T at most ``1 + max_tokens``, ``start`` in the first column.
    """
    encoded = model(images)
    text = torch.full((len(images), 1), start, dtype=torch.int64, device=images.device)
    has_ended = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for _ in range(max_tokens):
        output = model(
            None,
            text,
            image_latent=encoded["image_features"],
            image_embs=encoded["image_embs"],
            output_labels=False,
        )
        chosen = output["logits"][:, -1].argmax(dim=-1)
        chosen = torch.where(has_ended, torch.full_like(chosen, model.pad_id), chosen)
        text = torch.cat([text, chosen[:, None]], dim=1)
        has_ended |= chosen == end
        if has_ended.all():
            break
    return text.cpu()


def load_coca(name: str, pretrained: str, *, seed: int = 0) -> tuple[Any, Any]:
    """Returns (model, tokenizer): a CoCa on the CPU in float32, in eval mode, frozen.

    Args:
        name: open_clip's model name.
        pretrained: tag, path of a weight file, or "random".
        seed: of random weights.

    Raises:
        UsageError: an unknown name or tag, or a model that does not use CLIP's vocabulary.
        DataError: the weights cannot be fetched or read.
        MissingDependencyError: open_clip is not installed.
    """
    open_clip = import_open_clip()
    from safetensors import SafetensorError

    _check_name(open_clip, name)
    if pretrained != RANDOM and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags:
            raise UsageError(
                f"--pretrained: {pretrained!r} is neither a file nor a tag of {name}; "
                f"tags: {', '.join(tags) or 'none'}"
            )
    torch.manual_seed(seed)
    try:
        tokenizer = open_clip.get_tokenizer(name)
        model = open_clip.create_model(name, pretrained=None if pretrained == RANDOM else pretrained)
    except (*UNREADABLE, SafetensorError) as err:
        raise DataError(
            f"captioning model {name} with {printable_name(pretrained)} weights: cannot be read or fetched, "
            f"expected weights of this model ({kind_and_line(err)}); give --pretrained FILE, "
            "or --method template"
        ) from err
    vocabulary = model.text_decoder.text_projection
    if vocabulary.shape[1] != getattr(tokenizer, "vocab_size", None):
        raise UsageError(
            f"model {name}: found a vocabulary of {vocabulary.shape[1]} tokens that its tokenizer does not "
            "have, expected CLIP's; choose coca_ViT-B-32 or coca_ViT-L-14"
        )
    if pretrained == RANDOM:
        logger.warning("captioning model %s: random weights, its captions mean nothing", name)
        # open_clip leaves this one matrix uninitialised, because it expects weights to be loaded over it.
        nn.init.normal_(vocabulary, std=vocabulary.shape[0] ** -0.5)
    return model.eval().requires_grad_(False), tokenizer


def _check_name(open_clip: Any, name: str) -> None:
    known = [
        model
        for model in open_clip.list_models()
        if "multimodal_cfg" in (config := open_clip.get_model_config(model) or {})
        and "hf_tokenizer_name" not in config.get("text_cfg", {})
    ]
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3)) or ", ".join(known)
        raise UsageError(f"--model: {name!r} is no CoCa model of open_clip that we know; nearest: {near}")
