"""The search for a smallest set of blocks that passes when kept FP32; knows nothing of graphs.

The set that comes out is 1-minimal: it passes, and without any one of its blocks it does not. A smaller set
of other blocks may exist; to rule that out all of them would have to be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Blocks = tuple[int, ...]


class Judged(Protocol):
    """What an evaluation must say."""

    @property
    def passed(self) -> bool:
        """Whether the set passes."""


class OutOfEvaluationsError(Exception):
    """The search has used up what it may spend; caught inside this package."""


@dataclass
class Search:
    """A search in progress.

    Attributes:
        evaluate: says whether a set, ascending, passes; called once for each set.
        most: how many calls are allowed.
        known: what was found of each set, in the order of the calls.
        best: the smallest set that was seen to pass; None before there is one.
    """

    evaluate: Callable[[Blocks], Judged]
    most: int
    known: dict[Blocks, Judged] = field(default_factory=dict)
    best: Blocks | None = None

    def passes(self, blocks: Sequence[int]) -> bool:
        """Returns whether a set passes.

        Raises:
            OutOfEvaluationsError: it is not known, and no call is left.
        """
        key = tuple(sorted(blocks))
        if key not in self.known:
            if len(self.known) >= self.most:
                raise OutOfEvaluationsError
            self.known[key] = self.evaluate(key)
        passed = self.known[key].passed
        if passed and (self.best is None or len(key) < len(self.best)):
            self.best = key
        return passed

    def minimal(self, order: Sequence[int]) -> Blocks:
        """Returns a 1-minimal set out of ``order``, all of which must be known to pass.

        First the shortest beginning of ``order`` that passes is looked for, by doubling; then what it does
        not need is taken out, large pieces first.

        Args:
            order: the blocks, the most suspicious first.

        Raises:
            OutOfEvaluationsError: no call is left; ``best`` is then the smallest set that was seen to pass.
        """
        count = 1
        while count < len(order) and not self.passes(order[:count]):
            count *= 2
        return tuple(sorted(self._reduced(list(order[:count]))))

    def removals(self, blocks: Blocks) -> dict[int, Judged | None]:
        """Returns, for each block of a set, what the set without it came to; None where that is not known."""
        return {block: self.known.get(tuple(b for b in blocks if b != block)) for block in blocks}

    def _reduced(self, blocks: list[int]) -> list[int]:
        """Delta debugging by complements (ddmin of Zeller and Hildebrandt, IEEE TSE 28(2), 2002).

        It ends with pieces of one block, none of which could be left out: that is 1-minimality, of this very
        set, whether or not more FP32 is always better.
        """
        pieces = min(2, len(blocks))
        while blocks:
            size = -(-len(blocks) // pieces)
            # The least suspicious piece, at the end, is tried first.
            for start in reversed(range(0, len(blocks), size)):
                kept = blocks[:start] + blocks[start + size :]
                if self.passes(kept):
                    blocks, pieces = kept, max(min(pieces - 1, len(kept)), min(2, len(kept)))
                    break
            else:
                if size == 1:
                    break
                pieces = min(2 * pieces, len(blocks))
        return blocks
