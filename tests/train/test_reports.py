"""An evaluation as JSON, CSV, tables and plots: every form read back holds the same numbers."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import auc, roc_curve

from runtime.decision import Decision
from train.data.layout import Sample
from train.evaluation.evaluate import Evaluation
from train.evaluation.generators import METRIC_NAMES, GeneratorScore, generator_score, mean_row
from train.evaluation.plots import CALIBRATION_NAME, ROC_NAME, SCORES_NAME, write_plots
from train.evaluation.reports import csv_from_evaluation, csv_from_scores, json_from_evaluation
from train.evaluation.tables import main_table, robustness_table, unreadable_line

DECISION = Decision(threshold=0.6, temperature=1.5)
NAMES = ("FLUX", "_a$b$,c", "caf\udce9\n")
PER_GENERATOR = 20


def rows_of(logits: np.ndarray, sources: bool = False) -> list[GeneratorScore]:
    labels = np.tile([0, 1], PER_GENERATOR // 2)
    groups = [str(k // 4) for k in range(PER_GENERATOR)] if sources else None
    return [
        generator_score(name, labels, part, DECISION, groups)
        for name, part in zip(NAMES, np.split(logits, len(NAMES)), strict=True)
    ]


@pytest.fixture
def make_evaluation(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Evaluation]:
    monkeypatch.setattr("train.evaluation.generators.BOOTSTRAP_DRAWS", 20)

    def make(*, sources: bool = False, unreadable: int = 0) -> Evaluation:
        samples = [
            Sample(f"{name}/{k}.png", Path("nowhere"), k % 2, name)
            for name in NAMES
            for k in range(PER_GENERATOR)
        ]
        draw = np.random.default_rng(5)
        labels = np.array([sample.label for sample in samples])
        logits = draw.normal(labels, 1.5).astype(np.float32)
        degraded = {"jpeg:50": rows_of(logits * 0.5), "blur:1.0": rows_of(logits + 1)}
        broken = [
            (Sample(f"FLUX/{k}\udcff.png", Path("nowhere"), 0, "FLUX"), "cut off") for k in range(unreadable)
        ]
        return Evaluation(DECISION, samples, logits, rows_of(logits, sources), degraded, broken)

    return make


def test_json_from_evaluation__holds_every_row(make_evaluation: Callable[..., Evaluation]) -> None:
    evaluation = make_evaluation(sources=True, unreadable=2)
    content = json.loads(json.dumps(json_from_evaluation(evaluation), allow_nan=False))
    assert (content["threshold"], content["temperature"], content["count"]) == (0.6, 1.5, 60)
    assert content["unreadable"] == 2
    assert content["unreadable_pictures"][1] == {
        "path": "FLUX/1\ufffd.png",
        "path_base64": base64.b64encode(b"FLUX/1\xff.png").decode(),
        "message": "cut off",
    }
    assert [row["name"] for row in content["generators"]] == ["FLUX", "_a$b$,c", "caf\ufffd\n"]
    assert content["generators"][0] == vars(evaluation.rows[0])
    assert content["generators"][0]["ap_low"] is not None
    assert content["mean"] == mean_row(evaluation.rows)
    assert [part["degradation"] for part in content["robustness"]] == ["jpeg:50", "blur:1.0"]
    for part in content["robustness"]:
        rows = evaluation.degraded[part["degradation"]]
        assert part["generators"][1] == vars(rows[1])
        assert part["mean"] == mean_row(rows)


def test_csv_from_evaluation__reads_back_as_the_same_numbers(
    make_evaluation: Callable[..., Evaluation],
) -> None:
    evaluation = make_evaluation(sources=True)
    lines = list(csv.DictReader(io.StringIO(csv_from_evaluation(evaluation))))
    assert len(lines) == 3 * (len(NAMES) + 1)
    found = {(line["scope"], line["generator"], line["degradation"]): line for line in lines}
    for name, rows in {"none": evaluation.rows, **evaluation.degraded}.items():
        for row in rows:
            line = found["generator", row.to_json()["name"], name]
            assert (int(line["count"]), float(line["threshold"])) == (PER_GENERATOR, 0.6)
            assert all(float(line[metric]) == getattr(row, metric) for metric in METRIC_NAMES)
            assert line["ap_low"] == ("" if row.ap_low is None else str(row.ap_low))
        mean = found["mean", "", name]
        assert int(mean["count"]) == 60
        assert {metric: float(mean[metric]) for metric in METRIC_NAMES} == mean_row(rows)


def test_csv_from_scores__reads_back_as_the_same_logits(make_evaluation: Callable[..., Evaluation]) -> None:
    evaluation = make_evaluation()
    lines = list(csv.DictReader(io.StringIO(csv_from_scores(evaluation))))
    assert [np.float32(line["logit"]) for line in lines] == evaluation.logits.tolist()
    for line, sample in zip(lines, evaluation.samples, strict=True):
        assert int(line["label"]) == sample.label
        assert float(line["probability"]) == pytest.approx(DECISION.judge(float(line["logit"])).probability)
        name = base64.b64decode(line["path_base64"]) if line["path_base64"] else line["path"].encode()
        assert name == sample.key.encode("utf-8", "surrogateescape")
    assert [line["path"] for line in lines[:2]] == ["FLUX/0.png", "FLUX/1.png"]
    assert {line["generator"] for line in lines} == {"FLUX", "_a$b$,c", "caf\ufffd\n"}


def test_main_table__shows_both_thresholds(make_evaluation: Callable[..., Evaluation]) -> None:
    evaluation = make_evaluation()
    lines = main_table(evaluation).splitlines()
    assert len(lines) == 2 + len(NAMES) + 2  # a name with a line break stays on its line
    row = evaluation.rows[0]
    shown = [row.accuracy, row.real_accuracy, row.fake_accuracy]
    shown += [row.accuracy_at_half, row.real_accuracy_at_half, row.fake_accuracy_at_half]
    shown += [row.ap, row.auroc, row.ece]
    assert lines[2].split() == ["FLUX", str(PER_GENERATOR), *(f"{value:.3f}" for value in shown)]
    mean = mean_row(evaluation.rows)
    assert lines[-2].split() == ["mean", *(f"{mean[name]:.3f}" for name in METRIC_NAMES)]
    assert "at a threshold of 0.6 after a temperature of 1.5" in lines[-1]
    assert "interval" not in lines[1]
    with_intervals = main_table(make_evaluation(sources=True)).splitlines()
    assert with_intervals[1].endswith("AP, 95 % interval")
    assert re.search(r"\d\.\d{3} to \d\.\d{3}$", with_intervals[2])


def test_robustness_table__has_accuracy_and_ap_of_each_column(
    make_evaluation: Callable[..., Evaluation],
) -> None:
    evaluation = make_evaluation()
    lines = robustness_table(evaluation).splitlines()
    assert lines[0].split() == ["none", "jpeg:50", "blur:1.0"]
    columns = [evaluation.rows, *evaluation.degraded.values()]
    for place, row in enumerate(evaluation.rows):
        numbers = [f"{value:.3f}" for rows in columns for value in (rows[place].accuracy, rows[place].ap)]
        assert lines[2 + place].split()[-6:] == numbers
        assert row.name == NAMES[place]
    means = [mean_row(rows) for rows in columns]
    assert lines[-2].split()[1:] == [f"{m[key]:.3f}" for m in means for key in ("accuracy", "ap")]
    assert len({line.split()[1] for line in lines[2:]}) > 1


def test_unreadable_line__counts_all(make_evaluation: Callable[..., Evaluation]) -> None:
    assert unreadable_line(make_evaluation(unreadable=2)).startswith("unreadable: 2 of 62 pictures")


def svg_texts(path: Path) -> list[str]:
    tree = ElementTree.parse(path)
    return ["".join(node.itertext()) for node in tree.iter() if node.tag.endswith("}text")]


def test_write_plots__writes_what_they_show(
    make_evaluation: Callable[..., Evaluation], tmp_path: Path
) -> None:
    evaluation = make_evaluation()
    folder = tmp_path / "a" / "plots"
    assert [path.name for path in write_plots(evaluation, folder)] == [
        ROC_NAME,
        CALIBRATION_NAME,
        SCORES_NAME,
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted([ROC_NAME, CALIBRATION_NAME, SCORES_NAME])
    shown = ["FLUX", "_a$b$,c", "caf\ufffd\\n"]
    roc = svg_texts(folder / ROC_NAME)
    assert "ROC per generator" in roc
    assert any("false-positive rate" in text for text in roc)
    for name, row in zip(shown, evaluation.rows, strict=True):
        assert f"{name}, AUROC {row.auroc:.3f}" in roc
    calibration = svg_texts(folder / CALIBRATION_NAME)
    assert "Calibration, temperature 1.5" in calibration
    assert any(text.startswith("all pictures, ECE") for text in calibration)
    for name, row in zip(shown, evaluation.rows, strict=True):
        assert f"{name}, ECE {row.ece:.3f}" in calibration
    scores = svg_texts(folder / SCORES_NAME)
    assert {"Logits by label", "real", "generated", "threshold 0.6", "raw logit", *shown} <= set(scores)


def test_write_plots__draws_the_roc_curve(make_evaluation: Callable[..., Evaluation], tmp_path: Path) -> None:
    """The first curve's points in the file are those of scikit-learn, up to the scale of the axes."""
    evaluation = make_evaluation()
    write_plots(evaluation, tmp_path)
    labels = evaluation.labels[:PER_GENERATOR]
    x, y, _ = roc_curve(labels, evaluation.logits[:PER_GENERATOR])
    paths = re.findall(
        r'<path d="(M [^"Zz]*?)" clip-path[^>]*stroke: #1f77b4', (tmp_path / ROC_NAME).read_text()
    )
    numbers = np.array(re.findall(r"[-\d.]+", paths[0]), dtype=float).reshape(-1, 2)
    # Points on a straight stretch may be left out, so that both are compared where they turn.
    assert numbers[0, 0] == pytest.approx(numbers[:, 0].min())
    scaled_x = (numbers[:, 0] - numbers[0, 0]) / (numbers[-1, 0] - numbers[0, 0])
    scaled_y = (numbers[:, 1] - numbers[0, 1]) / (numbers[-1, 1] - numbers[0, 1])
    assert auc(scaled_x, scaled_y) == pytest.approx(auc(x, y), abs=1e-4)


def test_write_plots__gives_equal_bytes(make_evaluation: Callable[..., Evaluation], tmp_path: Path) -> None:
    one = [path.read_bytes() for path in write_plots(make_evaluation(), tmp_path / "one")]
    other = [path.read_bytes() for path in write_plots(make_evaluation(), tmp_path / "other")]
    assert one == other
