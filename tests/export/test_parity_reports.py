"""One verdict wherever it is said, how files are read, and no report of an earlier run left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.parity.checks import unreadable_check

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def cut_off(data_set: Path, tmp_path: Path) -> Path:
    """Seven pictures, one of them a JPEG that ends early."""
    data = tmp_path / "data"
    shutil.copytree(data_set / "test" / "blur" / "0_real", data / "mine")
    whole = tmp_path / "whole.jpg"
    pixels = np.random.default_rng(3).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole, quality=90)
    (data / "mine" / "cut.jpg").write_bytes(whole.read_bytes()[:20_000])
    return data


class Files:
    """The three report files of a run, as a CI system reads them."""

    def __init__(self, folder: Path) -> None:
        self.json, self.junit, self.html = (folder / f"r.{kind}" for kind in ("json", "xml", "html"))

    @property
    def words(self) -> tuple[object, ...]:
        return ("--json-file", self.json, "--junit-file", self.junit, "--html-file", self.html)

    def status(self) -> str:
        return str(json.loads(self.json.read_text())["status"])

    def totals(self) -> tuple[int, int]:
        suite = ET.parse(self.junit).getroot().find("testsuite")
        assert suite is not None
        counted = [len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error")]
        assert counted == [int(suite.attrib["failures"]), int(suite.attrib["errors"])]
        return counted[0], counted[1]

    def error(self) -> str:
        (error,) = ET.parse(self.junit).getroot().findall(".//testcase/error")
        return error.attrib["message"]

    def verdict(self) -> str:
        return self.html.read_text().partition("<strong>")[2].partition("</strong>")[0]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Where the reports of a test go."""
    return Files(tmp_path)


def test_parity__an_unreadable_picture_is_no_pass_in_any_report(
    sound: Path, cut_off: Path, files: Files, parity: Run
) -> None:
    code, out, err = parity(sound, "--data", cut_off, *files.words)
    assert code == 2
    assert out.splitlines()[-1].startswith("UNREADABLE: ")
    assert "1 pictures could not be read" in out.splitlines()[-1]
    assert files.status() == "unreadable"
    assert files.totals() == (0, 1)
    assert "cut.jpg" in files.error()
    assert "truncated" in files.error()
    assert files.verdict() == "Unreadable pictures"
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1


def test_parity__a_failed_check_outranks_an_unreadable_picture(
    sound: Path, cut_off: Path, files: Files, parity: Run
) -> None:
    code, out, _ = parity(sound, "--data", cut_off, *files.words, "--max-flip-bound", "0.01")
    assert code == 1
    assert out.splitlines()[-1].startswith("FAILED: ")
    assert files.status() == "failed"
    failures, errors = files.totals()
    assert failures > 0
    assert errors == 1


def test_unreadable_check__a_share_is_what_was_typed() -> None:
    lost = [(f"{k}.png", "gone") for k in range(29)]
    assert unreadable_check(lost, 100, 0.29).status == "passed"
    assert unreadable_check(lost, 99, 0.29).status == "unreadable"
    assert "and 9 more" in unreadable_check(lost, 100, 0.29).text


@pytest.mark.parametrize(("share", "code", "status"), [("0.2", 0, "passed"), ("0.1", 2, "unreadable")])
def test_parity__max_unreadable_tolerates_a_share_and_says_so(
    sound: Path, cut_off: Path, files: Files, parity: Run, share: str, code: int, status: str
) -> None:
    found, out, _ = parity(sound, "--data", cut_off, "--max-unreadable", share, *files.words)
    assert found == code  # one of seven
    assert files.status() == status
    assert files.totals() == (0, int(code == 2))
    assert "cut.jpg" in out
    assert "1 pictures could not be read" in out.splitlines()[-1]
    assert "1 pictures could not be read" in files.html.read_text()
    report = json.loads(files.json.read_text())
    assert [entry["item"] for entry in report["unreadable"]] == ["mine/cut.jpg"]
    assert report["reading"]["max_unreadable"] == float(share)


def test_parity__allow_truncated_reaches_the_gate_and_the_runtime(
    sound: Path, cut_off: Path, files: Files, parity: Run
) -> None:
    code, _, _ = parity(sound, "--data", cut_off, "--allow-truncated", *files.words)
    report = json.loads(files.json.read_text())
    assert code == 0
    assert report["count"] == 7
    assert report["not_independently_decoded"] == 1
    same = [check for check in report["checks"] if check["name"] == "mosaics byte by byte"]
    assert [check["status"] for check in same] == ["passed"]
    assert same[0]["text"].startswith("0 of 7 files differ")


@pytest.mark.parametrize("flags", [("--max-pixels", "60000"), ("--max-side", "255")])
def test_parity__size_limits_reach_the_gate_and_the_runtime(
    sound: Path, data_set: Path, tmp_path: Path, parity: Run, flags: tuple[str, str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for side in (224, 256):
        with Image.open(data_set / "test" / "blur" / "0_real" / "000.png") as opened:
            opened.crop((0, 0, side, side)).save(data / f"{side}.png")
    code, out, _ = parity(sound, "--data", data, *flags, "--max-unreadable", "0.5", "--json")
    report = json.loads(out)
    assert code == 0
    assert [entry["item"] for entry in report["unreadable"]] == ["256.png"]
    assert flags[0] in report["unreadable"][0]["reason"]
    files_hop = next(hop for hop in report["hops"] if hop["hop"].startswith("files"))
    assert files_hop["previous"]["count"] == 1


def test_parity__a_limit_that_only_the_runtime_has_would_be_seen(
    sound: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch, parity: Run
) -> None:
    """The limits reach the detector as they reach the gate: kept from one of them, the gate fails."""
    from runtime.detector import Detector

    right = Detector.open

    def strict(*words: object, **options: object) -> Detector:
        return right(*words, **(options | {"max_side": 100}))

    monkeypatch.setattr(Detector, "open", strict)
    code, out, _ = parity(sound, "--data", data_set / "test")
    assert code == 1
    assert "the runtime reads what the gate reads: 12 files" in out


@pytest.mark.parametrize(
    ("words", "code", "status", "said"),
    [
        (("/nowhere/at/all",), 2, "stopped", "no such folder"),
        (("B", "--backend", "tensorrt"), 3, "not-run", "tensorrt"),
        (("B", "--data", "/nowhere/at/all"), 2, "stopped", "not a folder"),
        (("B", "--max-flip-bound", "7"), 2, "stopped", "--max-flip-bound"),
        (("B", "--max-unreadable", "1"), 2, "stopped", "--max-unreadable"),
        (("B", "--max-pictures", "0"), 2, "stopped", "--max-pictures"),
        (("B", "--allow-truncated"), 2, "stopped", "add --data"),
        (("B", "--drop-engines"), 2, "stopped", "--repair"),
        (("B", "--checkpoint", "/nowhere/at/all"), 2, "stopped", "nowhere"),
    ],
)
def test_parity__no_green_report_of_an_earlier_run_stays(
    sound: Path, files: Files, parity: Run, words: tuple[str, ...], code: int, status: str, said: str
) -> None:
    for path in (files.json, files.junit, files.html):
        path.write_text("of yesterday")
    given = [str(sound) if word == "B" else word for word in words]
    found, out, err = parity(*given, *files.words)
    assert (found, out) == (code, "")
    assert files.status() == status
    assert files.totals() == (0, 1)
    assert said in files.error()
    assert files.error() in err
    report = json.loads(files.json.read_text())
    assert report["exit_code"] == code
    assert said in report["error"]["message"]
    assert files.verdict() in ("Stopped", "Not run")
    assert "of yesterday" not in files.html.read_text()


def test_parity__one_file_without_a_folder_is_told_in_the_others(
    sound: Path, files: Files, parity: Run
) -> None:
    files.junit.write_text("of yesterday")
    code, _, _ = parity(sound, "--junit-file", files.junit, "--html-file", "/nowhere/at/all/r.html")
    assert code == 2
    assert "/nowhere/at/all/r.html" in files.error()


def test_parity__writes_no_report_into_a_bundle(bundle: Path, files: Files, parity: Run) -> None:
    """An unlisted file keeps a bundle from being opened; its folder of reports is not listed."""
    code, _, err = parity(bundle, "--junit-file", files.junit, "--json-file", bundle / "r.json")
    assert code == 2
    assert "lies in the bundle" in err
    assert "lies in the bundle" in files.error()
    assert not (bundle / "r.json").exists()
    assert parity(bundle, "--json-file", bundle / "parity" / "r.json")[0] == 0


def test_parity__no_report_takes_the_place_of_another_one(sound: Path, files: Files, parity: Run) -> None:
    files.junit.write_text("of yesterday")
    again = files.json.parent / "." / files.json.name
    words = ("--junit-file", files.junit, "--json-file", files.json, "--html-file", again)
    code, out, err = parity(sound, *words)
    assert (code, out) == (2, "")
    assert "found for two reports" in err
    assert "found for two reports" in files.error()


def test_parity__no_report_takes_the_place_of_what_is_no_file(
    sound: Path, files: Files, tmp_path: Path, parity: Run
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code, out, err = parity(sound, "--junit-file", files.junit, "--json-file", pipe)
    assert (code, out) == (2, "")
    assert "expected a file or nothing" in err
    assert pipe.is_fifo()
    assert "expected a file or nothing" in files.error()


def test_parity__a_killed_run_leaves_no_green_report(sound: Path, files: Files) -> None:
    """The files are marked before anything is computed, so that nothing has to happen at the end."""
    files.junit.write_text("of yesterday")
    script = (
        "import os, sys\nimport export.parity.gate as gate\n"
        "gate.open_engines = lambda *_words, **_options: os._exit(9)\n"
        "from export.__main__ import main\nmain()\n"
    )
    words = [sys.executable, "-c", script, "parity", str(sound), *map(str, files.words)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert files.status() == "stopped"
    assert files.totals() == (0, 1)
    assert "not come to its end" in files.error()


def test_parity__require_all_is_not_green_in_any_report(sound: Path, files: Files, parity: Run) -> None:
    code, out, _ = parity(sound, "--require-all", *files.words)
    assert code == 3
    assert out.splitlines()[-1].startswith("NOT RUN: ")
    assert files.status() == "not-run"
    failures, errors = files.totals()
    assert failures == 0
    assert errors >= 3
    assert files.verdict() == "Not run"


def test_parity__a_bisection_that_stops_is_not_green(
    sound: Path, files: Files, parity: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.errors import DataError

    def gone(*_words: object, **_options: object) -> None:
        raise DataError("a picture is gone")

    monkeypatch.setattr("export.parity.bisect.run.chosen_pictures", gone)
    code, out, err = parity(sound, "--bisect", *files.words)
    assert code == 2
    assert "a picture is gone" in err
    assert out.splitlines()[-1].startswith("STOPPED: ")
    assert files.status() == "stopped"
    assert files.error() == "a picture is gone"


def test_parity__the_last_line_names_what_did_not_run(sound: Path, files: Files) -> None:
    """Without onnx there is no FP16 hop, which a pass must not leave out."""
    script = "import sys\nsys.modules['onnx'] = None\nfrom export.__main__ import main\nmain()\n"
    words = [sys.executable, "-c", script, "parity", str(sound), *map(str, files.words)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("passed: ")
    assert "did not run: PyTorch FP32, LoRA merged, FP16 emulated, engine onnxruntime:cuda" in last
    assert "FP16 emulated" in files.html.read_text().partition("</div>")[0]
