"""python -m train import-official."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from runtime.console import print_json, verbosity_option


@click.command("import-official")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="folder of the run"
)
@click.option(
    "--backbone",
    help="open_clip model name; default by the file's shapes, always with QuickGELU as OpenAI's CLIP "
    "(fc_weights.pth: ViT-L-14-quickgelu)",
)
@click.option("--alpha", type=float, help="numerator of the LoRA scale, not in the file; default 6")
@click.option(
    "--scaling",
    type=click.Choice(["rslora", "lora"]),
    help="alpha/sqrt(r) or alpha/r; default what a merged file shows, rslora for an unmerged one",
)
@click.option(
    "--pretrained", help="CLIP of fc_weights.pth: open_clip tag, weight file or random; default openai"
)
@click.option(
    "--as-mosaic-head",
    is_flag=True,
    help="accept fc_weights.pth, which UnivFD trained on centre crops with CLIP's mean and deviation, "
    "where a run feeds mosaics with ImageNet's: its published accuracy does not carry over",
)
@click.option("--overwrite", is_flag=True, help="replace the checkpoint that the folder holds")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def import_official(
    file: Path,
    run: Path,
    backbone: str | None,
    alpha: float | None,
    scaling: str | None,
    pretrained: str | None,
    as_mosaic_head: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Makes a run of FILE: DGS-Net's model_epoch_step2.pth, or UnivFD's fc_weights.pth.

    Only tensors are read, never code. Adapters that are merged into the weights are recognised and taken
    apart; a file that is neither clearly merged nor clearly unmerged is refused.
    """
    from train.official.importing import import_official as import_file

    summary = import_file(
        file, run, backbone=backbone, alpha=alpha, scaling=scaling, pretrained=pretrained,
        as_mosaic_head=as_mosaic_head, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json({"schema": 1, "run": str(run), **dataclasses.asdict(summary)})
        return
    if summary.merged is None:
        click.echo(f"imported a linear head on {summary.backbone}: {run}")
    else:
        state = "untrained" if summary.untrained else "merged" if summary.merged else "unmerged"
        click.echo(
            f"imported {summary.backbone}, adapters of rank {summary.rank} found {state}, scale "
            f"{summary.scale:.6g} ({summary.scaling}): {run}"
        )
    click.echo(f"next: python -m export build-engine {run} -o BUNDLE", err=True)
