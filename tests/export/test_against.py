"""An older bundle against a newer one: which verdicts change, how they are counted, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.parity.against.allowed import AllowedChanges
from export.parity.against.changes import Verdicts, changed_pictures, changes_by_generator, changes_of
from export.parity.against.run import AgainstOptions, compare_bundles
from export.parity.pictures.data_set import Picture
from export.parity.statistics.binomial import sign_test, upper_bound
from runtime.decision import Decision
from runtime.errors import DataError, MissingDependencyError, UsageError
from tests.export.editing import edit_graph, edit_manifest, reseal, set_weight
from tests.export.test_report_page import Page

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent.parent


def release(bundle: Path, shift: float) -> None:
    """Makes another model of a bundle, sound in itself: each logit moves, and the golden ones with them."""
    for name in ("model.onnx", "model_fp16.onnx"):
        edit_graph(bundle, lambda model: set_weight(model, "head/bias", lambda bias: bias + shift), name)
    with np.load(bundle / "golden.npz") as golden:
        arrays = dict(golden)
    np.savez(bundle / "golden.npz", **(arrays | {"logit": arrays["logit"] + np.float32(shift)}))
    reseal(bundle)


def picture(name: str, label: int, generator: str = "g") -> Picture:
    return Picture(name, label, generator, None)


def verdicts(*logits: float, threshold: float = 0.5, temperature: float = 1.0) -> Verdicts:
    return Verdicts(np.array(logits, np.float64), Decision(threshold, temperature))


def test_changes_of__counts_each_way_and_who_was_right() -> None:
    pictures = [picture("a", 0), picture("b", 1), picture("c", 1), picture("d", 0), picture("e", -1)]
    old, new = verdicts(-1, -1, 1, 1, -1), verdicts(1, 1, -1, 1, 1)
    found = changes_of(pictures, old, new)
    assert (found.count, found.changed, found.to_generated, found.to_real) == (5, 4, 3, 1)
    assert found.bound == upper_bound(4, 5)
    assert found.chance == pytest.approx(0.625)  # 2 (1 + 4) / 2^4
    assert (found.logit.largest, found.logit.p50) == (2.0, 2.0)
    assert found.truth is not None
    assert found.truth.count == 4
    # Right before: a and c. Right now: b.
    assert found.truth.accuracy == (0.5, 0.25)
    assert (found.truth.broken, found.truth.repaired) == (2, 1)


def test_changes_of__each_judges_by_its_own_rule() -> None:
    pictures = [picture("a", 0), picture("b", 1)]
    found = changes_of(pictures, verdicts(0.2, 3), verdicts(0.2, 3, threshold=0.9))
    assert (found.to_real, found.to_generated, found.logit.largest) == (1, 0, 0.0)
    # A temperature alone moves probabilities, never a verdict at 0.5.
    warm = changes_of(pictures, verdicts(0.2, 3), verdicts(0.2, 3, temperature=4.0))
    assert warm.changed == 0
    assert warm.probability.largest == pytest.approx(1 / (1 + np.exp(-3)) - 1 / (1 + np.exp(-0.75)))


def test_changes_of__no_verdict_is_another_one() -> None:
    pictures = [picture(name, -1) for name in "abc"]
    found = changes_of(pictures, verdicts(1, np.nan, np.nan), verdicts(np.nan, 1, np.nan))
    assert (found.count, found.changed, found.lost, found.gained) == (2, 2, 1, 1)
    assert found.truth is None
    changed = changed_pictures(pictures, verdicts(1, np.nan, np.nan), verdicts(np.nan, 1, np.nan))
    assert [(change.item, change.new is None) for change in changed] == [("a", True), ("b", False)]


def test_changes_by_generator__adds_up_to_all() -> None:
    pictures = [picture("a", 0, "x"), picture("b", 1, "y"), picture("c", 1, "y")]
    old, new = verdicts(-1, -1, 1), verdicts(1, -1, -1)
    groups = changes_by_generator(pictures, old, new)
    assert {name: (one.count, one.changed) for name, one in groups.items()} == {"x": (1, 1), "y": (2, 1)}


def test_sign_test__is_the_exact_binomial_one() -> None:
    from scipy.stats import binomtest

    for one, other in ((0, 0), (1, 0), (8, 1), (40, 60), (500, 431)):
        expected = binomtest(one, one + other).pvalue if one + other else 1.0
        assert sign_test(one, other) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("0", (0, 0.0)), ("3", (3, 0.03)), ("0.02", (2, 0.02)), ("2%", (2, 0.02)), ("1.0", (100, 1.0))],
)
def test_allowed_changes__is_a_number_or_a_share(text: str, allowed: tuple[int, float]) -> None:
    limit = AllowedChanges.parsed(text)
    assert limit.allows(allowed[0], 100)
    assert not limit.allows(allowed[0] + 1, 100)


def test_allowed_changes__a_share_is_what_was_typed() -> None:
    assert AllowedChanges.parsed("0.7%").allows(7, 1000)
    assert AllowedChanges.parsed("0.29").allows(29, 100)
    assert str(AllowedChanges.parsed("0.1%")) == "0.1 % of them"


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "", "101%", "nan", "%", "sNaN", "9" * 5000])
def test_allowed_changes__refuses_what_is_neither(text: str) -> None:
    with pytest.raises(UsageError, match="--max-changed"):
        AllowedChanges.parsed(text)


def test_parity_against__the_same_bundle_changes_nothing(sound: Path, data_set: Path, parity: Run) -> None:
    code, out, _ = parity(sound, "--against", sound, "--data", data_set / "test", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["kind"], report["status"]) == ("against", "passed")
    (pair,) = report["pairs"]
    assert (pair["count"], pair["changed"], pair["abs_logit"]["max"]) == (12, 0, 0.0)
    assert pair["images_needed"]["0.01"] == 299
    assert report["differences"] == []


def test_parity_against__another_model_is_counted_named_and_drawn(
    sound: Path, bundle: Path, data_set: Path, tmp_path: Path, parity: Run
) -> None:
    release(bundle, -20.0)  # no picture is called generated any more
    kinds = {kind: tmp_path / f"r.{kind}" for kind in ("json", "junit", "html")}
    words = [word for kind, path in kinds.items() for word in (f"--{kind}-file", path)]
    data = data_set / "test"
    code, out, err = parity(bundle, "--against", sound, "--data", data, *words)
    before = json.loads(parity(sound, "--against", sound, "--data", data, "--json")[1])["pairs"][0]
    assert code == 1
    report = json.loads(kinds["json"].read_text())
    (pair,) = report["pairs"]
    changed = [change["item"] for change in pair["changes"]]
    assert len(changed) == pair["changed"] == pair["generated_to_real"] > 0
    assert pair["real_to_generated"] == 0
    assert pair["abs_logit"]["median"] == pytest.approx(20.0, abs=1e-3)
    old_accuracy, new_accuracy = pair["truth"]["accuracy"]
    assert old_accuracy == before["truth"]["accuracy"][0]
    assert new_accuracy == 0.5
    assert [group["name"] for group in pair["generators"]] == ["blur"]
    last = out.splitlines()[-1]
    assert last.startswith(f"FAILED: {len(changed)} of 12 (onnxruntime:cpu) verdicts changed, allowed 0")
    assert all(any(name in line for line in out.splitlines()) for name in changed)
    failures = ET.parse(kinds["junit"]).getroot().findall(".//testcase[failure]")
    assert [case.attrib["name"] for case in failures] == ["changed verdicts"]
    page = Page(kinds["html"].read_text())
    assert {image["alt"] for image in page.of("img")} == set(changed)
    assert [dot["class"] for dot in page.of("circle")].count("dot bad") == len(changed)
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    # So many may change.
    for allowed in (str(len(changed)), f"{min(len(changed) / 12 + 1e-6, 1.0)}"):
        assert parity(bundle, "--against", sound, "--data", data, "--max-changed", allowed)[0] == 0
    assert parity(bundle, "--against", sound, "--data", data, "--max-changed", str(len(changed) - 1))[0] == 1


def test_parity_against__another_threshold_is_named_and_counted(
    sound: Path, bundle: Path, parity: Run
) -> None:
    edit_manifest(bundle, lambda manifest: manifest["decision"].update(threshold=0.999, temperature=0.5))
    code, out, _ = parity(bundle, "--against", sound)
    assert code == 1
    assert "decision.threshold 0.5 -> 0.999" in out
    assert "decision.temperature 1.0 -> 0.5" in out
    assert "only the new bundle's golden mosaics were looked at" in out.splitlines()[-1]


def test_compare_bundles__each_side_prepares_pictures_its_own_way(
    sound: Path, bundle: Path, data_set: Path
) -> None:
    turned = list(range(49))
    edit_manifest(bundle, lambda manifest: manifest["preprocessing"].update(permutation=turned))
    report = compare_bundles(bundle, sound, data_set / "test")
    assert [one.name for one in report.differences] == ["preprocessing.permutation"]
    assert report.settings_lines() == ["preprocessing.permutation: another one"]
    largest = report.pairs[0].changes.logit.largest
    assert largest is not None
    assert largest > 1e-4


def test_compare_bundles__an_engine_that_gives_no_verdict_fails(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.backends.onnx_session import OnnxSession

    right, calls = OnnxSession.run, []

    def sometimes(self: OnnxSession, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, embeddings = right(self, images)
        calls.append(len(images))
        return np.where(len(calls) == 2, np.inf, logits).astype(np.float32), embeddings

    # Without the self-tests, which would stop it before.
    monkeypatch.setattr("runtime.detector.self_test_at_open", lambda *_words: None)
    monkeypatch.setattr(OnnxSession, "run", sometimes)
    report = compare_bundles(sound, sound, None, options=AgainstOptions(allowed=AllowedChanges(16)))
    assert report.status == "failed"
    failed = [check.name for check in report.checks if check.status == "failed"]
    assert failed == ["every picture has a verdict"]


def test_parity_against__unreadable_pictures_are_no_pass(
    sound: Path, data_set: Path, tmp_path: Path, parity: Run
) -> None:
    data = shutil.copytree(data_set / "test", tmp_path / "data")
    (data / "blur" / "0_real" / "zz.png").write_bytes(b"no picture")
    words = (sound, "--against", sound, "--data", data)
    code, out, _ = parity(*words, "--junit-file", tmp_path / "j.xml")
    assert code == 2
    assert out.splitlines()[-1].startswith("UNREADABLE: 0 of 12")
    (error,) = ET.parse(tmp_path / "j.xml").getroot().findall(".//testcase/error")
    assert "zz.png" in error.attrib["message"]
    assert parity(*words, "--max-unreadable", "0.1")[0] == 0
    for path in (data / "blur").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no picture that could be read among 13"):
        compare_bundles(sound, sound, data)


def test_parity_against__takes_the_same_sample_of_both(sound: Path, data_set: Path, parity: Run) -> None:
    code, out, _ = parity(sound, "--against", sound, "--data", data_set / "test", "--max-pictures", "4")
    assert code == 0
    assert "4 of 12, seed 0" in out.splitlines()[-1]
    assert "0 of 4 (onnxruntime:cpu)" in out.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ("--against", "OLD", "--bisect"),
        ("--against", "OLD", "--checkpoint", "OLD"),
        ("--against", "OLD", "--max-hard-flips", "2"),
        ("--against", "OLD", "--batch-size", "16"),
        ("--against", "OLD", "--max-changed", "-3"),
        ("--against", "OLD", "--max-flip-bound", "0"),
        ("--against", "/nowhere/at/all"),
        ("--max-changed", "3"),
    ],
)
def test_parity_against__refuses_bad_input_with_2_in_every_file(
    sound: Path, tmp_path: Path, parity: Run, words: tuple[str, ...]
) -> None:
    junit = tmp_path / "j.xml"
    given = [str(sound) if word == "OLD" else word for word in words]
    code, out, err = parity(sound, *given, "--junit-file", junit)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    (error,) = ET.parse(junit).getroot().findall(".//testcase/error")
    assert error.attrib["message"] in err


def test_parity_against__a_backend_by_name_has_to_run_in_both(sound: Path, parity: Run) -> None:
    code, _, err = parity(sound, "--against", sound, "--backend", "onnxruntime:cuda")
    assert code == 3
    assert "new bundle: " in err
    assert parity(sound, "--against", sound, "--require-all")[0] == 3


def test_parity_against__a_backend_named_twice_is_compared_once(sound: Path, parity: Run) -> None:
    words = ("--backend", "onnxruntime:cpu,onnxruntime:cpu", "--json")
    code, out, _ = parity(sound, "--against", sound, *words)
    assert code == 0
    assert [pair["backend"] for pair in json.loads(out)["pairs"]] == ["onnxruntime:cpu"]


def test_compare_bundles__takes_the_old_bundles_choice_where_it_lacks_an_engine(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.detector import Detector

    right, asked = Detector.open, []

    def older(bundle: Path, backend: str, **options: object) -> Detector:
        asked.append(backend)
        if len(asked) == 2:  # the old one's, by the new one's name
            raise MissingDependencyError("the bundle holds no engine for it")
        return right(bundle, "onnxruntime:cpu", **options)

    monkeypatch.setattr(Detector, "open", older)
    monkeypatch.setattr("export.parity.against.run.backends_to_compare", lambda *_words: ["onnxruntime:cuda"])
    report = compare_bundles(sound, sound, None)
    assert asked == ["onnxruntime:cuda", "onnxruntime:cuda", "auto"]
    assert report.status == "passed"
    asked.clear()
    with pytest.raises(MissingDependencyError, match="old bundle: the bundle holds no engine"):
        compare_bundles(sound, sound, None, options=AgainstOptions(backends=("onnxruntime:cuda",)))


def test_parity_against__needs_neither_torch_nor_onnx(sound: Path, data_set: Path) -> None:
    script = (
        "import sys\nfor name in ('torch', 'onnx', 'open_clip'): sys.modules[name] = None\n"
        "from export.__main__ import main\nmain()\n"
    )
    words = ["parity", str(sound), "--against", str(sound), "--data", str(data_set / "test")]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("passed: 0 of 12")


def test_parity_against__an_engine_that_fails_its_self_test_is_a_failure(
    sound: Path, bundle: Path, parity: Run
) -> None:
    """The graph moved and the golden logits did not: users of that bundle get no verdict."""
    edit_graph(bundle, lambda model: set_weight(model, "head/bias", lambda bias: bias + 0.5))
    code, out, _ = parity(bundle, "--against", sound)
    assert code == 1
    assert "new bundle: " in next(line for line in out.splitlines() if line.startswith("FAILED"))


def test_against_page__escapes_names(sound: Path, bundle: Path, tmp_path: Path, parity: Run) -> None:
    release(bundle, 20.0)
    data = tmp_path / "gen<b>" / "0_real"
    data.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "<script>alert(1)<b>\"'&.png")
    edit_manifest(sound_copy := shutil.copytree(sound, tmp_path / "old"), _never_generated)
    page = tmp_path / "r.html"
    code, _, _ = parity(
        bundle, "--against", sound_copy, "--data", data.parent.parent / "gen<b>", "--html-file", page
    )
    assert code == 1
    content = page.read_text()
    assert "<script" not in content
    assert "gen<b>" not in content
    assert any("<script>alert" in text for text in Page(content).text)


def _never_generated(manifest: dict[str, dict[str, float]]) -> None:
    manifest["decision"]["threshold"] = 0.999
