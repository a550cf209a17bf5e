"""Captioning a data set: which pictures still need a caption, who writes it, and when it is saved."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from runtime.console import Progress
from runtime.decode import decode_image
from runtime.errors import DgsNetError, ImageError
from train.captioning.stores import CaptionStore
from train.data.captions import flaw_of
from train.data.layout import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from train.captioning.coca import CocaCaptioner

logger = logging.getLogger("dgsnet")

Result: TypeAlias = "tuple[Sample, str | DgsNetError]"
Writer: TypeAlias = "Callable[[Sequence[Sample]], Iterator[Result]]"


@dataclass(frozen=True)
class CaptionSummary:
    """What a captioning command did.

    Attributes:
        written: captions written now.
        kept: captions that were there already.
        failed: (name, reason) of each picture that has no caption now.
    """

    written: int
    kept: int
    failed: list[tuple[str, str]]


def write_captions(
    samples: Sequence[Sample], writer: Writer, store: CaptionStore, *, overwrite: bool, save_every: int
) -> CaptionSummary:
    """Captions every sample that has none yet; an interrupted call loses nothing that it has said is done.

    Args:
        samples: the pictures.
        writer: yields each sample that it is given with its caption, or with what is wrong with the picture.
        store: keeps what it holds.
        overwrite: caption the samples that have a caption too.
        save_every: pictures between two writes to disk.
    """
    wanted = [sample for sample in samples if overwrite or not store.has(sample)]
    failed = []
    written = 0
    try:
        with Progress("captions", len(wanted)) as progress:
            for done, (sample, result) in enumerate(writer(wanted), start=1):
                flaw = str(result) if isinstance(result, DgsNetError) else flaw_of(result)
                if flaw is None:
                    store.put(sample, str(result))
                    written += 1
                else:
                    reason = flaw if isinstance(result, DgsNetError) else f"the caption is {flaw}"
                    logger.warning("%s: %s", sample.name, reason)
                    failed.append((sample.name, reason))
                if done % save_every == 0:
                    store.flush()
                progress.advance()
    finally:
        store.flush()
    return CaptionSummary(written, len(samples) - len(wanted), failed)


def writer_from_function(caption_of: Callable[[Sample], str]) -> Writer:
    """Returns a writer that asks ``caption_of``, sample by sample; what it raises is the sample's flaw."""

    def write(samples: Sequence[Sample]) -> Iterator[Result]:
        for sample in samples:
            try:
                yield sample, caption_of(sample)
            except DgsNetError as err:
                yield sample, err

    return write


def writer_from_model(captioner: CocaCaptioner, *, batch: int, workers: int) -> Writer:
    """Returns a writer that shows the pictures to a model, decoding the next batch meanwhile.

    Args:
        captioner: the model.
        batch: pictures at once.
        workers: threads that decode and resize.
    """

    def prepare(sample: Sample) -> NDArray[np.float32] | ImageError:
        try:
            return captioner.preprocessing.apply(decode_image(sample.source()))
        except ImageError as err:
            return err

    def write(samples: Sequence[Sample]) -> Iterator[Result]:
        with ThreadPoolExecutor(workers) as pool:
            ahead: deque[tuple[Sequence[Sample], Iterator[NDArray[np.float32] | ImageError]]] = deque()
            for start in range(0, len(samples) + batch, batch):
                part = samples[start : start + batch]
                if part:
                    ahead.append((part, pool.map(prepare, part)))
                if len(ahead) == 2 or (ahead and not part):
                    yield from _described(captioner, *ahead.popleft())

    return write


def _described(
    captioner: CocaCaptioner, samples: Sequence[Sample], prepared: Iterator[NDArray[np.float32] | ImageError]
) -> Iterator[Result]:
    inputs = list(prepared)
    good = [item for item in inputs if not isinstance(item, ImageError)]
    captions = iter(captioner.describe(good) if good else [])
    for sample, item in zip(samples, inputs, strict=True):
        yield sample, item if isinstance(item, ImageError) else next(captions)
