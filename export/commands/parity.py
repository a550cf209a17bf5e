"""python -m export parity."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from export.commands.against import require_one_question, run_against
from export.commands.bisect_options import bisect_options, located, repaired, require_sense
from export.commands.engine_options import split_names
from export.commands.parity_options import reading_of, reading_options, report_options
from export.commands.parity_shown import Shown, with_stop
from runtime.console import print_json, verbosity_option
from runtime.errors import DgsNetError


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="run that the bundle was made from")
@click.option(
    "--data", type=click.Path(path_type=Path), help="folder of pictures; labels from 0_real, 1_fake"
)
@click.option(
    "--against",
    metavar="OLD",
    type=click.Path(path_type=Path),
    help="compare BUNDLE's verdicts with this older bundle's instead",
)
@click.option(
    "--max-changed",
    default="0",
    show_default=True,
    metavar="N|SHARE",
    help="verdicts that may change with --against: 3 of them, or a share, 0.01 or 1% (1.0 is all)",
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
@reading_options
@report_options
@bisect_options
@verbosity_option
def parity(
    bundle: Path,
    checkpoint: Path | None,
    data: Path | None,
    against: Path | None,
    max_changed: str,
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
    **reading: Any,
) -> None:
    """Says whether BUNDLE would judge otherwise than the model it was made from, and at which step.

    The same pictures go through PyTorch, the merged model, the FP32 graph, the FP16 graph, every engine that
    runs here, and the runtime from file bytes. Without --data the golden mosaics are taken, without
    --checkpoint the chain begins with the FP32 graph.

    With --against OLD another question: on how many pictures does BUNDLE judge otherwise than OLD, each with
    its own preprocessing and threshold, whatever models lie behind them?

    Exits 1 when a check fails, 2 on bad input (more unreadable pictures than --max-unreadable allows are
    that), 3 when a hop asked for by name cannot run, or nothing could be compared. The report files say the
    same, also where there is no verdict.
    """
    from export.parity.report_files import ReportFiles

    command = ("python", "-m", "export", *sys.argv[1:])
    bundles = [folder for folder in (bundle, against) if folder is not None]
    files = ReportFiles(json_file, junit_file, html_file, command, bundles)
    with files.kept_true():
        from export.checkpoint import CheckpointSource
        from export.parity.ending import require_passed
        from export.parity.gate import GateOptions, bundle_gate

        require_one_question(click.get_current_context())
        names = split_names(backends)
        if against is not None:
            run_against(
                bundle, against, data, max_changed=max_changed, max_flip_bound=max_flip_bound, backends=names,
                reading=reading_of(**reading), require_all=require_all, command=command, files=files,
                as_json=as_json,
            )  # fmt: skip
            return
        require_sense(repair=repair, drop_engines=drop_engines)
        limits: dict[str, float | int | None] = {
            "max_abs_logit": max_abs_logit,
            "max_abs_logit_fp32": max_abs_logit_fp32,
            "max_hard_flips": max_hard_flips,
            "max_ap_drop": max_ap_drop,
            "max_flip_bound": max_flip_bound,
        }
        options = GateOptions(
            backends=names,
            batch=batch_size,
            command=command,
            reading=reading_of(**reading),
            require_all=require_all,
        )
        source = None if checkpoint is None else CheckpointSource(checkpoint)
        report = bundle_gate(bundle, source, data, limits=limits, options=options)
        found, trade_off, stopped = None, None, None
        try:
            found = located(
                bundle, source, report, bisect=bisect, repair=repair, drop_engines=drop_engines,
                bisect_pictures=bisect_pictures, bisect_evaluations=bisect_evaluations,
            )  # fmt: skip
            if repair and found is not None:
                done = repaired(
                    bundle, source, data, report, found, limits=limits, options=options,
                    drop_engines=drop_engines,
                )  # fmt: skip
                report, trade_off = done or (report, None)
        except DgsNetError as err:
            stopped = err  # raised after the report, which nobody shall have waited for in vain
            report = with_stop(report, "repair" if repair else "bisect", err)
        shown = Shown(report, found, trade_off, "" if stopped is None or not repair else str(stopped))
        shown.write(files)
        if as_json:
            print_json(shown.content())
        else:
            for line in shown.lines():
                click.echo(line)
        if stopped is not None:
            raise stopped
        require_passed(report.checks, report.unreadable)
