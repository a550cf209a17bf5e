"""Both stages on a real tower: what moves, by how much, in which order, and when they stop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from runtime.errors import GateFailedError
from train import stages
from train.backbone import load_clip, tokenizer
from train.config import LoraConfig, TrainConfig
from train.data.layout import find_samples
from train.data.mosaics import MosaicSet
from train.lora import add_lora, lora_state
from train.model import DgsNet
from train.stages import train_student, train_teacher_head
from train.text_features import encode_captions

CONFIG = TrainConfig().with_values(
    [
        ("data.batch", 5),
        ("optim.lr", 0.01),
        ("optim.beta1", 0.7),
        ("optim.beta2", 0.8),
        ("optim.weight_decay", 0.3),
        ("schedule.stage1_epochs", 1),
    ]
)


@pytest.fixture(scope="module")
def clip() -> Any:
    return load_clip("dgsnet-tiny-p32", "random", seed=1)[0]


@pytest.fixture(scope="module")
def data(data_set: Path) -> MosaicSet:
    return MosaicSet(find_samples(data_set, "train")[::2], CONFIG.data, seed=5, title="test")


@pytest.fixture(scope="module")
def text(data: MosaicSet) -> Tensor:
    return torch.randn(len(data), 256, generator=torch.Generator().manual_seed(4))


def model_of(clip: Any, *, dropout: float = 0.0) -> DgsNet:
    visual = copy.deepcopy(clip.visual)
    torch.manual_seed(8)
    add_lora(visual, LoraConfig(dropout=dropout))
    return DgsNet(visual, 256).eval()


def moved(model: DgsNet, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def nothing(_record: dict[str, Any]) -> None:
    pass


def adam_by_hand(start: list[Tensor], gradients: Any, steps: Any) -> list[Tensor]:
    """Kingma and Ba, algorithm 1, with L2 regularisation, in float64, for the settings above."""
    values = [tensor.double().clone() for tensor in start]
    first, second = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values]
    for count, step in enumerate(steps, start=1):
        for index, gradient in enumerate(gradients(values, step)):
            gradient = gradient + 0.3 * values[index]
            first[index] = 0.7 * first[index] + 0.3 * gradient
            second[index] = 0.8 * second[index] + 0.2 * gradient**2
            unbiased = first[index] / (1 - 0.7**count), second[index] / (1 - 0.8**count)
            values[index] = values[index] - 0.01 * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return values


def test_train_teacher_head__is_adam_on_the_frozen_features(clip: Any, data: MosaicSet) -> None:
    model = model_of(clip)
    for tensor in lora_state(model.visual).values():
        tensor.add_(torch.randn_like(tensor) * 0.05)  # stage 1 must not see the adapters
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    records: list[dict[str, Any]] = []
    train_teacher_head(model, data, CONFIG, "cpu", records.append)
    assert moved(model, before) == {"head_teacher.weight", "head_teacher.bias"}
    assert [record["step"] for record in records] == [0, 1, 2]

    def gradients(values: list[Tensor], step: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        images, indices = step
        with torch.no_grad():
            pixels = (images.permute(0, 3, 1, 2).float() / 255 - model.mean) / model.std
            feature = clip.visual(pixels).double()
        weight, bias = (value.clone().requires_grad_() for value in values)
        loss = bce((feature @ weight.T + bias).squeeze(1), data.labels[indices].double())
        losses.append(loss.item())
        return torch.autograd.grad(loss, (weight, bias))

    losses: list[float] = []
    start = [before["head_teacher.weight"], before["head_teacher.bias"]]
    weight, bias = adam_by_hand(start, gradients, data.batches(0))
    assert (model.head_teacher.weight - weight).abs().max() < 1e-5
    assert (model.head_teacher.bias - bias).abs().max() < 1e-5
    assert [record["loss_teacher"] for record in records] == pytest.approx(losses, abs=1e-5)


def test_train_student__moves_adapters_and_two_heads(clip: Any, data: MosaicSet, text: Tensor) -> None:
    model = model_of(clip)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_student(model, data, text, CONFIG, "cpu", nothing)
    heads = {f"head_{name}.{part}" for name in ("image", "text") for part in ("weight", "bias")}
    assert moved(model, before) == {name for name in before if ".lora_" in name} | heads
    assert not model.training


def test_train_student__takes_adams_steps_on_the_text_head(clip: Any, data: MosaicSet, text: Tensor) -> None:
    """The text head sees neither images nor surgery, so that its whole way can be computed by hand."""
    model = model_of(clip)
    start = [model.head_text.weight.detach().clone(), model.head_text.bias.detach().clone()]
    train_student(model, data, text, CONFIG, "cpu", nothing)

    def gradients(values: list[Tensor], indices: Tensor) -> tuple[Tensor, ...]:
        weight, bias = (value.clone().requires_grad_() for value in values)
        logit = (text[indices].double() @ weight.T + bias).squeeze(1)
        return torch.autograd.grad(bce(logit, data.labels[indices].double()), (weight, bias))

    weight, bias = adam_by_hand(start, gradients, [indices for _, indices in data.batches(0)])
    assert (model.head_text.weight - weight).abs().max() < 1e-5
    assert (model.head_text.bias - bias).abs().max() < 1e-5


def test_train_student__drops_out_in_training(clip: Any, data: MosaicSet, text: Tensor) -> None:
    def trained(dropout: float, seed: int) -> Tensor:
        model = model_of(clip, dropout=dropout)
        torch.manual_seed(seed)
        train_student(model, data, text, CONFIG.with_value("schedule.stage2_steps", 1), "cpu", nothing)
        return torch.cat([tensor.flatten() for tensor in lora_state(model.visual).values()])

    assert not torch.equal(trained(0.5, 0), trained(0.5, 1))
    assert torch.equal(trained(0.0, 0), trained(0.0, 1))


@pytest.mark.parametrize(("epochs", "limit", "steps"), [(2, 0, 6), (2, 4, 4)])
def test_train_student__stops_at_the_limit(
    clip: Any, data: MosaicSet, text: Tensor, epochs: int, limit: int, steps: int
) -> None:
    config = CONFIG.with_values([("schedule.stage2_epochs", epochs), ("schedule.stage2_steps", limit)])
    records: list[dict[str, Any]] = []
    train_student(model_of(clip), data, text, config, "cpu", records.append)
    assert [record["step"] for record in records] == list(range(steps))


def test_train_student__gives_every_sample_its_own_caption_and_label(
    clip: Any, data: MosaicSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.student_step
    seen: list[int] = []

    def watched(model: DgsNet, images: Tensor, feature: Tensor, target: Tensor, config: TrainConfig) -> Any:
        for image, row, label in zip(images, feature, target, strict=True):
            index = int(row[0])
            seen.append(index)
            assert torch.equal(image, data[index, 0][0])
            assert label == data.samples[index].label
        return real(model, images, feature, target, config)

    monkeypatch.setattr(stages, "student_step", watched)
    numbered = torch.zeros(len(data), 256)
    numbered[:, 0] = torch.arange(len(data))
    train_student(model_of(clip), data, numbered, CONFIG, "cpu", nothing)
    assert sorted(seen) == list(range(len(data)))


def test_encode_captions__pairs_rows_with_captions(clip: Any) -> None:
    captions = ["a red boat", "a dog", "a red boat", "", "zebra crossing at night"]
    features = encode_captions(clip, "dgsnet-tiny-p32", captions, "cpu")
    with torch.no_grad():
        alone = [clip.encode_text(tokenizer("dgsnet-tiny-p32")([caption]))[0] for caption in captions]
    assert torch.allclose(features, torch.stack(alone), atol=1e-5)
    assert torch.equal(features[0], features[2])
    assert (features[0] - features[1]).abs().max() > 1e-2


@pytest.mark.parametrize("stage", [1, 2])
def test_stages__find_weights_that_the_last_step_broke(
    clip: Any, data: MosaicSet, text: Tensor, stage: int
) -> None:
    model = model_of(clip)
    head: nn.Linear = model.head_teacher if stage == 1 else model.head_image
    train = {
        1: lambda: train_teacher_head(model, data, CONFIG, "cpu", nothing),
        2: lambda: train_student(model, data, text, CONFIG, "cpu", nothing),
    }[stage]
    steps = iter([False, False, True])  # the last of three
    head.weight.register_hook(lambda grad: grad * float("nan") if next(steps) else grad)
    with pytest.raises(GateFailedError, match=f"stage {stage}: head_.*weight holds NaN or Inf at its end"):
        train()


def test_stages__stop_at_a_loss_that_is_not_finite(clip: Any, data: MosaicSet, text: Tensor) -> None:
    with pytest.raises(GateFailedError, match=r"stage 2: the loss is nan; .*train/blur/.*\.png"):
        train_student(model_of(clip), data, text * float("nan"), CONFIG, "cpu", nothing)
