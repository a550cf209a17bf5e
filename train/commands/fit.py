"""python -m train fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import UsageError


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="folder of the run"
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file of settings")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="one setting, such as lora.r=8")
@click.option("--recipe", type=click.Choice(["dgs"]), help="what is trained")
@click.option("--backbone", help="open_clip model name")
@click.option("--pretrained", help="open_clip tag, local weight file, random or random-bandpass")
@click.option("--seed", type=int, help="of initialisation, order, augmentation and dropout")
@click.option("--captions", type=click.Path(path_type=Path), help="JSON map; default DATA/captions.json")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option("--overwrite", is_flag=True, help="replace the checkpoint that the folder holds")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def fit(
    data: Path,
    run: Path,
    config_file: Path | None,
    settings: tuple[str, ...],
    recipe: str | None,
    backbone: str | None,
    pretrained: str | None,
    seed: int | None,
    captions: Path | None,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Trains both stages of DGS-Net on DATA/train and writes a run.

    DATA holds {train,val}/<class>/{0_real,1_fake}/ and captions.json.
    """
    from train.config import TrainConfig, config_from_toml
    from train.data.captions import CAPTIONS_NAME
    from train.run import fit_run

    config = config_from_toml(config_file) if config_file else TrainConfig()
    for item in settings:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--set: found {item!r}, expected KEY=VALUE")
        config = config.with_value(key.strip(), value.strip())
    named = {"recipe": recipe, "backbone": backbone, "pretrained": pretrained, "seed": seed}
    for key, given in named.items():
        if given is not None:
            config = config.with_value(key, given)
    summary = fit_run(
        data, run, config, captions=captions or data / CAPTIONS_NAME, device=device, overwrite=overwrite
    )
    if as_json:
        print_json({"schema": 1, "run": str(run), **dataclasses.asdict(summary)})
        return
    validated = "no val split" if summary.val_ap is None else f"val AP {summary.val_ap:.3f}"
    click.echo(f"trained on {summary.train_samples} pictures, {validated}: {run}")
    click.echo(f"next: python -m export build-engine {run} -o BUNDLE", err=True)
