"""python -m export build-engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.commands.engine_options import EngineFlags, engine_options
from runtime.console import print_json, verbosity_option
from runtime.errors import UsageError

if TYPE_CHECKING:
    from export.engine.options import BuildOptions
    from export.plan.build_plan import BuildPlan
    from runtime.manifest import EngineEntry


@click.command("build-engine")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="bundle to write; not for a bundle as source"
)
@engine_options
@click.option(
    "--golden", type=click.Path(path_type=Path), help="folder of pictures to store inside the bundle"
)
@click.option("--name", default="", help="model name inside engine file names; default the backbone's")
@click.option("--plan", "only_plan", is_flag=True, help="forecast memory, disk and minutes; build nothing")
@click.option("--no-plan-check", is_flag=True, help="build even where the forecast does not fit")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def build_engine(
    checkpoint: Path,
    output: Path | None,
    engine: EngineFlags,
    golden: Path | None,
    name: str,
    only_plan: bool,
    no_plan_check: bool,
    as_json: bool,
) -> None:
    """Builds CHECKPOINT into a bundle: ONNX, FP16, engines, parity, hashes.

    CHECKPOINT is a run's folder, the authors' .pth, or an ONNX file that follows the graph contract. With a
    bundle instead, an engine for this machine is added to it in place; no torch is needed for that.

    Without --backend: onnxruntime. A build that this machine has no memory or disk for is refused before it
    starts; --plan says what it will take.
    """
    from export.plan.build_plan import plan_build
    from export.source import BUNDLE, source_kind

    backends, options = engine.chosen_backends(), engine.build_options()
    is_bundle = source_kind(checkpoint) == BUNDLE
    if is_bundle and (output is not None or golden is not None):
        raise UsageError("a bundle as source is extended in place; leave out --output and --golden")
    if not (is_bundle or only_plan):
        _required(output)
    plan = plan_build(checkpoint, output, backends, options)
    if only_plan:
        _show_plan(plan, as_json)
    if not no_plan_check:
        plan.require_fits()
    if only_plan:
        return
    if is_bundle:
        added = _extend(checkpoint, backends, options, name)
        _report(checkpoint, added, as_json)
        return
    report = _build(checkpoint, _required(output), engine, options, golden, name)
    _report(report.bundle, list(report.engines), as_json)
    click.echo(f"next: python -m runtime predict {output} PICTURES", err=True)


def _required(output: Path | None) -> Path:
    if output is None:
        raise UsageError("--output: found none, expected the folder of the bundle to write")
    return output


def _extend(
    bundle: Path, backends: tuple[str, ...], options: BuildOptions, name: str
) -> list[tuple[EngineEntry, str]]:
    from export.extend import add_backends

    return add_backends(bundle, backends, options, name=name)


def _build(
    checkpoint: Path, output: Path, engine: EngineFlags, options: BuildOptions, golden: Path | None, name: str
) -> Any:
    from export.build import BundleOptions, build_bundle

    return build_bundle(
        checkpoint,
        output,
        BundleOptions(
            backends=engine.chosen_backends(),
            engine=options,
            golden=None if golden is None else _golden(golden),
            command=engine.command(name),
            name=name,
        ),
    )


def _golden(folder: Path) -> Any:
    from export.golden_images import golden_mosaics

    mosaics = golden_mosaics(folder)
    click.echo(f"{len(mosaics)} pictures of {folder.name} will be inside the bundle, as mosaics", err=True)
    return mosaics


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
