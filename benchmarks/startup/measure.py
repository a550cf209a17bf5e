"""Import time, predict of one photograph against a bare script, and peak memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.laps import turned
from benchmarks.startup.children import Cost, run_python
from runtime.bundle.manifest import MODEL_NAME
from runtime.bundle.verification import SETTLE_NS
from runtime.console import Progress

GOALS = {"import_ms": 120.0, "verified_ratio": 1.0, "first_ratio": 1.2, "memory_ratio": 1.0}
# Peak memory may be this many times the graph and its weights, and so much more.
_MEMORY_FACTOR, _MEMORY_EXTRA = 1.3, 200_000_000
# Goals of predict are stated up to 12 megapixels; this is what a phone's photograph has.
_PHOTO_SIZE = (4000, 3000)
_NOTHING, _RUNTIME, _DETECTOR = "numpy", "numpy, runtime", "numpy, Detector"
_IMPORTS = {
    _NOTHING: "import numpy",
    _RUNTIME: "import numpy, runtime",
    _DETECTOR: "import numpy; from runtime import Detector",
}
BARE, VERIFIED, FIRST = "bare script", "predict, verified before", "predict, first open"
# What predict would take without its rule for few files: shown beside the others, held to no goal.
_PREPACKED = "the same with --prepack"
_BARE = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
print(session.run(None, {"images": numpy.full((1, 224, 224, 3), 100, numpy.uint8)}))
"""


def imports(repeats: int) -> dict[str, Any]:
    """Returns milliseconds that importing the runtime adds to Python with numpy."""
    contestants = {name: lambda code=code: run_python(["-c", code]) for name, code in _IMPORTS.items()}
    costs = _in_turns(contestants, repeats, "import")
    base = costs[_NOTHING]
    return {
        "bare_ms": _median_ms(base),
        "added_ms": {
            name: 1e3 * statistics.median(a.wall - b.wall for a, b in zip(costs[name], base, strict=True))
            for name in (_RUNTIME, _DETECTOR)
        },
    }


def predictions(bundle: Path, repeats: int) -> dict[str, Any]:
    """Returns time and peak memory of predict on one photograph beside those of a bare script.

    Args:
        bundle: with an onnxruntime:cpu engine.
        repeats: counted rounds.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        photo, inline = folder / "photo.jpg", folder / "inline.onnx"
        _write_photo(photo)
        size = _write_inline(bundle, inline)
        kept = {"DGSNET_CACHE": str(folder / "kept")}
        command = ["-m", "runtime", "predict", str(bundle), str(photo), "--backend", "onnxruntime:cpu", "-q"]

        def first() -> Cost:
            with TemporaryDirectory(dir=folder) as empty:
                return run_python(command, {"DGSNET_CACHE": empty})

        # Files that changed just now are checked, but not remembered.
        time.sleep(SETTLE_NS / 1e9)
        run_python(command, kept)
        contestants = {
            # As the runtime opens it: telemetry would slow the bare script down.
            BARE: lambda: run_python(["-c", _BARE, str(inline)], {"ORT_DISABLE_TELEMETRY": "1"}),
            VERIFIED: lambda: run_python(command, kept),
            _PREPACKED: lambda: run_python([*command, "--prepack"], kept),
            FIRST: first,
        }
        costs = _in_turns(contestants, repeats, "predict")
    allowed = _MEMORY_FACTOR * size + _MEMORY_EXTRA
    return {
        "photo": f"JPEG {_PHOTO_SIZE[0]}x{_PHOTO_SIZE[1]}",
        "model_mb": size / 1e6,
        "allowed_mb": allowed / 1e6,
        "contestants": {name: _row(own, costs[BARE], allowed) for name, own in costs.items()},
    }


def missed_goals(found: Mapping[str, Any]) -> list[str]:
    """Returns one line for each goal that was missed."""
    rows = found["predict"]["contestants"]
    values = {
        "import_ms": found["import"]["added_ms"][_RUNTIME],
        "verified_ratio": rows[VERIFIED]["ratio"],
        "first_ratio": rows[FIRST]["ratio"],
        "memory_ratio": max(rows[name]["peak_over_allowed"] for name in (VERIFIED, FIRST)),
    }
    return [
        f"{name}: found {value:.3g}, expected at most {GOALS[name]:.3g}"
        for name, value in values.items()
        if value > GOALS[name]
    ]


def _in_turns(
    contestants: Mapping[str, Callable[[], Cost]], repeats: int, title: str
) -> dict[str, list[Cost]]:
    """The first round warms the page cache up and does not count; each begins with another contestant."""
    names = list(contestants)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    with Progress(title, (repeats + 1) * len(names)) as progress:
        for turn in range(repeats + 1):
            for name in turned(names, turn):
                cost = contestants[name]()
                progress.advance()
                if turn:
                    costs[name].append(cost)
    return costs


def _row(own: list[Cost], bare: list[Cost], allowed: float) -> dict[str, float]:
    pairs = list(zip(own, bare, strict=True))
    peak = max(cost.peak_bytes for cost in own)
    return {
        "wall_ms": _median_ms(own),
        "least_ms": 1e3 * min(cost.wall for cost in own),
        "cpu_ms": 1e3 * statistics.median(cost.cpu for cost in own),
        # Here above 1 means longer than the bare script.
        "ratio": statistics.median(a.wall / b.wall for a, b in pairs),
        "cpu_ratio": statistics.median(a.cpu / b.cpu for a, b in pairs),
        "peak_mb": peak / 1e6,
        "peak_over_allowed": peak / allowed,
    }


def _median_ms(costs: list[Cost]) -> float:
    return 1e3 * statistics.median(cost.wall for cost in costs)


def _write_photo(path: Path) -> None:
    """A picture with detail everywhere, so that decoding and selection have their usual work."""
    draw = np.random.default_rng(3)
    small = Image.fromarray(draw.integers(0, 256, (375, 500, 3), dtype=np.uint8))
    small.resize(_PHOTO_SIZE, Image.Resampling.BICUBIC).save(path, quality=90)


def _write_inline(bundle: Path, path: Path) -> int:
    """Writes the bundle's contract graph as one file and returns the bytes of graph and weights."""
    import onnx

    onnx.save_model(onnx.load(str(bundle / MODEL_NAME)), str(path))
    return os.path.getsize(path)
