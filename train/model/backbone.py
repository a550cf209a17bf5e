"""CLIP from open_clip: a hub's weights, a local file's, or random ones for tests and the demo."""

from __future__ import annotations

import difflib
import hashlib
import logging
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import (
    CheckpointError,
    DataError,
    MissingDependencyError,
    UsageError,
    kind_and_line,
    one_line,
)
from runtime.names import printable_name
from runtime.spec import MOSAIC_SIDE
from train.model.patch_filters import band_pass_filters

logger = logging.getLogger("dgsnet")

CONFIG_FOLDER = Path(__file__).parent / "backbones"
# What torch, open_clip and the readers of weight files raise for files that are no weights of the model.
UNREADABLE = (
    RuntimeError, OSError, EOFError, UserWarning, pickle.UnpicklingError,
    AttributeError, KeyError, StopIteration, TypeError, ValueError,
)  # fmt: skip
# Initialisations instead of weights: open_clip's own, and the same with a patch embedding that passes
# every band of frequencies (see train/model/patch_filters.py).
RANDOM, RANDOM_BANDPASS = "random", "random-bandpass"


@dataclass(frozen=True)
class BackboneInfo:
    """What identifies a backbone inside a checkpoint.

    Attributes:
        name: open_clip's model name, or one of ``train/model/backbones``.
        pretrained: hub tag, "file:<name>" for a local file, "random" or "random-bandpass" for none.
        quick_gelu: whether the activation is OpenAI's x * sigmoid(1.702 x).
        embed_dim: width D of the image embedding.
        sha256: of the vision tower's weights, see ``weights_sha256``.
    """

    name: str
    pretrained: str
    quick_gelu: bool
    embed_dim: int
    sha256: str

    @classmethod
    def from_json(cls, content: object) -> BackboneInfo:
        """Reads what a checkpoint stores of a backbone.

        Raises:
            CheckpointError: a key is missing or unknown, or a value is of another type.
        """
        types = {"name": str, "pretrained": str, "quick_gelu": bool, "embed_dim": int, "sha256": str}
        if not isinstance(content, dict) or set(content) != set(types):
            raise CheckpointError(f"backbone: found {content!r}, expected an object of {', '.join(types)}")
        for key, kind in types.items():
            if type(content[key]) is not kind:
                raise CheckpointError(f"backbone.{key}: found {content[key]!r}, expected {kind.__name__}")
        return cls(**content)

    @property
    def is_on_hub(self) -> bool:
        """Whether the weights can be had again by name, so that a checkpoint need not hold them."""
        return self.pretrained not in (RANDOM, RANDOM_BANDPASS) and not self.pretrained.startswith("file:")


def load_clip(name: str, pretrained: str, *, seed: int) -> tuple[Any, BackboneInfo]:
    """Returns an open_clip model on the CPU in float32, in eval mode, and what identifies it.

    Args:
        name: model name.
        pretrained: hub tag, path of a local weight file, "random" or "random-bandpass".
        seed: of the random initialisation.

    Raises:
        UsageError: an unknown name or tag, or a tower that ``check_tower`` refuses.
        DataError: the weights cannot be fetched or read.
    """
    open_clip = open_clip_with(name)
    from safetensors import SafetensorError

    source = "" if pretrained in (RANDOM, RANDOM_BANDPASS) else pretrained
    quick_gelu, identity = _activation(open_clip, name, source)
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # open_clip only warns where a -quickgelu name meets weights of GELU; every verdict would be off.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            model = open_clip.create_model(name, pretrained=source or None, force_quick_gelu=quick_gelu)
    except (*UNREADABLE, SafetensorError) as err:
        raise DataError(
            f"backbone {name} with {printable_name(source) or 'random weights'}: cannot be read or fetched, "
            f"expected weights of this model ({kind_and_line(err)})"
        ) from err
    visual = model.visual
    check_tower(name, visual)
    if pretrained == RANDOM_BANDPASS:
        identity = RANDOM_BANDPASS
        with torch.no_grad():
            weight = visual.conv1.weight
            weight.copy_(band_pass_filters(weight.shape[0], weight.shape[-1], seed=seed))
    info = BackboneInfo(name, identity, quick_gelu, int(visual.output_dim), weights_sha256(visual))
    return model.eval(), info


def empty_clip(name: str) -> tuple[Any, bool]:
    """Returns (open_clip model in eval mode, whether it has QuickGELU), for weights that are at hand already.

    Its weights have shapes and no memory (torch's "meta" device): random ones, replaced at once, would take
    as long to draw as all the rest of a load.

    Raises:
        UsageError: as of ``load_clip``.
    """
    open_clip = open_clip_with(name)
    quick_gelu, _ = _activation(open_clip, name, "")
    with torch.device("meta"):
        model = open_clip.create_model(name, pretrained=None, device="meta", force_quick_gelu=quick_gelu)
    check_tower(name, model.visual)
    return model.eval(), quick_gelu


def open_clip_with(name: str) -> Any:
    """Returns open_clip, which knows a backbone of this name.

    Raises:
        UsageError: it does not; the message names the nearest.
        MissingDependencyError: open_clip is not installed.
    """
    open_clip = import_open_clip()
    known = open_clip.list_models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3))
        raise UsageError(f"backbone: {name!r} is unknown to open_clip; nearest: {near or 'none'}")
    return open_clip


def check_tower(name: str, visual: Any) -> None:
    """Refuses a vision tower that adapters do not fit or that the export cannot express.

    Raises:
        UsageError: not one of open_clip's plain vision transformers with class-token pooling and a
            projection, on 224 x 224 pixels.
    """
    from open_clip.transformer import QuickGELU, VisionTransformer

    size = getattr(visual, "image_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if not isinstance(visual, VisionTransformer):
        found = f"a {type(visual).__name__}"
    elif sides != (MOSAIC_SIDE, MOSAIC_SIDE):
        found = f"a tower for {' x '.join(str(side) for side in sides)} pixels"
    elif visual.attn_pool is not None or visual.pool_type != "tok":
        found = f"{'attentional' if visual.attn_pool is not None else visual.pool_type} pooling"
    elif visual.output_tokens or visual.proj is None:
        found = "token outputs" if visual.output_tokens else "no projection"
    else:
        odd = []
        for block in visual.transformer.resblocks:
            activation = block.mlp.gelu
            approximate = getattr(activation, "approximate", "none")
            if type(block.attn) is not nn.MultiheadAttention:
                odd.append(f"attention of type {type(block.attn).__name__}")
            elif type(activation) not in (nn.GELU, QuickGELU) or approximate != "none":
                odd.append(f"an activation {activation}")
        if not odd:
            return
        found = odd[0]
    raise UsageError(
        f"backbone {name}: found {found}, expected a plain vision transformer with class-token pooling for "
        f"{MOSAIC_SIDE} x {MOSAIC_SIDE} pixels, such as ViT-B-32 or ViT-L-14"
    )


def tokenizer(name: str) -> Any:
    """Returns open_clip's tokenizer of a model: a list of texts to int64 ``[N, context]``."""
    return import_open_clip().get_tokenizer(name)


def weights_sha256(visual: nn.Module) -> str:
    """Returns the SHA-256 (hex) over names, shapes and float32 bytes of a vision tower's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_state(visual).items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def base_state(visual: nn.Module) -> dict[str, Tensor]:
    """Returns the frozen weights of a tower, adapters left out, by open_clip's names."""
    return {
        name: tensor.detach()
        for name, tensor in visual.state_dict().items()
        if ".lora_a." not in name and ".lora_b." not in name
    }


def _activation(open_clip: Any, name: str, pretrained: str) -> tuple[bool, str]:
    """Returns (quick_gelu, identity): a tag knows its activation, else the model's name decides."""
    by_name = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if not pretrained:
        return by_name, RANDOM
    tag = open_clip.pretrained.get_pretrained_cfg(name, pretrained)
    if tag:
        return bool(tag.get("quick_gelu", False)), pretrained
    if Path(pretrained).is_file():
        twin = f"{name}-quickgelu"
        if not by_name and twin in open_clip.list_models():
            logger.warning(
                "%s: nothing in a weight file tells its activation; %s computes GELU, give --backbone %s "
                "for weights of OpenAI's that need QuickGELU", printable_name(pretrained), name, twin,
            )  # fmt: skip
        return by_name, f"file:{printable_name(Path(pretrained).name)}"
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    raise UsageError(f"pretrained: {pretrained!r} is neither a file nor a tag of {name}; tags: {tags}")


def import_open_clip() -> Any:
    """Returns open_clip with this project's own models registered.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as err:
        raise MissingDependencyError(
            f'open_clip cannot be imported ({one_line(err)}); pip install "dgsnet[train]"'
        ) from err
    open_clip.add_model_config(CONFIG_FOLDER)
    return open_clip
