"""python -m export onnx."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import print_json, verbosity_option


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="ONNX file to write")
@click.option("--fp16", is_flag=True, help="also writes its FP16 form, <output>_fp16.onnx, beside it")
@click.option("--opset", type=click.IntRange(17, 20), default=18, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def onnx(run: Path, output: Path, fp16: bool, opset: int, as_json: bool) -> None:
    """Writes the FP32 ONNX graph of RUN, adapters merged, and checks its structure."""
    import tempfile

    from export.checkpoint import CheckpointSource
    from export.graph.rules import check_rules
    from export.onnx_checks import check_contract, check_structure
    from export.onnx_files import load_model, move_model
    from runtime.errors import UsageError

    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder; make it first")
    outputs = [output]
    try:
        # The file's final name is inside it when its weights lie beside it: it is written under that name.
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.tmp-", dir=output.parent) as folder:
            staged = Path(folder) / output.name
            CheckpointSource(run, scratch=Path(folder)).write_onnx(staged, opset=opset)
            embed_dim = check_contract(staged)
            check_structure(staged)
            check_rules(load_model(staged, weights=False))
            if fp16:
                from export.precision.conversion import fp16_from_fp32
                from export.precision.policy import PrecisionPolicy

                outputs.append(output.with_name(f"{output.stem}_fp16{output.suffix}"))
                fp16_from_fp32(staged, staged.with_name(outputs[1].name), PrecisionPolicy())
            for path in outputs:
                move_model(staged.with_name(path.name), path)
    except OSError as err:
        raise UsageError(
            f"{output.parent}: cannot be written ({err.strerror}); free space or name another folder"
        ) from err
    if as_json:
        print_json(
            {"schema": 1, "file": str(output), "files": list(map(str, outputs)), "embed_dim": embed_dim}
        )
        return
    names = " and ".join(map(str, outputs))
    click.echo(f"{names}: embedding {embed_dim}, structure checked; numbers are checked by build-engine")
