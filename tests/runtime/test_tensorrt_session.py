"""The TensorRT backend by its call sequence, on a fake device (tests/runtime/fakes) that keeps the rules."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.tensorrt import engine_host
from runtime.backends.tensorrt.engine_host import EngineHost
from runtime.backends.tensorrt.lane import Lane, place_batch
from runtime.cuda.cuda_python import CudaPython
from runtime.errors import EngineLoadError, SpecError, UsageError
from tests.runtime.fakes.cuda_driver import fake_driver
from tests.runtime.fakes.device import FakeDevice
from tests.runtime.fakes.plans import compute
from tests.runtime.fakes.rig import TWO_PROFILES, Rig, assert_right, make_rig
from tests.runtime.fakes.tensorrt_module import fake_tensorrt


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    return make_rig(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def mosaics() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("graphs", [None, True, False])
def test_run__gives_each_row_its_own_result_and_leaves_nothing(
    rig: Any, mosaics: np.ndarray, backend: str, graphs: bool | None
) -> None:
    machine = rig(backend=backend)
    with machine.session(cuda_graphs=graphs) as session:
        assert (session.name, session.profile) == (f"{backend}:sm_87", (1, 4, 8))
        for start, count in ((0, 8), (1, 3), (4, 1), (0, 8), (2, 3), (5, 1)):
            assert_right(session, mosaics[start : start + count])
    assert machine.device.leaks() == []
    launches = machine.device.calls.count("cuGraphLaunch")
    assert launches == (0 if graphs is False else 3)
    # The graphs' batch sizes 8, 3 and 1 each warmed up once and were recorded once.
    assert machine.device.calls.count("execute_async_v3") == 6


def test_run__results_are_the_callers_own(rig: Any, mosaics: np.ndarray) -> None:
    with rig().session() as session:
        first, _ = session.run(mosaics[:2])
        kept = first.copy()
        session.run(mosaics[2:4])
        assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    ("profiles", "count", "expected"),
    [
        (TWO_PROFILES, 1, (1, 1)),
        (TWO_PROFILES, 2, (0, 2)),
        (((1, 8, 32), (1, 2, 4)), 3, (1, 3)),
        (((1, 8, 32), (1, 2, 4)), 5, (0, 5)),
        (((4, 4, 8), (1, 1, 1)), 2, (0, 4)),
        (((4, 4, 8), (2, 2, 3)), 1, (1, 2)),
        (((4, 4, 8),), 8, (0, 8)),
    ],
)
def test_place_batch__takes_the_narrowest_profile_that_holds_it(
    profiles: Any, count: int, expected: tuple[int, int]
) -> None:
    assert place_batch(profiles, count) == expected


def test_run__fills_up_a_batch_that_no_profile_holds(rig: Any, mosaics: np.ndarray) -> None:
    machine = rig(profiles=((4, 4, 8), (1, 1, 1)))
    with machine.session() as session:
        assert session.profile == (1, 4, 8)
        for count in (1, 2, 3, 5, 8):
            assert_right(session, mosaics[:count])
    assert machine.device.leaks() == []


def test_run__refuses_what_is_no_batch_before_it_reaches_the_device(rig: Any, mosaics: np.ndarray) -> None:
    machine = rig()
    with machine.session() as session:
        before = len(machine.device.calls)
        for wrong in (mosaics, mosaics[:0], mosaics[:1].astype(np.float32), mosaics[:1, :10]):
            with pytest.raises(SpecError):
                session.run(wrong)
        assert len(machine.device.calls) == before


def test_run__forgets_the_batch_sizes_least_used(rig: Any, mosaics: np.ndarray) -> None:
    machine = rig(profiles=((1, 4, 9),))
    with machine.session() as session:
        for count in range(1, 10):
            assert_right(session, mosaics[:count])
        assert machine.device.objects["IExecutionContext"] == 8
        assert_right(session, mosaics[:1])
    assert machine.device.leaks() == []


@pytest.mark.parametrize("contexts", [1, 3])
def test_run__serves_many_threads(rig: Any, mosaics: np.ndarray, contexts: int) -> None:
    machine = rig(profiles=TWO_PROFILES)
    wrong: list[str] = []
    with machine.session(contexts=contexts) as session:

        def work(seed: int) -> None:
            draw = np.random.default_rng(seed)
            for _ in range(8):
                start, count = int(draw.integers(0, 5)), int(draw.integers(1, 5))
                images = mosaics[start : start + count]
                if not np.array_equal(session.run(images)[0], compute(images)[0]):
                    wrong.append(f"{seed}: {start}+{count}")

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(machine.device.streams) == contexts
    assert wrong == []
    assert machine.device.leaks() == []


def test_session__leaves_the_callers_thread_alone(rig: Any, mosaics: np.ndarray) -> None:
    machine = rig()
    with machine.session() as session:
        session.run(mosaics[:2])
        assert threading.get_ident() not in machine.device.bound
        assert len(machine.device.bound) == 1


def test_close__is_idempotent_and_later_runs_say_so(rig: Any, mosaics: np.ndarray) -> None:
    machine = rig()
    session = machine.open(contexts=2)
    session.close()
    session.close()
    assert machine.device.leaks() == []
    with pytest.raises(EngineLoadError, match="closed; open the bundle again"):
        session.run(mosaics[:1])
    assert not [t for t in threading.enumerate() if t.name.startswith("dgsnet-engine")]


def test_pycuda__runs_by_its_four_calls_and_says_that_it_has_no_graphs(
    rig: Any, mosaics: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    machine = rig(pycuda=True, profiles=TWO_PROFILES)
    with caplog.at_level(logging.INFO), machine.session(contexts=2) as session:
        for count in (8, 1, 3, 8):
            assert_right(session, mosaics[:count])
    assert machine.device.leaks() == []
    assert "pycuda has no CUDA graphs" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cuda_graphs": True}, "cuda-graphs: pycuda has none"), ({"zero_copy": True}, "zero-copy: found")],
)
def test_pycuda__what_it_lacks_is_refused_by_name(rig: Any, options: Any, message: str) -> None:
    machine = rig(pycuda=True)
    with pytest.raises(UsageError, match=message):
        machine.open(**options)
    assert machine.device.calls == []


@pytest.mark.parametrize("graphs", [None, False])
def test_zero_copy__copies_nothing_on_an_integrated_gpu(
    rig: Any, mosaics: np.ndarray, graphs: bool | None
) -> None:
    machine = rig(device=FakeDevice(integrated=True))
    with machine.session(zero_copy=True, cuda_graphs=graphs) as session:
        for count in (8, 3, 8):
            assert_right(session, mosaics[:count])
    assert machine.device.leaks() == []
    assert not {"cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"} & set(machine.device.calls)


def test_zero_copy__is_refused_where_the_gpu_has_its_own_memory(rig: Any) -> None:
    machine = rig()
    with pytest.raises(UsageError, match="does not share the CPU's memory"):
        machine.open(zero_copy=True)
    assert machine.device.leaks() == []


def test_graphs__a_refused_recording_is_said_once_and_costs_no_result(
    rig: Any, mosaics: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    machine = rig()
    machine.device.refuses_capture = True
    with machine.session() as session:
        for count in (4, 8, 4, 1):
            assert_right(session, mosaics[:count])
    assert machine.device.leaks() == []
    assert caplog.text.count("no CUDA graph, every batch is enqueued") == 1
    assert machine.device.calls.count("cuStreamBeginCapture") == 1


def test_graphs__a_refused_recording_is_an_error_where_graphs_were_demanded(
    rig: Any, mosaics: np.ndarray
) -> None:
    machine = rig()
    machine.device.refuses_capture = True
    with (
        machine.session(cuda_graphs=True) as session,
        pytest.raises(EngineLoadError, match="leave --cuda-graphs out"),
    ):
        session.run(mosaics[:1])
    assert machine.device.leaks() == []


def test_batch_runner__never_launches_a_graph_of_another_batch_size(rig: Any, mosaics: np.ndarray) -> None:
    machine = rig()
    module = fake_tensorrt(machine.device)
    machine.monkeypatch.setattr(engine_host, "import_tensorrt", lambda backend: module)
    host = EngineHost(machine.file(), CudaPython(fake_driver(machine.device)))
    host.open()
    lane = Lane(host, graphs=True, zero_copy=False)
    lane.open()
    lane.infer(mosaics[:3])
    [runner] = lane._runners.values()
    for _ in range(2):
        with pytest.raises(EngineLoadError, match="found a batch of 2, this CUDA graph was recorded at 3"):
            runner.queue(2)
    assert np.array_equal(lane.infer(mosaics[3:6])[0], compute(mosaics[3:6])[0])
    del runner
    lane.close()
    host.close()
    assert machine.device.leaks() == []
