"""The training benchmark compares equal work, and its clocks charge what they say."""

from __future__ import annotations

import time
import types
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.laps import run_in_turns
from benchmarks.training.ours import OurTrainer
from benchmarks.training.phases import REST, Phases
from benchmarks.training.pictures import write_pictures
from benchmarks.training.report import missed_goals
from benchmarks.training.straightforward import StraightforwardTrainer
from train.config import TrainConfig
from train.data.layout import Sample
from train.model.backbone import load_clip

CONFIG = TrainConfig(backbone="dgsnet-tiny-p32", pretrained="random").with_values(
    [
        ("lora.dropout", 0),
        ("data.batch", 6),
        ("data.workers", 0),
        ("schedule.stage1_epochs", 1),
        ("optim.lr", 0.01),
        # Large enough for the help term to show in float32.
        ("surgery.align", 30),
    ]
)

ADAM_EPS = 1e-8

Given = tuple[Any, list[Sample], list[str]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    clip, _ = load_clip(CONFIG.backbone, "random", seed=3)
    return (clip, *write_pictures(tmp_path_factory.mktemp("pictures"), 6, 288))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spread(model: torch.nn.Module) -> None:
    """Moves B away from zero and the heads far enough for the surgery to take a visible share."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_b." in name or name.startswith("head_"):
                parameter += torch.randn(parameter.shape, generator=draw) * 0.05


def gradients(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("is_held", "reuses_teacher"), [(False, False), (True, True)])
def test_trainers__take_the_same_step(
    given: Given, tmp_path: Path, is_held: bool, reuses_teacher: bool
) -> None:
    config = CONFIG.with_values([("data.cache_gib", 1 if is_held else 0)])
    straight = StraightforwardTrainer(given[0], config, *given[1:], is_held=is_held)
    with closing(OurTrainer(given[0], config, *given[1:], tmp_path)) as ours:
        if reuses_teacher:
            ours.learn_teacher()
            straight.model.load_state_dict(ours.model.state_dict())
        spread(ours.model)
        spread(straight.model)
        before = [parameter.detach().clone() for parameter in ours.trained]
        straight.epoch()
        ours.epoch()
    for start, own, other in zip(before, ours.trained, straight.trained, strict=True):
        assert (own - start).abs().max() > 0.5 * config.optim.lr
        assert own.grad is not None
        assert other.grad is not None
        # Measured: 8e-7.
        difference = own.grad - other.grad
        assert difference.norm() <= 1e-5 * other.grad.norm()
        # Adam's first step is lr * g / (|g| + eps), which amplifies rounding where g is nearly zero, but by
        # no more than this; besides, parameters of about 1 are rounded to 6e-8.
        largest = torch.maximum(own.grad.abs(), other.grad.abs())
        allowed = 2 * config.optim.lr * difference.abs() / (largest + ADAM_EPS) + 3e-7
        assert ((own - other).detach().abs() <= allowed).all()


@pytest.mark.usefixtures("one_thread")
def test_trainers__differ_without_the_surgery(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would see if the hook were missing."""
    config = CONFIG.with_value("data.cache_gib", 1)
    found = []
    for is_operated in (True, False):
        trainer = StraightforwardTrainer(given[0], config, *given[1:], is_held=True)
        spread(trainer.model)
        if not is_operated:
            monkeypatch.setattr(Tensor, "register_hook", lambda *_: None)
        trainer.epoch()
        found.append(gradients(trainer.trained)[0])
    assert (found[0] - found[1]).norm() > 1e-2 * found[0].norm()


def test_phases__charge_each_function_for_itself_alone() -> None:
    def inner() -> None:
        time.sleep(0.05)

    def outer() -> None:
        time.sleep(0.02)
        place.inner()

    place = types.SimpleNamespace(inner=inner, outer=outer)
    phases = Phases()
    with phases.watching([(place, "inner", "in"), (place, "outer", "out")]):
        place.outer()
        leaf = torch.zeros(1, requires_grad=True)
        leaf.register_hook(lambda _: time.sleep(0.03))
        leaf.sum().backward()
        time.sleep(0.01)
    assert place.inner is inner
    assert place.outer is outer
    assert phases.seconds["in"] >= 0.05
    assert 0.02 <= phases.seconds["out"] < 0.05 + phases.seconds["in"] - 0.05
    assert phases.seconds["surgery"] >= 0.03
    assert phases.seconds[REST] >= 0.01


def test_laps__warm_up_takes_turns_and_is_not_counted() -> None:
    order: list[str] = []
    laps, others = run_in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2, "test")
    assert "".join(order) == "abbaab"
    assert [len(each) for each in laps.values()] == [2, 2]
    assert others is None or 0 <= others <= 1


def test_missed_goals__names_what_is_below() -> None:
    own = {"ratio": 1.1, "goal": 1.2}
    rows = [{"setting": "held", "contestants": {"x": own, "y": own | {"goal": None}, "z": own | {"goal": 1}}}]
    assert missed_goals(rows) == ["held, x: ratio 1.10, expected at least 1.2"]
