"""The figure of ``bench --plot``. matplotlib is imported here and nowhere else in this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.errors import MissingDependencyError, UsageError
from runtime.files import written_atomically
from runtime.names import printable_name

_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Checks before anything is measured that a figure can be written.

    Raises:
        UsageError: the file's suffix is none that figures are written as.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"--plot: found {printable_name(path.name)}, expected a name that ends in {', '.join(_SUFFIXES)}"
        )
    try:
        import matplotlib  # noqa: F401 - whether it imports is the question
    except ImportError as err:
        raise MissingDependencyError(
            "--plot needs matplotlib, which does not import; pip install matplotlib, or take --json-file"
        ) from err


def write_bench_plot(report: dict[str, Any], path: Path) -> None:
    """Writes latency percentiles and throughput against the batch size, and the phases of one picture.

    Args:
        report: what ``measure`` returned.
        path: PNG, SVG or PDF by its suffix; replaced whole or not at all.
    """
    from matplotlib.figure import Figure

    rows = report["batches"]
    sizes = [row["batch"] for row in rows]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    latency, throughput, phases = figure.subplots(1, 3)
    for name in ("p50", "p90", "p99"):
        latency.plot(sizes, [row["infer_ms"][name] for row in rows], marker="o", label=name)
    latency.set(xlabel="batch size", ylabel="ms a run", title="infer", ylim=(0, None))
    latency.legend()
    throughput.plot(sizes, [row["pictures_per_second"] for row in rows], marker="o", label="engine alone")
    throughput.axhline(report["stream"]["pictures_per_second"], linestyle="--", color="grey", label="stream")
    throughput.set(xlabel="batch size", ylabel="pictures a second", title="throughput", ylim=(0, None))
    throughput.legend()
    one = rows[0]
    parts = {
        "decode": report["phases"]["decode_ms"]["p50"],
        "select": report["phases"]["select_ms"]["p50"],
        "copy": one["copy_ms"]["p50"] / one["batch"],
        "infer": one["infer_ms"]["p50"] / one["batch"],
    }
    phases.bar(list(parts), list(parts.values()))
    phases.set(ylabel="ms a picture", title=f"phases, batch {one['batch']}")
    figure.suptitle(f"{report['engine']} on {report['backend']}")
    with written_atomically(path) as stream:
        figure.savefig(stream, format=path.suffix.lower()[1:])
