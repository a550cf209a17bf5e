"""The parts that node names speak of: ``block_3/mlp/fc/matmul`` belongs to block_3. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"block_(\d+)/")


def block_of(node_name: str) -> int | None:
    """Returns the number of the transformer block that a node belongs to; None outside of blocks."""
    found = _BLOCK.match(node_name)
    return int(found[1]) if found else None


def part_of(node_name: str) -> str:
    """Returns the first piece of a node's name, such as ``block_3`` or ``stem``."""
    return node_name.split("/", 1)[0]


def block_pattern(number: int) -> str:
    """Returns the shell pattern of every node of a block."""
    return f"block_{number}/*"


def blocks_of(node_names: Iterable[str]) -> list[int]:
    """Returns the numbers of the blocks that the nodes belong to, ascending."""
    return sorted({number for name in node_names if (number := block_of(name)) is not None})


def number_list(numbers: Iterable[int]) -> str:
    """Returns numbers for a person, runs of three and more as ranges: "0-3, 7"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(number) for number in run] for run in runs)
    return ", ".join(word for run in words for word in run)
