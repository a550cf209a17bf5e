"""python -m export onnx."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import print_json, verbosity_option


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="ONNX file to write")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def onnx(run: Path, output: Path, as_json: bool) -> None:
    """Writes the FP32 ONNX graph of RUN, adapters merged, and checks its structure."""
    import os
    import tempfile

    from export.checkpoint import CheckpointSource
    from export.onnx_checks import check_contract, check_structure
    from export.onnx_files import data_path, save_model
    from runtime.errors import UsageError

    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder; make it first")
    model = CheckpointSource(run).onnx()
    # The file's final name is inside it when its weights lie beside it, so it is written under that name.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.tmp-", dir=output.parent) as folder:
        staged = Path(folder) / output.name
        save_model(model, staged)
        embed_dim = check_contract(staged)
        check_structure(staged)
        if data_path(staged).exists():
            os.replace(data_path(staged), data_path(output))
        os.replace(staged, output)
    if as_json:
        print_json({"schema": 1, "file": str(output), "embed_dim": embed_dim})
        return
    click.echo(f"{output}: embedding {embed_dim}, structure checked; numbers are checked by build-engine")
