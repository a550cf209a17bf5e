"""python -m export parity."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.commands.bisect_options import bisect_options, located, repaired, require_sense
from runtime.console import print_json, verbosity_option
from runtime.errors import DataError, DgsNetError, GateFailedError, UsageError
from runtime.names import utf8_name

if TYPE_CHECKING:
    from export.parity.bisect.findings import BisectReport
    from export.parity.bisect.trade_off import TradeOff
    from export.parity.outcome import GateReport

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="run that the bundle was made from")
@click.option(
    "--data", type=click.Path(path_type=Path), help="folder of pictures; labels from 0_real, 1_fake"
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="engine that must run; repeated or comma-separated",
)
@click.option("--require-all", is_flag=True, help="exit 3 if any hop cannot run here")
@click.option("--max-abs-logit", type=float, help="limit of |difference of logits| in FP16  [default: 0.05]")
@click.option("--max-abs-logit-fp32", type=float, help="the same between FP32 forms  [default: 0.001]")
@click.option("--max-hard-flips", type=int, default=0, show_default=True, help="verdicts that may change")
@click.option("--max-ap-drop", type=float, help="average precision that may be lost  [default: 0.001]")
@click.option("--max-flip-bound", type=float, help="largest 95 % bound of the flip rate; off by default")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option("--json-file", type=_FILE, help="write the report as JSON")
@click.option("--html-file", type=_FILE, help="write the report as one page")
@click.option("--junit-file", type=_FILE, help="write the report as JUnit XML")
@bisect_options
@verbosity_option
def parity(
    bundle: Path,
    checkpoint: Path | None,
    data: Path | None,
    backends: tuple[str, ...],
    require_all: bool,
    max_abs_logit: float | None,
    max_abs_logit_fp32: float | None,
    max_hard_flips: int,
    max_ap_drop: float | None,
    max_flip_bound: float | None,
    batch_size: int,
    as_json: bool,
    json_file: Path | None,
    html_file: Path | None,
    junit_file: Path | None,
    bisect: bool,
    repair: bool,
    drop_engines: bool,
    bisect_pictures: int,
    bisect_evaluations: int,
) -> None:
    """Says whether BUNDLE would judge otherwise than the model it was made from, and at which step.

    The same pictures go through PyTorch, the merged model, the FP32 graph, the FP16 graph, every engine that
    runs here, and the runtime from file bytes. Without --data the golden mosaics are taken, without
    --checkpoint the chain begins with the FP32 graph.

    Exits 1 when a check fails, 2 on bad input (a picture that nothing can read is one), 3 when a hop asked
    for by name cannot run, or nothing could be compared.
    """
    from export.checkpoint import CheckpointSource
    from export.parity.gate import GateOptions, bundle_gate, require_all_ran

    for path in (json_file, html_file, junit_file):
        if path is not None and not path.resolve().parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist; make it first")
    require_sense(repair=repair, drop_engines=drop_engines)
    source = None if checkpoint is None else CheckpointSource(checkpoint)
    limits: dict[str, float | int | None] = {
        "max_abs_logit": max_abs_logit,
        "max_abs_logit_fp32": max_abs_logit_fp32,
        "max_hard_flips": max_hard_flips,
        "max_ap_drop": max_ap_drop,
        "max_flip_bound": max_flip_bound,
    }
    options = GateOptions(
        backends=tuple(name.strip() for value in backends for name in value.split(",") if name.strip()),
        batch=batch_size,
        command=("python", "-m", "export", *sys.argv[1:]),
    )
    report = bundle_gate(bundle, source, data, limits=limits, options=options)
    found, trade_off, stopped = None, None, None
    try:
        found = located(
            bundle, source, report, bisect=bisect, repair=repair, drop_engines=drop_engines,
            bisect_pictures=bisect_pictures, bisect_evaluations=bisect_evaluations,
        )  # fmt: skip
        if repair and found is not None:
            done = repaired(
                bundle, source, data, report, found, limits=limits, options=options, drop_engines=drop_engines
            )
            report, trade_off = done or (report, None)
    except DgsNetError as err:
        stopped = err  # raised after the report, which nobody shall have waited for in vain
    shown = _Shown(report, found, trade_off, "" if stopped is None or not repair else str(stopped))
    shown.write(json_file, html_file, junit_file)
    if as_json:
        print_json(shown.content())
    else:
        for line in shown.lines():
            click.echo(line)
    if stopped is not None:
        raise stopped
    if not report.passed:
        raise GateFailedError(f"parity: {len(report.failed)} checks failed, first: {report.failed[0].line()}")
    if require_all:
        require_all_ran(report)
    if report.unreadable:
        name, reason = report.unreadable[0]
        raise DataError(
            f"parity: {len(report.unreadable)} pictures could not be read, first {name}: {reason}"
        )


@dataclass(frozen=True)
class _Shown:
    """What there is to show: the gate, and where asked for what bisection found and what a repair changed."""

    report: GateReport
    found: BisectReport | None
    trade_off: TradeOff | None
    not_repaired: str

    def content(self) -> dict[str, Any]:
        content = self.report.to_json()
        if self.found is not None:
            content["bisect"] = self.found.to_json()
        if self.trade_off is not None:
            content["repair"] = self.trade_off.to_json()
        elif self.not_repaired:
            content["repair"] = {"status": "not-repaired", "reason": utf8_name(self.not_repaired)}
        return content

    def lines(self) -> list[str]:
        if self.found is None:
            return self.report.lines()
        if self.trade_off is None:
            return [*self.report.lines(), *self.found.lines()]
        before = ["before the repair:", *self.found.lines()]
        return [*before, *self.trade_off.lines(), "the repaired bundle:", *self.report.lines()]

    def where(self) -> list[str]:
        """Returns the page's lines on the place; after a repair they say what was repaired."""
        if self.found is None:
            return []
        if self.trade_off is None:
            return self.found.lines()
        return [*self.trade_off.lines(), "before the repair:", *self.found.lines()]

    def checked(self) -> GateReport:
        """Returns the gate with what was found as checks of its own; a repaired bundle has no such place."""
        if self.found is None or self.trade_off is not None:
            return self.report
        return dataclasses.replace(self.report, checks=(*self.report.checks, *self.found.checks()))

    def write(self, json_file: Path | None, html_file: Path | None, junit_file: Path | None) -> None:
        from export.parity.junit import junit_xml
        from runtime.files import write_atomically

        if json_file is not None:
            text = json.dumps(self.content(), indent=1, allow_nan=False) + "\n"
            write_atomically(json_file, text.encode())
        if junit_file is not None:
            write_atomically(junit_file, junit_xml(self.checked()))
        if html_file is not None:
            from export.parity.page.document import html_page

            is_still_so = self.trade_off is None
            rows = self.found.page_rows() if self.found is not None and is_still_so else []
            write_atomically(html_file, html_page(self.report, rows, self.where()))
