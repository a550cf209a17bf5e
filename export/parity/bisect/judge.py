"""Whether an FP16 graph passes the gate's own checks on the chosen pictures, computed in emulated FP16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity.bisect.pictures import Chosen
from export.parity.checks import FAILED, Check, hop_checks
from export.parity.forms.form import FP16
from export.parity.pictures.data_set import Picture
from export.parity.settings import GateLimits
from export.parity.statistics.compare import Outputs
from export.parity.statistics.embeddings import cosine_rows, length_rows
from export.parity.statistics.measures import Comparison, comparison
from export.parity.waterfall import COMPARED, Hop
from export.precision.blocks import number_list
from export.precision.watching import open_emulation
from runtime.decision import Decision

DEFAULT_BATCH = 4
# Checks that only all pictures of the gate together can fail or pass.
_OF_ALL = (", AP", ", flip bound")


@dataclass(frozen=True)
class Evaluation:
    """What one FP16 graph came to.

    Attributes:
        label: what was evaluated, such as "blocks 2, 5 in FP32".
        blocks: kept FP32 in it.
        reason: the first check that failed; "" when it passes.
        count: pictures that were run; a graph that fails is not run on the rest.
        max_abs_logit: largest |difference of logits| to the FP32 graph; None where nothing was finite.
        flips: verdicts that differ from the FP32 graph's, ties included.
    """

    label: str
    blocks: tuple[int, ...]
    reason: str
    count: int
    max_abs_logit: float | None
    flips: int

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.reason

    def line(self) -> str:
        """Returns it as one line for a person."""
        largest = "none" if self.max_abs_logit is None else f"{self.max_abs_logit:.2e}"
        said = f"max |dlogit| {largest}, {self.flips} flips over {self.count} pictures"
        return f"{'passes' if self.passed else 'fails '}  {self.label}: {self.reason or said}"

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a report stores."""
        return dict(vars(self)) | {"blocks": list(self.blocks), "passed": self.passed}


@dataclass(frozen=True)
class Judge:
    """The gate's checks of the FP16 hop, for any FP16 graph of one model.

    Attributes:
        chosen: the pictures, the most telling first.
        references: outputs on them that the graph is held against, nearest first, by the key of the form:
            the FP32 graph, and the checkpoint where there is one.
        decision: the bundle's rule.
        limits: of the gate.
        batch: pictures at a time, which bounds the memory.
    """

    chosen: Chosen
    references: dict[str, Outputs]
    decision: Decision
    limits: GateLimits
    batch: int = DEFAULT_BATCH

    def evaluate(self, fp16: Path, label: str, blocks: Sequence[int] = ()) -> Evaluation:
        """Runs a graph until a check fails, or all pictures are seen.

        Infinity or NaN anywhere inside fails it, as does each check of the gate against each reference.

        Raises:
            SpecError, EngineBuildError, EngineLoadError: the graph cannot be opened or run.
        """
        logits: list[NDArray[np.float32]] = []
        embeddings: list[NDArray[np.float32]] = []
        reason, count = "", len(self.chosen.pictures)
        with open_emulation(fp16, max_batch=self.batch) as session:
            for start in range(0, count, self.batch):
                logit, embedding = session.run(self.chosen.mosaics[start : start + self.batch])
                logits.append(logit)
                embeddings.append(embedding)
                first = session.first_overflow
                if first is not None:
                    seen = session.seen[first.name]
                    reason = f"{seen.infinite} infinite and {seen.nan} NaN values, first in node {first.node}"
                    break
                reason = self._reason((logit, embedding), slice(start, start + self.batch), is_all=False)
                if reason:
                    break
        outputs = np.concatenate(logits), np.concatenate(embeddings)
        rows = slice(0, len(outputs[0]))
        # What only all pictures together tell: flips that add up, and where none of the gate's pictures was
        # left out average precision and the bound.
        reason = reason or self._reason(outputs, rows, is_all=self.chosen.is_all)
        nearest = self._comparison(next(iter(self.references)), outputs, rows)
        return Evaluation(
            label, tuple(blocks), reason, len(outputs[0]), nearest.logit.largest, len(nearest.flips)
        )

    def _reason(self, outputs: Outputs, rows: slice, *, is_all: bool) -> str:
        failed = [check for check in self._checks(outputs, rows) if check.status == FAILED]
        # A part of the pictures has its own AP and bound, which say nothing of the whole.
        if not is_all:
            failed = [check for check in failed if not check.name.endswith(_OF_ALL)]
        return f"{failed[0].name}: {failed[0].text}" if failed else ""

    def _checks(self, outputs: Outputs, rows: slice) -> list[Check]:
        compared = [self._comparison(key, outputs, rows) for key in self.references]
        hop = Hop(FP16, FP16, "fp16", "fp16", COMPARED, "", compared[0], compared[-1], 0.0)
        return list(hop_checks(hop, self.limits))

    def _comparison(self, key: str, outputs: Outputs, rows: slice) -> Comparison:
        logit, embedding = self.references[key]
        pictures: Sequence[Picture] = self.chosen.pictures[rows]
        return comparison(
            key,
            pictures,
            logit[rows],
            outputs[0],
            cosines=cosine_rows(embedding[rows], outputs[1]),
            lengths=length_rows(embedding[rows], outputs[1]),
            decision=self.decision,
            tie_below=self.limits.fp16.max_abs_logit,
        )


def blocks_label(blocks: Sequence[int]) -> str:
    """Returns how a set of FP32 blocks is called."""
    if not blocks:
        return "no block in FP32"
    return f"block{'s' if len(blocks) > 1 else ''} {number_list(blocks)} in FP32"
