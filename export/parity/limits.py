"""The limits that a hop is held to: this version's own, and never looser ones from a manifest."""

from __future__ import annotations

import logging

from export.parity.compare import Limits
from runtime.manifest import Manifest
from runtime.tolerances import TOLERANCES, logit_tolerance

logger = logging.getLogger("dgsnet.export.parity")


def own_limits(precision: str) -> Limits:
    """Returns this version's limits for a precision."""
    return Limits(logit_tolerance(TOLERANCES, precision), TOLERANCES[f"{precision}_min_cosine"])


def bundle_limits(manifest: Manifest, precision: str) -> Limits:
    """Returns the stricter of the manifest's limits and this version's; a looser manifest is reported."""
    own = own_limits(precision)
    stated = manifest.tolerances.get(f"{precision}_max_abs_logit", own.max_abs_logit)
    if stated > own.max_abs_logit:
        logger.warning(
            "the manifest allows a difference of %g, this version %g: the stricter one holds",
            stated,
            own.max_abs_logit,
        )
    return Limits(min(stated, own.max_abs_logit), own.min_cosine)
