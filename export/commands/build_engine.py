"""python -m export build-engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.commands.engine_options import EngineFlags, engine_options
from export.commands.precision_options import policy_from_options, precision_options, precision_words
from runtime.console import print_json, verbosity_option
from runtime.errors import GateFailedError, UsageError

if TYPE_CHECKING:
    from export.plan.build_plan import BuildPlan
    from runtime.bundle.engine_entry import EngineEntry


@click.command("build-engine")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="bundle to write; not for a bundle as source"
)
@engine_options
@precision_options
@click.option(
    "--golden", type=click.Path(path_type=Path), help="folder of pictures to store inside the bundle"
)
@click.option("--name", default="", help="model name inside engine file names; default the backbone's")
@click.option(
    "--overwrite", is_flag=True, help="replace a bundle at --output although engines in it would be lost"
)
@click.option("--plan", "only_plan", is_flag=True, help="forecast memory, disk and minutes; build nothing")
@click.option("--no-plan-check", is_flag=True, help="build even where the forecast does not fit")
@click.option(
    "--allow-failed-parity",
    is_flag=True,
    help="write what fails its gate too, every engine marked as failed; exit code 1",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def build_engine(
    checkpoint: Path,
    output: Path | None,
    engine: EngineFlags,
    fp32_blocks: tuple[str, ...],
    fp32_layers: tuple[str, ...],
    min_fp16_share: float | None,
    calibration: Path | None,
    golden: Path | None,
    name: str,
    overwrite: bool,
    only_plan: bool,
    no_plan_check: bool,
    allow_failed_parity: bool,
    as_json: bool,
) -> None:
    """Builds CHECKPOINT into a bundle: ONNX, FP16, engines, parity, hashes.

    CHECKPOINT is a run's folder, the authors' .pth, or an ONNX file that follows the graph contract. With a
    bundle instead, an engine for this machine is added to it in place; no torch is needed for that.

    A bundle at --output is replaced, unless it holds engines that this build does not make again (same
    backend, precision and targets): losing those takes --overwrite.

    Nothing is published unless PyTorch, both graphs and every engine that runs here agree on the golden
    mosaics, and no value overflows in FP16.

    Without --backend: onnxruntime. A build that this machine has no memory or disk for is refused before it
    starts; --plan says what it will take.
    """
    from export.plan.build_plan import plan_build
    from export.source import BUNDLE, source_kind

    policy = policy_from_options(fp32_blocks, fp32_layers, min_fp16_share)
    backends, options = engine.chosen_backends(), engine.build_options(policy)
    is_bundle = source_kind(checkpoint) == BUNDLE
    if is_bundle:
        _refuse_for_bundle(
            {"--output": output, "--golden": golden, "--calibration": calibration}
            | {"--overwrite": overwrite or None}
            | {word: word for word in precision_words(policy) if word.startswith("--")}
        )
    elif not only_plan:
        _required(output)
    plan = plan_build(checkpoint, output, backends, options)
    if only_plan:
        _show_plan(plan, as_json)
    if not no_plan_check:
        plan.require_fits()
    if only_plan:
        return
    if is_bundle:
        from export.extend import add_backends

        added = add_backends(checkpoint, backends, options, name=name, allow_failed=allow_failed_parity)
        _report(checkpoint, added, as_json)
        _require_passed([entry for entry, _state in added])
        return
    from export.build import BundleOptions, build_bundle
    from export.bundle.replacing import require_engines_kept
    from export.engines import planned_engines

    target = _required(output)
    if not overwrite:
        # Before pictures are read; the build looks again once the bundle is locked.
        require_engines_kept(target, planned_engines(backends, options))
    report = build_bundle(
        checkpoint,
        target,
        BundleOptions(
            backends=backends,
            engine=options,
            golden=None if golden is None else _golden(golden),
            calibration=None if calibration is None else _calibration(calibration),
            allow_failed=allow_failed_parity,
            command=engine.command(name) + precision_words(policy),
            name=name,
            overwrite=overwrite,
        ),
    )
    _report(report.bundle, list(report.engines), as_json)
    _require_passed([entry for entry, _state in report.engines])
    click.echo(f"next: python -m runtime predict {output} PICTURES", err=True)


def _required(output: Path | None) -> Path:
    if output is None:
        raise UsageError("--output: found none, expected the folder of the bundle to write")
    return output


def _refuse_for_bundle(given: dict[str, object]) -> None:
    for flag, value in given.items():
        if value is not None:
            raise UsageError(
                f"{flag}: a bundle as source is extended in place, from the graphs that it holds; leave it "
                "out, or build a new bundle from the checkpoint"
            )


def _require_passed(entries: list[EngineEntry]) -> None:
    failed = [entry.file for entry in entries if entry.verified == "failed"]
    if failed:
        raise GateFailedError(f"{failed[0]} failed its checks and is marked so; no runtime will choose it")


def _golden(folder: Path) -> Any:
    from export.golden_images import golden_mosaics

    mosaics = golden_mosaics(folder)
    click.echo(f"{len(mosaics)} pictures of {folder.name} will be inside the bundle, as mosaics", err=True)
    return mosaics


def _calibration(folder: Path) -> Any:
    from export.precision.calibration import calibration_mosaics

    return calibration_mosaics(folder)


def _show_plan(plan: BuildPlan, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_json())
        return
    for line in plan.lines():
        click.echo(line)


def _report(bundle: Path, engines: list[tuple[EngineEntry, str]], as_json: bool) -> None:
    if as_json:
        stated = [entry.to_json() | {"state": state} for entry, state in engines]
        print_json({"schema": 1, "bundle": str(bundle), "engines": stated})
        return
    for entry, state in engines:
        click.echo(f"{entry.backend:<13} {entry.precision}  {entry.file}\n              {state}")
    click.echo(f"bundle: {bundle}")
