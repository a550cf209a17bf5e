"""python -m export onnx."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import verbosity_option


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="ONNX file to write")
@verbosity_option
def onnx(run: Path, output: Path) -> None:
    """Writes the FP32 ONNX graph of RUN, adapters merged, and checks its structure."""
    from export.checkpoint import CheckpointSource
    from export.onnx_files import check_contract, check_structure, save_model

    save_model(CheckpointSource(run).onnx(), output)
    embed_dim = check_contract(output)
    check_structure(output)
    click.echo(f"{output}: embedding {embed_dim}, structure checked; numbers are checked by build-engine")
