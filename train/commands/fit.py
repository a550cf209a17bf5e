"""python -m train fit."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import UsageError

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.fit_options import RunSummary


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="folder of the run"
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file of settings")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="one setting, such as lora.r=8")
@click.option("--recipe", type=click.Choice(["dgs", "linear", "lora"]), help="what is trained")
@click.option("--backbone", help="open_clip model name")
@click.option("--pretrained", help="open_clip tag, local weight file, random or random-bandpass")
@click.option("--seed", type=int, help="of initialisation, order, augmentation and dropout")
@click.option(
    "--captions",
    default="",
    help="JSON map, sidecar (.txt beside each picture) or template (from folder names); "
    "default DATA/captions.json",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda; torchrun gives each its own")
@click.option("--resume", is_flag=True, help="go on where RUN stopped, or begin")
@click.option("--overwrite", is_flag=True, help="replace the checkpoint or unfinished run in the folder")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="pictures of each split at most")
@click.option("--dry-run", is_flag=True, help="check everything and forecast time and memory; write nothing")
@click.option(
    "--overfit-one-batch",
    "overfit_steps",
    type=click.IntRange(min=2),
    metavar="STEPS",
    help="train one batch alone; exit code 1 unless its image loss halves; write nothing",
)
@click.option("--tensorboard/--no-tensorboard", default=True, help="TensorBoard files beside the JSON lines")
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
    captions: str,
    device: str,
    resume: bool,
    overwrite: bool,
    limit: int,
    dry_run: bool,
    overfit_steps: int | None,
    tensorboard: bool,
    as_json: bool,
) -> None:
    """Trains a recipe on DATA/train and writes a run.

    DATA holds {train,val}/<class>/{0_real,1_fake}/, or {train,val}/{real,fake}/, or tar shards in train and
    val. On several GPUs: torchrun --nproc-per-node N -m train fit ... --device cuda.
    """
    from train.fit_options import FitOptions
    from train.run import fit_run

    config = _config(config_file, settings, recipe, backbone, pretrained, seed)
    options = FitOptions(
        captions=captions,
        device=device,
        resume=resume,
        overwrite=overwrite,
        limit=limit,
        dry_run=dry_run,
        overfit_steps=overfit_steps or 0,
        tensorboard=tensorboard,
    )
    summary = fit_run(data, run, config, options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")):
        return  # the first process speaks for all
    if as_json:
        found = {"finished": True} if summary is None else dataclasses.asdict(summary)
        print_json({"schema": 1, "run": str(run), **found})
        return
    click.echo(f"{run}: finished already, nothing to resume" if summary is None else _spoken(run, summary))
    if not dry_run and not overfit_steps:
        click.echo(_next_command(run, summary), err=True)


def _config(
    config_file: Path | None,
    settings: tuple[str, ...],
    recipe: str | None,
    backbone: str | None,
    pretrained: str | None,
    seed: int | None,
) -> TrainConfig:
    from train.config import TrainConfig, config_from_toml

    config = config_from_toml(config_file) if config_file else TrainConfig()
    for item in settings:
        key, separator, value = item.partition("=")
        if not separator:
            raise UsageError(f"--set: found {item!r}, expected KEY=VALUE")
        config = config.with_value(key.strip(), value.strip())
    named = {"recipe": recipe, "backbone": backbone, "pretrained": pretrained, "seed": seed}
    return config.with_values([(key, given) for key, given in named.items() if given is not None])


def _spoken(run: Path, summary: RunSummary) -> str:
    pictures = f"{summary.train_samples} pictures"
    if summary.unreadable:
        pictures += f" ({summary.unreadable} unreadable ones left out)"
    if summary.overfit is not None:
        first, last = summary.overfit
        return f"one batch was learnt, image loss from {first:.4f} to {last:.4f}; nothing was written"
    if not summary.steps:
        stages = "".join(f"\n{forecast}" for forecast in summary.forecast)
        return f"{pictures} to train on, {summary.val_samples} to validate on; nothing was written{stages}"
    validated = "no val split" if summary.val_ap is None else f"val AP {summary.val_ap:.3f}"
    return f"trained on {pictures}, {summary.steps} steps, {validated}: {run}"


def _next_command(run: Path, summary: RunSummary | None) -> str:
    if summary is not None and summary.val is not None:
        return f"next: {shlex.join(['python', '-m', 'train', 'calibrate', str(run), summary.val])} --fpr 0.05"
    return f"next: python -m export build-engine {shlex.quote(str(run))} -o BUNDLE"
