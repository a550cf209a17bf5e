"""The released model's true size: its key and shape table, and one import and export of a random file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from train.official.architecture import backbone_from_shapes, clip_shapes, clip_without_memory
from train.official.names import FROZEN, official_shapes, student_names

NAME = "ViT-L-14-quickgelu"


def table() -> dict[str, tuple[int, ...]]:
    return official_shapes(clip_shapes(clip_without_memory(NAME)), 6)


def parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def test_official_shapes__count_what_the_released_model_has() -> None:
    """Figures of the paper's model: a CLIP of 427,616,513 parameters twice, adapters, three heads."""
    shapes = table()
    adapters = {name: shape for name, shape in shapes.items() if ".w_lora_" in name}
    heads = {name: shape for name, shape in shapes.items() if "_fc." in name and "mlp" not in name}
    frozen = "clip_model_frozen.clip_model_frozen."
    clip = {name: shape for name, shape in shapes.items() if name.startswith(frozen)}
    visual = {name: shape for name, shape in clip.items() if name.startswith(f"{frozen}visual.")}
    assert (len(adapters), parameters(adapters)) == (144, 884_736)
    assert (len(heads), parameters(heads)) == (6, 3 * 769)
    assert (len(clip), parameters(clip), parameters(visual)) == (446, 427_616_513, 303_966_208)
    assert parameters(shapes) == 2 * 427_616_513 + 884_736 + 3 * 769 == 856_120_069
    # A packed weight and bias of each of 24 blocks are three of each.
    assert len(shapes) == 446 + 446 + 24 * 4 + 144 + 6


def test_official_shapes__name_what_the_authors_modules_name() -> None:
    shapes = table()
    block = "clip_model.visual.transformer.resblocks.23."
    expected = {
        f"{block}attn.q_proj.weight": (1024, 1024),
        f"{block}attn.k_proj.bias": (1024,),
        f"{block}attn.v_proj.w_lora_A": (6, 1024),
        f"{block}attn.v_proj.w_lora_B": (1024, 6),
        f"{block}attn.proj.weight": (1024, 1024),
        f"{block}attn.proj.bias": (1024,),
        f"{block}mlp.c_fc.weight": (4096, 1024),
        "clip_model.visual.conv1.weight": (1024, 3, 14, 14),
        "clip_model.visual.proj": (1024, 768),
        "clip_model.transformer.resblocks.11.attn.in_proj_weight": (2304, 768),
        "clip_model.token_embedding.weight": (49408, 768),
        "clip_model.logit_scale": (),
        "clip_model_frozen.clip_model_frozen.visual.transformer.resblocks.0.attn.in_proj_weight": (
            3072,
            1024,
        ),
        "clip_model_frozen.clip_model_frozen.visual.transformer.resblocks.0.attn.out_proj.bias": (1024,),
        "clip_model_frozen.img_frozen_fc.weight": (1, 768),
        "img_fc.bias": (1,),
        "text_fc.weight": (1, 768),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert f"{block}attn.in_proj_weight" not in shapes
    assert f"{block}attn.out_proj.weight" not in shapes


@pytest.mark.parametrize(
    "name",
    [NAME, *(pytest.param(f"ViT-B-{patch}-quickgelu", marks=pytest.mark.slow) for patch in (32, 16))],
)
def test_backbone_from_shapes__finds_openais_models(name: str) -> None:
    shapes = official_shapes(clip_shapes(clip_without_memory(name)), 4)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert backbone_from_shapes(state) == name


@pytest.mark.slow
def test_import_official__takes_the_released_size(tmp_path: Path) -> None:
    """Writes 3.4 GB three times; several GB of memory."""
    from train.checkpoint import load_checkpoint
    from train.official.exporting import export_official
    from train.official.importing import import_official

    shapes = clip_shapes(clip_without_memory(NAME))
    draw = torch.Generator().manual_seed(1)
    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        frozen = state[FROZEN + name] = torch.randn(shape, generator=draw) * 0.02
        targets = student_names(name)
        parts = frozen.chunk(3) if len(targets) == 3 else (frozen,)
        state |= {target: part.clone() for target, part in zip(targets, parts, strict=True)}
    for name, shape in table().items():
        if name not in state:
            state[name] = torch.randn(shape, generator=draw) * 0.02
    file = tmp_path / "model_epoch_step2.pth"
    torch.save(state, file)
    heads = {name: tensor for name, tensor in state.items() if "_fc." in name and "mlp" not in name}
    del state
    assert file.stat().st_size == pytest.approx(3.42e9, rel=0.01)
    summary = import_official(file, tmp_path / "run")
    assert (summary.backbone, summary.merged, summary.rank) == (NAME, False, 6)
    model = load_checkpoint(tmp_path / "run").model
    assert torch.equal(model.head_text.weight, heads["text_fc.weight"])
    del model
    file.unlink()
    export_official(tmp_path / "run", tmp_path / "merged.pth", merged=True)
    again = import_official(tmp_path / "merged.pth", tmp_path / "again")
    assert (again.merged, again.scaling) == (True, "rslora")
    for path in (tmp_path / "merged.pth", *tmp_path.glob("*/*.safetensors")):
        path.unlink()  # pytest keeps the folders of its last runs
