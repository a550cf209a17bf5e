"""Whether the adapters of the authors' file are already inside its weights, and with which scale.

Their LoRA layers add s B A to the weight on ``.eval()`` and take it off again on ``.train()``, and whether
that was done is not saved. The file also holds W0 itself, so each projection's D = W - W0 can be compared
with c B A for the c that can occur: 0 (unmerged), s (merged), 2 s (merged, loaded and merged again). The
scale s is alpha / sqrt(r) or alpha / r.

An element fits c when |D - c B A| <= h (|W0| + |W|) + t + n u (|W0| + |W| + m |B A|) + c P |B| |A|:

- h = 2^-11 and t = 2^-24, float16's roundoff and smallest step, where the file holds float16, which is what a
  finished checkpoint was converted to: W0 and W were rounded once each. Both are 0 in a float32 file.
- n u, with u = 2^-24, float32's roundoff. Each validation during training merges and unmerges in float32, two
  roundings of at most u |W0 + s B A| each; n = 16 allows for eight validations in the worst case, and for
  many more in practice, as errors do not all have one sign. m is the largest c.
- P = 2^-9 allows for a product computed in TF32 (A and B rounded to 11 bits: 2^-10) and for A and B that were
  converted to float16 after the merge (2^-10).

The bound shrinks with the weight itself, so that a few small weights are enough to tell two scales apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.console import Progress
from runtime.errors import CheckpointError

SCALINGS = ("rslora", "lora")
_HALF, _HALF_STEP = 2.0**-11, 2.0**-24
_FLOAT32 = 16 * 2.0**-24
_PRODUCT = 2.0**-9
# Two candidates nearer than this are the same reading of a file.
_SAME = 1e-6


@dataclass(frozen=True)
class Projection:
    """One of q, k, v of a block as the file has it.

    Attributes:
        name: of the weight in the file.
        weight: W, ``[D, D]``, float32 or float16.
        base: W0, the frozen copy's rows, ``[D, D]``.
        down: A, ``[r, D]``.
        up: B, ``[D, r]``.
    """

    name: str
    weight: Tensor
    base: Tensor
    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Verdict:
    """What the weights tell.

    Attributes:
        merged: whether s B A is inside the weights.
        untrained: whether every B is zero, so that merged and unmerged are the same.
        scaling: "rslora" or "lora"; of an unmerged file the one assumed.
        measured: least-squares estimate of what multiplies B A in W - W0; 0 where B is zero.
    """

    merged: bool
    untrained: bool
    scaling: str
    measured: float


def examine(
    projections: Sequence[Projection], *, rank: int, alpha: float, scaling: str | None = None
) -> Verdict:
    """Tells merged from unmerged over all projections of a file.

    Args:
        projections: every one that has adapters.
        rank: r.
        alpha: numerator of the scale, which the file does not hold.
        scaling: the only one to consider; None considers both and assumes "rslora" where nothing tells.

    Raises:
        CheckpointError: merged twice, some merged and others not, merged with an unexpected scale, readable
            in two ways, or weights that are none of this; says what was found.
    """
    scales = {
        name: alpha / math.sqrt(rank) if name == "rslora" else alpha / rank
        for name in SCALINGS
        if scaling in (None, name)
    }
    candidates = sorted({0.0, *scales.values(), *(2 * scale for scale in scales.values())})
    fits, measured, untrained = _compare(projections, candidates)
    assumed = next(iter(scales))
    if all(fits[0.0]):
        return Verdict(False, untrained, assumed, measured)
    once = [name for name, scale in scales.items() if all(fits[scale])]
    twice = [name for name, scale in scales.items() if all(fits[2 * scale])]
    if once and any(other != once[0] and _same(scales[other] * 2, scales[once[0]]) for other in twice):
        raise CheckpointError(
            f"adapters: found weights of W0 + {measured:.4g} B A, which is {once[0]} merged once or "
            f"{twice[0]} merged twice; give --scaling"
        )
    if once:
        nearest = min(once, key=lambda name: abs(scales[name] - measured))
        return Verdict(True, untrained, nearest, measured)
    if twice:
        raise CheckpointError(
            f"adapters: found weights of W0 + {measured:.4g} B A, expected 0 (unmerged) or "
            f"{scales[twice[0]]:.4g} (merged): they were merged twice; get the file as it was saved"
        )
    raise CheckpointError(_explain(projections, scales, fits, measured, rank=rank, alpha=alpha))


def _compare(
    projections: Sequence[Projection], candidates: Sequence[float]
) -> tuple[dict[float, list[bool]], float, bool]:
    """Returns which projections fit each candidate, the least-squares scale, and whether every B is zero."""
    fits: dict[float, list[bool]] = {candidate: [] for candidate in candidates}
    along = square = 0.0
    untrained = True
    with Progress("comparing projections", len(projections)) as bar:
        for projection in projections:
            weight, base = projection.weight.float(), projection.base.float()
            down, up = projection.down.float(), projection.up.float()
            change, size = weight - base, weight.abs() + base.abs()
            product, bound = up @ down, _PRODUCT * (up.abs() @ down.abs())
            noise = _FLOAT32 * (size + candidates[-1] * product.abs())
            if torch.float16 in (projection.weight.dtype, projection.base.dtype):
                noise += _HALF * size + _HALF_STEP
            for candidate in candidates:
                excess = (change - candidate * product).abs_() - noise - candidate * bound
                fits[candidate].append(bool(excess.max() <= 0))
            along += float((change.double() * product.double()).sum())
            square += float(product.double().square().sum())
            untrained &= not bool(up.any())
            bar.advance()
    return fits, along / square if square else 0.0, untrained


def _explain(
    projections: Sequence[Projection],
    scales: dict[str, float],
    fits: dict[float, list[bool]],
    measured: float,
    *,
    rank: int,
    alpha: float,
) -> str:
    expected = " or ".join(f"{scale:.4g} ({name})" for name, scale in scales.items())
    count = len(projections)
    for scale in scales.values():
        if all(plain or merged for plain, merged in zip(fits[0.0], fits[scale], strict=True)):
            plain = [index for index in range(count) if not fits[scale][index]]
            return (
                f"adapters: found {fits[0.0].count(False)} of {count} projections merged with a scale of "
                f"{scale:.4g} and {len(plain)} not, the first {projections[plain[0]].name}; expected all or "
                "none: get the file as it was saved"
            )
    if measured > 0 and all(_compare(projections, [measured])[0][measured]):
        return (
            f"adapters: found weights of W0 + {measured:.4g} B A, expected a scale of {expected} for alpha "
            f"{alpha:.4g} and r {rank}; give the --alpha it was trained with (rslora: "
            f"{measured * math.sqrt(rank):.4g}, lora: {measured * rank:.4g})"
        )
    known = [any(column) for column in zip(*fits.values(), strict=True)]
    bad = known.index(False) if False in known else 0
    return (
        f"adapters: found {known.count(False) or count} of {count} projections that are neither W0 nor "
        f"W0 + s B A with s of {expected}, the first {projections[bad].name} (over all, s is "
        f"{measured:.4g}); the weights were changed: get the file as it was saved"
    )


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME)
