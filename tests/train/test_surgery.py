"""The hook on the student feature against golden vectors, and one whole step against plain autograd."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from train.config import SurgeryConfig, TrainConfig
from train.model import DgsNet
from train.stages import student_step
from train.surgery import operate_on, residual

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
    operate_on(
        feature,
        model,
        text_logit=text_logit,
        teacher_logit=model.head_teacher(golden["f_t"]).squeeze(1),
        target=target,
        batch=len(target),
        config=SurgeryConfig(order=order),
    )
    loss = bce(model.head_image(feature).squeeze(1), target) + bce(text_logit, target)
    loss.backward()
    # The golden heads are in float64, but r = (sigma - y) / B here comes from the stable form.
    for got, want in (
        (feature.grad, golden[f"{order}_grad_f"]),
        (model.head_image.weight.grad[0], golden["released_grad_w_img"]),
        (model.head_text.weight.grad[0], golden["released_grad_w_text"]),
    ):
        assert float((got - want).norm() / want.norm()) < 1e-10


def test_residual__keeps_its_digits_for_a_confident_head() -> None:
    logit, target = torch.tensor([30.0, -30.0]), torch.tensor([1.0, 0.0])
    got = residual(logit, target, 2)
    want = torch.tensor([-torch.exp(torch.tensor(-30.0)), torch.exp(torch.tensor(-30.0))]) / 2
    assert torch.allclose(got, want, rtol=1e-5, atol=0)


class TinyTower(nn.Module):
    """A stand-in for the vision tower with the attributes that the teacher needs."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList()
        self.pool = nn.AvgPool2d(56)
        self.linear = nn.Linear(48, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.pool(pixels).flatten(1))


@pytest.mark.parametrize("order", ["released", "paper"])
@pytest.mark.parametrize("reduction", ["released", "per-sample"])
def test_student_step__equals_an_explicit_trainer(order: str, reduction: str) -> None:
    torch.manual_seed(0)
    model = DgsNet(TinyTower(), 10).double()
    images = torch.randint(0, 256, (6, 224, 224, 3), dtype=torch.uint8)
    text, target = torch.randn(6, 10).double(), torch.tensor([0.0, 1, 1, 0, 1, 0]).double()
    model.float()
    text, target = text.float(), target.float()
    other = copy.deepcopy(model)
    config = TrainConfig(surgery=SurgeryConfig(order=order, align_reduction=reduction))
    student_step(model, images, text, target, config)["loss"].backward()

    # Autograd alone: every gradient that the method names is taken explicitly, then pushed through f.
    feature = other.encode(images)
    teacher = other.encode(images).detach().requires_grad_()
    g_image = torch.autograd.grad(bce(other.head_teacher(teacher).squeeze(1), target), teacher)[0]
    text_leaf = text.clone().requires_grad_()
    g_text = torch.autograd.grad(bce(other.head_text(text_leaf).squeeze(1), target), text_leaf)[0]
    task = torch.autograd.grad(bce(other.head_image(feature).squeeze(1), target), feature, retain_graph=True)[
        0
    ]
    help_term = (0.2 / 6 if reduction == "released" else 0.2) * g_image.clamp(max=0)
    positive = g_text.clamp(min=0)
    h = positive / (positive.norm(dim=1, keepdim=True) + 1e-6)

    def project(g: Tensor) -> Tensor:
        return g - (g * h).sum(1, keepdim=True) * h

    total = project(task + help_term) if order == "released" else project(task) + help_term
    feature.backward(total)
    got, want = model.visual.linear.weight.grad, other.visual.linear.weight.grad
    assert float((got - want).norm() / want.norm()) < 1e-5
    assert model.head_teacher.weight.grad is None


def test_student_step__moves_the_feature_to_where_the_teacher_points() -> None:
    """Prior alignment lowers <f, min(g_image, 0)>: it raises f where the teacher gradient is negative."""
    torch.manual_seed(1)
    model = DgsNet(TinyTower(), 10)
    images = torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8)
    target = torch.tensor([1.0, 1, 1, 1])
    with torch.no_grad():
        model.head_image.weight.zero_()  # no task gradient at f: what arrives is the help alone
        model.head_text.weight.zero_()
    student_step(model, images, torch.randn(4, 10), target, TrainConfig())["loss"].backward()
    bias_gradient = model.visual.linear.bias.grad
    raised = model.head_teacher.weight[0] > 0  # y = 1: g_image = -sigma(-z)/B w, negative where w > 0
    assert (bias_gradient[raised] < 0).all()
    assert (bias_gradient[~raised] == 0).all()
