"""The demo data set: real photographs from installed wheels, fakes from generators fitted on the spot.

Names resolve lazily, so importing the package loads neither torch nor Pillow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.demo.build import DemoSummary, build_demo_data
    from train.demo.settings import DemoSettings

__all__ = ["DemoSettings", "DemoSummary", "build_demo_data"]

_HOMES = {
    "DemoSettings": "train.demo.settings",
    "DemoSummary": "train.demo.build",
    "build_demo_data": "train.demo.build",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'train.demo' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
