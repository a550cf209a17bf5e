"""Whether adapters are inside the weights: told from the weights, or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runtime.errors import CheckpointError
from train.official.merged import Projection, Verdict, examine

RSLORA = 6 / math.sqrt(6)
WIDTH = 96


def projections(*, scale: float = 0.0, rank: int = 6, up: float = 0.05, count: int = 6) -> list[Projection]:
    """Random projections with ``scale`` times B A added, in float32 as training does it."""
    draw = torch.Generator().manual_seed(8)
    found = []
    for index in range(count):
        base = torch.randn(WIDTH, WIDTH, generator=draw) * 0.03
        base[:, :5] = 0.0
        base[:, 5:40] *= 1e-4  # subnormal in float16, where roundings are not relative to the weight
        down = (torch.rand(rank, WIDTH, generator=draw) * 2 - 1) / math.sqrt(WIDTH)
        lift = torch.randn(WIDTH, rank, generator=draw) * up
        found.append(Projection(f"p{index}", base + scale * (lift @ down), base, down, lift))
    return found


def halved(given: list[Projection]) -> list[Projection]:
    return [
        Projection(p.name, p.weight.half(), p.base.half(), p.down.half(), p.up.half()) for p in given
    ]  # fmt: skip


def verdict_of(given: list[Projection], *, alpha: float = 6.0, scaling: str | None = None) -> Verdict:
    return examine(given, rank=given[0].down.shape[0], alpha=alpha, scaling=scaling)


@pytest.mark.parametrize("convert", [list, halved], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("scale", "merged", "scaling"),
    [(0.0, False, "rslora"), (RSLORA, True, "rslora"), (1.0, True, "lora")],
    ids=["unmerged", "rslora", "lora"],
)
@pytest.mark.parametrize("up", [0.2, 0.002, 0.0002])
def test_examine__tells_the_three_kinds_of_files_apart(
    convert: Callable[[list[Projection]], list[Projection]],
    scale: float,
    merged: bool,
    scaling: str,
    up: float,
) -> None:
    """Down to adapters that change a weight by less than float16's spacing near it."""
    verdict = verdict_of(convert(projections(scale=scale, up=up)))
    assert (verdict.merged, verdict.scaling, verdict.untrained) == (merged, scaling, False)
    assert verdict.measured == pytest.approx(scale, abs=1e-5 if convert is list else 0.02)


def test_examine__takes_a_scaling_at_its_word() -> None:
    assert verdict_of(projections(), scaling="lora").scaling == "lora"
    with pytest.raises(CheckpointError, match=r"W0 \+ 1 B A, expected .* 2.449 \(rslora\) for alpha 6"):
        verdict_of(projections(scale=1.0), scaling="rslora")
    with pytest.raises(CheckpointError, match=r"give the --alpha .*\(rslora: 8, lora: 19.6\)"):
        verdict_of(projections(scale=8 / math.sqrt(6)))
    assert verdict_of(projections(scale=8 / math.sqrt(6)), alpha=8.0).merged


@pytest.mark.parametrize("convert", [list, halved], ids=["float32", "float16"])
@pytest.mark.parametrize(("scale", "found"), [(2 * RSLORA, "4.8"), (2.0, "2")])
def test_examine__refuses_adapters_that_were_merged_twice(
    convert: Callable[[list[Projection]], list[Projection]], scale: float, found: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"W0 \+ {found}.* B A, .*they were merged twice"):
        verdict_of(convert(projections(scale=scale)))


def test_examine__refuses_two_readings_of_one_scale() -> None:
    """At r = 4, 6 / sqrt(r) once is 6 / r twice; at r = 1 both scalings are one."""
    given = projections(scale=3.0, rank=4)
    with pytest.raises(CheckpointError, match="rslora merged once or lora merged twice; give --scaling"):
        verdict_of(given)
    assert verdict_of(given, scaling="rslora").merged
    with pytest.raises(CheckpointError, match="merged twice"):
        verdict_of(given, scaling="lora")
    assert verdict_of(projections(scale=6.0, rank=1)).scaling == "rslora"


@pytest.mark.parametrize("convert", [list, halved], ids=["float32", "float16"])
def test_examine__refuses_a_mixture(convert: Callable[[list[Projection]], list[Projection]]) -> None:
    mixed = [*projections(scale=RSLORA)[:2], *projections()[2:]]
    with pytest.raises(CheckpointError, match=r"2 of 6 projections merged .* 2.449 and 4 not, the first p2;"):
        verdict_of(convert(mixed))
    both = [*projections(scale=RSLORA)[:2], *projections(scale=1.0)[2:]]
    with pytest.raises(CheckpointError, match="neither W0 nor"):
        verdict_of(convert(both))


def changed(given: list[Projection], index: int, change: Callable[[Tensor], object]) -> list[Projection]:
    copy = replace(given[index], weight=given[index].weight.clone())
    change(copy.weight)
    return [*given[:index], copy, *given[index + 1 :]]


@pytest.mark.parametrize("scale", [0.0, RSLORA])
@pytest.mark.parametrize(
    "change",
    [lambda w: w[3, 70].add_(1e-3), lambda w: w.mul_(1.05), lambda w: w.copy_(w.T.clone())],
    ids=["one-element", "scaled", "transposed"],
)
@pytest.mark.parametrize("convert", [list, halved], ids=["float32", "float16"])
def test_examine__refuses_weights_that_were_changed(
    convert: Callable[[list[Projection]], list[Projection]],
    change: Callable[[Tensor], object],
    scale: float,
) -> None:
    given = changed(convert(projections(scale=scale)), 4, change)
    with pytest.raises(CheckpointError, match=r"1 of 6 projections that are neither W0 nor .*the first p4 "):
        verdict_of(given)


def test_examine__leaves_unmerged_weights_little_room() -> None:
    """A few roundings of the file's own dtype."""
    for convert, factor in ((list, 1 + 1e-5), (halved, 1 + 4e-3)):
        given = changed(convert(projections()), 4, lambda w, factor=factor: w.mul_(factor))
        with pytest.raises(CheckpointError, match="the first p4 "):
            verdict_of(given)


def test_examine__accepts_what_validations_left_behind() -> None:
    """Merging and unmerging in float32 does not give back the same bits, and more so as B moves on."""
    for last in (0.0, RSLORA):
        given = projections()
        for p in given:
            p.weight.copy_(p.base)
            for step in range(1, 9):
                change = RSLORA * (p.up * step / 8 @ p.down)
                p.weight.add_(change).sub_(change)
            assert not torch.equal(p.weight, p.base)
            p.weight.add_(p.up @ p.down, alpha=last)
        assert verdict_of(given).merged is (last != 0)


def test_examine__accepts_a_merge_in_tf32() -> None:
    """A product of factors that were rounded to 10 stored bits, as tensor cores do."""

    def rounded(x: Tensor) -> Tensor:
        return ((x.view(torch.int32) + (1 << 12)) & ~0x1FFF).view(torch.float32)

    given = [
        replace(p, weight=p.base + RSLORA * (rounded(p.up) @ rounded(p.down))) for p in projections(up=0.2)
    ]  # fmt: skip
    exact = projections(scale=RSLORA, up=0.2)
    assert not torch.allclose(given[0].weight, exact[0].weight, rtol=0, atol=1e-6)
    assert verdict_of(given).merged


def test_examine__accepts_adapters_that_are_zero() -> None:
    verdict = verdict_of(projections(up=0.0))
    assert (verdict.merged, verdict.untrained, verdict.measured) == (False, True, 0.0)
    some = [*projections(up=0.0)[:2], *projections(scale=RSLORA)[2:]]
    assert verdict_of(some).merged
    with pytest.raises(CheckpointError, match="1 of 6 projections that are neither"):
        verdict_of(changed(projections(up=0.0), 1, lambda w: w[0, 0].add_(1e-3)))
