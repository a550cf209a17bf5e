"""Arguments and options that several commands of the runtime take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

BUNDLE = click.argument("bundle", type=click.Path())

# The names are those of ``Detector.open``'s arguments.
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
        "--cache-dir",
        type=click.Path(file_okay=False),
        help="user cache folder [default: $DGSNET_CACHE, else $XDG_CACHE_HOME/dgsnet, else ~/.cache/dgsnet]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="CPU threads inside the engine (onnxruntime) [default: one per usable core]",
    ),
    click.option(
        "--prepack/--no-prepack",
        default=None,
        help="reorder weights at open, for faster runs (onnxruntime) [default: unless predict has few files]",
    ),
    click.option(
        "--cuda-api",
        type=click.Choice(["cuda-python", "pycuda"]),
        default="cuda-python",
        show_default=True,
        help="binding that reaches CUDA (TensorRT)",
    ),
    click.option(
        "--contexts",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="execution contexts that run beside each other (TensorRT)",
    ),
    click.option(
        "--cuda-graphs/--no-cuda-graphs",
        default=None,
        help="demand CUDA graphs or run without (TensorRT) [default: where they can be had]",
    ),
    click.option(
        "--rtx-kernels",
        type=click.Choice(["eager", "lazy", "none"]),
        default="eager",
        show_default=True,
        help="when kernels are compiled for a batch size (TensorRT-RTX)",
    ),
    click.option(
        "--zero-copy", is_flag=True, help="share memory with an integrated GPU (TensorRT on Jetson)"
    ),
    click.option(
        "--allow-engine-host-code",
        is_flag=True,
        help="open engines that bring code for the CPU (TensorRT); only of bundles that you trust",
    ),
)

_PICTURE_OPTIONS = (
    click.option("--batch-size", type=click.IntRange(min=1), help="mosaics per run [default: as built]"),
    click.option("--views", type=click.IntRange(min=1), help="mosaics per picture, averaged [default: 1]"),
    click.option(
        "--max-pixels", type=click.IntRange(min=1), help="refuse larger pictures [default: 200000000]"
    ),
    click.option("--max-side", type=click.IntRange(min=1), help="refuse longer sides [default: 65535]"),
    click.option("--allow-truncated", is_flag=True, help="take files that end early; the rest is black"),
    click.option("--no-selftest", is_flag=True, help="skip the golden images that are checked first"),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how a bundle is opened."""
    return _with(_ENGINE_OPTIONS, command)


def picture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how pictures are judged."""
    return _with(_PICTURE_OPTIONS, command)


def opening_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of ``Detector.open`` that options stand for; what was not given is left out."""
    given = {name: value for name, value in options.items() if value is not None}
    return {"selftest": not given.pop("no_selftest", False)} | given


def _with(options: tuple[Callable[..., Any], ...], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
