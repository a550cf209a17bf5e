"""The options about FP16 that several commands share, and the policy that they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from export.precision.blocks import number_list
from export.precision.policy import PrecisionPolicy
from runtime.errors import UsageError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def precision_options(command: CommandT) -> CommandT:
    """Adds --fp32-blocks, --fp32-layers, --min-fp16-share and --calibration to a command.

    The command gets ``fp32_blocks``, ``fp32_layers``, ``min_fp16_share`` and ``calibration``.
    """
    options = (
        click.option(
            "--fp32-blocks",
            multiple=True,
            metavar="NUMBERS",
            help="transformer blocks that stay FP32 in the FP16 graph, such as 3,7 or 4-6",
        ),
        click.option(
            "--fp32-layers",
            multiple=True,
            metavar="GLOB",
            help="nodes that stay FP32, by name, such as 'block_3/mlp/*'; repeated",
        ),
        click.option(
            "--min-fp16-share",
            type=float,
            help="least share of the weighted layers not kept FP32 that must be FP16; default "
            f"{PrecisionPolicy().min_fp16_share:g}",
        ),
        click.option(
            "--calibration",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="folder of pictures for the FP16 overflow guard; never stored",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def policy_from_options(
    fp32_blocks: tuple[str, ...], fp32_layers: tuple[str, ...], min_fp16_share: float | None
) -> PrecisionPolicy:
    """Returns the policy of a command line; what stays FP32 by default still does.

    Raises:
        UsageError: block numbers that are none, an empty pattern, or a share out of range.
    """
    layers = tuple(dict.fromkeys(fp32_layers))
    if "" in layers:
        raise UsageError("--fp32-layers: found an empty pattern, expected one such as 'block_3/mlp/*'")
    default = PrecisionPolicy()
    return PrecisionPolicy(
        fp32_blocks=_numbers(fp32_blocks),
        fp32_layers=layers,
        min_fp16_share=default.min_fp16_share if min_fp16_share is None else min_fp16_share,
    )


def precision_words(policy: PrecisionPolicy) -> tuple[str, ...]:
    """Returns the options that stand for a policy, for the provenance; the calibration folder is a path."""
    words: list[str] = []
    if policy.fp32_blocks:
        words += ["--fp32-blocks", number_list(policy.fp32_blocks).replace(" ", "")]
    for pattern in policy.fp32_layers:
        words += ["--fp32-layers", pattern]
    if policy.min_fp16_share != PrecisionPolicy().min_fp16_share:
        words += ["--min-fp16-share", f"{policy.min_fp16_share:g}"]
    return tuple(words)


def _numbers(given: tuple[str, ...]) -> tuple[int, ...]:
    found: set[int] = set()
    for word in (part.strip() for text in given for part in text.split(",")):
        match = _RANGE.fullmatch(word)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise UsageError(f"--fp32-blocks: found {word!r}, expected block numbers such as 3,7 or 4-6")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))
