"""An evaluation as three SVG pictures: ROC curves, calibration, histograms of the scores.

Equal evaluations give equal bytes for one version of matplotlib, which is imported on the first call. Text
stays text in the files, so that it can be searched and copied.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.files import write_atomically
from runtime.names import printable_name
from train.evaluation.evaluate import Evaluation
from train.metrics import calibration_bins, expected_calibration_error, probabilities_from_logits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROC_NAME, CALIBRATION_NAME, SCORES_NAME = "roc.svg", "calibration.svg", "scores.svg"
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "dgsnet",  # the identifiers inside the file are random without it
    "svg.fonttype": "none",
    "text.parse_math": False,  # a generator may be called a$b$
    "font.size": 9.0,
}
# Told apart with every common form of colour blindness (Okabe and Ito).
_REAL_COLOUR, _GENERATED_COLOUR = "#0072B2", "#D55E00"
_LINE_STYLES = ("-", "--", ":", "-.")
_COLOURS = 10  # of matplotlib's default cycle; the next ten curves get the next line style
_PANELS_ACROSS = 4
_LEGEND_ROWS = 18
_HISTOGRAM_BINS = 40


def write_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes the plots and returns where they are; the folder is made if it is missing.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with _drawing():
        for name, figure in (
            (ROC_NAME, _roc_figure(evaluation)),
            (CALIBRATION_NAME, _calibration_figure(evaluation)),
            (SCORES_NAME, _scores_figure(evaluation)),
        ):
            stream = io.BytesIO()
            figure.savefig(stream, format="svg", metadata={"Date": None})
            write_atomically(folder / name, stream.getvalue())
            written.append(folder / name)
    return written


@contextmanager
def _drawing() -> Iterator[None]:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # The reader's own fonts draw the text; that ours lack a character of a name matters to widths only.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _roc_figure(evaluation: Evaluation) -> Figure:
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    columns = -(-len(evaluation.rows) // _LEGEND_ROWS)
    figure = Figure(figsize=(5.5 + 2.6 * columns, 5.0), layout="constrained")
    axes = figure.add_subplot()
    labels, places, handles, names = evaluation.labels, evaluation.places, [], []
    for place, row in enumerate(evaluation.rows):
        chosen = places[row.name]
        false_rate, true_rate, _ = roc_curve(labels[chosen], evaluation.logits[chosen])
        style = _LINE_STYLES[place // _COLOURS % len(_LINE_STYLES)]
        handles += axes.plot(false_rate, true_rate, style, color=f"C{place % _COLOURS}", linewidth=1.4)
        names.append(f"{printable_name(row.name)}, AUROC {row.auroc:.3f}")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        title="ROC per generator",
        xlabel="real pictures called generated (false-positive rate)",
        ylabel="generated pictures called generated (true-positive rate)",
    )
    figure.legend(handles, names, loc="outside right upper", ncols=columns, fontsize="small")
    return figure


def _calibration_figure(evaluation: Evaluation) -> Figure:
    labels, temperature = evaluation.labels, evaluation.decision.temperature
    probabilities = probabilities_from_logits(evaluation.logits, temperature)
    panels = [("all pictures", np.arange(len(labels)))]
    panels += [(printable_name(name), chosen) for name, chosen in evaluation.places.items()]
    figure, grid = _grid(len(panels), f"Calibration, temperature {temperature:.4g}")
    for axes, (name, chosen) in zip(grid, panels, strict=True):
        count, mean, share = calibration_bins(labels[chosen], probabilities[chosen])
        used = count > 0
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        axes.plot(mean[used], share[used], color=_REAL_COLOUR, linewidth=0.8)
        # Areas in proportion to the pictures of a bin, so that a bin of three does not look like one of 3000.
        axes.scatter(mean[used], share[used], s=4 + 60 * count[used] / count.max(), color=_REAL_COLOUR)
        error = expected_calibration_error(labels[chosen], probabilities[chosen])
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=f"{name}, ECE {error:.3f}")
    figure.supxlabel("mean probability of a bin")
    figure.supylabel("share of generated pictures in it")
    return figure


def _scores_figure(evaluation: Evaluation) -> Figure:
    labels, logits = evaluation.labels, evaluation.logits.astype(np.float64)
    low, high = float(logits.min()), float(logits.max())
    edges = np.linspace(low - 1e-3, high + 1e-3, _HISTOGRAM_BINS + 1)
    figure, grid = _grid(len(evaluation.rows), "Logits by label")
    boundary = evaluation.decision.boundary_logit
    for axes, (name, chosen) in zip(grid, evaluation.places.items(), strict=True):
        drawn: list[Any] = []
        for label, colour in ((0, _REAL_COLOUR), (1, _GENERATED_COLOUR)):
            values = logits[chosen][labels[chosen] == label]
            drawn.append(axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.6)[2])
        drawn.append(axes.axvline(boundary, color="black", linewidth=0.8, linestyle="--"))
        axes.set_title(printable_name(name))
    figure.legend(
        drawn,
        ["real", "generated", f"threshold {evaluation.decision.threshold:.4g}"],
        loc="outside upper right",
        ncols=3,
        fontsize="small",
    )
    figure.supxlabel("raw logit")
    figure.supylabel("pictures")
    return figure


def _grid(count: int, title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    across = min(count, _PANELS_ACROSS)
    down = -(-count // across)
    figure = Figure(figsize=(max(2.6 * across, 5.2), 2.5 * down + 0.9), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left")
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]
