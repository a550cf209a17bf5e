"""The benchmark of decoding measures equal work, in both of its ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import decode as decode_module
from benchmarks import decode_together as together_module
from benchmarks.decode import CASES, decode, picture_memory
from benchmarks.decode_together import WAYS, measure
from runtime.errors import GateFailedError

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc"
)


def test_decode__measures_every_case(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        decode,
        ["--side", "1500", "--json", "--json-file", str(tmp_path / "rows.json")],
        standalone_mode=False,
    )
    assert done.exception is None
    rows = json.loads(done.stdout)["rows"]
    assert rows == json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["file"], row["way"]) for row in rows] == list(CASES)
    for row in rows:
        assert row["bytes_per_pixel"] == row["bytes"] / 1500**2 > 1
        assert row["mib_over_4_5"] == pytest.approx((row["bytes"] - 4.5 * 1500**2) / 2**20)
        assert row["cpu_ms"] > 0


def test_picture_memory__reports_nothing_if_the_ways_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = decode_module._CHILD.replace("mosaic.tobytes().hex()", "mosaic.tobytes().hex() + way")
    monkeypatch.setattr(decode_module, "_CHILD", changed)
    with pytest.raises(RuntimeError, match="upright: the mosaics differ"):
        picture_memory(200)


def test_decode_together__compares_the_ways_round_by_round() -> None:
    rows = measure((("tiny", 300, 200, 3),), 2)
    assert [(row["pictures"], row["count"], row["way"]) for row in rows] == [("tiny", 3, way) for way in WAYS]
    unbounded, bounded = rows
    assert (unbounded["ratio"], unbounded["cpu_ratio"]) == (1, 1)
    assert bounded["ratio"] > 0
    assert bounded["cpu_ms"] > 0


def test_decode_together__reports_nothing_if_mosaics_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    added = "mosaics.tobytes() + str(time.perf_counter()).encode()"
    changed = together_module._CHILD.replace("mosaics.tobytes()", added)
    monkeypatch.setattr(together_module, "_CHILD", changed)
    with pytest.raises(GateFailedError, match="found two mosaics"):
        measure((("tiny", 300, 200, 2),), 1)
