"""The hook on the student feature against golden vectors, and one whole step against plain autograd."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from train.config import LoraConfig, SurgeryConfig, TrainConfig
from train.model.backbone import load_clip
from train.model.detector import DgsNet
from train.model.dropout import Dropout
from train.model.lora import add_lora, lora_state
from train.recipes import Batch
from train.recipes.dgs import StudentUnderSurgery
from train.surgery import operate_on

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("name", ["surgery_1x8", "surgery_7x513", "surgery_32x768"])
@pytest.mark.parametrize("order", ["released", "paper"])
def test_operate_on__gives_the_golden_gradients(name: str, order: str) -> None:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
        golden = {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}
    width = golden["f"].shape[1]
    model = DgsNet(nn.Identity(), width).double()
    for head, suffix in ((model.head_image, "img"), (model.head_teacher, "t"), (model.head_text, "x")):
        head.weight.data[0] = golden[f"w_{suffix}"]
        head.bias.data[0] = golden[f"b_{suffix}"]
    feature, target = golden["f"].clone().requires_grad_(), golden["y"]
    text_logit = model.head_text(golden["f_x"]).squeeze(1)
    batch = Batch(torch.empty(0), target, size=len(target))
    sums = operate_on(
        feature,
        model,
        batch,
        text_logit=text_logit,
        teacher_logit=model.head_teacher(golden["f_t"]).squeeze(1),
        config=SurgeryConfig(order=order),
    )
    loss = bce(model.head_image(feature).squeeze(1), target) + bce(text_logit, target)
    loss.backward()
    task = golden["released_grad_task"].norm(dim=1).sum()
    assert float(sums["task"]) == pytest.approx(float(task), rel=1e-6)
    # The golden heads are in float64, but r = (sigma - y) / B here comes from the stable form.
    for got, want in (
        (feature.grad, golden[f"{order}_grad_f"]),
        (model.head_image.weight.grad[0], golden["released_grad_w_img"]),
        (model.head_text.weight.grad[0], golden["released_grad_w_text"]),
    ):
        assert float((got - want).norm() / want.norm()) < 1e-10


def test_residual__keeps_its_digits_for_a_confident_head() -> None:
    logit, target = torch.tensor([30.0, -30.0]), torch.tensor([1.0, 0.0])
    got = Batch(torch.empty(0), target, size=2).residual(logit, 2)
    want = torch.tensor([-torch.exp(torch.tensor(-30.0)), torch.exp(torch.tensor(-30.0))]) / 2
    assert torch.allclose(got, want, rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    return load_clip("dgsnet-tiny-p32", "random", seed=1)[0].visual


@pytest.fixture(scope="module")
def moved(tower: nn.Module) -> DgsNet:
    """The demo's tower with adapters away from zero and no dropout, so that a step can be computed again."""
    visual = copy.deepcopy(tower)
    torch.manual_seed(0)
    add_lora(visual, LoraConfig(dropout=0.0))
    for tensor in lora_state(visual).values():
        tensor.add_(torch.randn_like(tensor) * 0.05)
    return DgsNet(visual, 256).train()


@pytest.fixture(scope="module")
def moved_mlp(moved: DgsNet) -> DgsNet:
    """The same with a hidden layer in the text head, so that the direction depends on the caption."""
    model = copy.deepcopy(moved)
    torch.manual_seed(1)
    model.head_text = nn.Sequential(nn.Linear(256, 40), nn.GELU(), nn.Linear(40, 1))
    return model


@pytest.mark.parametrize(
    ("harm", "eps", "eps_batch"),
    [("positive", 1e-6, 0), ("positive", 1e-2, 4096), ("full", 1e-2, 0), ("full", 0.0, 0)],
)
@pytest.mark.parametrize("order", ["released", "paper"])
@pytest.mark.parametrize("reduction", ["released", "per-sample"])
def test_student_step__equals_an_explicit_trainer(
    tower: nn.Module, moved: DgsNet, reduction: str, order: str, harm: str, eps: float, eps_batch: int
) -> None:
    surgery = SurgeryConfig(order=order, harm=harm, align_reduction=reduction, eps=eps, eps_batch=eps_batch)
    compare_with_an_explicit_trainer(tower, moved, surgery)


@pytest.mark.parametrize("harm", ["positive", "full"])
@pytest.mark.parametrize("order", ["released", "paper"])
def test_student_step__with_a_hidden_layer_equals_an_explicit_trainer(
    tower: nn.Module, moved_mlp: DgsNet, order: str, harm: str
) -> None:
    compare_with_an_explicit_trainer(tower, moved_mlp, SurgeryConfig(order=order, harm=harm, eps=1e-3))


@pytest.mark.parametrize("order", ["released", "paper"])
@pytest.mark.parametrize("text_head", ["linear", "mlp"])
def test_student_step__carries_loss_scale_and_class_weight(
    tower: nn.Module, moved: DgsNet, moved_mlp: DgsNet, text_head: str, order: str
) -> None:
    """The result is S times the true gradient, with eps measured against the unscaled text gradient."""
    model = moved if text_head == "linear" else moved_mlp
    compare_with_an_explicit_trainer(
        tower, model, SurgeryConfig(order=order, eps=1e-2), scale=1024.0, weight=2.5
    )


def compare_with_an_explicit_trainer(
    tower: nn.Module, moved: DgsNet, surgery: SurgeryConfig, *, scale: float = 1.0, weight: float = 1.0
) -> None:
    order, harm, reduction = surgery.order, surgery.harm, surgery.align_reduction
    eps, eps_batch = surgery.eps, surgery.eps_batch
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (5, 224, 224, 3), dtype=torch.uint8, generator=draw)
    text = torch.randn(5, 256, generator=draw) * 3
    target = torch.tensor([0.0, 1, 1, 0, 1])
    model = copy.deepcopy(moved)
    stage = StudentUnderSurgery(TrainConfig(surgery=surgery))
    trained = stage.prepare(model)
    batch = Batch(
        images,
        target,
        size=5,
        positive_weight=weight,
        scale=torch.tensor(scale),
        text_feature=text,
        teacher_feature=lambda: model.encode_teacher(images),
    )
    outcome = stage.losses(model, batch)
    (outcome.loss * scale).backward()
    assert all(parameter.grad is not None for parameter in trained)

    # Autograd alone, in float64: every gradient that the method names is taken explicitly, then pushed
    # through f. The teacher is the tower that never had adapters.
    other, y = copy.deepcopy(moved).double(), target.double()
    weights = 1 + (weight - 1) * y
    pixels = (images.permute(0, 3, 1, 2).double() / 255 - other.mean) / other.std
    feature = other.visual(pixels)
    teacher = copy.deepcopy(tower).double()(pixels).detach().requires_grad_()
    teacher_loss = bce(other.head_teacher(teacher).squeeze(1), y, weight=weights)
    g_image = torch.autograd.grad(teacher_loss, teacher)[0]
    text_leaf = text.double().requires_grad_()
    text_loss = bce(other.head_text(text_leaf).squeeze(1), y, weight=weights, reduction="sum")
    g_text = torch.autograd.grad(text_loss / (eps_batch or 5), text_leaf)[0]
    task_loss = bce(other.head_image(feature).squeeze(1), y, weight=weights)
    task = torch.autograd.grad(task_loss, feature, retain_graph=True)[0]
    help_term = (0.2 / 5 if reduction == "released" else 0.2) * g_image.clamp(max=0)
    kept = g_text.clamp(min=0) if harm == "positive" else g_text
    h = kept / (kept.norm(dim=1, keepdim=True) + eps)

    def project(g: Tensor) -> Tensor:
        return g - (g * h).sum(1, keepdim=True) * h

    operand = task + help_term if order == "released" else task
    figures = {
        "task": task.norm(dim=1),
        "removed": (operand * h).sum(1).abs() * h.norm(dim=1) / operand.norm(dim=1),
        "help": help_term.norm(dim=1) / task.norm(dim=1),
        "direction": h.norm(dim=1),
    }
    for name, each in figures.items():
        assert float(outcome.sums[name]) == pytest.approx(float(each.sum()), rel=1e-3), name
    total = project(task + help_term) if order == "released" else project(task) + help_term
    for parameter in other.parameters():
        parameter.grad = None
    heads_loss = bce(other.head_image(feature.detach()).squeeze(1), y, weight=weights) + bce(
        other.head_text(text.double()).squeeze(1), y, weight=weights
    )
    (scale * heads_loss).backward()
    feature.backward(scale * total)
    wanted = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(got) == set(wanted)
    heads = len(list(model.head_image.parameters())) + len(list(model.head_text.parameters()))
    assert len(got) == 4 * 3 * 2 + heads  # every adapter, two heads; neither the teacher's head nor the base
    for name, gradient in wanted.items():
        assert float((got[name] - gradient).norm() / gradient.norm()) < 1e-4, name


def test_encode_teacher__is_the_tower_without_adapters_or_dropout(tower: nn.Module, moved: DgsNet) -> None:
    images = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    model = copy.deepcopy(moved)
    for block in model.visual.transformer.resblocks:
        block.attn.dropout = Dropout(0.8)
    with torch.no_grad():
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - model.mean) / model.std
        want = tower(pixels)
        assert (model.train().encode_teacher(images) - want).abs().max() < 1e-5 * want.abs().max()
        assert (model.encode(images) - want).abs().max() > 0.05 * want.abs().max()
    assert not model.encode_teacher(images).requires_grad


def test_student_step__moves_the_feature_to_where_the_teacher_points(moved: DgsNet) -> None:
    """Prior alignment lowers <f, min(g_image, 0)>: it raises f where the teacher gradient is negative."""
    model = copy.deepcopy(moved)
    images = torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8)
    with torch.no_grad():
        model.head_image.weight.zero_()  # no task gradient at f: what arrives is the help alone
        model.head_text.weight.zero_()
    features = []

    def keep(_tower: nn.Module, _inputs: object, feature: Tensor) -> None:
        if feature.requires_grad:
            feature.retain_grad()  # the gradient after every hook
            features.append(feature)

    model.visual.register_forward_hook(keep)
    batch = Batch(
        images,
        torch.ones(4),
        size=4,
        text_feature=torch.randn(4, 256),
        teacher_feature=lambda: model.encode_teacher(images),
    )
    stage = StudentUnderSurgery(TrainConfig())
    stage.prepare(model)
    stage.losses(model, batch).loss.backward()
    (gradient,) = (feature.grad.sum(0) for feature in features)
    raised = model.head_teacher.weight[0] > 0  # y = 1: g_image = -sigma(-z)/B w, negative where w > 0
    assert (gradient[raised] < 0).all()
    assert (gradient[~raised] == 0).all()
