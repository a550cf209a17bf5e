"""The caption map: one JSON object, path below the data set's root -> caption."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.errors import DataError
from runtime.names import printable_name
from train.data.layout import Sample

CAPTIONS_NAME = "captions.json"


def load_captions(path: Path, samples: list[Sample]) -> list[str]:
    """Returns the caption of every sample, in their order.

    Raises:
        DataError: the file cannot be read, is not a map of texts, or lacks captions of samples.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: cannot be read as a JSON map of captions ({err})") from err
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise DataError(f"{path}: expected one JSON object, path -> caption")
    missing = [sample.key for sample in samples if sample.key not in content]
    if missing:
        raise DataError(
            f"{path}: captions are missing for {len(missing)} of {len(samples)} samples, "
            f"first {printable_name(missing[0])}"
        )
    return [content[sample.key] for sample in samples]
