"""Dropout whose mask is cheap to draw on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Sixteen random bits decide about one element.
_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zeroes elements with probability p in training, and scales the rest so that the mean stays.

    On a CPU PyTorch draws a 53-bit number per element, which took a seventh of a step of a small tower. Here
    one 64-bit draw serves four elements there: p is rounded to a multiple of 2^-16, and the scale belongs
    to the rounded p. On a GPU, and under torch.compile, it is PyTorch's own dropout.

    Args:
        p: probability of a zero, 0 <= p < 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        # One level is left at least: the scale of nothing kept would be infinite.
        self._kept = max(round((1 - p) * _LEVELS), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x with zeros drawn from torch's global generator; same shape, dtype and device."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(x, self.p)
        return x * self._mask(x)

    def _mask(self, x: Tensor) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return (bits < self._kept - _LEVELS // 2).to(x.dtype).mul_(_LEVELS / self._kept)

    def extra_repr(self) -> str:
        """Returns p, for the module's printed form."""
        return f"p={self.p}"
