"""The pictures whose verdict changed, as cards with a small picture inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.parity.outcome import GateReport
from export.parity.pictures.data_set import Picture
from export.parity.statistics.compare import Flip
from runtime.decision import Decision
from runtime.decode import DecodeLimits
from runtime.errors import DgsNetError
from runtime.names import printable_name

MOST_CARDS = 60
_SIDE = 150
_QUALITY = 70


@dataclass(frozen=True)
class _Card:
    """One changed verdict: at which hop, against which form."""

    flip: Flip
    hop: str
    reference: str


def gallery(report: GateReport) -> str:
    """Returns the cards, largest hard flips first; each picture once, at the hop where it flips first."""
    cards = _cards(report)
    if not cards:
        return "<p>No verdict changed at any hop.</p>"
    pictures = {picture.name: (k, picture) for k, picture in enumerate(report.waterfall.pictures)}
    shown = sorted(cards, key=lambda card: (card.flip.tie, -abs(card.flip.margin)))
    parts = [_card_html(card, pictures, report) for card in shown[:MOST_CARDS]]
    more = ""
    if len(shown) > MOST_CARDS:
        more = f'<p class="faint">and {len(shown) - MOST_CARDS} more; --json-file lists them all</p>'
    return f'<div class="gallery">{"".join(parts)}</div>{more}'


def _cards(report: GateReport) -> list[_Card]:
    cards: dict[str, _Card] = {}
    for hop in report.waterfall.hops:
        for found in (hop.previous, hop.first):
            for flip in found.flips if found is not None else ():
                reference = found.reference if found is not None else ""
                cards.setdefault(flip.item, _Card(flip, hop.title, reference))
    return list(cards.values())


def _card_html(card: _Card, pictures: dict[str, tuple[int, Picture]], report: GateReport) -> str:
    flip = card.flip
    place, picture = pictures[flip.item]
    pixels = _pixels(picture, place, report)
    name = escape(printable_name(flip.item), quote=True)
    image = '<div class="none">no preview</div>'
    if pixels is not None:
        image = f'<img alt="{name}" src="{thumbnail(pixels)}">'
    kind = '<b class="skip">tie</b>' if flip.tie else '<b class="bad">hard flip</b>'
    before, after = _verdict(flip.reference_logit, report.decision), _verdict(flip.logit, report.decision)
    return (
        f'<div class="card">{image}<div>{name}</div><div>{kind} at {escape(card.hop)}</div>'
        f"<div>{escape(card.reference)}: {before}</div><div>here: {after}</div>"
        f"<div>margin {flip.margin:+.4f}</div></div>"
    )


def _verdict(logit: float, decision: Decision) -> str:
    verdict = decision.judge(logit)
    return f"{verdict.label}, {logit:.4f} ({verdict.probability:.1%})"


def _pixels(picture: Picture, place: int, report: GateReport) -> NDArray[np.uint8] | None:
    if picture.path is None:
        return None if report.golden is None else report.golden[place]
    return file_pixels(picture.path, report.reading.limits)


def file_pixels(path: Path, limits: DecodeLimits) -> NDArray[np.uint8] | None:
    """Returns the pixels of a picture that was compared, uint8 ``[H, W, 3]``; None if it is gone since."""
    from runtime.decode import decode_image

    try:
        return decode_image(path, **vars(limits))
    except DgsNetError:
        return None  # the card says that there is no preview now


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """Returns pixels, uint8 ``[H, W, 3]``, as the data URI of a small JPEG."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE * 2, _SIDE * 2))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
