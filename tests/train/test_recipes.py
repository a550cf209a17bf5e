"""The recipes through the real loop on a real tower: what moves, by how much, and when they stop."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from runtime.errors import GateFailedError, UsageError
from train.config import TrainConfig
from train.data.layout import find_samples
from train.data.mosaics import MosaicSet
from train.loop.feed import Material
from train.loop.keeper import Keeper
from train.loop.ranks import Ranks
from train.loop.step_log import STEPS_NAME, StepLog
from train.loop.trainer import Trainer
from train.model.backbone import load_clip
from train.model.detector import DgsNet
from train.model.lora import lora_state
from train.recipes import Batch, Stage, build_model
from train.recipes.dgs import StudentUnderSurgery, TeacherHead

CONFIG = TrainConfig().with_values(
    [
        ("data.batch", 5),
        ("data.workers", 0),
        ("lora.dropout", 0),
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
    return MosaicSet(find_samples(data_set, "train")[::2], CONFIG.data, seed=100, title="test")


@pytest.fixture(scope="module")
def text(data: MosaicSet) -> Tensor:
    return torch.randn(len(data), 256, generator=torch.Generator().manual_seed(4))


class Workshop:
    """Runs the stages of a config on copies of one tower and reads their log."""

    def __init__(self, clip: Any, data: MosaicSet, text: Tensor, folder: Path) -> None:
        self._clip, self._data, self._text, self.folder = clip, data, text, folder

    def model(self, config: TrainConfig) -> DgsNet:
        torch.manual_seed(8)
        return build_model(copy.deepcopy(self._clip.visual), 256, config)

    def train(
        self, config: TrainConfig, *, model: DgsNet | None = None, only: int = 0, text: Tensor | None = None
    ) -> tuple[DgsNet, list[dict[str, Any]]]:
        model = model or self.model(config)
        material = Material(self._data, None, self._text if text is None else text)
        trainer = Trainer(self.folder, model, config, material, Ranks())
        if only:
            trainer.stages[:] = [stage for stage in trainer.stages if stage.number == only]
        keeper = Keeper(self.folder, config.schedule, lambda _: None)
        logs = self.folder / "logs"
        with StepLog(logs, tensorboard=False) as log:
            trainer.train(log, keeper, {}, None)
        return model, [json.loads(line) for line in (logs / STEPS_NAME).read_text().splitlines()]


@pytest.fixture
def workshop(clip: Any, data: MosaicSet, text: Tensor, tmp_path: Path) -> Workshop:
    return Workshop(clip, data, text, tmp_path)


def moved(model: DgsNet, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def snapshot(model: DgsNet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


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


def head_by_hand(start: nn.Module, features: Tensor, data: MosaicSet) -> tuple[list[Tensor], list[float]]:
    """Returns weight and bias of an affine head after one epoch on features ``[N, D]``, and the losses."""
    losses: list[float] = []

    def gradients(values: list[Tensor], indices: Tensor) -> tuple[Tensor, ...]:
        weight, bias = (value.clone().requires_grad_() for value in values)
        logit = (features[indices].double() @ weight.T + bias).squeeze(1)
        loss = bce(logit, data.labels[indices].double())
        losses.append(loss.item())
        return torch.autograd.grad(loss, (weight, bias))

    head = [parameter.detach() for parameter in start.parameters()]
    return adam_by_hand(head, gradients, [indices for _, indices in data.batches(0)]), losses


def frozen_features(clip: Any, model: DgsNet, data: MosaicSet) -> Tensor:
    """Returns f_t of every sample of epoch 0, ``[N, D]``, from the tower that never had adapters."""
    features = torch.empty(len(data), 256)
    with torch.no_grad():
        for images, indices in data.batches(0):
            pixels = (images.permute(0, 3, 1, 2).float() / 255 - model.mean) / model.std
            features[indices] = clip.visual(pixels)
    return features


def test_teacher_head__is_adam_on_the_frozen_features(workshop: Workshop, clip: Any, data: MosaicSet) -> None:
    model = workshop.model(CONFIG)
    for tensor in lora_state(model.visual).values():
        tensor.add_(torch.randn_like(tensor) * 0.05)  # stage 1 must not see the adapters
    before = snapshot(model)
    start = copy.deepcopy(model.head_teacher)
    _, records = workshop.train(CONFIG, model=model, only=1)
    assert moved(model, before) == {"head_teacher.weight", "head_teacher.bias"}
    assert [record["step"] for record in records] == [0, 1, 2]
    (weight, bias), losses = head_by_hand(start, frozen_features(clip, model, data), data)
    assert (model.head_teacher.weight - weight).abs().max() < 1e-5
    assert (model.head_teacher.bias - bias).abs().max() < 1e-5
    assert [record["loss_teacher"] for record in records] == pytest.approx(losses, abs=1e-5)


def test_linear__is_adam_on_the_frozen_features(workshop: Workshop, clip: Any, data: MosaicSet) -> None:
    config = CONFIG.with_value("recipe", "linear")
    model = workshop.model(config)
    before, start = snapshot(model), copy.deepcopy(model.head_image)
    _, records = workshop.train(config, model=model)
    assert moved(model, before) == {"head_image.weight", "head_image.bias"}
    (weight, bias), losses = head_by_hand(start, frozen_features(clip, model, data), data)
    assert (model.head_image.weight - weight).abs().max() < 1e-5
    assert (model.head_image.bias - bias).abs().max() < 1e-5
    assert [record["loss_image"] for record in records] == pytest.approx(losses, abs=1e-5)
    assert not lora_state(model.visual)
    assert not hasattr(model, "head_text")


def test_lora__takes_the_step_of_plain_autograd(workshop: Workshop, data: MosaicSet) -> None:
    """The first gradient of every adapter and of the head, against the same tower in float64."""
    config = CONFIG.with_values([("recipe", "lora"), ("schedule.stage2_steps", 1)])
    model = workshop.model(config)
    for tensor in lora_state(model.visual).values():
        tensor.add_(torch.randn_like(tensor) * 0.05)
    other = copy.deepcopy(model).double()
    before = snapshot(model)
    workshop.train(config, model=model)
    images, indices = next(data.batches(0))
    pixels = (images.permute(0, 3, 1, 2).double() / 255 - other.mean) / other.std
    bce(other.head_image(other.visual(pixels)).squeeze(1), data.labels[indices].double()).backward()
    wanted = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(got) == set(wanted) == moved(model, before)
    assert len(got) == 4 * 3 * 2 + 2
    for name, gradient in wanted.items():
        assert float((got[name] - gradient).norm() / gradient.norm()) < 1e-4, name


def test_student__moves_adapters_and_two_heads(workshop: Workshop) -> None:
    model = workshop.model(CONFIG)
    before = snapshot(model)
    _, records = workshop.train(CONFIG, model=model, only=2)
    heads = {f"head_{name}.{part}" for name in ("image", "text") for part in ("weight", "bias")}
    assert moved(model, before) == {name for name in before if ".lora_" in name} | heads
    for record in records:
        assert record["loss"] == pytest.approx(record["loss_image"] + record["loss_text"], abs=1e-6)
        assert 0 < record["removed"] < 1
        assert 0 < record["direction"] <= 1
        assert all(record[name] > 0 for name in ("task", "help", "gradient_norm", "lr"))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_student__text_head_of_every_kind_learns(workshop: Workshop, kind: str) -> None:
    config = CONFIG.with_values([("surgery.text_head", kind), ("surgery.text_hidden", 24)])
    model = workshop.model(config)
    before = snapshot(model)
    workshop.train(config, model=model, only=2)
    text = {name for name in before if name.startswith("head_text")}
    assert text <= moved(model, before)
    assert (len(text) == 4) == (kind == "mlp")


def test_student__takes_adams_steps_on_the_text_head(
    workshop: Workshop, data: MosaicSet, text: Tensor
) -> None:
    """The text head sees neither images nor surgery, so that its whole way can be computed by hand."""
    model = workshop.model(CONFIG)
    start = copy.deepcopy(model.head_text)
    workshop.train(CONFIG, model=model, only=2)
    (weight, bias), _ = head_by_hand(start, text, data)
    assert (model.head_text.weight - weight).abs().max() < 1e-5
    assert (model.head_text.bias - bias).abs().max() < 1e-5


def test_text_warmup__trains_the_text_head_first(workshop: Workshop) -> None:
    def first_text_loss(steps: int) -> float:
        config = CONFIG.with_values([("surgery.text_warmup_steps", steps), ("optim.weight_decay", 0)])
        return float(workshop.train(config, only=2)[1][0]["loss_text"])

    assert first_text_loss(60) < 0.5 * first_text_loss(0)


def test_student__drops_out_in_training(workshop: Workshop) -> None:
    def trained(dropout: float, seed: int) -> Tensor:
        config = CONFIG.with_values(
            [("lora.dropout", dropout), ("schedule.stage2_steps", 1), ("recipe", "lora")]
        )
        torch.manual_seed(seed)
        model, _ = workshop.train(config)
        return torch.cat([tensor.flatten() for tensor in lora_state(model.visual).values()])

    assert not torch.equal(trained(0.5, 0), trained(0.0, 0))
    assert torch.equal(trained(0.5, 0), trained(0.5, 1))  # drawn from the run's seed alone


@pytest.mark.parametrize(("epochs", "limit", "steps"), [(2, 0, 6), (2, 4, 4)])
def test_student__stops_at_the_limit(workshop: Workshop, epochs: int, limit: int, steps: int) -> None:
    config = CONFIG.with_values(
        [("schedule.stage2_epochs", epochs), ("schedule.stage2_steps", limit), ("recipe", "lora")]
    )
    _, records = workshop.train(config)
    assert [record["step"] for record in records] == list(range(steps))


def test_student__gives_every_sample_its_own_caption_and_label(
    workshop: Workshop, data: MosaicSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StudentUnderSurgery.losses
    seen: list[int] = []

    def watched(stage: StudentUnderSurgery, model: DgsNet, batch: Batch) -> Any:
        for image, row, label in zip(batch.images, batch.text_feature, batch.target, strict=True):
            index = int(row[0])
            seen.append(index)
            assert torch.equal(image, data[index, 0][0])
            assert label == data.samples[index].label
        return real(stage, model, batch)

    monkeypatch.setattr(StudentUnderSurgery, "losses", watched)
    numbered = torch.zeros(len(data), 256)
    numbered[:, 0] = torch.arange(len(data))
    workshop.train(CONFIG, only=2, text=numbered)
    assert sorted(seen) == list(range(len(data)))


def test_teacher_features__of_stage_1_give_the_same_run(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with half as many passes through the frozen tower."""
    real = DgsNet.encode_teacher
    calls: list[int] = []

    def counted(model: DgsNet, images: Tensor) -> Tensor:
        calls.append(len(images))
        return real(model, images)

    monkeypatch.setattr(DgsNet, "encode_teacher", counted)
    config = CONFIG.with_value("lora.dropout", 0.5)
    reused, reused_log = workshop.train(config)
    assert len(calls) == 3
    calls.clear()
    computed, computed_log = workshop.train(config.with_value("data.teacher_cache_gib", 0))
    assert len(calls) == 6
    assert reused_log == computed_log
    assert not moved(reused, computed.state_dict())


def test_accumulation__changes_nothing_but_rounding(workshop: Workshop, clip: Any, data_set: Path) -> None:
    """21 steps of the published optimiser; Adam makes the rounding of near-zero gradients visible."""
    config = TrainConfig().with_values(
        [("data.batch", 8), ("lora.dropout", 0), ("schedule.stage1_epochs", 1), ("schedule.stage2_epochs", 7)]
    )
    data = MosaicSet(find_samples(data_set, "train"), config.data, seed=100, title="test")
    text = torch.randn(len(data), 256, generator=torch.Generator().manual_seed(4))
    own = Workshop(clip, data, text, workshop.folder)
    whole, log = own.train(config)
    assert log[-1]["step"] == 20
    parts, _ = own.train(config.with_value("optim.accumulate", 2))
    assert moved(parts, whole.state_dict())
    for name, tensor in whole.state_dict().items():
        assert (parts.state_dict()[name] - tensor).abs().max() <= 1e-3 * config.optim.lr, name


def test_accumulation__counts_a_partial_window_as_it_is(workshop: Workshop) -> None:
    """Windows of 5, 5 and 2 samples in three parts: the gradient of each step is the whole window's."""
    _, whole = workshop.train(CONFIG)
    _, parts = workshop.train(CONFIG.with_value("optim.accumulate", 3))
    assert len(whole) == len(parts) == 6
    for one, other in zip(whole, parts, strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_amp__stays_near_fp32(workshop: Workshop, amp: str) -> None:
    config = CONFIG.with_value("schedule.stage2_steps", 2)
    _, exact = workshop.train(config)
    model, half = workshop.train(config.with_value("optim.amp", amp))
    losses = [(a["loss"], b["loss"]) for a, b in zip(exact[3:], half[3:], strict=True)]
    assert all(abs(a - b) < 0.02 * a for a, b in losses)
    assert any(a != b for a, b in losses)  # the tower did compute in half precision
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    norms = [(a["gradient_norm"], b["gradient_norm"]) for a, b in zip(exact[3:], half[3:], strict=True)]
    assert all(abs(a - b) < 0.1 * a for a, b in norms)  # the loss scale is divided out


def test_amp__fp16_warms_the_text_head_up(workshop: Workshop) -> None:
    """The warm-up is FP32 and has no loss scale, whatever the tower computes in."""
    config = CONFIG.with_values([("surgery.text_warmup_steps", 3), ("schedule.stage2_steps", 1)])
    _, exact = workshop.train(config, only=2)
    _, half = workshop.train(config.with_value("optim.amp", "fp16"), only=2)
    assert half[0]["loss_text"] == exact[0]["loss_text"]


def test_clip_norm__bounds_the_step(workshop: Workshop) -> None:
    config = CONFIG.with_values([("recipe", "lora"), ("schedule.stage2_steps", 1)])
    _, records = workshop.train(config)
    limit = records[0]["gradient_norm"] / 10
    model, clipped_records = workshop.train(config.with_value("optim.clip_norm", limit))
    used = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in model.parameters() if p.grad is not None))
    assert used == pytest.approx(limit, rel=1e-3)
    assert clipped_records == records  # the log has the norm before clipping


def test_pos_weight__balances_the_classes(workshop: Workshop, data_set: Path, clip: Any) -> None:
    """Nine real and three generated pictures: the weight makes the first step as if they were even."""
    samples = find_samples(data_set, "train")
    few = [s for s in samples if s.label == 0][:9] + [s for s in samples if s.label == 1][:3]
    config = CONFIG.with_values([("recipe", "linear"), ("data.balance", "pos-weight"), ("data.batch", 12)])
    data = MosaicSet(few, config.data, seed=100, title="test")
    own = Workshop(clip, data, torch.empty(0), workshop.folder)
    model = own.model(config)
    head = copy.deepcopy(model.head_image)
    features = frozen_features(clip, model, data)
    _, records = own.train(config, model=model)
    logit = head(features).squeeze(1).detach()
    wanted = (bce(logit, data.labels, reduction="none") * torch.where(data.labels == 1, 3.0, 1.0)).sum() / 12
    assert records[0]["loss_image"] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("stage", [TeacherHead, StudentUnderSurgery])
def test_stages__find_weights_that_the_last_step_broke(workshop: Workshop, stage: type[Stage]) -> None:
    model = workshop.model(CONFIG)
    head: nn.Linear = model.head_teacher if stage is TeacherHead else model.head_image
    head.weight.requires_grad_(True)
    steps = iter([False, False, True])  # the last of three
    head.weight.register_hook(lambda grad: grad * float("nan") if next(steps) else grad)
    with pytest.raises(
        GateFailedError, match=rf"stage {stage.number}, step 2: head_.*weight holds NaN or Inf after it"
    ):
        workshop.train(CONFIG, model=model, only=stage.number)


def test_stages__stop_at_a_loss_that_is_not_finite(workshop: Workshop, text: Tensor, tmp_path: Path) -> None:
    with pytest.raises(GateFailedError, match=r"stage 2, step 0: loss is nan; .*train/blur/.*\.png"):
        workshop.train(CONFIG, only=2, text=text * float("nan"))
    saved = json.loads((tmp_path / "failed-batch.json").read_text())
    assert (saved["stage"], saved["step"], len(saved["pictures"])) == (2, 0, 5)
    assert all(name.startswith("train/blur/") for name in saved["pictures"])


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory with 5 sam"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9"), "raise optim.accu"),
    ],
)
def test_memory__that_is_too_small_says_what_to_lower(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    """The allocation's failure is made up: no test can run out of a GPU's memory here."""

    def fail(*_arguments: object) -> None:
        raise failure

    monkeypatch.setattr(TeacherHead, "losses", fail)
    with pytest.raises(UsageError, match=message):
        workshop.train(CONFIG)
