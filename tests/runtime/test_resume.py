"""predict --output: durable lines, and a resumed run that judges exactly what is missing."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import runtime
from runtime.cli import cli
from runtime.detection import Detection
from runtime.errors import DataError, ImageError, ImageReadError, UsageError
from runtime.results import FileState, ResultsFile, file_state

ROOT = Path(runtime.__file__).parent.parent
DIGEST = "ab" * 32


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["predict", *map(str, arguments)], standalone_mode=False)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def opened(path: Path, **changes: Any) -> ResultsFile:
    options = {"resume": True, "overwrite": False} | changes
    return ResultsFile(path, DIGEST, **options)


def judged(path: str) -> Detection:
    return Detection(
        path=path, label="real", probability=0.25, logit=-1.0, threshold=0.5, margin=-1.0, views=1
    )


def test_results__hold_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    state = FileState(10, 123_456_789_012_345_678)
    odd = os.fsdecode(b"caf\xe9\n.png")
    with opened(path) as results:
        results.append(judged("a.png"), state)
        results.append(judged(odd), state)
        results.append(Detection.failed("broken.png", ImageError("truncated")), state)
        results.append(Detection.failed("gone.png", ImageError("no such file")), FileState())
        results.append(Detection.failed("oom.png", UsageError("of the moment")), state)
        results.append(Detection.failed("nfs.png", ImageReadError("input/output error")), state)
        assert not results.held.holds_verdict("a.png", state)
    with opened(path) as results:
        held = results.held
    assert held.holds_verdict("a.png", state)
    assert held.holds_verdict(odd, state)
    assert held.holds_error("broken.png", state)
    assert not held.holds_verdict("broken.png", state)
    for name, other in (
        ("b.png", state),
        ("a.png", FileState(11, state.mtime_ns)),
        ("a.png", FileState(10, state.mtime_ns + 1)),
        ("./a.png", state),
        ("caf\ufffd\n.png", state),
        ("gone.png", FileState()),
        ("oom.png", state),
        ("nfs.png", state),
    ):
        assert not held.holds_verdict(name, other), name
        assert not held.holds_error(name, other), name


def test_results__lines_are_those_of_json_with_three_more_keys(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    detection = judged(os.fsdecode(b"\xff.png"))
    with opened(path) as results:
        results.append(detection, FileState(10, 20))
    (row,) = rows(path)
    assert row == detection.to_json() | {"size": 10, "mtime_ns": 20, "bundle": "ab" * 8}
    assert base64.b64decode(row["path_base64"]) == b"\xff.png"


@pytest.mark.parametrize("tail", [b'{"schema": 1, "pa', b"\0" * 700, b"{", b'{"schema": 1}'])
def test_results__drop_a_torn_last_line(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as results:
        results.append(judged("a.png"), FileState(1, 2))
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with opened(path) as results:
        assert results.held.holds_verdict("a.png", FileState(1, 2))
        results.append(judged("b.png"), FileState(1, 2))
    assert path.read_bytes().startswith(whole + b'{"schema"')
    assert [row["path"] for row in rows(path)] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "line",
    [b"not json", b"[]", b"null", b'{"schema": 1}', b"\xff\xfe", b"[" * 100_000,
     b'{"path": 5, "error": null, "size": 1, "mtime_ns": 1, "bundle": "abababababababab"}',
     b'{"path": "x", "path_base64": "?", "error": null, "size": 1, "mtime_ns": 1, "bundle": "x"}',
     b'{"path": "x", "error": 7, "size": 1, "mtime_ns": 1, "bundle": "abababababababab"}'],
    ids=range(9),
)  # fmt: skip
def test_results__refuse_and_keep_another_file(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match="line 1 is no result of predict --output"):
        opened(path)
    assert path.read_bytes() == line + b"\n"


@pytest.mark.parametrize(
    "tail",
    [b"notes", b'{"path": "x"', b'{"schema', b"\0\0{", b'{"schema": 1' + b" " * (1 << 26)],
    ids=range(5),
)
def test_results__cut_off_nothing_that_a_kill_cannot_have_left(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(tail)
    is_ours = b'{"schema": 1'.startswith(tail)
    if is_ours:
        opened(path).close()
    else:
        with pytest.raises(DataError, match="line 1 is no result of predict --output"):
            opened(path)
    assert path.read_bytes() == (b"" if is_ours else tail)


def test_results__a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as results:
        with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patch:
            patch.setattr(results, "_stream", full)
            with pytest.raises(OSError, match="No space left") as caught:
                results.append(judged("a.png"), FileState(1, 2))
        assert caught.value.filename == str(path)


def test_results__refuse_another_bundle_an_old_file_and_a_second_writer(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path, resume=False) as results:
        results.append(judged("a.png"), FileState(1, 2))
        with pytest.raises(UsageError, match="another process writes to it"):
            opened(path)
    content = path.read_bytes()
    with pytest.raises(UsageError, match="--resume to continue it or --overwrite"):
        opened(path, resume=False)
    with pytest.raises(UsageError, match=r"line 1 was judged by bundle abab.*this one is cdcd"):
        ResultsFile(path, "cd" * 32, resume=True, overwrite=False)
    with pytest.raises(UsageError, match=r"line 1 averages 1 views, this run 4; give the same --views"):
        opened(path, views=4)
    assert path.read_bytes() == content
    opened(path, resume=False, overwrite=True).close()
    assert path.read_bytes() == b""


def test_results__of_many_lines_are_found_fast_and_small(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as results:
        for number in range(3000):
            results.append(judged(f"{number}.png"), FileState(number, 1))
    with opened(path) as results:
        assert all(results.held.holds_verdict(f"{n}.png", FileState(n, 1)) for n in range(3000))
        assert not any(results.held.holds_verdict(f"{n}.png", FileState(n, 2)) for n in range(3000))


def test_file_state__of_what_is_no_file_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_state(str(tmp_path / "x")).size == 3
    for name in (str(tmp_path), str(tmp_path / "none"), "nul\0", "\ud800"):
        assert file_state(name) == FileState(None, None)


def test_predict__resume_judges_what_is_new_or_changed(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    (pictures[0].parent / "broken.png").write_bytes(b"broken")
    first = predict(bundle, pictures[0].parent, "-o", output)
    assert (first.return_value, first.stdout) == (2, "")
    assert [Path(row["path"]).name for row in rows(output)] == [*(f"{k}.png" for k in range(6)), "broken.png"]
    assert rows(output)[0]["size"] == pictures[0].stat().st_size
    again = predict(bundle, pictures[0].parent, "-o", output, "--resume")
    assert again.return_value == 2  # an unreadable file that is skipped still has no verdict
    assert len(rows(output)) == 7
    shutil.copy(pictures[1], pictures[2])
    shutil.copy(pictures[1], pictures[0].parent / "new.png")
    (pictures[0].parent / "broken.png").unlink()
    third = predict(bundle, pictures[0].parent, "-o", output, "--resume", "--json")
    assert third.return_value == 0, third.output
    assert [Path(row["path"]).name for row in rows(output)[7:]] == ["2.png", "new.png"]
    printed = [json.loads(line) for line in third.stdout.splitlines()]
    assert [Path(row["path"]).name for row in printed] == ["2.png", "new.png"]
    assert "size" not in printed[0]


def test_predict__resume_tries_a_refused_picture_again_with_other_limits(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    assert predict(bundle, pictures[0], "-o", output, "--max-pixels", 100).return_value == 2
    assert predict(bundle, pictures[0], "-o", output, "--resume").return_value == 2
    assert [row["label"] for row in rows(output)] == [None]
    assert predict(bundle, pictures[0], "-o", output, "--resume", "--max-pixels", 10**6).return_value == 0
    assert [row["error"] is None for row in rows(output)] == [False, True]
    # The verdict stands beside the old error now, and is what the next run goes by.
    assert predict(bundle, pictures[0], "-o", output, "--resume").return_value == 0
    assert len(rows(output)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "name the file with --output"),
        (["--output", "{0}/x", "--csv"], "redirect standard output"),
        (["--output", "{0}/x", "--resume", "--overwrite"], "exclude each other"),
        (["--output", "{0}/missing/x"], "No such file or directory"),
    ],
)
def test_predict__refuses_what_output_cannot_do(
    bundle: Path, pictures: list[Path], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = predict(bundle, pictures[0], *(text.format(tmp_path) for text in arguments))
    assert isinstance(done.exception, (UsageError, OSError))
    assert message in str(done.exception)
    assert done.stdout == ""


def test_predict__survives_kill_9_at_any_moment(
    bundle: Path, pictures: list[Path], tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    names = [f"{number:03d}.png" for number in range(120)]
    for number, name in enumerate(names):
        shutil.copy(pictures[number % 6], folder / name)
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "runtime", "predict", str(bundle), str(folder), "-o", str(output)]
    for least in (1, 30, 60):
        process = subprocess.Popen(
            [*command, "--resume", "--no-selftest", "-q", "--threads", "1"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: output.exists() and output.read_bytes().count(b"\n") >= least)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert 0 < output.read_bytes().count(b"\n") < 120, "killed too late to show anything"
        # A kill inside a write leaves such a tail on a full disk or a network file system.
        with open(output, "ab") as stream:
            stream.write(b'{"schema": 1, "path": "torn')
    done = predict(bundle, folder, "-o", output, "--resume")
    assert done.return_value == 0, done.output
    assert Counter(Path(row["path"]).name for row in rows(output)) == Counter(names)
    with open(output, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    def wait(condition: Callable[[], bool], seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.005)

    return wait
