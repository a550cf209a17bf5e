"""The main job end to end, through the command line: run, bundle, engines, parity, verdicts, refusals."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runtime.bundle.golden import read_golden
from runtime.bundle.opening import open_bundle
from runtime.detector import Detector
from runtime.errors import ManifestError
from tests.export.editing import edit_graph, edit_manifest, scale_values, set_weight

ROOT = Path(__file__).parent.parent.parent


def command(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, cwd=cwd or ROOT, check=False
    )


@pytest.fixture(scope="module")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundles") / "demo"
    done = command(
        "export", "build-engine", run_folder, "-o", target, "--backend", "onnxruntime,tensorrt-rtx"
    )
    assert done.returncode == 0, done.stderr
    assert "built, not run" in done.stdout
    return target


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundle, tmp_path / "copy")
    return tmp_path / "copy"


def test_build_engine__writes_the_bundle_of_the_contract(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    *runtimes, rtx = manifest["engines"]
    states = [(entry["backend"], entry["targets"], entry["verified"]) for entry in runtimes]
    assert states == [("onnxruntime", ["cpu"], "passed"), ("onnxruntime", ["cuda"], "not-run")]
    assert (rtx["backend"], rtx["verified"]) == ("tensorrt-rtx", "not-run")
    assert re.fullmatch(
        r"engines/dgsnet-tiny-p32_fp16_b1-8-32_sm\d+(\+sm\d+)*_rtx\d+(\.\d+){3}\.engine", rtx["file"]
    )
    assert (bundle / rtx["file"]).stat().st_size > 5_000_000
    assert manifest["golden"]["reference"] == "pytorch-fp32"
    with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
        assert golden["images"].shape == (16, 224, 224, 3)
        assert golden["logit"].dtype == np.float32
    report = json.loads((bundle / "parity" / "parity.json").read_text())
    hops = {hop["hop"]: hop for hop in report["hops"]}
    assert [
        hops[key]["status"] for key in ("merged", "onnx-fp32", "fp16-emulated", "engine onnxruntime:cpu")
    ] == ["compared"] * 4
    assert hops["engine tensorrt-rtx"]["status"] == "skipped"
    laws = [c["name"] for c in report["checks"] if c["hop"] == "engine onnxruntime:cpu"]
    for size in (2, 3, 8, 9, 20, 32):
        assert any(f"batch {size}" in name for name in laws), laws
    # FP16 weights are not FP32 weights: a hop that compared the FP32 graph with itself would show nothing.
    assert 1e-5 < hops["fp16-emulated"]["previous"]["abs_logit"]["max"] < 0.05
    assert manifest["provenance"]["tools"]["tensorrt-rtx-cu13-bindings"]


def test_build_engine__merges_the_trained_adapters(bundle: Path, run_folder: Path) -> None:
    from safetensors.numpy import load_file

    state = load_file(run_folder / "checkpoint.safetensors")
    weights = {w.name: w for w in onnx.load(bundle / "model.onnx").graph.initializer}
    packed = numpy_helper.to_array(weights["block_1/attention/qkv/weight"]).T
    base = state["base.transformer.resblocks.1.attn.in_proj_weight"]
    for index, name in enumerate("qkv"):
        update = 6 / 6**0.5 * state[f"lora.1.{name}.b"] @ state[f"lora.1.{name}.a"]
        rows = slice(256 * index, 256 * (index + 1))
        assert np.abs(update).max() > 1e-4
        assert np.allclose(packed[rows], base[rows] + update, atol=1e-6)


def test_build_engine__leaves_no_path_of_this_machine(bundle: Path, run_folder: Path, data_set: Path) -> None:
    places = [str(ROOT).encode(), str(bundle.parent).encode(), str(data_set).encode(), sys.prefix.encode()]
    for folder in (bundle, run_folder):
        for path in (p for p in folder.rglob("*") if p.is_file()):
            content = path.read_bytes()
            assert not any(place in content for place in places), path.name


def test_detector__gives_pytorchs_logits_from_files(bundle: Path, run_folder: Path, data_set: Path) -> None:
    from export.checkpoint import CheckpointSource
    from runtime.decode import decode_image
    from runtime.patches.selection import select_patches

    paths = sorted((data_set / "test").rglob("*.png"))
    with Detector.open(bundle) as detector:
        found = [d.logit for d in detector.predict(paths)]
    want, _ = CheckpointSource(run_folder).reference(
        np.stack([select_patches(decode_image(p)) for p in paths])
    )
    assert np.abs(np.array(found) - want).max() < 1e-5
    assert np.ptp(want) > 0.05  # the pictures really differ, so that a constant would not pass


def test_predict__tells_the_families_apart(bundle: Path, data_set: Path) -> None:
    done = command("runtime", "predict", bundle, data_set / "test", "--json")
    assert done.returncode == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    real = [r["probability"] for r in rows if "0_real" in r["path"]]
    fake = [r["probability"] for r in rows if "1_fake" in r["path"]]
    assert len(real) == len(fake) == 6
    assert max(real) < min(fake)


def test_parity__fails_on_a_wrong_weight(copy: Path, run_folder: Path, data_set: Path) -> None:
    edit_graph(copy, lambda model: scale_values(model, "block_2/mlp/fc/weight", np.s_[:, 0], -3))
    done = command("export", "parity", copy, "--checkpoint", run_folder, "--data", data_set / "test")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "checks failed" in done.stderr


def test_parity__a_manifest_cannot_loosen_it(copy: Path, run_folder: Path) -> None:
    edit_graph(copy, lambda model: set_weight(model, "head/bias", lambda bias: bias + 0.5))
    edit_manifest(copy, lambda manifest: manifest.update(tolerances={"fp32_max_abs_logit": 1000}))
    done = command("export", "parity", copy)
    assert done.returncode == 1
    assert "the stricter one holds" in done.stderr


def test_build_engine__refuses_a_wrong_fp16_graph(run_folder: Path, tmp_path: Path) -> None:
    """A conversion that mixes up weights is seen, although a CPU says nothing about FP16 itself."""
    script = (
        "import sys, export.build as b, onnx, numpy as np\n"
        "from onnx import numpy_helper\n"
        "real = b.fp16_from_fp32\n"
        "def wrong(source, target, policy):\n"
        "    report = real(source, target, policy)\n"
        "    model = onnx.load(target)\n"
        "    w = next(w for w in model.graph.initializer if w.name.startswith('block_1/mlp/fc/weight'))\n"
        "    w.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(w), 1, axis=0), w.name))\n"
        "    onnx.save(model, target)\n"
        "    return report\n"
        "b.fp16_from_fp32 = wrong\n"
        "sys.argv = ['x', 'build-engine', sys.argv[1], '-o', sys.argv[2], '-q']\n"
        "from export.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, run_folder, tmp_path / "b"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "FP16 graph" in done.stderr
    assert not (tmp_path / "b").exists()


def test_parity__by_name_exits_3_when_it_cannot_run(bundle: Path) -> None:
    done = command("export", "parity", bundle, "--backend", "tensorrt-rtx")
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1


def test_predict__refuses_a_flipped_byte_in_any_file(copy: Path, data_set: Path) -> None:
    names = [p.relative_to(copy).as_posix() for p in sorted(copy.rglob("*")) if p.is_file()]
    picture = next((data_set / "test").rglob("*.png"))
    hashed = [name for name in names if not name.startswith("parity/")]
    assert len(hashed) == 5
    for name in hashed:
        original = (copy / name).read_bytes()
        content = bytearray(original)
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        done = command("runtime", "predict", "-q", copy, picture)
        assert done.returncode == 2, name
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
        (copy / name).write_bytes(original)
    assert command("runtime", "predict", "-q", copy, picture).returncode == 0


def test_build_engine__extends_a_bundle_in_place(copy: Path) -> None:
    done = command(
        "export", "build-engine", copy, "--backend", "tensorrt-rtx", "--precision", "fp32",
        "--max-batch", "4", "--opt-batch", "2", "--target", "sm_86,8.9", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)["engines"][0]
    assert entry["targets"] == ["sm_86", "sm_89"]
    assert entry["profiles"] == [[1, 2, 4], [1, 1, 1]]
    with open_bundle(copy, verify="full") as opened:
        opened.join()
        built = [e for e in opened.manifest.engines if e.backend == "tensorrt-rtx"]
        sizes = [opened.manifest.files[e.file].size for e in built]
    assert len(sizes) == 2
    assert sizes[1] > 1.5 * sizes[0]  # FP32 weights take twice the room of FP16 ones


def test_build_engine__takes_a_contract_onnx(bundle: Path, tmp_path: Path) -> None:
    done = command("export", "build-engine", bundle / "model.onnx", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["golden"]["reference"] == "onnx-fp32"
    assert (tmp_path / "b" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()


def test_build_engine__refuses_an_fp16_graph_as_the_reference(bundle: Path, tmp_path: Path) -> None:
    done = command("export", "build-engine", bundle / "model_fp16.onnx", "-o", tmp_path / "b", "-q")
    assert done.returncode == 2
    assert "expected an FP32 graph" in done.stderr


def test_build_engine__names_the_golden_picture_that_it_cannot_take(
    run_folder: Path, data_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(data_set / "train", tmp_path / "golden")
    bad = tmp_path / "golden" / "bad.png"
    bad.write_bytes(b"not a picture")
    done = command("export", "build-engine", run_folder, "-o", tmp_path / "b", "-q", "--golden", bad.parent)
    assert done.returncode == 2
    assert "bad.png" in done.stderr
    bad.unlink()
    done = command("export", "build-engine", run_folder, "-o", tmp_path / "b", "--golden", bad.parent)
    assert done.returncode == 0, done.stderr
    assert "24 pictures of golden will be inside the bundle" in done.stderr
    assert "not calibrated" in done.stderr
    with np.load(tmp_path / "b" / "golden.npz", allow_pickle=False) as golden:
        assert len(golden["images"]) == 24


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--backend", "onnxruntime", "--precision", "fp16"), 2, "always computes FP32"),
        (("--backend", "openvino"), 2, "expected one of"),
        (("--min-batch", "4", "--opt-batch", "2"), 2, "min 4, opt 2"),
        (("--backend", "tensorrt-rtx", "--target", "sm_87"), 2, "does not have it, it has sm_75"),
        (("--backend", "tensorrt-rtx", "--workspace", "2000"), 2, "with its unit"),
        (("--backend", "tensorrt"), 3, "tensorrt"),
        (("--target", "sm_86"), 2, "--target: onnxruntime builds no engine"),
        (("--backend", "tensorrt-rtx", "--timing-cache", "t"), 2, "keeps no timings"),
    ],
)
def test_build_engine__refuses_in_one_line_and_leaves_nothing(
    run_folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    done = command("export", "build-engine", run_folder, "-o", tmp_path / "b", "-q", *words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert [p for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_build_engine__refuses_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    for source, message in (
        ("absent", "nothing there"),
        ("model.pth", "(flags are of python -m train import-official)"),
        (".", "something else"),
    ):
        done = command("export", "build-engine", tmp_path / source, "-o", tmp_path / "b")
        assert done.returncode == 2
        assert message in done.stderr


def test_build_bundle__takes_the_authors_file(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's tower stands in for ViT-L/14, whose file has 3.4 GB."""
    import torch

    from export import build
    from export.bundle.golden import synthetic_mosaics
    from export.steps import graph
    from train.checkpoint import load_checkpoint
    from train.official import importing
    from train.official.exporting import export_official

    real = importing.import_dgsnet

    def small(*arguments: Any, **named: Any) -> Any:
        return real(*arguments, **named | {"backbone": "dgsnet-tiny-p32"})

    def here(_title: str, work: Any, *arguments: Any) -> Any:
        # Our stand-in is known to this process alone.
        return work(*arguments)

    monkeypatch.setattr(importing, "import_dgsnet", small)
    monkeypatch.setattr(graph, "run_in_child", here)
    export_official(run_folder, tmp_path / "official.pth")
    report = build.build_bundle(tmp_path / "official.pth", tmp_path / "bundle", build.BundleOptions())
    assert report.gate.passed
    assert report.gate.waterfall.hops[1].status == "compared"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "official.pth"]
    golden = read_golden(tmp_path / "bundle" / "golden.npz", 256)
    np.testing.assert_array_equal(golden.images, synthetic_mosaics())
    with Detector.open(tmp_path / "bundle") as detector:
        logits, _ = detector.backend.run(golden.images)
    with torch.inference_mode():
        wanted = load_checkpoint(run_folder).model(torch.from_numpy(np.array(golden.images)))[0].numpy()
    assert np.abs(logits - wanted).max() < 1e-3


def test_build_bundle__compares_less_of_a_large_tower(
    vit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.build import BundleOptions, build_bundle
    from export.steps import graph

    def law_sizes(report: Any) -> set[str]:
        laws = [check.name for check in report.gate.checks if check.hop == "onnx-fp32"]
        return {name.rpartition("batch ")[2] for name in laws if "batch " in name}

    onnx.save(vit(), tmp_path / "model.onnx")
    monkeypatch.setattr(graph, "LARGE_PARAMETERS", 1000)
    report = build_bundle(tmp_path / "model.onnx", tmp_path / "large", BundleOptions())
    assert len(report.gate.waterfall.pictures) == 4
    assert law_sizes(report) == {"1", "2", "3"}
    # The golden set itself stays whole: the runtime's self-test uses all of it.
    assert len(read_golden(tmp_path / "large" / "golden.npz", 32).logit) == 16
    monkeypatch.undo()
    report = build_bundle(tmp_path / "model.onnx", tmp_path / "small", BundleOptions())
    assert len(report.gate.waterfall.pictures) == 16
    assert law_sizes(report) == {"1", "2", "3", "8", "9", "20", "32"}


def test_verify__names_the_damaged_file(copy: Path) -> None:
    assert command("export", "verify", copy).returncode == 0
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:-1])
    done = command("export", "verify", copy)
    assert done.returncode == 2
    assert "model.onnx" in done.stderr
    with pytest.raises(ManifestError):
        open_bundle(copy)
