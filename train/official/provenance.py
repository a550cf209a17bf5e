"""What is kept of a foreign file: what its run's record says, and what an import reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.names import printable_name
from train.official.reading import sha256_of

# Key of the record's data.
IMPORTED = "imported"
# Neither the detector nor the export reads the text tower, so that it has no place in the checkpoint; but the
# authors' file holds it twice, and export-official must write it again.
TEXT_TOWER_NAME = "text_tower.safetensors"


@dataclass(frozen=True)
class ImportSummary:
    """What an import found.

    Attributes:
        format: "dgs-net" or "univfd".
        backbone: open_clip's name.
        merged: whether the file's weights held the adapters already; None where there are none.
        untrained: whether every adapter is zero.
        rank: r, or 0 without adapters.
        scaling: "rslora" or "lora"; empty without adapters.
        scale: what multiplies B A in the run; 0 without adapters.
        measured: the scale that the weights show by least squares; 0 where they show none.
    """

    format: str
    backbone: str
    merged: bool | None = None
    untrained: bool = False
    rank: int = 0
    scaling: str = ""
    scale: float = 0.0
    measured: float = 0.0


def describe(file: Path, kind: str) -> dict[str, Any]:
    """Returns what a run's record says of the file that it was imported from."""
    return {"file": printable_name(file.name), "sha256": sha256_of(file), "format": kind}
