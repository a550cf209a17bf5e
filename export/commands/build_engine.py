"""python -m export build-engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import UsageError
from runtime.manifest import BACKENDS

if TYPE_CHECKING:
    from export.engine.options import BuildOptions


@click.command("build-engine")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="bundle to write; not for a bundle as source"
)
@click.option(
    "--backend", "backends", multiple=True, help=f"repeated or comma-separated: {', '.join(BACKENDS)}"
)
@click.option("--precision", type=click.Choice(["fp16", "fp32"]), help="of TensorRT engines; default fp16")
@click.option("--min-batch", type=int, default=1, show_default=True)
@click.option("--opt-batch", type=int, default=8, show_default=True)
@click.option("--max-batch", type=int, default=32, show_default=True)
@click.option(
    "--target", "targets", multiple=True, help="GPU architectures of tensorrt-rtx, such as sm_86,sm_89"
)
@click.option("--workspace", help="limit of scratch memory with its unit, such as 2G or 512M")
@click.option(
    "--timing-cache", type=click.Path(path_type=Path), help="kernel timings to load and update; tensorrt"
)
@click.option(
    "--golden", type=click.Path(path_type=Path), help="folder of pictures to store inside the bundle"
)
@click.option("--name", default="", help="model name inside engine file names; default the backbone's")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def build_engine(
    checkpoint: Path,
    output: Path | None,
    backends: tuple[str, ...],
    precision: str | None,
    min_batch: int,
    opt_batch: int,
    max_batch: int,
    targets: tuple[str, ...],
    workspace: str | None,
    timing_cache: Path | None,
    golden: Path | None,
    name: str,
    as_json: bool,
) -> None:
    """Builds CHECKPOINT into a bundle: ONNX, FP16, engines, parity, hashes.

    CHECKPOINT is a run's folder, the authors' .pth, or an ONNX file that follows the graph contract. With a
    bundle instead, an engine for this machine is added to it in place; no torch is needed for that.

    Without --backend: onnxruntime.
    """
    from export.engine.options import BuildOptions
    from export.source import BUNDLE, source_kind

    chosen = _backends(backends, precision)
    _refuse_unused(chosen, {"--target": targets, "--workspace": workspace, "--timing-cache": timing_cache})
    engine = BuildOptions(
        precision=precision or "fp16",
        profiles=((min_batch, opt_batch, max_batch),),
        targets=_split(targets),
        workspace_bytes=_bytes(workspace),
        timing_cache=timing_cache,
    )
    if source_kind(checkpoint) == BUNDLE:
        from export.extend import add_backends

        if output is not None or golden is not None:
            raise UsageError("a bundle as source is extended in place; leave out --output and --golden")
        added = add_backends(checkpoint, chosen, engine, name=name)
        _report(checkpoint, [(entry.to_json(), state) for entry, state in added], as_json)
        return
    from export.build import BundleOptions, build_bundle

    if output is None:
        raise UsageError("--output: found none, expected the folder of the bundle to write")
    options = BundleOptions(
        backends=chosen,
        engine=engine,
        golden=None if golden is None else _golden(golden),
        command=_command(chosen, engine, name),
        name=name,
    )
    report = build_bundle(checkpoint, output, options)
    _report(report.bundle, [(entry.to_json(), state) for entry, state in report.engines], as_json)
    click.echo(f"next: python -m runtime predict {output} PICTURES", err=True)


def _backends(given: tuple[str, ...], precision: str | None) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(_split(given))) or ("onnxruntime",)
    for backend in chosen:
        if backend not in BACKENDS:
            raise UsageError(f"--backend: found {backend!r}, expected one of {', '.join(BACKENDS)}")
    if chosen == ("onnxruntime",) and precision == "fp16":
        raise UsageError(
            "--precision fp16: onnxruntime on a CPU always computes FP32; add --backend tensorrt-rtx"
        )
    return chosen


def _refuse_unused(chosen: tuple[str, ...], given: dict[str, object]) -> None:
    if chosen == ("onnxruntime",):
        for flag, value in given.items():
            if value:
                raise UsageError(
                    f"{flag}: onnxruntime builds no engine that it could act on; add a --backend"
                )


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG])i?B?", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"--workspace: found {text!r}, expected a number with its unit, such as 2G or 512M")
    return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[match[2].upper()])


def _golden(folder: Path) -> Any:
    from export.golden_images import golden_mosaics

    mosaics = golden_mosaics(folder)
    click.echo(f"{len(mosaics)} pictures of {folder.name} will be inside the bundle, as mosaics", err=True)
    return mosaics


def _command(backends: tuple[str, ...], engine: BuildOptions, name: str) -> tuple[str, ...]:
    """Returns the options that decide the result, without any path of this machine."""
    words = ["build-engine", "--backend", ",".join(backends), "--precision", engine.precision]
    for flag, value in zip(("--min-batch", "--opt-batch", "--max-batch"), engine.profiles[0], strict=True):
        words += [flag, str(value)]
    if engine.targets:
        words += ["--target", ",".join(engine.targets)]
    if engine.workspace_bytes is not None:
        words += ["--workspace", f"{engine.workspace_bytes // 2**20}M"]
    if name:
        words += ["--name", name]
    return tuple(words)


def _report(bundle: Path, engines: list[tuple[dict[str, object], str]], as_json: bool) -> None:
    if as_json:
        print_json(
            {"schema": 1, "bundle": str(bundle), "engines": [e | {"state": state} for e, state in engines]}
        )
        return
    for entry, state in engines:
        click.echo(f"{entry['backend']:<13} {entry['precision']}  {entry['file']}\n              {state}")
    click.echo(f"bundle: {bundle}")
