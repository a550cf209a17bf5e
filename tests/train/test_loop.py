"""The loop's parts on their own: learning rate, what is kept, saved states, logs, teacher features."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.errors import CheckpointError, UsageError
from train.config import OptimConfig, ScheduleConfig
from train.loop.keeper import Keeper
from train.loop.optimiser import Optimiser, learning_rate_factor
from train.loop.ranks import Ranks, joined_ranks
from train.loop.resume import Position, State, check_identity, load_state, save_state
from train.loop.step_log import STEPS_NAME, StepLog
from train.loop.teacher_features import TeacherFeatures


def test_learning_rate__rises_and_falls_as_named() -> None:
    def factors(**settings: object) -> list[float]:
        schedule = ScheduleConfig(**settings)  # type: ignore[arg-type]
        return [learning_rate_factor(schedule, step, 8) for step in range(8)]

    assert factors() == [1.0] * 8
    assert factors(warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert factors(decay="linear") == pytest.approx([1 - k / 8 for k in range(8)])
    assert factors(decay="cosine") == pytest.approx([0.5 + 0.5 * math.cos(math.pi * k / 8) for k in range(8)])
    both = factors(decay="linear", warmup_steps=4)
    assert both == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_optimiser__weight_decay_is_part_of_the_gradient_in_adam_alone(name: str) -> None:
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    optimiser = Optimiser([weight], OptimConfig(name=name, lr=0.1, weight_decay=0.5), Ranks())
    weight.grad = torch.tensor([3.0, 1e-3])
    norm = optimiser.step(0.5, torch.zeros(0))
    assert float(norm) == pytest.approx(math.hypot(3, 1e-3))
    # Adam's first step is lr * sign of its gradient, here at half the learning rate.
    moved = [2 - 0.05, -1 + 0.05] if name == "adam" else [2 * (1 - 0.025) - 0.05, -(1 - 0.025) - 0.05]
    assert weight.tolist() == pytest.approx(moved, abs=1e-4)


def test_optimiser__goes_on_from_its_state() -> None:
    def fresh() -> tuple[nn.Parameter, Optimiser]:
        weight = nn.Parameter(torch.tensor([2.0, -1.0]))
        return weight, Optimiser([weight], OptimConfig(lr=0.1, amp="fp16"), Ranks())

    def step(weight: nn.Parameter, optimiser: Optimiser, number: int) -> None:
        optimiser.clear()
        ((weight * torch.tensor([1.0, number])).sum() * optimiser.scale).backward()
        optimiser.step(1.0, torch.zeros(0))

    whole, first = fresh()
    for number in range(4):
        step(whole, first, number)
    half, second = fresh()
    for number in range(2):
        step(half, second, number)
    tensors, values = second.state()
    again, third = fresh()
    with torch.no_grad():
        again.copy_(half)
    third.restore({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values)))
    for number in range(2, 4):
        step(again, third, number)
    assert torch.equal(whole, again)


def test_optimiser__skips_a_step_that_overflowed() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimiser = Optimiser([weight], OptimConfig(lr=0.1, amp="fp16"), Ranks())
    before = float(optimiser.scale)
    weight.grad = torch.tensor([float("inf")])
    optimiser.step(1.0, torch.zeros(0))
    assert weight.item() == 2.0
    assert float(optimiser.scale) == before / 2


def keeper_of(run: Path, **settings: object) -> Keeper:
    return Keeper(run, ScheduleConfig(**settings), lambda folder: (folder / "x").touch())  # type: ignore[arg-type]


def kept(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "kept").glob("*"))


def test_keeper__keeps_the_best_and_the_last_few(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path, keep="best", keep_last=2)
    for step, value in ((1, 0.5), (2, 0.9), (3, 0.7), (4, 0.8), (5, 0.6)):
        keeper.consider(value, step)
        keeper.prune()
    assert kept(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    assert (tmp_path / "best" / "x").exists()
    assert (tmp_path / "best").resolve().name == "step-00000002"
    again = Keeper(
        tmp_path, ScheduleConfig(keep="best"), lambda _: None, json.loads(json.dumps(keeper.state()))
    )
    assert (again.best, again.best_step) == (0.9, 2)


def test_keeper__takes_no_copies_that_nobody_asked_for(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path)
    keeper.consider(0.5, 1)
    assert (keeper.best, kept(tmp_path)) == (0.5, [])
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize(("metric", "values"), [("ap", (0.5, 0.6, 0.6, 0.4)), ("loss", (0.6, 0.5, 0.5, 0.9))])
def test_keeper__ends_early_when_nothing_gets_better(
    tmp_path: Path, metric: str, values: tuple[float, ...]
) -> None:
    keeper = keeper_of(tmp_path, patience=2, metric=metric)
    over = []
    for step, value in enumerate(values):
        keeper.consider(value, step)
        over.append(keeper.is_over)
    assert over == [False, False, False, True]


def test_state__comes_back_and_shows_damage(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    state = State(Position(1, 2, 3, 4, 5), {"a": 1}, {"weights.w": torch.arange(3.0)}, {"v": [1]})
    save_state(tmp_path, state)
    save_state(tmp_path, State(Position(1, 2, 4, 5, 6), {"a": 1}, {"weights.w": torch.ones(3)}, {"v": [2]}))
    back = load_state(tmp_path)
    assert back is not None
    assert (back.position.total_step, back.values) == (6, {"v": [2]})
    assert torch.equal(back.group("weights")["w"], torch.ones(3))
    files = sorted(path.name for path in (tmp_path / "resume").iterdir())
    assert files == ["state.json", "step-00000006-stage-1.safetensors"]  # the older tensors are gone
    (tmp_path / "resume" / files[1]).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be resumed from .* --overwrite"):
        load_state(tmp_path)


def test_identity__names_the_first_difference(tmp_path: Path) -> None:
    check_identity(tmp_path, {"a": 1, "b": [2]}, {"a": 1, "b": [2]})
    with pytest.raises(CheckpointError, match=r"b was \[2\] when the run began and is None now"):
        check_identity(tmp_path, {"a": 1, "b": [2]}, {"a": 1})


def test_step_log__forgets_what_came_after_the_state(tmp_path: Path) -> None:
    with StepLog(tmp_path, tensorboard=False) as log:
        log.write({"stage": 1, "loss": 0.5}, step=0)
        size = log.sync()
        log.write({"stage": 1, "loss": 0.4}, step=1)
    with StepLog(tmp_path, resume_at=size, resume_step=1, tensorboard=False) as log:
        log.write({"stage": 1, "loss": float("nan")}, step=1)
    lines = (tmp_path / STEPS_NAME).read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, None]


def test_step_log__survives_logs_that_are_gone(tmp_path: Path) -> None:
    with StepLog(tmp_path, resume_at=500, tensorboard=False) as log:
        log.write({"stage": 1, "loss": 0.4}, step=1)
        assert log.sync() == len((tmp_path / STEPS_NAME).read_bytes())
    assert json.loads((tmp_path / STEPS_NAME).read_text()) == {"stage": 1, "loss": 0.4}


def test_step_log__writes_what_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with StepLog(tmp_path) as log:
        for step in range(3):
            log.write({"stage": 2, "step": step, "loss": 1.0 / (1 + step)}, step=10 + step)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("stage2/loss")]
    assert [step for step, _ in points] == [10, 11, 12]
    assert [value for _, value in points] == pytest.approx([1.0, 0.5, 1 / 3])


def test_teacher_features__are_given_back_whole_or_not_at_all() -> None:
    held = TeacherFeatures(4, 2, epochs=2, limit_bytes=4 * 2 * 4)  # room for one epoch of two
    rows = torch.arange(6.0).view(3, 2)
    held.put(0, torch.tensor([2, 0, 3]), rows)
    held.put(1, torch.tensor([0]), rows[:1])
    assert torch.equal(held.get(0, torch.tensor([3, 2])), rows[[2, 0]])  # type: ignore[arg-type]
    assert held.get(0, torch.tensor([3, 1])) is None
    assert held.get(1, torch.tensor([0])) is None
    held.drop_epoch(0)
    assert held.get(0, torch.tensor([3])) is None


def test_ranks__give_one_process_everything() -> None:
    with joined_ranks("cpu") as ranks:
        value = torch.tensor([2.0])
        ranks.add_up(value)
        assert (value.item(), ranks.is_first, len(ranks.gather(value))) == (2.0, True, 1)


def test_ranks__refuse_one_gpu_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="found cuda:0 with 2 processes"), joined_ranks("cuda:0"):
        pass
