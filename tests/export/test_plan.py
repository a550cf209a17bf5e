"""The forecast of a build: against real builds, against machines too small, and as the command says it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from export.commands.build_engine import build_engine as command
from export.doctor.machine import Machine
from export.engine.options import BuildOptions
from export.plan.build_plan import plan_build
from export.plan.forecast import GB, engine_forecast, graphs_forecast
from export.plan.room import Room, room_for
from export.plan.weights import graph_sizes, tower_bytes
from runtime.errors import CheckpointError, EngineBuildError, UsageError
from tests.export.vit_graph import vit_model

ROOT = Path(__file__).parent.parent.parent
PLENTY = Room(memory_bytes=64 * GB, swap_bytes=0, disk_bytes=64 * GB)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason='tensorrt-rtx is not installed: pip install "dgsnet[tensorrt-rtx]"',
)

# In a process of its own: a peak counts everything that came before in the same one.
_BUILD = """
import sys
from pathlib import Path
from export.engine.builder import build_engine
from export.engine.options import BuildOptions
built = build_engine(Path(sys.argv[1]), Path(sys.argv[1]).with_suffix(".engine"),
                     BuildOptions(precision="fp32"), backend="tensorrt-rtx")
print(built.peak_bytes, built.size)
"""


def wide_onnx(path: Path, width: int, blocks: int) -> Path:
    """Writes a contract graph with towers as wide as real ones."""
    from export.onnx_files import save_model

    save_model(vit_model(blocks=blocks, width=width, heads=width // 64), path)
    return path


@needs_rtx
@pytest.mark.parametrize(
    ("width", "blocks"),
    [
        pytest.param(512, 6, id="79-mb"),
        pytest.param(256, 12, marks=pytest.mark.slow, id="41-mb"),
        pytest.param(768, 12, marks=pytest.mark.slow, id="350-mb"),
    ],
)
def test_engine_forecast__holds_for_a_real_build(width: int, blocks: int, tmp_path: Path) -> None:
    path = wide_onnx(tmp_path / "model.onnx", width, blocks)
    graph_bytes = sum(file.stat().st_size for file in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    peak, size = map(int, done.stdout.split())
    forecast = engine_forecast("tensorrt-rtx", graph_bytes)
    assert peak <= forecast.peak_bytes <= 1.35 * peak
    assert size <= forecast.disk_bytes <= 1.1 * size + 10**7
    assert forecast.is_measured


def test_engine_forecast__tensorrt_proper_is_an_estimate_and_asks_for_more() -> None:
    rtx, trt = (engine_forecast(backend, GB) for backend in ("tensorrt-rtx", "tensorrt"))
    assert trt.peak_bytes >= rtx.peak_bytes + 3 * GB
    assert not trt.is_measured
    assert trt.minutes[1] > rtx.minutes[1]
    small = engine_forecast("tensorrt", GB, workspace_bytes=GB // 4)
    assert trt.peak_bytes - small.peak_bytes == 3 * GB // 4


def test_graphs_forecast__grows_with_the_weights() -> None:
    small, large = graphs_forecast(GB // 10, GB // 20), graphs_forecast(GB, GB // 2)
    assert small.peak_bytes < large.peak_bytes
    assert large.disk_bytes >= GB + GB // 2


def test_plan_build__adds_disk_and_time_and_takes_the_largest_peak(fp32_onnx: Path, tmp_path: Path) -> None:
    options = BuildOptions()
    both = plan_build(fp32_onnx, tmp_path / "b", ("onnxruntime", "tensorrt-rtx"), options, room=PLENTY)
    graphs, engine = both.steps
    assert both.peak_bytes == max(graphs.peak_bytes, engine.peak_bytes)
    assert both.disk_bytes == graphs.disk_bytes + engine.disk_bytes
    assert both.minutes[1] == graphs.minutes[1] + engine.minutes[1]
    single = plan_build(
        fp32_onnx, tmp_path / "b", ("tensorrt-rtx",), replace(options, batch_1_profile=False), room=PLENTY
    )
    assert single.steps[1].minutes[0] < engine.minutes[0]
    assert both.sizes.fp32_bytes == fp32_onnx.stat().st_size


def test_plan_build__a_machine_too_small_is_refused_with_the_figures(fp32_onnx: Path) -> None:
    def plan(room: Room) -> Any:
        return plan_build(fp32_onnx, fp32_onnx.with_name("b"), ("tensorrt-rtx",), BuildOptions(), room=room)

    need = plan(PLENTY).peak_bytes
    plan(replace(PLENTY, memory_bytes=need)).require_fits()
    with pytest.raises(EngineBuildError, match=r"needs about .* of memory, found .* free; .*--no-plan-check"):
        plan(replace(PLENTY, memory_bytes=need - 1)).require_fits()
    swapping = plan(replace(PLENTY, memory_bytes=need - 1, swap_bytes=1))
    swapping.require_fits()
    assert "warning  it will use swap" in "\n".join(swapping.lines())
    with pytest.raises(EngineBuildError, match=r"needs about \d+ MB of disk, found 1 MB free"):
        plan(replace(PLENTY, disk_bytes=10**6)).require_fits()
    plan(replace(PLENTY, memory_bytes=None)).require_fits()


def test_graph_sizes__of_a_run_come_from_its_backbone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.safetensors").write_bytes(bytes(1000))
    (run / "checkpoint.json").write_text(json.dumps({"backbone": {"name": "ViT-L-14-quickgelu"}}))
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed")
    # 304 million parameters; the graph that is built of it has 1.217e9 bytes.
    assert graph_sizes(run).fp32_bytes == pytest.approx(1.217e9, rel=0.01)
    (run / "checkpoint.json").write_text(json.dumps({"backbone": {"name": "one-of-ours"}}))
    assert graph_sizes(run).fp32_bytes == 1000
    (run / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        graph_sizes(run)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "ViT-H-14"])
def test_tower_bytes__are_those_of_open_clip(name: str) -> None:
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    real = 4 * sum(parameter.numel() for parameter in visual.parameters())
    assert tower_bytes(config) == pytest.approx(real, rel=0.002)


def test_tower_bytes__of_something_else_are_unknown() -> None:
    assert tower_bytes({"vision_cfg": {"layers": [3, 4, 6, 3], "width": 64}}) is None


class SmallMachine(Machine):
    """Has 8 GB of memory, or less in a container."""

    def __init__(self, limit: str, held: str = "0") -> None:
        super().__init__()
        self._files = {
            "/proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 4000000 kB\n",
            "/sys/fs/cgroup/memory.max": limit,
            "/sys/fs/cgroup/memory.current": held,
        }

    def text(self, name: str) -> str | None:
        return self._files.get(name)


def test_room_for__keeps_the_limit_of_a_container(tmp_path: Path) -> None:
    free = room_for(tmp_path / "not" / "there", SmallMachine("max\n"))
    assert (free.memory_bytes, free.swap_bytes) == (6000000 * 1024, 4000000 * 1024)
    assert free.disk_bytes > 0
    limited = room_for(tmp_path, SmallMachine("3000000000\n", "1000000000\n"))
    assert (limited.memory_bytes, limited.swap_bytes) == (2 * GB, 0)


def test_build_engine_command__plan_builds_nothing(fp32_onnx: Path) -> None:
    words = [str(fp32_onnx), "--backend", "tensorrt,tensorrt-rtx", "--plan"]
    before = sorted(path.name for path in fp32_onnx.parent.iterdir())
    shown = CliRunner().invoke(command, words)
    assert shown.exit_code == 0, shown.output
    assert "verdict  fits" in shown.stdout
    assert "tensorrt engine" in shown.stdout
    assert "an estimate, never measured on a device" in shown.stdout
    plan = json.loads(CliRunner().invoke(command, [*words, "--json"]).stdout)
    assert [step["name"] for step in plan["steps"]][1:] == ["tensorrt engine", "tensorrt-rtx engine"]
    assert (plan["fits"], plan["measured"]) == (True, False)
    assert sorted(path.name for path in fp32_onnx.parent.iterdir()) == before


def test_build_engine_command__refuses_what_does_not_fit_but_for_the_flag(
    fp32_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.plan.build_plan.room_for", lambda _folder: Room(10**6, 0, 64 * GB))
    began: list[object] = []
    monkeypatch.setattr("export.build.build_bundle", lambda *words: began.append(words) or 1 / 0)
    words = [str(fp32_onnx), "-o", str(fp32_onnx.with_name("b")), "--backend", "tensorrt-rtx"]
    assert isinstance(CliRunner().invoke(command, words).exception, EngineBuildError)
    assert began == []
    planned = CliRunner().invoke(command, [*words, "--plan"])
    assert isinstance(planned.exception, EngineBuildError)
    assert "verdict  does not fit" in planned.stdout
    assert isinstance(CliRunner().invoke(command, [*words, "--no-plan-check"]).exception, ZeroDivisionError)
    assert len(began) == 1


def test_build_engine_command__refuses_a_source_that_is_none(tmp_path: Path) -> None:
    onnx.save(onnx.ModelProto(), tmp_path / "model.onnx")
    for words in ([tmp_path / "absent", "--plan"], [tmp_path / "model.onnx"]):
        error = CliRunner().invoke(command, [str(word) for word in words]).exception
        assert isinstance(error, UsageError)
