"""python -m train export-official."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from runtime.console import print_json, verbosity_option


@click.command("export-official")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", "file", type=click.Path(path_type=Path), required=True, help=".pth file")
@click.option(
    "--merged",
    is_flag=True,
    help="add the adapters to the weights, as a file saved after .eval() has them",
)
@click.option(
    "--pretrained", help="weight file or open_clip tag of the run's CLIP, if its text tower is not at hand"
)
@click.option("--overwrite", is_flag=True, help="replace the .pth file")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def export_official(
    run: Path, file: Path, merged: bool, pretrained: str | None, overwrite: bool, as_json: bool
) -> None:
    """Writes RUN as the authors' code loads it: a pickled state dict of the whole training module.

    A run of the recipe "linear" becomes UnivFD's fc_weights.pth.
    """
    from train.official.exporting import export_official as export_run

    summary = export_run(run, file, merged=merged, pretrained=pretrained, overwrite=overwrite)
    if as_json:
        print_json({"schema": 1, "file": str(file), **dataclasses.asdict(summary)})
        return
    state = {None: "head alone", True: "adapters merged", False: "adapters unmerged"}[summary.merged]
    click.echo(f"wrote {summary.tensors} tensors, {state}: {file}")
