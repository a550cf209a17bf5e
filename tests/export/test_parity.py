"""The parity command from outside: exit codes, JUnit, JSON, limits; and the gate of a bundle being built."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.checkpoint import CheckpointSource
from export.parity.forms.batches import batch_laws, checked_sizes
from export.parity.forms.form import Computed, Graphs, model_forms, run_in_chunks
from export.parity.gate import bundle_gate, engine_form, golden_gate
from export.parity.limits import bundle_limits
from export.parity.settings import gate_limits
from export.parity.statistics.compare import Limits
from runtime.bundle.golden import read_golden
from runtime.bundle.opening import open_bundle
from runtime.decision import Decision
from runtime.errors import EngineLoadError, UsageError
from tests.export.editing import edit_graph, edit_manifest, set_weight

Run = Callable[..., tuple[int, str, str]]


def shift_bias(bundle: Path, by: float) -> None:
    """Moves every logit of both graphs; the head is FP32 in either."""
    for name in ("model.onnx", "model_fp16.onnx"):
        edit_graph(bundle, lambda model: set_weight(model, "head/bias", lambda bias: bias + by), name)


def test_parity__passes_and_writes_every_report(
    sound: Path, run_folder: Path, data_set: Path, tmp_path: Path, parity: Run
) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "xml")}
    code, out, _ = parity(
        sound, "--checkpoint", run_folder, "--data", data_set / "test", "--json",
        "--json-file", files["json"], "--html-file", files["html"], "--junit-file", files["xml"],
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert report == json.loads(files["json"].read_text())
    assert report["status"] == "passed"
    hops = {hop["hop"]: hop for hop in report["hops"]}
    assert list(hops) == [
        "pytorch", "merged", "onnx-fp32", "fp16-emulated", "engine onnxruntime:cuda",
        "engine onnxruntime:cpu", "files onnxruntime:cpu",
    ]  # fmt: skip
    last = hops["files onnxruntime:cpu"]
    assert last["first"]["reference"] == "pytorch"
    assert last["first"]["count"] == 12
    assert last["first"]["ap"]["reference"] == last["first"]["ap"]["form"]
    assert [group["name"] for group in last["first"]["generators"]] == ["blur"]
    assert report["flip_bound"]["images_needed"]["0.01"] == 299
    suite = ET.parse(files["xml"]).getroot().find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert len(cases) == len(report["checks"]) == int(suite.attrib["tests"])
    assert len({(case.attrib["classname"], case.attrib["name"]) for case in cases}) == len(cases)
    skipped = [case.attrib["classname"] for case in cases if case.find("skipped") is not None]
    assert skipped == ["parity.engine onnxruntime:cuda"]
    assert suite.attrib["failures"] == "0"
    assert files["html"].read_text().startswith("<!doctype html>")


def test_parity__exits_1_and_says_where(bundle: Path, run_folder: Path, tmp_path: Path, parity: Run) -> None:
    shift_bias(bundle, 0.5)
    code, out, err = parity(bundle, "--checkpoint", run_folder, "--junit-file", tmp_path / "j.xml")
    assert code == 1
    assert out.splitlines()[-1].endswith("the chain breaks at onnx-fp32")
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    failures = ET.parse(tmp_path / "j.xml").getroot().findall(".//testcase[failure]")
    assert "parity.onnx-fp32" in {case.attrib["classname"] for case in failures}
    assert all("FAILED" in (case.findtext("failure") or "") for case in failures)


def test_parity__another_threshold_is_other_verdicts(bundle: Path, run_folder: Path, parity: Run) -> None:
    edit_manifest(bundle, lambda m: m["decision"].update(threshold=0.9))
    code, out, _ = parity(bundle, "--checkpoint", run_folder)
    assert code == 1
    line = next(line for line in out.splitlines() if line.startswith("FAILED"))
    assert "settings" in line
    assert "0.9" in line


def test_parity__a_manifest_tightens_and_never_loosens(
    bundle: Path, parity: Run, caplog: pytest.LogCaptureFixture
) -> None:
    shift_bias(bundle, 2e-3)
    edit_manifest(bundle, lambda m: m["tolerances"].update(fp32_max_abs_logit=1000))
    code, _, err = parity(bundle)
    assert code == 1
    # The command's handler keeps the stream of whichever test started it first.
    assert "the stricter one holds" in err + caplog.text
    assert parity(bundle, "--max-abs-logit-fp32", "0.01")[0] == 0  # the person at the keyboard may
    edit_manifest(bundle, lambda m: m["tolerances"].update(fp32_max_abs_logit=1e-4))
    assert parity(bundle, "--max-abs-logit-fp32", "0.01")[0] == 1  # but not past what the bundle promises


def test_gate_limits__fp16s_limit_never_loosens_fp32(sound: Path) -> None:
    with open_bundle(sound) as opened:
        manifest = opened.manifest
    wide = gate_limits(manifest, max_abs_logit=0.3)
    assert (wide.fp16.max_abs_logit, wide.fp32.max_abs_logit) == (0.3, 1e-3)
    tight = gate_limits(manifest, max_abs_logit=1e-4)
    assert (tight.fp16.max_abs_logit, tight.fp32.max_abs_logit) == (1e-4, 1e-4)
    assert bundle_limits(None, "fp16").max_abs_logit == 0.05


def test_parity__a_flip_bound_gates_only_if_given(sound: Path, parity: Run) -> None:
    assert parity(sound)[0] == 0
    code, out, _ = parity(sound, "--max-flip-bound", "0.01")
    assert code == 1
    assert "needs 299 pictures" in out
    assert parity(sound, "--max-flip-bound", "0.2")[0] == 0


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-abs-logit", "-1"),
        ("--max-abs-logit", "nan"),
        ("--max-flip-bound", "0"),
        ("--max-flip-bound", "1.5"),
        ("--max-hard-flips", "-1"),
        ("--max-ap-drop", "inf"),
        ("--backend", "coreml"),
        ("--data", "/nowhere/at/all"),
        ("--html-file", "/nowhere/at/all/report.html"),
    ],
)
def test_parity__refuses_bad_input_with_2(sound: Path, parity: Run, flags: tuple[str, ...]) -> None:
    code, out, err = parity(sound, *flags)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("flags", [("--backend", "tensorrt-rtx"), ("--backend", "onnxruntime:cpu,tensorrt")])
def test_parity__a_backend_by_name_that_cannot_run_exits_3(
    sound: Path, parity: Run, flags: tuple[str, ...]
) -> None:
    code, out, err = parity(sound, *flags)
    assert code == 3
    assert out == ""
    assert len(err.strip().splitlines()) == 1


def test_parity__require_all_exits_3_after_its_report(sound: Path, parity: Run) -> None:
    code, out, err = parity(sound, "--require-all")
    assert code == 3
    assert "no --checkpoint" in err
    assert out.splitlines()[-1].startswith("NOT RUN: ")


def test_parity__nothing_to_compare_exits_3(sound: Path) -> None:
    """Without ONNX Runtime and a checkpoint nothing is left."""
    script = (
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "from export.__main__ import main\nsys.argv = ['x', 'parity', sys.argv[1]]\nmain()\n"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, sound], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "nothing could be compared" in done.stderr


def test_parity__one_unreadable_picture_leaves_the_rest(
    sound: Path, run_folder: Path, data_set: Path, tmp_path: Path, parity: Run
) -> None:
    data = tmp_path / "data"
    shutil.copytree(data_set / "test" / "blur" / "0_real", data / "mine")
    (data / "mine" / "zz.png").write_bytes(b"no picture")
    code, out, err = parity(sound, "--checkpoint", run_folder, "--data", data, "--json")
    report = json.loads(out)
    assert code == 2
    assert "zz.png" in err
    assert report["status"] == "unreadable"
    assert report["count"] == 6
    assert [entry["item"] for entry in report["unreadable"]] == ["mine/zz.png"]
    # An unlabelled folder has no AP, and says so.
    skipped = [check for check in report["checks"] if check["name"].endswith(", AP")]
    assert skipped
    assert {check["status"] for check in skipped} == {"skipped"}


def test_parity__compares_pictures_without_a_checkpoint(sound: Path, data_set: Path) -> None:
    report = bundle_gate(sound, None, data_set / "test")
    assert report.passed
    last = report.last
    assert last is not None
    assert last.first is not None
    assert (last.key, last.first.reference) == ("files onnxruntime:cpu", "onnx-fp32")


def test_parity__names_that_are_no_text_reach_every_report(
    sound: Path, run_folder: Path, tmp_path: Path, parity: Run
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in (b"a<b>&\"'.png", b"new\nline.png", b"\xff\xfe.png"):
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "one.png")
        shutil.move(tmp_path / "one.png", bytes(data) + b"/" + name)
    code, out, _ = parity(
        sound, "--checkpoint", run_folder, "--data", data, "--json", "--junit-file", tmp_path / "j.xml"
    )
    assert code == 0
    assert json.loads(out)["count"] == 3
    ET.parse(tmp_path / "j.xml")


def test_golden_gate__checks_a_bundle_that_is_being_built(sound: Path, checkpoint: CheckpointSource) -> None:
    golden = read_golden(sound / "golden.npz", checkpoint.embed_dim)
    graphs = Graphs(sound / "model.onnx", sound / "model_fp16.onnx", checkpoint.embed_dim, (1, 2, 4))

    def outcome(shift: float) -> tuple[bool, str | None]:
        def engine(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logit, embedding = checkpoint.reference(images)
            return logit + np.float32(shift), embedding

        form = engine_form("fake", "fp16", (1, 2, 4), Computed("fake", engine))
        report = golden_gate(
            checkpoint,
            golden,
            graphs,
            decision=checkpoint.decision,
            reference_name="pytorch-fp32",
            engines=[form],
        )
        assert "files" not in {hop.key for hop in report.waterfall.hops}
        return report.passed, report.blame

    assert outcome(0.0) == (True, None)
    assert outcome(0.2) == (False, "engine fake")


def test_checked_sizes__hold_the_ends_and_what_is_between() -> None:
    assert checked_sizes((1, 8, 32)) == (1, 2, 3, 8, 9, 20, 32)
    assert checked_sizes((4, 64, 256)) == (1, 2, 3, 4, 64, 65, 160, 256)
    assert checked_sizes((1, 1, 1)) == (1,)


def law_names(function: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> list[str]:
    images = np.random.RandomState(0).randint(0, 256, (5, 224, 224, 3)).astype(np.uint8)
    form = Computed("law", function)
    alone = run_in_chunks(form, images, 1)
    judge = {"decision": Decision(), "limits": Limits(0.01, 0.999)}
    laws = batch_laws(images, (1, 4, 8))
    return [law.name for law in laws if not law.compared(form, alone, **judge).passed]


def honest(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means = images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)
    return means[:, 0] - 127, means


def test_batch_laws__pass_for_what_looks_at_each_row_alone() -> None:
    assert law_names(honest) == []


def test_batch_laws__each_sees_its_own_fault() -> None:
    def by_place(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logit, embedding = honest(images)
        return logit + np.arange(len(logit), dtype=np.float32), embedding

    def by_size(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logit, embedding = honest(images)
        return logit + np.float32(len(images) == 5), embedding

    def by_neighbour(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logit, embedding = honest(images)
        return logit + np.float32((images[-1] == 0).all()), embedding

    assert {"identical rows", "permuted rows", "batch 2"} <= set(law_names(by_place))
    assert law_names(by_size) == ["batch 5"]
    assert law_names(by_neighbour) == ["padded rows"]


def test_model_forms__what_does_not_open_is_a_form_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with ExitStack() as stack:
        forms = model_forms(None, Graphs(tmp_path / "model.onnx", None, 8, (1, 2, 4)), stack)
    broken = next(form for form in forms if form.key == "onnx-fp32")
    assert broken.runnable is None
    assert not broken.is_missing
    assert "cannot load" in broken.reason


def test_waterfall__goes_on_when_a_form_breaks_midway(sound: Path, checkpoint: CheckpointSource) -> None:
    golden = read_golden(sound / "golden.npz", checkpoint.embed_dim)
    calls = []

    def breaks(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(images))
        if len(calls) > 1:
            raise EngineLoadError("broke")
        return checkpoint.reference(images)

    class Broken:
        reference = staticmethod(checkpoint.reference)
        merged_reference = staticmethod(breaks)

    graphs = Graphs(sound / "model.onnx", None, checkpoint.embed_dim, (1, 2, 4))
    from export.parity.gate import GateOptions

    report = golden_gate(
        Broken(), golden, graphs, decision=Decision(), reference_name="x", options=GateOptions(batch=4)
    )
    hops = {hop.key: hop for hop in report.waterfall.hops}
    assert hops["merged"].status == "failed"
    assert hops["onnx-fp32"].previous is not None
    assert hops["onnx-fp32"].previous.reference == "pytorch"
    assert hops["onnx-fp32"].previous.cosine is not None
    assert report.blame == "merged"


def test_gate_limits__refuses_numbers_out_of_range() -> None:
    with pytest.raises(UsageError, match="--max-flip-bound"):
        gate_limits(None, max_flip_bound=0.0)
