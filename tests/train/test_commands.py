"""The commands as a shell sees them: exit code, one line of error, what is on standard output."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from runtime.console import run_cli
from runtime.decision import Decision
from runtime.errors import MissingDependencyError, UsageError
from train.checkpoint import load_checkpoint, read_record
from train.cli import cli
from train.data.degrade import degradation_from_name
from train.data.layout import find_samples
from train.data.mosaics import MosaicSet
from train.device import require_device
from train.evaluation.scores import score_mosaics


class Shell:
    """Runs one command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, list[str]]:
        self._monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_cli(cli, "train")
        output = self._capsys.readouterr()
        return int(stopped.value.code or 0), output.out, output.err.splitlines()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def two_generators(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test pictures twice: once as they are, once with the labels the wrong way round."""
    root = tmp_path_factory.mktemp("generators")
    for name, folders in (("right", ("0_real", "1_fake")), ("wrong", ("1_fake", "0_real"))):
        for source, target in zip(("0_real", "1_fake"), folders, strict=True):
            shutil.copytree(data_set / "test" / "blur" / source, root / name / target)
    return root


def verdicts(run: Path, data: Path, decision: Decision) -> dict[str, list[tuple[int, bool]]]:
    """Returns (label, called generated) by generator, one picture at a time as the runtime decides."""
    model = load_checkpoint(run).model
    samples = find_samples(data)
    mosaics = MosaicSet(samples, read_config(run).data, seed=0, title="test")
    found: dict[str, list[tuple[int, bool]]] = {}
    for sample, logit in zip(samples, score_mosaics(model, mosaics, "cpu"), strict=True):
        is_called = decision.judge(float(logit)).label == "generated"
        found.setdefault(sample.generator, []).append((sample.label, is_called))
    return found


def read_config(run: Path) -> Any:
    return load_checkpoint(run).config


def test_evaluate__scores_at_the_stored_or_the_given_threshold(
    shell: Shell, run: Path, data_set: Path, two_generators: Path
) -> None:
    code, _, errors = shell("calibrate", run, data_set / "val", "--fpr", "0.2")
    assert code == 0, errors
    stored = Decision.from_json(read_record(run)["decision"])
    assert stored != Decision()
    record = read_record(run)["calibration"]
    assert (record["fpr"], record["pictures"]) == (0.2, 12)
    called = [is_called for label, is_called in verdicts(run, data_set / "val", stored)["blur"] if label == 0]
    assert sum(called) == 1  # floor(0.2 * 6)

    for arguments, threshold in (((), stored.threshold), (("--threshold", "0.5"), 0.5)):
        code, output, errors = shell("evaluate", run, two_generators, "--json", *arguments)
        assert code == 0, errors
        content = json.loads(output)
        assert content["threshold"] == threshold
        expected = verdicts(run, two_generators, Decision(threshold, stored.temperature))
        for row in content["generators"]:
            right = [(label, is_called == bool(label)) for label, is_called in expected[row["name"]]]
            assert row["accuracy"] == pytest.approx(sum(ok for _, ok in right) / 12)
            assert row["real_accuracy"] == pytest.approx(sum(ok for label, ok in right if label == 0) / 6)
            assert row["fake_accuracy"] == pytest.approx(sum(ok for label, ok in right if label == 1) / 6)
        assert content["mean"]["ap"] == pytest.approx(sum(row["ap"] for row in content["generators"]) / 2)


def test_evaluate__degrades_both_classes_as_if_the_files_were(
    shell: Shell, run: Path, two_generators: Path, tmp_path: Path
) -> None:
    """The same numbers come out of a copy of the pictures that was degraded on the disk."""
    expected = {}
    for name in ("jpeg:50", "resize:0.5"):
        copy = Path(shutil.copytree(two_generators, tmp_path / name))
        for path in copy.rglob("*.png"):
            changed = degradation_from_name(name)(np.array(Image.open(path)))
            Image.fromarray(changed).save(path)
        expected[name] = json.loads(shell("evaluate", run, copy, "--json")[1])
    arguments = [part for name in expected for part in ("--degrade", name)]
    code, output, errors = shell("evaluate", run, two_generators, "--json", *arguments)
    assert code == 0, errors
    content = json.loads(output)
    assert [part["degradation"] for part in content["robustness"]] == list(expected)
    for part in content["robustness"]:
        assert part["generators"] == expected[part["degradation"]]["generators"]
        assert part["mean"] == expected[part["degradation"]]["mean"]
        assert part["generators"] != content["generators"]


def test_evaluate__writes_every_file_from_one_pass(
    shell: Shell, run: Path, data_set: Path, tmp_path: Path
) -> None:
    files = {
        flag: tmp_path / f"out{flag}" for flag in ("--json-file", "--csv-file", "--scores-file", "--plots")
    }
    arguments = [part for pair in files.items() for part in pair]
    pictures = data_set / "test" / "blur"  # 0_real and 1_fake directly inside
    code, output, errors = shell("evaluate", run, pictures, "--robustness", "--batch", "5", *arguments)
    assert code == 0, errors
    assert output.splitlines()[2].startswith("blur ")
    content = json.loads(files["--json-file"].read_text())
    names = [part["degradation"] for part in content["robustness"]]
    assert names == ["jpeg:95", "jpeg:75", "jpeg:50", "webp:80", "resize:0.5", "blur:1.0"]
    assert all(name in output for name in names)
    rows = list(csv.DictReader(files["--csv-file"].read_text().splitlines()))
    assert [row["degradation"] for row in rows if row["scope"] == "mean"] == ["none", *names]
    assert float(rows[0]["ap"]) == content["generators"][0]["ap"]
    scores = list(csv.DictReader(files["--scores-file"].read_text().splitlines()))
    truth = [int(row["label"]) for row in scores]
    logits = [float(row["logit"]) for row in scores]
    assert average_precision_score(truth, logits) == pytest.approx(content["generators"][0]["ap"])
    samples = find_samples(pictures)
    assert [row["path"] for row in scores] == [sample.key for sample in samples]
    mosaics = MosaicSet(samples, read_config(run).data, seed=0, title="test")
    # Whatever the batch was.
    expected = score_mosaics(load_checkpoint(run).model, mosaics, "cpu")
    assert np.array(logits) == pytest.approx(expected, abs=1e-4)
    assert sorted(path.name for path in files["--plots"].iterdir()) == [
        "calibration.svg",
        "roc.svg",
        "scores.svg",
    ]


def test_evaluate__exits_3_without_matplotlib_before_it_scores(
    shell: Shell, run: Path, two_generators: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output, errors = shell("evaluate", run, two_generators, "--plots", tmp_path / "plots")
    assert (code, output, len(errors)) == (3, "", 1)
    assert "matplotlib" in errors[0]
    assert 'pip install "dgsnet[train]"' in errors[0]
    assert shell("evaluate", run, two_generators)[0] == 0  # nobody else needs it


def test_evaluate__leaves_out_what_cannot_be_read_and_says_so(
    shell: Shell, run: Path, two_generators: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(two_generators, tmp_path / "data"))
    broken = sorted((data / "right" / "1_fake").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:3000])
    code, output, errors = shell("evaluate", run, data, "--json")
    assert (code, output) == (2, "")
    assert errors[-1].startswith("error: test: 1 of 24 pictures cannot be read, expected at most 1.00%")
    allowed = ("--max-corrupt", "0.1")
    code, output, errors = shell("evaluate", run, data, "--json", *allowed)
    assert code == 2
    content = json.loads(output)
    assert (content["unreadable"], content["count"]) == (1, 23)
    assert [part["path"] for part in content["unreadable_pictures"]] == [f"right/1_fake/{broken.name}"]
    assert {row["name"]: row["count"] for row in content["generators"]} == {"right": 11, "wrong": 12}
    code, output, _ = shell("evaluate", run, data, *allowed)
    assert code == 2
    assert output.splitlines()[-1].startswith("unreadable: 1 of 24 pictures")
    assert shell("evaluate", run, data, *allowed, "--min-ap", "1")[0] == 1  # a gate that failed is said first
    code, output, _ = shell("calibrate", run, data, "--fpr", "0.2", *allowed)
    assert code == 2
    assert output.splitlines()[-1] == "unreadable: 1 of 24 pictures, left out"
    record = read_record(run)["calibration"]
    assert (record["pictures"], record["unreadable"]) == (23, 1)


def test_calibrate__stores_what_it_measured(shell: Shell, run: Path, two_generators: Path) -> None:
    code, output, errors = shell("calibrate", run, two_generators, "--fpr", "0.25", "--json")
    assert code == 0, errors
    content = json.loads(output)
    record = read_record(run)
    assert content["calibration"] == record["calibration"]
    decision = Decision.from_json(record["decision"])
    assert decision.uncertain == (0.5, 0.5)
    found = verdicts(run, two_generators, decision)
    everything = [verdict for verdicts_of_one in found.values() for verdict in verdicts_of_one]
    for key, label in (("measured_fpr", 0), ("measured_tpr", 1)):
        called = [is_called for truth, is_called in everything if truth == label]
        rate = record["calibration"][key]
        assert (rate["hits"], rate["count"]) == (sum(called), 12)
        assert rate["low"] <= rate["value"] <= rate["high"]
    assert record["calibration"]["measured_fpr"]["hits"] <= 3
    for source in record["calibration"]["sources"]:
        called = [is_called for truth, is_called in found[source["name"]] if truth == 0]
        assert (source["fpr"]["hits"], source["fpr"]["count"]) == (sum(called), 6)
    assert load_checkpoint(run).decision == decision


def test_calibrate__sets_the_uncertain_band(shell: Shell, run: Path, two_generators: Path) -> None:
    code, output, errors = shell("calibrate", run, two_generators, "--fpr", "0.25", "--uncertain", "0.3,0.7")
    assert code == 0, errors
    assert read_record(run)["decision"]["uncertain"] == [0.3, 0.7]
    assert "uncertain from 0.3 to 0.7: " in output
    arguments = ("--fpr", "0.25", "--uncertain-share", "0.25")
    code, output, errors = shell("calibrate", run, two_generators, *arguments)
    assert code == 0, errors
    record = read_record(run)
    low, high = record["decision"]["uncertain"]
    assert low < record["decision"]["threshold"] < high
    # Every picture is there twice, and so at most a quarter of 24 in pairs.
    assert record["calibration"]["uncertain_pictures"] in (4, 6)
    code, _, errors = shell("calibrate", run, two_generators, "--fpr", "0.25")
    assert code == 0, errors
    assert read_record(run)["decision"]["uncertain"] == [0.5, 0.5]


def test_evaluate__is_a_gate(shell: Shell, run: Path, two_generators: Path) -> None:
    code, output, _ = shell("evaluate", run, two_generators, "--json")
    ap = {row["name"]: row["ap"] for row in json.loads(output)["generators"]}
    assert code == 0
    assert ap["right"] > ap["wrong"]
    between = (ap["right"] + ap["wrong"]) / 2
    code, output, errors = shell("evaluate", run, two_generators, "--min-ap", between)
    assert code == 1
    assert errors[-1].startswith(f"error: AP: found wrong {ap['wrong']:.3f}, expected at least")
    assert "at a threshold of 0.5" in output
    assert shell("evaluate", run, two_generators, "--min-ap", between, "--gate", "right")[0] == 0
    assert shell("evaluate", run, two_generators, "--min-ap", between, "--gate", "wrong")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--min-ap", "nan"), "--min-ap: found nan, expected 0 to 1"),
        (("evaluate", "--min-ap", "1.5"), "--min-ap: found 1.5"),
        (("evaluate", "--gate", "right"), "--gate: found right without --min-ap"),
        (("evaluate", "--gate", "other", "--min-ap", "0.5"), "--gate: found ['other']"),
        (("evaluate", "--threshold", "nan"), "--threshold: found nan"),
        (("evaluate", "--threshold", "1"), "--threshold: found 1.0"),
        (("evaluate", "--degrade", "noise:1"), "degradation: found 'noise:1', expected jpeg:1..100"),
        (("evaluate", "--csv-file", "missing/a.csv"), "--csv-file: found no folder missing"),
        (("evaluate", "--max-corrupt", "nan"), "--max-corrupt: found nan"),
        (("calibrate", "--max-corrupt", "2"), "--max-corrupt: found 2.0"),
        (("calibrate", "--uncertain", "0.7,0.3"), "--uncertain: found '0.7,0.3', expected 0 <= LO < HI <= 1"),
        (("calibrate", "--uncertain", "0.7"), "--uncertain: found '0.7', expected LO,HI"),
        (("calibrate", "--uncertain", "nan,1"), "--uncertain: found 'nan,1'"),
        (("calibrate", "--uncertain-share", "nan"), "--uncertain-share: found nan"),
        (
            ("calibrate", "--uncertain", "0.3,0.7", "--uncertain-share", "0.1"),
            "--uncertain and --uncertain-share",
        ),
        (("calibrate", "--fpr", "nan"), "--fpr: found nan"),
        (("calibrate", "--fpr", "0.01"), "calibration: 12 real pictures cannot show"),
        (("evaluate", "--device", "foo"), "device: found 'foo', expected cpu, cuda or cuda:N"),
        (("calibrate", "--device", "foo"), "device: found 'foo'"),
        (("fit", "--device", "foo"), "device: found 'foo'"),
        (("fit", "--set", "optim.beta1=nan"), "optim.beta1: found nan"),
    ],
)
def test_commands__refuse_bad_usage_in_one_line(
    shell: Shell, run: Path, two_generators: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, output, errors = command(shell, run, two_generators, *arguments)
    assert (code, output) == (2, "")
    assert [line for line in errors if line.startswith("error: ")] == errors[-1:]
    assert errors[-1].startswith(f"error: {message}")


@pytest.mark.parametrize("name", ["fit", "evaluate", "calibrate"])
def test_commands__exit_3_without_the_device(
    shell: Shell, run: Path, two_generators: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, errors = command(shell, run, two_generators, name, "--device", "cuda")
    assert (code, len(errors)) == (3, 1)  # before anything was read
    assert errors[0].startswith("error: device: found 0 CUDA GPUs")


def command(shell: Shell, run: Path, data: Path, name: str, *rest: str) -> tuple[int, str, list[str]]:
    places = (data, "-o", run.parent / "new") if name == "fit" else (run, data)
    return shell(name, *places, *rest)


def test_require_device__counts_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for text in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert require_device(text) == text
    with pytest.raises(MissingDependencyError, match=r"found 2 CUDA GPUs .* cuda:2 was asked for"):
        require_device("cuda:2")
    for text in ("", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA", "cuda\n"):
        with pytest.raises(UsageError, match="device: found"):
            require_device(text)
