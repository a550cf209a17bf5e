"""Same checkpoint, same versions, same bytes: from two copies of the code, in two unlike environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from export.build import BundleOptions, build_bundle
from export.engine.options import BuildOptions
from export.inspect.bundle import bundle_facts
from runtime.bundle.opening import open_bundle

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("export", "train", "runtime", "kernels")


def copy_of_the_code(target: Path) -> Path:
    for room in ROOMS:
        shutil.copytree(ROOT / room, target / room, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def exported(code: Path, home: Path, run: Path, **environment: str) -> dict[str, bytes]:
    """Writes both graphs with the code of one folder, away from this checkout, and returns their bytes."""
    for name in ("home", "tmp", "work", "out"):
        (home / name).mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "export", "onnx", run, "-o", home / "out" / "model.onnx", "--fp16"],
        cwd=home / "work", capture_output=True, text=True, check=False,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(code),
            "HOME": str(home / "home"),
            "TMPDIR": str(home / "tmp"),
            "DGSNET_CACHE": str(home / "cache"),
            **environment,
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import export; print(export.__file__)"],
        cwd=home / "work", capture_output=True, text=True, check=True, env={"PYTHONPATH": str(code)},
    ).stdout.strip()  # fmt: skip
    assert Path(where) == code / "export" / "__init__.py"
    return {path.name: path.read_bytes() for path in (home / "out").iterdir()}


def check_same(run: Path, folder: Path, names: set[str]) -> None:
    first = exported(
        copy_of_the_code(folder / "a"), folder / "one", run,
        PYTHONHASHSEED="1", OMP_NUM_THREADS="1", LC_ALL="C", TZ="UTC", USER="one",
    )  # fmt: skip
    second = exported(
        copy_of_the_code(folder / "b" / "another place"), folder / "two", run,
        PYTHONHASHSEED="2", OMP_NUM_THREADS="2", LC_ALL="C.UTF-8", TZ="Asia/Tokyo", USER="two",
        PYTHONOPTIMIZE="1",
    )  # fmt: skip
    assert set(first) == set(second) == names
    for name in names:
        assert first[name] == second[name], name
    places = [str(folder), str(run), str(ROOT), sys.prefix, str(Path.home())]
    for name, content in first.items():
        found = [place for place in places if len(place) > 1 and place.encode() in content]
        assert found == [], name


@pytest.mark.slow
def test_export_onnx__same_bytes_from_two_environments(run_folder: Path, tmp_path: Path) -> None:
    check_same(run_folder, tmp_path, {"model.onnx", "model_fp16.onnx"})


@pytest.mark.slow
def test_export_onnx__same_bytes_of_a_true_size(tmp_path: Path) -> None:
    """Above 100 MB the weights lie beside the graph, whose bytes then hold their places."""
    from benchmarks.export.contestants import write_untrained_run

    write_untrained_run(tmp_path / "run", "ViT-B-32-quickgelu")
    names = {f"model{kind}.onnx{part}" for kind in ("", "_fp16") for part in ("", ".data")}
    check_same(tmp_path / "run", tmp_path / "work", names)


def built(source: Path, target: Path, options: BundleOptions) -> str:
    """Builds a bundle and returns its digest."""
    with open_bundle(build_bundle(source, target, options).bundle, verify="full") as opened:
        opened.join()
        return opened.manifest.digest


def test_build_bundle__of_a_run_has_the_digest_that_it_had_before(
    run_folder: Path, sound: Path, tmp_path: Path
) -> None:
    options = BundleOptions(engine=BuildOptions(profiles=((1, 2, 4),)))
    with open_bundle(sound, verify="off") as opened:
        assert built(run_folder, tmp_path / "another name", options) == opened.manifest.digest
        other = replace(options, engine=BuildOptions(profiles=((1, 2, 2),)))
        assert built(run_folder, tmp_path / "another", other) != opened.manifest.digest


def test_build_bundle__with_a_real_engine_has_the_digest_that_it_had_before(
    fp32_onnx: Path, tmp_path: Path
) -> None:
    """Time and memory of the two builds differ, and are kept, but not in the manifest."""
    pytest.importorskip("tensorrt_rtx_bindings")
    engine = BuildOptions(targets=("sm_86",), profiles=((1, 2, 2),), batch_1_profile=False)
    options = BundleOptions(backends=("onnxruntime", "tensorrt-rtx"), engine=engine)
    first, second = (built(fp32_onnx, tmp_path / name, options) for name in ("a", "b"))
    assert first == second
    figures = []
    for name in ("a", "b"):
        (entry,) = [e for e in bundle_facts(tmp_path / name)["engines"] if e["backend"] == "tensorrt-rtx"]
        figures.append((entry["build_seconds"], entry["build_peak_bytes"]))
        assert 0 < entry["build_seconds"] < 600
        assert 2e8 < entry["build_peak_bytes"] < 1e11
    assert figures[0] != figures[1]


def test_export_onnx__writes_both_graphs_beside_each_other(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "detector.onnx.data").write_bytes(b"of an earlier, larger model")
    done = subprocess.run(
        [sys.executable, "-m", "export", "onnx", run_folder, "-o", tmp_path / "detector.onnx",
         "--fp16", "--opset", "20", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detector.onnx", "detector_fp16.onnx"]
    import onnx

    for path in tmp_path.iterdir():
        assert onnx.load(path).opset_import[0].version == 20
