"""Arguments and options that several commands of the runtime take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

BUNDLE = click.argument("bundle", type=click.Path())

_ENGINE_OPTIONS = (
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        help="auto, tensorrt, tensorrt-rtx, onnxruntime, onnxruntime:cuda or onnxruntime:cpu",
    ),
    click.option("--engine", metavar="STEM", help="take this engine of the bundle and no other"),
    click.option(
        "--verify",
        type=click.Choice(["full", "cached", "off"]),
        default="cached",
        show_default=True,
        help="check the bundle's hashes: always, only of files not seen before, or not at all",
    ),
    click.option(
        "--cache-dir", type=click.Path(file_okay=False), help="user cache folder [default: $DGSNET_CACHE]"
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads inside the engine"),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how a bundle is opened; they have the names of ``Detector.open``'s."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command
