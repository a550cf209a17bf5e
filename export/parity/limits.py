"""The limits of a hop: the caller's or this version's own, and never looser ones from a manifest."""

from __future__ import annotations

import logging

from export.parity.statistics.compare import Limits
from runtime.bundle.manifest import Manifest
from runtime.tolerances import TOLERANCES, logit_tolerance

logger = logging.getLogger("dgsnet.export.parity")


def own_limits(precision: str) -> Limits:
    """Returns this version's limits for a precision."""
    return Limits(logit_tolerance(TOLERANCES, precision), TOLERANCES[f"{precision}_min_cosine"])


def bundle_limits(manifest: Manifest | None, precision: str, allowed: float | None = None) -> Limits:
    """Returns the limits of a bundle's precision.

    A manifest tightens and never loosens: what it states counts where it is stricter than this version's
    own, even against ``allowed``, and a looser one is reported.

    Args:
        manifest: None where there is none yet.
        precision: "fp32" or "fp16".
        allowed: largest |difference of logits| that the caller allows; None takes this version's own.
    """
    own = own_limits(precision)
    limit = own.max_abs_logit if allowed is None else allowed
    if manifest is None:
        return Limits(limit, own.min_cosine)
    stated = manifest.tolerances.get(f"{precision}_max_abs_logit", own.max_abs_logit)
    if stated > own.max_abs_logit:
        logger.warning(
            "the manifest allows a difference of %g, this version %g: the stricter one holds",
            stated,
            own.max_abs_logit,
        )
    if stated < own.max_abs_logit:
        limit = min(limit, stated)
    cosine = max(own.min_cosine, manifest.tolerances.get(f"{precision}_min_cosine", own.min_cosine))
    return Limits(limit, cosine)
