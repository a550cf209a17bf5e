"""python -m train caption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import DataError, UsageError
from runtime.names import printable_name


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--split", default="train", show_default=True, help="folder of DATA whose pictures get captions"
)
@click.option(
    "--method",
    type=click.Choice(["coca", "template", "sidecar"]),
    default="coca",
    show_default=True,
    help="a CoCa model that sees the pictures, the names of class folders, or the .txt beside each picture",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="JSON map to write; default DATA/captions.json"
)
@click.option("--sidecar", is_flag=True, help="write a .txt beside each picture instead of a JSON map")
@click.option("--overwrite", is_flag=True, help="write anew what has a caption already")
@click.option("--model", default="coca_ViT-B-32", show_default=True, help="CoCa model of open_clip")
@click.option(
    "--pretrained",
    default="mscoco_finetuned_laion2b_s13b_b90k",
    show_default=True,
    help="its weights: open_clip tag (fetched once), local file, or random to try the plumbing",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="pictures that CoCa sees at once",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=30, show_default=True, help="longest caption of CoCa"
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="threads that decode for CoCa"
)
@click.option(
    "--save-every",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="pictures between two writes of the JSON map",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def caption(
    data: Path,
    split: str,
    method: str,
    output: Path | None,
    sidecar: bool,
    overwrite: bool,
    model: str,
    pretrained: str,
    device: str,
    batch: int,
    max_tokens: int,
    workers: int,
    save_every: int,
    as_json: bool,
) -> None:
    """Writes a caption for each picture of DATA, for training's text branch.

    Captions that are there already are kept, so a stopped command goes on where it was. Pictures that cannot
    be read are listed; the others are captioned all the same, and the exit code is then 2.
    """
    if sidecar and output is not None:
        raise UsageError("--sidecar: found -o too, expected one of them; .txt files or one JSON map")
    if sidecar and method == "sidecar":
        raise UsageError("--sidecar: found --method sidecar, which reads those files; give -o FILE instead")
    from train.captioning.stores import CaptionStore, JsonStore, SidecarStore
    from train.captioning.template import template_captions
    from train.captioning.writing import write_captions, writer_from_function, writer_from_model
    from train.data.captions import CAPTIONS_NAME, sidecar_caption
    from train.data.layout import find_samples
    from train.device import require_device

    require_device(device)
    samples = find_samples(data, split)
    store: CaptionStore = (
        SidecarStore(samples, data) if sidecar else JsonStore(output or data / CAPTIONS_NAME)
    )
    if method == "coca":
        from train.captioning.coca import CocaCaptioner

        captioner = CocaCaptioner(model, pretrained, device=device, max_tokens=max_tokens)
        writer = writer_from_model(captioner, batch=batch, workers=workers)
    elif method == "template":
        by_key = dict(zip((s.key for s in samples), template_captions(samples), strict=True))
        writer = writer_from_function(lambda sample: by_key[sample.key])
    else:
        writer = writer_from_function(sidecar_caption)
    summary = write_captions(samples, writer, store, overwrite=overwrite, save_every=save_every)
    if as_json:
        print_json({"schema": 1, "place": store.place, **dataclasses.asdict(summary)})
    else:
        click.echo(f"{summary.written} captions written, {summary.kept} kept: {store.place}")
    if summary.failed:
        name, reason = summary.failed[0]
        raise DataError(
            f"{len(summary.failed)} of {len(samples)} pictures have no caption, first {name} ({reason}); "
            "the others are done; remove these pictures or caption them by hand"
        )
    if not as_json:
        chosen = " --captions sidecar" if sidecar else "" if output is None else f" --captions {output}"
        click.echo(f"next: python -m train fit {printable_name(str(data))} -o RUN{chosen}", err=True)
