"""What model.onnx says of itself where no bundle is around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from export.cli import cli
from export.inspect.onnx_graph import onnx_facts
from export.onnx_source import OnnxSource
from runtime.bundle.golden import read_golden
from runtime.spec import Preprocessing


def manifest(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return content


@pytest.mark.parametrize("name", ["model.onnx", "model_fp16.onnx"])
def test_model__states_what_the_manifest_states(sound: Path, name: str) -> None:
    session = onnxruntime.InferenceSession(sound / name, providers=["CPUExecutionProvider"])
    stated = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    written = manifest(sound)
    assert stated == {
        "dgsnet.contract": written["graph"],
        "dgsnet.preprocessing": written["preprocessing"],
        "dgsnet.classes": ["real", "generated"],
    }
    # Enough to feed it: the mosaics of the bundle, by the names and types that the file states.
    golden = read_golden(sound / "golden.npz", written["graph"]["outputs"][1]["shape"][1])
    given = stated["dgsnet.contract"]["input"]
    (logit,) = session.run(["logit"], {given["name"]: golden.images.astype(given["dtype"])})
    assert np.abs(logit - golden.logit).max() < 0.01
    assert Preprocessing.from_json(stated["dgsnet.preprocessing"]) == Preprocessing()


def test_model__says_nothing_that_set_decision_changes(bundle: Path) -> None:
    assert b"threshold" not in (bundle / "model.onnx").read_bytes()
    assert CliRunner().invoke(cli, ["set-decision", str(bundle), "--threshold", "0.9"]).exit_code == 0
    assert onnx_facts(bundle / "model.onnx")["contract"]["metadata_differs"] == []


def test_onnx_source__replaces_what_a_file_says_of_itself(fp32_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32_onnx)
    assert onnx_facts(fp32_onnx)["contract"]["metadata_differs"] is None
    model.metadata_props.add(key="dgsnet.preprocessing", value='{"patch": 16}')
    model.metadata_props.add(key="made", value="on a machine")
    onnx.save(model, fp32_onnx)
    differs = ["dgsnet.classes", "dgsnet.contract", "dgsnet.preprocessing"]
    assert onnx_facts(fp32_onnx)["contract"]["metadata_differs"] == differs
    OnnxSource(fp32_onnx).write_onnx(tmp_path / "written.onnx")
    written = onnx_facts(tmp_path / "written.onnx")
    assert sorted(written["metadata"]) == differs
    assert written["contract"]["metadata_differs"] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dgsnet.preprocessing", '{"patch":16}'),
        ("dgsnet.classes", '["generated","real"]'),
        ("dgsnet.contract", None),
    ],
)
def test_inspect__shows_metadata_that_is_not_the_contract(
    sound: Path, tmp_path: Path, key: str, value: str | None
) -> None:
    model = onnx.load(sound / "model.onnx")
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != key}
    onnx.helper.set_model_props(model, kept | ({} if value is None else {key: value}))
    onnx.save(model, tmp_path / "odd.onnx")
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "odd.onnx")]).stdout
    assert f"its metadata DIFFERS from it: {key}\n" in shown
    sane = CliRunner().invoke(cli, ["inspect", str(sound / "model.onnx")]).stdout
    assert "its metadata says the same\n" in sane
