"""LoRA on a real open_clip tower: start, disabling, merging, names, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from runtime.errors import CheckpointError, SpecError
from train.config import LoraConfig
from train.model.backbone import load_clip
from train.model.lora import add_lora, load_lora_state, lora_disabled, lora_state, merge_lora


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return load_clip("dgsnet-tiny-p32", "random", seed=1)[0].visual


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(5))


def adapted(base: nn.Module, config: LoraConfig, *, moved: bool = True) -> nn.Module:
    visual = copy.deepcopy(base)
    torch.manual_seed(2)
    add_lora(visual, config)
    if moved:
        for tensor in lora_state(visual).values():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return visual.eval()


@torch.no_grad()
def test_add_lora__starts_at_the_base_model(base: nn.Module, pixels: torch.Tensor) -> None:
    visual = adapted(base, LoraConfig(), moved=False)
    assert torch.allclose(visual(pixels), base(pixels), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("targets", [("q", "k", "v"), ("q",), ("v", "k")], ids="".join)
def test_merge_lora__equals_unmerged(base: nn.Module, pixels: torch.Tensor, targets: tuple[str, ...]) -> None:
    visual = adapted(base, LoraConfig(r=4, targets=targets))
    unmerged = visual(pixels)
    assert (unmerged - base(pixels)).abs().max() > 0.01  # the adapters do something
    merge_lora(visual)
    assert ((visual(pixels) - unmerged).abs() <= 1e-5 * unmerged.abs().clamp(min=1)).all()
    with pytest.raises(SpecError, match="merged already"):
        merge_lora(visual)


@torch.no_grad()
def test_lora_disabled__computes_the_teacher(base: nn.Module, pixels: torch.Tensor) -> None:
    visual = adapted(base, LoraConfig())
    with lora_disabled(visual):
        assert torch.allclose(visual(pixels), base(pixels), atol=1e-5)
    assert not torch.allclose(visual(pixels), base(pixels), atol=1e-3)


def test_scale__is_rank_stabilised_as_released() -> None:
    assert LoraConfig().scale == pytest.approx(2.449, abs=1e-3)
    assert LoraConfig(scaling="lora").scale == 1.0


def test_only_adapters__get_a_gradient(base: nn.Module, pixels: torch.Tensor) -> None:
    visual = adapted(base, LoraConfig())
    visual(pixels).sum().backward()
    with_gradient = {name for name, p in visual.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in visual.named_parameters() if ".lora_" in name}
    assert len(with_gradient) == 4 * 3 * 2


@torch.no_grad()
def test_load_lora_state__round_trip_and_refusals(base: nn.Module, pixels: torch.Tensor) -> None:
    first, second = adapted(base, LoraConfig()), adapted(base, LoraConfig(), moved=False)
    state = {name: tensor.clone() for name, tensor in lora_state(first).items()}
    assert "lora.3.v.b" in state
    load_lora_state(second, state)
    assert torch.equal(first(pixels), second(pixels))
    with pytest.raises(CheckpointError, match=r"lora\.0\.k\.a"):
        load_lora_state(second, {k: v for k, v in state.items() if k != "lora.0.k.a"})
    with pytest.raises(CheckpointError, match="found shape"):
        load_lora_state(second, state | {"lora.0.k.a": torch.zeros(1, 1)})
