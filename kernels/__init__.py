"""Gradient surgery at the image feature: public names, resolved on first use so that importing is free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.gradient_surgery import surgery, surgery_affine

# transformers probes for a package of this name and compares versions: a low number keeps it off ours.
__version__ = "0.1.0"

__all__ = ["__version__", "surgery", "surgery_affine"]


def __getattr__(name: str) -> Any:
    if name in ("surgery", "surgery_affine"):
        from kernels import gradient_surgery

        return getattr(gradient_surgery, name)
    raise AttributeError(f"module 'kernels' has no attribute {name!r}")
