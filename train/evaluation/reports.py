"""An evaluation as a JSON object and as CSV; every number is that of the table."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from runtime.names import is_utf8, name_bytes, utf8_name
from train.evaluation.evaluate import Evaluation
from train.evaluation.generators import METRIC_NAMES, GeneratorScore, mean_row
from train.metrics import probabilities_from_logits

SCHEMA = 1
CSV_COLUMNS = (
    "scope", "generator", "degradation", "count", "threshold", *METRIC_NAMES, "ap_low", "ap_high",
)  # fmt: skip
SCORES_COLUMNS = ("path", "label", "generator", "logit", "probability", "path_base64")


def json_from_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the object that ``evaluate --json`` prints.

    Its keys: schema, threshold, temperature, count, unreadable (how many), unreadable_pictures (path,
    message), generators (the fields of ``GeneratorScore``), mean, and robustness: for each degradation its
    name, generators and mean. A path that is not UTF-8 has its exact bytes beside it as ``path_base64``.
    """
    return {
        "schema": SCHEMA,
        "threshold": evaluation.decision.threshold,
        "temperature": evaluation.decision.temperature,
        "count": len(evaluation.samples),
        "unreadable": len(evaluation.unreadable),
        "unreadable_pictures": [
            _named(sample.key) | {"message": reason} for sample, reason in evaluation.unreadable
        ],
        "generators": [row.to_json() for row in evaluation.rows],
        "mean": mean_row(evaluation.rows),
        "robustness": [
            {
                "degradation": name,
                "generators": [row.to_json() for row in rows],
                "mean": mean_row(rows),
            }
            for name, rows in evaluation.degraded.items()
        ],
    }


def csv_from_evaluation(evaluation: Evaluation) -> str:
    """Returns one line for each generator and degradation, and one for each mean.

    ``scope`` is "generator" or "mean"; ``degradation`` is "none" for the pictures as they are. Numbers read
    back as the same floats; what does not apply is empty.
    """
    lines = []
    for name, rows in {"none": evaluation.rows, **evaluation.degraded}.items():
        shared = {"degradation": name, "threshold": evaluation.decision.threshold}
        lines += [_generator_line(row) | shared for row in rows]
        count = sum(row.count for row in rows)
        lines.append({"scope": "mean", "generator": "", "count": count, **shared, **mean_row(rows)})
    return _csv(CSV_COLUMNS, ([line.get(column) for column in CSV_COLUMNS] for line in lines))


def csv_from_scores(evaluation: Evaluation) -> str:
    """Returns one line for each picture that was scored, as it is.

    The path is relative to the data set; ``label`` is 0 for real and 1 for generated; ``logit`` is raw and
    ``probability`` after the temperature. ``path_base64`` is empty unless the path is not UTF-8.
    """
    probabilities = probabilities_from_logits(evaluation.logits, evaluation.decision.temperature)
    lines = []
    for sample, logit, probability in zip(evaluation.samples, evaluation.logits, probabilities, strict=True):
        name = _named(sample.key)
        lines.append(
            [
                name["path"],
                sample.label,
                utf8_name(sample.generator),
                float(logit),
                float(probability),
                name.get("path_base64"),
            ]
        )
    return _csv(SCORES_COLUMNS, lines)


def _generator_line(row: GeneratorScore) -> dict[str, Any]:
    fields = row.to_json()
    return {"scope": "generator", "generator": fields.pop("name"), **fields}


def _csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return stream.getvalue()


def _named(path: str) -> dict[str, str]:
    name = {"path": utf8_name(path)}
    if not is_utf8(path):
        name["path_base64"] = base64.b64encode(name_bytes(path)).decode()
    return name
