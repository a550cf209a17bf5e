"""The surgery operator against its float64 reference: the gate before any timing, and the tests' sweep.

Error measure: |got - want|_F / |want|_F, the inputs cast to the dtype first and the reference computed on the
cast inputs; per row max|got - want| / max|want| within ROW_FACTOR times the same limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.gradient_surgery import surgery, surgery_affine

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
ROW_FACTOR = 4
# Sums of squares: fp32 addition of D numbers of one sign, whatever the gradient's dtype.
STATS_LIMIT = 1e-5
LAYOUTS = ("contiguous", "sliced", "transposed", "misaligned", "expanded")


@dataclass(frozen=True)
class Case:
    """One call of the operator, from a seed."""

    affine: bool
    rows: int
    width: int
    dtype: torch.dtype
    order: str = "released"
    harm: str = "positive"
    layout: str = "contiguous"
    eps: float = 1e-6
    seed: int = 0

    def __str__(self) -> str:
        form = "affine" if self.affine else "general"
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{form} {self.rows}x{self.width} {dtype} {self.order} {self.harm} {self.layout} eps={self.eps:g}"
        )


@dataclass
class Outcome:
    """What a case measured; it passed if ``problems`` is empty."""

    case: Case
    error: float
    row_error: float
    problems: list[str] = field(default_factory=list)


def list_cases(
    widths: tuple[int, ...],
    *,
    rows: tuple[int, ...] = (1, 3, 7),
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16),
    forms: tuple[bool, ...] = (True, False),
) -> Iterator[Case]:
    """Yields every width with every dtype, order, harm and form; rows, layouts and eps take turns."""
    turns = itertools.cycle(
        (count, layout, eps) for layout in LAYOUTS for eps in (1e-6, 0.0, 1e-2) for count in rows
    )
    options = itertools.product(widths, dtypes, ("released", "paper"), ("positive", "full"), forms)
    for seed, (width, dtype, order, harm, affine) in enumerate(options):
        count, layout, eps = next(turns)
        if width < 4:
            # Projecting a number off a unit vector of one element leaves 0 and no relative error.
            eps = 0.3
        yield Case(affine, count, width, dtype, order, harm, layout, eps, seed)


def make_inputs(case: Case, device: str) -> list[Tensor]:
    """Returns the positional arguments of the case's call: ``surgery_affine``'s or ``surgery``'s."""
    generator = torch.Generator(device).manual_seed(case.seed)
    rows, width = case.rows, case.width

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * scale).to(case.dtype)

    grad = draw(rows, width)
    if width < 4:
        # Of one sign with the help term, which would else cancel a row's only number by chance.
        grad = -grad.abs()
    grad = _lay_out(grad, case.layout)
    shape = (rows,) if case.affine else (rows, width)
    text, image = draw(*shape, scale=0.3), draw(*shape, scale=0.3)
    if rows > 1:
        # No harmful direction there, which eps = 0 must not turn into a division by 0.
        text[-1] = 0
    if case.affine:
        return [grad, draw(width), text, draw(width), image]
    return [grad, _lay_out(text, case.layout), image]


def _lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Returns the same numbers with other strides ("expanded": the first row for all rows)."""
    rows, width = tensor.shape
    if layout == "sliced":
        return torch.cat([tensor, tensor], dim=1)[:, :width]
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "misaligned":
        flat = torch.empty(rows * width + 1, dtype=tensor.dtype, device=tensor.device)
        flat[1:] = tensor.flatten()
        return flat[1:].view(rows, width)
    if layout == "expanded":
        return tensor[:1].expand(rows, width)
    return tensor


def call(case: Case, inputs: list[Tensor], **options: object) -> Tensor:
    """Calls the public function that the case is about, align = 0.2."""
    function = surgery_affine if case.affine else surgery
    settings = {"align": 0.2, "order": case.order, "harm": case.harm, "eps": case.eps, **options}
    return function(*inputs, **settings)  # type: ignore[arg-type]


def measure(case: Case, device: str, backend: str) -> Outcome:
    """Runs one case on a back end: numbers, statistics, a broken row, and writing over grad."""
    inputs = make_inputs(case, device)
    want_stats = torch.empty(case.rows, 3, device=device)
    want = call(case, [t.double() for t in inputs], backend="torch", stats=want_stats)
    out = torch.full((case.rows, case.width), torch.nan, dtype=case.dtype, device=device)
    stats = torch.full((case.rows, 3), torch.nan, device=device)
    call(case, inputs, backend=backend, out=out, stats=stats)

    outcome = Outcome(case, *relative_errors(out, want))
    outcome.problems += _too_far(case, outcome.error, outcome.row_error)
    # <G, h> may cancel to nothing: the length of G is its scale.
    scale = torch.stack([want_stats[:, 0], want_stats[:, 0].sqrt(), want_stats[:, 2]], dim=1)
    if not bool(((stats - want_stats).abs() <= STATS_LIMIT * scale + 1e-30).all()):
        outcome.problems.append("the statistics differ from the reference's")
    outcome.problems += _broken_row(case, inputs, backend)
    if case.layout != "expanded":
        call(case, inputs, backend=backend, out=inputs[0])
        errors = relative_errors(inputs[0], want)
        outcome.problems += [f"written over grad: {problem}" for problem in _too_far(case, *errors)]
    return outcome


def _too_far(case: Case, error: float, row_error: float) -> list[str]:
    limit = LIMITS[case.dtype]
    problems = []
    if not error <= limit:
        problems.append(f"error {error:.2e}, expected at most {limit:.0e}")
    if not row_error <= ROW_FACTOR * limit:
        problems.append(f"error {row_error:.2e} in a row, expected at most {ROW_FACTOR * limit:.0e}")
    return problems


def relative_errors(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Returns the error of the whole and of the worst row, as the module says; 0 for an empty batch."""
    if not want.numel():
        return 0.0, 0.0
    difference = got.double() - want.double()
    whole = difference.norm() / want.double().norm()
    row = (difference.abs().amax(dim=1) / want.double().abs().amax(dim=1)).max()
    return float(whole), float(row)


def _broken_row(case: Case, inputs: list[Tensor], backend: str) -> list[str]:
    """Puts a non-finite value into a row of one per-row input and looks who noticed; the cases take turns.

    Before and after are calls on the same tensors: where strides, alignment or ``stats`` differ, another
    build adds up in another order, and no bit need be the same.
    """
    problems = []
    bad = case.seed % case.rows
    value = (torch.nan, torch.inf, -torch.inf)[case.seed // 3 % 3]
    index = ((0, 2, 4) if case.affine else (0, 1, 2))[case.seed % 3]
    broken = list(inputs)
    broken[index] = inputs[index].clone()
    clean = call(case, broken, backend=backend)
    broken[index][(bad,) if inputs[index].ndim == 1 else (bad, case.width // 2)] = value
    got = call(case, broken, backend=backend)
    if not got.is_contiguous():
        problems.append(f"strides {got.stride()}, expected a contiguous result")
    if bool(got[bad].isfinite().any()):
        problems.append(f"{value} in argument {index} left numbers in its row")
    others = [row for row in range(case.rows) if row != bad]
    if not torch.equal(got[others], clean[others]):
        problems.append(f"{value} in argument {index} changed other rows")
    return problems


def sweep(cases: Iterator[Case] | list[Case], *, device: str, backend: str) -> list[Outcome]:
    """Measures every case."""
    return [measure(case, device, backend) for case in cases]
