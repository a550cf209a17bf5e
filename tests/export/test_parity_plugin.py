"""The pytest fixture in a project of its own, as a user has it: what a failing test prints, and types."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from export.commands.parity import parity
from export.pytest_plugin import AssertParity, _assert_parity
from tests.export.editing import edit_graph, set_weight

ROOT = Path(__file__).parent.parent.parent
Project = Callable[[str], str]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Runs tests, or the body of one, in a project of its own and returns what pytest says."""

    def run(body: str) -> str:
        is_file = "def test_" in body
        text = body if is_file else f"def test_mine(assert_parity):\n    {body}\n"
        (tmp_path / "test_mine.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "dgsnet", "-q", "--rootdir", tmp_path, tmp_path],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.stdout

    return run


def test_plugin__passes_on_a_sound_bundle_and_writes_every_report(
    sound: Path, run_folder: Path, data_set: Path, tmp_path: Path, project: Project
) -> None:
    words = ", ".join(f"{kind}_file={str(tmp_path / f'r.{kind}')!r}" for kind in ("json", "junit", "html"))
    data = str(data_set / "test")
    said = project(f"assert assert_parity({str(sound)!r}, {str(run_folder)!r}, {data!r}, {words}).passed")
    assert "1 passed" in said
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "passed"
    assert ET.parse(tmp_path / "r.junit").getroot().attrib["failures"] == "0"
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_plugin__fails_with_the_reason(bundle: Path, project: Project) -> None:
    for name in ("model.onnx", "model_fp16.onnx"):
        edit_graph(bundle, lambda model: set_weight(model, "head/bias", lambda bias: bias + 0.5), name)
    said = project(f"assert_parity({str(bundle)!r})")
    assert "1 failed" in said
    assert "the chain breaks at onnx-fp32" in said
    assert "pytest_plugin.py" not in said


def test_plugin__what_keeps_it_from_running_is_one_line(sound: Path, project: Project) -> None:
    calls = {
        "'/nowhere/at/all'": "no such folder",
        "B, backends='tensorrt-rtx'": "tensorrt-rtx",
        "B, backends=('coreml',)": "coreml",
        "B, max_flip_bound=2.0": "max_flip_bound: found 2.0",
        "B, max_pictures=3": "max_pictures, max_unreadable, allow_truncated",
        "B, data='/nowhere/at/all'": "expected a folder of pictures",
    }
    cases = f"B = {str(sound)!r}\n" + "".join(
        f"def test_{k}(assert_parity):\n    assert_parity({words})\n" for k, words in enumerate(calls)
    )
    said = project(cases)
    assert "6 failed" in said
    for k, expected in enumerate(calls.values()):
        shown = re.split(rf"_+ test_{k} _+\n", said)[1]
        lines = re.split(r"\n[_=]{5,}", shown)[0].splitlines()
        assert len(lines) == 1, said
        assert expected in lines[0]
        assert "--" not in lines[0]


def test_plugin__a_wrong_number_leaves_no_green_report(sound: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    report.write_text('{"status": "passed"}')
    with pytest.raises(pytest.fail.Exception, match="max_pictures: found 0"):
        _assert_parity(sound, max_pictures=0, json_file=report)
    assert json.loads(report.read_text())["status"] == "stopped"


def test_plugin__a_wrong_argument_is_told_at_the_call(sound: Path, project: Project) -> None:
    said = project(f"assert_parity({str(sound)!r}, max_hard_flip=0)")
    assert "TypeError" in said
    assert "max_hard_flip" in said
    assert "gate_limits" not in said


def test_plugin__require_all_fails_and_says_what_did_not_run(sound: Path, project: Project) -> None:
    said = project(f"assert_parity({str(sound)!r}, require_all=True)")
    assert "NOT RUN: " in said
    assert "no checkpoint" in said


def test_plugin__the_fixture_takes_what_its_type_says() -> None:
    stated = inspect.signature(AssertParity.__call__).parameters
    assert list(stated.values())[1:] == list(inspect.signature(_assert_parity).parameters.values())
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in stated.values())


def test_plugin__knows_every_number_that_the_command_takes() -> None:
    flags = {option.name for option in parity.params if (option.name or "").startswith(("max_", "allow_"))}
    assert flags - {"max_changed"} <= set(inspect.signature(_assert_parity).parameters)


def test_plugin__loads_nothing_heavy() -> None:
    script = (
        "import sys, export.pytest_plugin\n"
        "print([n for n in ('torch', 'onnx', 'onnxruntime', 'numpy', 'PIL') if n in sys.modules])"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
