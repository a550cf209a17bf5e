"""An evaluation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runtime.names import printable_name
from train.evaluation.evaluate import Evaluation
from train.evaluation.generators import mean_row

_NARROWEST_NAME = 9
_AT_THRESHOLD = ("accuracy", "real_accuracy", "fake_accuracy")
_AT_HALF = ("accuracy_at_half", "real_accuracy_at_half", "fake_accuracy_at_half")
_THRESHOLD_FREE = ("ap", "auroc", "ece")


def main_table(evaluation: Evaluation) -> str:
    """Returns the rows per generator and their mean: at the threshold, at 0.5, and free of a threshold."""
    has_intervals = any(row.ap_low is not None for row in evaluation.rows)
    width = _name_width(row.name for row in evaluation.rows)
    accuracies = f"{'acc':>8}{'r_acc':>8}{'f_acc':>8}"
    lines = [
        f"{'':<{width}}{'':>8}{'at the threshold':>24}{'at 0.5':>24}",
        f"{'generator':<{width}}{'n':>8}{accuracies}{accuracies}{'AP':>8}{'AUROC':>8}{'ECE':>8}"
        + (f"{'AP, 95 % interval':>19}" if has_intervals else ""),
    ]
    columns = (*_AT_THRESHOLD, *_AT_HALF, *_THRESHOLD_FREE)
    for row in evaluation.rows:
        interval = "" if row.ap_low is None else f"{row.ap_low:.3f} to {row.ap_high:.3f}"
        cells = _cells(getattr(row, name) for name in columns)
        lines.append(f"{printable_name(row.name):<{width}}{row.count:>8}{cells}{interval:>19}".rstrip())
    mean = mean_row(evaluation.rows)
    lines.append(f"{'mean':<{width}}{'':>8}{_cells(mean[name] for name in columns)}")
    decision = evaluation.decision
    lines.append(
        f"at a threshold of {decision.threshold:.6g} after a temperature of {decision.temperature:.6g}; "
        "the mean weighs generators equally"
    )
    return "\n".join(lines)


def robustness_table(evaluation: Evaluation) -> str:
    """Returns accuracy at the threshold and AP for each generator under each degradation."""
    width = _name_width(row.name for row in evaluation.rows)
    columns = {"none": evaluation.rows, **evaluation.degraded}
    lines = [
        f"{'':<{width}}" + "".join(f"{name:>16}" for name in columns),
        f"{'generator':<{width}}" + f"{'acc':>8}{'AP':>8}" * len(columns),
    ]
    for place, row in enumerate(evaluation.rows):
        cells = "".join(_cells([rows[place].accuracy, rows[place].ap]) for rows in columns.values())
        lines.append(f"{printable_name(row.name):<{width}}{cells}")
    means = [mean_row(rows) for rows in columns.values()]
    lines.append(f"{'mean':<{width}}" + "".join(_cells([mean["accuracy"], mean["ap"]]) for mean in means))
    lines.append("both classes degraded alike, at the same threshold")
    return "\n".join(lines)


def unreadable_line(evaluation: Evaluation) -> str:
    """Returns the line that counts the pictures which could not be read; they are in no row."""
    total = len(evaluation.samples) + len(evaluation.unreadable)
    return f"unreadable: {len(evaluation.unreadable)} of {total} pictures, in no row of the table"


def _name_width(names: Iterable[str]) -> int:
    return max([_NARROWEST_NAME, *(len(printable_name(name)) for name in names)]) + 1


def _cells(values: Iterable[float]) -> str:
    numbers: Sequence[float] = list(values)
    return "".join(f"{value:>8.3f}" for value in numbers)
