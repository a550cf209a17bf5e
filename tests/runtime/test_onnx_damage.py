"""Damage inside an ONNX file is one error of ours, and ONNX Runtime prints nothing about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.backends.onnx_session import OnnxSession
from runtime.errors import EngineLoadError


def test_onnx_session__any_damaged_byte_is_one_error_and_prints_nothing(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (bundle / "model.onnx").read_bytes()
    damaged = tmp_path / "damaged.onnx"
    refused = 0
    for place in range(len(content)):
        # The high bit makes text that is no UTF-8.
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :])
        try:
            OnnxSession(damaged, device="cpu", embed_dim=4, profile=(1, 4, 8)).close()
        except EngineLoadError:
            refused += 1
    assert refused > 500
    assert capfd.readouterr().out == ""
