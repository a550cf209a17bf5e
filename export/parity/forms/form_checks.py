"""What is asked of one form beside the chain: the stored golden outputs again, and the batch laws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from export.parity.checks import FAILED, PASSED, Check, difference_text, law_check
from export.parity.forms.batches import DISTINCT, Law, batch_laws
from export.parity.forms.form import CHUNK, ONNX_FP32, Form, Runnable, failure_text, run_in_chunks
from export.parity.statistics.compare import Limits, Outputs, compare_logits
from runtime.bundle.golden import Golden
from runtime.console import Progress
from runtime.decision import Decision


def form_checks(
    form: Form, golden: Golden, golden_name: str, *, decision: Decision, limits: Limits, every: bool
) -> Iterator[Check]:
    """Yields the checks of a form that has a batch profile; nothing of one that has none or cannot run.

    Args:
        form: what is looked at.
        golden: the stored mosaics and outputs.
        golden_name: who gave those outputs.
        decision: the rule by which a verdict counts as changed.
        limits: of the form's precision.
        every: whether all batch sizes are looked at.
    """
    runnable, profile = form.runnable, form.profile
    if runnable is None or profile is None:
        return
    mosaics = _spread(golden.images)
    try:
        outputs = run_in_chunks(runnable, golden.images, min(CHUNK, profile[2]))
        yield _golden_check(form.key, golden, outputs, golden_name, decision, limits)
        alone = run_in_chunks(runnable, mosaics, 1)
    except Exception as err:  # whatever an engine raises is a finding, not the end of the report
        yield Check(form.key, "golden mosaics, one by one", FAILED, failure_text(err))
        return
    total = sum(1 for _ in batch_laws(mosaics[:1], profile, every=every))
    with Progress(f"batch laws, {form.title}", total) as progress:
        for law in batch_laws(mosaics, profile, every=every):
            yield _checked_law(form.key, runnable, law, alone, decision, limits)
            progress.advance(1)


def _checked_law(
    key: str, runnable: Runnable, law: Law, alone: Outputs, decision: Decision, limits: Limits
) -> Check:
    try:
        return law_check(key, law.compared(runnable, alone, decision=decision, limits=limits))
    except Exception as err:  # the other sizes may still work, and which ones do is worth knowing
        return Check(key, law.name, FAILED, failure_text(err))


def _golden_check(
    key: str, golden: Golden, outputs: Outputs, golden_name: str, decision: Decision, limits: Limits
) -> Check:
    found = compare_logits(
        f"golden mosaics, stored {golden_name}",
        [f"golden {k}" for k in range(len(golden.images))],
        golden.logit,
        outputs[0],
        decision=decision,
        limits=limits,
        embeddings=(golden.embedding, outputs[1]),
    )
    text = f"{difference_text(found)} over {found.count}"
    # An engine computes the same graph: what it has of this failure, the graph has handed down.
    return Check(key, found.hop, PASSED if found.passed else FAILED, text, is_own=key == ONNX_FP32)


def _spread(mosaics: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a few mosaics from the whole set, which may be sorted by kind."""
    places = np.linspace(0, len(mosaics) - 1, min(DISTINCT, len(mosaics))).astype(np.int64)
    return mosaics[places]
