"""What predict says beside the verdicts: progress, a summary, files that were left out, wrong input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runtime
from runtime.console import Progress
from runtime.errors import UsageError
from runtime.pictures.scan import LeftOut, count_pictures, expand_paths, read_names

ROOT = Path(runtime.__file__).parent.parent


def predict(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", "predict", *map(str, arguments), "--no-selftest"],
        cwd=ROOT, input=stdin, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(pictures: list[Path]) -> Path:
    """Six pictures, one that is none, two pictures without the suffix, and what usually lies beside them."""
    home = pictures[0].parent
    (home / "broken.jpg").write_bytes(b"no picture")
    for name in ("abc", "x.jpg_large"):
        (home / name).write_bytes(pictures[0].read_bytes())
    for name in ("notes.txt", "labels.json", ".hidden"):
        (home / name).write_bytes(b"beside")
    return home


def test_predict__into_a_file_says_how_far_it_is_and_what_came_of_it(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "v.jsonl"
    done = predict(bundle, folder, "-o", output)
    assert (done.returncode, done.stdout) == (2, b"")
    labels = [json.loads(line)["label"] for line in output.read_bytes().splitlines()]
    generated, real = labels.count("generated"), labels.count("real")
    assert (generated + real, labels.count(None)) == (6, 1)
    *_, progress, left_out, summary = done.stderr.decode().splitlines()
    assert progress.startswith("predict: 7")
    assert " done in " in progress
    assert left_out == (
        "2 files with other suffixes left out (abc, x.jpg_large); --all-files judges every file"
    )
    assert summary == f"7 judged: {generated} generated, {real} real, 1 error -> {output}"
    again = predict(bundle, folder, "-o", output, "--resume")
    assert again.stderr.decode().splitlines()[-1] == (
        f"0 judged: 0 generated, 0 real, 0 errors -> {output}; 7 judged before and skipped, "
        "1 of them unreadable"
    )


def test_predict__is_silent_but_for_errors_when_asked(bundle: Path, folder: Path, tmp_path: Path) -> None:
    done = predict(bundle, folder, "-q", "-o", tmp_path / "v.jsonl")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"error: {folder}/broken.jpg: not a picture")


def test_predict__on_standard_output_adds_nothing_to_the_verdicts(bundle: Path, folder: Path) -> None:
    done = predict(bundle, folder, "--json")
    assert [json.loads(line)["schema"] for line in done.stdout.splitlines()] == [1] * 7
    assert done.stderr.decode().splitlines()[-1].startswith("7 judged: ")
    one = predict(bundle, folder / "0.png", "--json")
    assert b"judged" not in one.stderr


def test_predict__counts_uncertain_verdicts(bundle: Path, folder: Path, reseal: object) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    reseal(bundle, decision=content["decision"] | {"uncertain": [0.0, 1.0]})  # type: ignore[operator]
    done = predict(bundle, folder, "--json")
    assert ", 6 of them uncertain, 1 error" in done.stderr.decode().splitlines()[-1]


def test_predict__judges_every_file_when_asked(bundle: Path, folder: Path) -> None:
    done = predict(bundle, folder, "--all-files", "--json", "-q")
    rows = {Path(row["path"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(rows) == {path.name for path in folder.iterdir()}
    assert rows["abc"]["logit"] == pytest.approx(rows["0.png"]["logit"], abs=1e-5)
    assert [name for name, row in sorted(rows.items()) if row["error"]] == [
        ".hidden", "broken.jpg", "labels.json", "notes.txt",
    ]  # fmt: skip


def test_left_out__names_the_first_and_counts_the_rest(folder: Path) -> None:
    for index in range(5):
        (folder / f"z{index}.part").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    (folder / "more.d").mkdir()
    left_out = LeftOut()
    assert len(list(expand_paths([str(folder)], left_out=left_out))) == 7
    line = left_out.line()
    assert line is not None
    assert line.startswith("7 files with other suffixes left out (")
    assert line.count(", ") == 3
    assert LeftOut().line() is None


def test_count_pictures__is_what_expand_paths_yields(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder), str(folder / "abc"), str(tmp_path / "none.png")]
    for all_files in (False, True):
        assert count_pictures(paths, all_files=all_files) == len(
            list(expand_paths(paths, all_files=all_files))
        )


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif", "avif", "ppm"])
def test_read_names__refuses_the_bytes_of_a_picture(suffix: str, pictures: list[Path]) -> None:
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(pictures[0]) as image:
        image.save(stream, Image.registered_extensions()[f".{suffix}"])
    with pytest.raises(UsageError, match=r"^-: found (picture bytes|a NUL byte) on standard input"):
        list(read_names(io.BytesIO(stream.getvalue())))
    if suffix in ("png", "jpg"):  # the others have no byte that a list with NULs could not have
        with pytest.raises(UsageError, match="found picture bytes"):
            list(read_names(io.BytesIO(stream.getvalue()), nul=True))


def test_predict__says_once_that_standard_input_is_a_picture(bundle: Path, pictures: list[Path]) -> None:
    done = predict(bundle, "-", "-q", stdin=pictures[0].read_bytes())
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: -: found picture bytes on standard input, expected names")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"], ids=["unix", "windows", "nul"])
def test_read_names__takes_names_that_begin_as_pictures_do(end: bytes) -> None:
    names = [b"GIF89a.gif", b"RIFF of WEBP.webp", b"the ftyp box.png", b"BMW.jpg", b"caf\xe9.png"]
    for first in range(len(names)):
        turned = names[first:] + names[:first]
        found = list(read_names(io.BytesIO(end.join(turned) + end), nul=end == b"\0"))
        assert [os.fsencode(name).rstrip(b"\r") for name in found] == turned


def test_read_names__asks_for_the_flag_where_nul_ends_them() -> None:
    with pytest.raises(UsageError, match="add -0 if NUL ends them"):
        list(read_names(io.BytesIO(b"a.png\0b.png\0")))


def test_progress__without_a_total_counts_and_forecasts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("work", None, every_seconds=0) as progress:
        time.sleep(0.01)
        progress.advance(3)
        progress.total = 10
        progress.skip(4)
        progress.advance()
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("work: 3 ")
    assert first.endswith(" a second")
    assert second.startswith("work: 8/10 ")
    assert second.endswith(" s left")
    assert last.startswith("work: 8/10 done in ")
