"""What the TensorRT backend refuses, and what it leaves when any one call fails, on the fake device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import DgsNetError, EngineLoadError
from tests.runtime.fakes.device import FakeDevice
from tests.runtime.fakes.plans import EMBED_DIM, compute
from tests.runtime.fakes.rig import TWO_PROFILES, Rig, assert_right, make_rig


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    return make_rig(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def mosaics() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entry": {"targets": ("sm_86",)}}, "built for sm_86, this device is sm_87"),
        ({"entry": {"gpu": "Orin NX"}}, "built on Orin NX, this device is Fake GPU"),
        ({"entry": {"version": "10.7.0.23"}}, r"built with 10\.7\.0\.23, 10\.3\.0\.26 is installed"),
        ({"entry": {"version_compatible": True}}, "add --allow-engine-host-code"),
    ],
)
def test_open__states_a_mismatch_before_anything_is_loaded(rig: Any, changes: Any, message: str) -> None:
    machine = rig(**changes)
    with pytest.raises(EngineLoadError, match=message) as caught:
        machine.open()
    assert "\n" not in str(caught.value)
    assert "cuDevicePrimaryCtxRetain" not in machine.device.calls
    assert machine.device.leaks() == []


def test_open__host_code_needs_permission(rig: Any, mosaics: np.ndarray) -> None:
    with pytest.raises(EngineLoadError, match="add --allow-engine-host-code"):
        rig(plan={"host_code": True}).open()
    machine = rig(plan={"host_code": True}, entry={"allow_host_code": True})
    with machine.session() as session:
        assert_right(session, mosaics[:2])


TENSORS = {
    "images": ["INPUT", "UINT8", [-1, 224, 224, 3]],
    "logit": ["OUTPUT", "FLOAT", [-1]],
    "embedding": ["OUTPUT", "FLOAT", [-1, EMBED_DIM]],
}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"tensors": TENSORS | {"mask": ["INPUT", "UINT8", [-1]]}}, "found tensors"),
        ({"tensors": TENSORS | {"logit": ["OUTPUT", "HALF", [-1]]}}, "found logit OUTPUT HALF"),
        ({"tensors": TENSORS | {"logit": ["OUTPUT", "FLOAT", [-1, 1]]}}, r"found logit \[-1, 1\]"),
        ({"tensors": TENSORS | {"images": ["INPUT", "UINT8", [8, 224, 224, 3]]}}, r"found images \[8, 224"),
        ({"tensors": TENSORS | {"embedding": ["OUTPUT", "FLOAT", [-1, 5]]}}, r"found embedding \[-1, 5\]"),
        ({"profiles": [[1, 4, 16]]}, r"found batch profiles \[\(1, 4, 16\)\]"),
        ({"profiles": [[1, 4, 8], [1, 1, 1]]}, "found batch profiles"),
    ],
)
def test_open__checks_the_contract(rig: Any, plan: Any, message: str) -> None:
    machine = rig(plan=plan)
    with pytest.raises(EngineLoadError, match=message):
        machine.open()
    assert machine.device.leaks() == []


def test_open__needs_no_scratch_memory(rig: Any, mosaics: np.ndarray) -> None:
    machine = rig(plan={"scratch": 0})
    with machine.session() as session:
        assert_right(session, mosaics[:2])


def count_calls(rig: Any, mosaics: np.ndarray, **changes: Any) -> int:
    options = changes.pop("options", {})
    machine = rig(device=FakeDevice(integrated=True), **changes)
    session = machine.open(**options)
    for count in (3, 1, 3):
        session.run(mosaics[:count])
    session.close()
    assert machine.device.leaks() == []
    return len(machine.device.calls)


CASES = {
    "tensorrt": {"profiles": TWO_PROFILES},
    "two contexts": {"profiles": TWO_PROFILES, "options": {"contexts": 2}},
    "rtx": {"backend": "tensorrt-rtx", "profiles": TWO_PROFILES},
    "no graphs": {"profiles": TWO_PROFILES, "options": {"cuda_graphs": False}},
    "zero copy": {"profiles": TWO_PROFILES, "options": {"zero_copy": True}},
    "pycuda": {"profiles": TWO_PROFILES, "pycuda": True},
}


@pytest.mark.parametrize("case", CASES)
def test_every_call__may_fail_and_nothing_is_lost(
    rig: Any, mosaics: np.ndarray, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """The k-th call to CUDA or TensorRT fails, for every k: one clean line, nothing left, no wrong number."""
    caplog.set_level(logging.INFO)
    total = count_calls(rig, mosaics, **CASES[case])
    outcomes = {"opening": 0, "running": 0, "closing": 0, "warned": 0}
    for k in range(total):
        caplog.clear()
        changes = dict(CASES[case])
        options = changes.pop("options", {})
        machine = rig(device=FakeDevice(integrated=True, fail_at=k), **changes)
        label = f"{case}, call {k}"
        phase, session, said = "opening", None, ""
        try:
            session = machine.open(**options)
            phase = "running"
            for count in (3, 1, 3):
                logit, embedding = session.run(mosaics[:count])
                assert np.array_equal(logit, compute(mosaics[:count])[0]), label
                assert np.array_equal(embedding, compute(mosaics[:count])[1]), label
            phase = "closing"
            session.close()
            phase = "warned"
            assert caplog.messages, f"{label} ({machine.device.calls[k]}): neither an error nor a word"
        except DgsNetError as err:
            said = str(err)
            if phase == "running" and session is not None:
                # One bad batch does not spoil the next ones.
                assert_right(session, mosaics[:3])
                session.close()
        assert len(said.splitlines()) == (phase != "warned"), label
        assert machine.device.leaks() == [], f"{label}: {machine.device.calls[k]}"
        outcomes[phase] += 1
    assert min(outcomes["opening"], outcomes["running"], outcomes["closing"]) > 0, outcomes
