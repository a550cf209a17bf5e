"""A run's model, written to RUN/checkpoint.safetensors with its record and built again from both."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime import __version__
from runtime.decision import Decision
from runtime.errors import CheckpointError, SpecError, UsageError
from runtime.files import write_atomically
from runtime.spec import CLASSES, Preprocessing
from train.config import StoredConfig, TrainConfig, stored_config
from train.model.backbone import BackboneInfo, base_state, empty_clip, load_clip, weights_sha256
from train.model.detector import HEAD_PREFIX, DgsNet
from train.model.lora import load_lora_state, lora_state
from train.recipes import build_model
from train.record import RECORD_NAME, SCHEMA_VERSION, read_record, write_record

WEIGHTS_NAME = "checkpoint.safetensors"
BASE_PREFIX = "base."

logger = logging.getLogger("dgsnet.train")


@dataclass(frozen=True)
class Checkpoint:
    """A run read back: the model as trained (adapters unmerged) and what describes it."""

    model: DgsNet
    config: TrainConfig
    backbone: BackboneInfo
    decision: Decision
    weights_sha256: str
    record: dict[str, Any]


def save_checkpoint(
    run: Path,
    model: DgsNet,
    config: TrainConfig,
    backbone: BackboneInfo,
    data: dict[str, Any],
    *,
    identity: dict[str, Any] | None = None,
) -> None:
    """Writes a run's checkpoint atomically; the record is written last and names the weights' hash.

    Args:
        run: existing folder.
        model: adapters unmerged.
        config: stored whole.
        backbone: its weights are stored too when no hub has them.
        data: fingerprint and counts of the training data.
        identity: what the run was made from, for a later ``--resume`` to compare; None where none was run.

    Raises:
        CheckpointError: a weight is not finite; nothing is written then.
    """
    from safetensors.torch import save

    tensors = lora_state(model.visual) | model.heads_state()
    if not backbone.is_on_hub:
        tensors |= {BASE_PREFIX + name: tensor for name, tensor in base_state(model.visual).items()}
    _check_finite("trained weights", tensors)
    encoded = save({name: tensor.cpu().float().contiguous() for name, tensor in tensors.items()})
    record = {
        "schema": SCHEMA_VERSION,
        "dgsnet": __version__,
        "config": config.to_json(),
        "backbone": dataclasses.asdict(backbone),
        "lora": _lora_facts(config),
        "merged": False,
        "preprocessing": Preprocessing().to_json(),
        "decision": Decision().to_json(),
        "classes": list(CLASSES),
        "data": data,
        "identity": identity or {},
        "weights_sha256": hashlib.sha256(encoded).hexdigest(),
    }
    write_atomically(run / WEIGHTS_NAME, encoded)
    write_record(run, record)


def load_checkpoint(run: Path) -> Checkpoint:
    """Rebuilds the trained model, adapters unmerged, in eval mode on the CPU in float32.

    Raises:
        CheckpointError: files missing, damaged, with non-finite weights, of another backbone, or without a
            setting that shapes the model. One that does not may be absent, with a warning.
    """
    record = read_record(run)
    path = run / WEIGHTS_NAME
    state = _read_weights(run, record)
    config, backbone, decision = _described(run / RECORD_NAME, record)
    try:
        model = _rebuild(path, state, config, backbone)
    except (UsageError, SpecError) as err:
        raise CheckpointError(f"{run / RECORD_NAME}: the model cannot be built again ({err})") from err
    return Checkpoint(model, config, backbone, decision, record["weights_sha256"], record)


def read_trained_weights(run: Path) -> dict[str, Tensor]:
    """Returns the adapters and heads that RUN stores, by their checkpoint names, without building its model.

    Raises:
        CheckpointError: files missing or damaged.
    """
    state = _read_weights(run, read_record(run))
    return {name: tensor for name, tensor in state.items() if not name.startswith(BASE_PREFIX)}


def _read_weights(run: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = run / WEIGHTS_NAME
    try:
        encoded = path.read_bytes()
        state = load(encoded)
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({err})") from err
    if hashlib.sha256(encoded).hexdigest() != record.get("weights_sha256"):
        raise CheckpointError(f"{path}: does not belong to its {RECORD_NAME} (SHA-256 differs); train again")
    _check_finite(str(path), state)
    return state


def _described(path: Path, record: dict[str, Any]) -> tuple[TrainConfig, BackboneInfo, Decision]:
    try:
        stored = stored_config(record["config"])
        backbone = BackboneInfo.from_json(record["backbone"])
        decision = Decision.from_json(record["decision"])
        preprocessing = Preprocessing.from_json(record["preprocessing"])
        merged, classes, lora = record["merged"], record["classes"], record["lora"]
    except KeyError as err:
        raise CheckpointError(f"{path}: field {err} is missing; train again") from err
    except (UsageError, SpecError, CheckpointError) as err:
        raise CheckpointError(f"{path}: missing or malformed field ({err})") from err
    config = stored.config
    if merged is not False or preprocessing != Preprocessing():
        raise CheckpointError(f"{path}: merged weights or foreign preprocessing cannot be loaded")
    if classes != list(CLASSES):
        raise CheckpointError(f"{path}: classes: found {classes!r}, expected {list(CLASSES)}")
    if lora != _lora_facts(config):
        raise CheckpointError(
            f"{path}: lora: found {lora!r}, but its config says {_lora_facts(config)}; restore the file"
        )
    if backbone.name != config.backbone:
        raise CheckpointError(
            f"{path}: backbone.name: found {backbone.name!r}, but its config says {config.backbone!r}"
        )
    _warn_of_another_version(path, stored, record)
    return config, backbone, decision


def _warn_of_another_version(path: Path, stored: StoredConfig, record: dict[str, Any]) -> None:
    """Names what the writer of a record and this version do not both know; none of it shapes the model."""
    told = []
    if stored.absent:
        told.append(f"{', '.join(stored.absent)} absent, taken as this version's defaults")
    if stored.unknown:
        told.append(f"{', '.join(stored.unknown)} unknown here, passed over")
    if told:
        logger.warning(
            "%s: written by %s: %s; these settings only say how the model was trained",
            path,
            f"dgsnet {record['dgsnet']!s:.20}" if "dgsnet" in record else "an earlier dgsnet",
            "; ".join(told),
        )


def _lora_facts(config: TrainConfig) -> dict[str, Any]:
    return {"scale": config.lora.scale, "scaling": config.lora.scaling}


def _check_finite(place: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() and not all(end.isfinite() for end in tensor.float().aminmax()):
            raise CheckpointError(
                f"{place}: tensor {name} holds NaN or Inf; train again with a lower optim.lr"
            )


def _rebuild(path: Path, state: dict[str, Tensor], config: TrainConfig, backbone: BackboneInfo) -> DgsNet:
    if backbone.is_on_hub:
        clip, loaded = load_clip(backbone.name, backbone.pretrained, seed=config.seed)
        quick_gelu, base_sha256 = loaded.quick_gelu, loaded.sha256
    else:
        clip, quick_gelu = empty_clip(backbone.name)
    visual = clip.visual
    if int(visual.output_dim) != backbone.embed_dim or quick_gelu != backbone.quick_gelu:
        raise CheckpointError(f"{path}: {backbone.name} of the installed open_clip is built differently")
    if not backbone.is_on_hub:
        base = {k.removeprefix(BASE_PREFIX): v for k, v in state.items() if k.startswith(BASE_PREFIX)}
        _load_strictly(path, visual, base)
        base_sha256 = weights_sha256(visual)
    if base_sha256 != backbone.sha256:
        raise CheckpointError(
            f"{path}: the base weights of {backbone.name} ({backbone.pretrained}) are not those it was "
            "trained on"
        )
    model = build_model(visual, backbone.embed_dim, config)
    load_lora_state(visual, state)
    unknown = sorted(n for n in state if n.startswith(HEAD_PREFIX) and n not in model.heads_state())
    if unknown:
        raise CheckpointError(f"{path}: {unknown[0]} belongs to no head of the recipe {config.recipe!r}")
    for name, tensor in model.heads_state().items():
        if name not in state or state[name].shape != tensor.shape:
            raise CheckpointError(f"{path}: {name} is missing or of another shape")
        tensor.copy_(state[name])
    return model.eval().requires_grad_(False)


def _load_strictly(path: Path, module: torch.nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    if set(own) != set(state):
        odd = sorted(set(own) ^ set(state))[0]
        raise CheckpointError(f"{path}: missing or unknown base tensors, first {odd}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: base.{name}: found shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
            )
    module.load_state_dict(state, strict=True, assign=True)
