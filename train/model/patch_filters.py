"""A patch embedding of random band-pass filters, for vision towers that nobody has pretrained.

The default random embedding of a 32 x 32 patch answers to its mean colour: in photographs, power falls
with the square of the frequency, and every filter sums all frequencies. LoRA cannot touch the embedding,
so what it hides stays hidden. Here each filter passes one band of the patch's cosine transform, and the bands
arrive equally strong. Pretrained towers have learned such filters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.errors import UsageError

# Edges of the bands, as shares of the highest frequency along one axis; the corner reaches 1.42.
BAND_EDGES = (0.0, 1 / 64, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 13 / 16, 1.5)
LUMA = (0.299, 0.587, 0.114)

# Of photographs in ImageNet's normalisation, patches of 32: standard deviation of a cosine coefficient at
# radius 1, falling as 1 / radius, and of the mean's coefficient. Only their ratio to each other matters
# where the tower normalises its tokens.
AC_DEVIATION = 6.0
DC_DEVIATION = 28.0
TOKEN_DEVIATION = 0.5


def band_pass_filters(count: int, side: int, *, seed: int) -> Tensor:
    """Draws the weights of a patch embedding.

    Filter k passes band k mod 8 of the orthonormal 2-D DCT-II of the patch, with Gaussian coefficients
    times the radius, which undoes the 1 / radius of photographs. Band 0 is the mean, of the three
    channels separately; the others see luma.

    Args:
        count: number of filters, the width of the tower.
        side: side of a patch in pixels, at least 16 so that no band is empty.
        seed: of the coefficients.

    Returns:
        float32 ``[count, 3, side, side]``; on a photograph each filter answers with a standard deviation
        of about ``TOKEN_DEVIATION``.

    Raises:
        UsageError: ``side`` is under 16 or ``count`` under 1.
    """
    if side < 16 or count < 1:
        raise UsageError(
            f"random-bandpass: found {count} filters of side {side}, expected at least 1 of side 16 or more; "
            "use random"
        )
    rng = torch.Generator().manual_seed(seed)
    index = torch.arange(side, dtype=torch.float64)
    cosines = torch.cos(math.pi * (index[None] + 0.5) * index[:, None] / side) * math.sqrt(2 / side)
    cosines[0] /= math.sqrt(2)
    radius = torch.hypot(index[:, None], index[None])
    luma = torch.tensor(LUMA, dtype=torch.float64).view(3, 1, 1)
    scale = side / 32
    filters = torch.empty(count, 3, side, side)
    for row in range(count):
        band = row % (len(BAND_EDGES) - 1)
        low, high = (edge * side for edge in BAND_EDGES[band : band + 2])
        passed = (radius >= low) & (radius < high)
        drawn = torch.randn(3, side, side, generator=rng, dtype=torch.float64)
        if band == 0:
            answer = DC_DEVIATION * scale
            coefficients = drawn * passed
            norm = coefficients.sum(dim=(1, 2)).norm()
        else:
            answer = AC_DEVIATION * scale
            coefficients = drawn[:1] * passed * radius * luma
            norm = (drawn[0] * passed).norm()
        kernel = torch.einsum("iu,cij,jv->cuv", cosines, coefficients, cosines)
        filters[row] = (kernel * (TOKEN_DEVIATION / (answer * norm))).float()
    return filters
