"""What a command meets at its edges: closed streams, odd names in CSV, warnings of libraries, devices."""

from __future__ import annotations

import csv
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import runtime
from runtime.cli import cli
from runtime.commands.writers import csv_writer
from runtime.detection import Detection
from runtime.errors import ImageError, UsageError

ROOT = Path(runtime.__file__).parent.parent


def shell(arguments: list[object], ending: str) -> subprocess.CompletedProcess[bytes]:
    command = shlex.join([sys.executable, "-m", "runtime", *map(str, arguments)])
    return subprocess.run(
        ["sh", "-c", f"{command} {ending}"], cwd=ROOT, capture_output=True, timeout=60, check=False
    )


def test_predict__works_where_standard_output_was_closed(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    done = shell(["predict", bundle, pictures[0], "-q", "--no-selftest", "-o", output], ">&-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert output.read_bytes().count(b"\n") == 1


def test_predict__shows_no_warnings_of_pillow(bundle: Path, tmp_path: Path, picture: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "TIFF")
    path = tmp_path / "cut.tif"
    path.write_bytes(stream.getvalue()[:20])  # Pillow calls this corrupt EXIF data, in two lines of its own
    done = shell(["predict", bundle, path, "-q", "--no-selftest"], "")
    (line,) = done.stderr.decode().splitlines()
    assert line == f"error: {path}: truncated or damaged TIFF header; get it again"


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\rb.jpg", 'a",b.jpg', "\n", "a\x1bb.jpg"])
def test_csv__any_name_comes_back_from_one_row(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show = csv_writer()
    show(Detection.failed(name, ImageError("one\ntwo")))
    show(Detection(path="next.jpg", label="real"))
    printed = capsys.readouterr().out
    first, second = csv.DictReader(io.StringIO(printed, newline=""))
    assert (first["path"], first["error_message"]) == (name, "one\ntwo")
    assert (second["path"], second["label"]) == ("next.jpg", "real")
    assert printed.endswith(",,\n")
    assert "\r\n" not in printed


def test_predict__output_to_a_device_or_pipe_is_refused(bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in ("/dev/full", str(tmp_path / "pipe")):
        for flags in ([], ["--resume"], ["--overwrite"]):
            done = CliRunner().invoke(
                cli, ["predict", str(bundle), "x.png", "-o", target, *flags], standalone_mode=False
            )
            assert isinstance(done.exception, UsageError), done.output
            assert "found a device, pipe or socket" in str(done.exception)


def test_errors_of_the_system__name_any_file_on_one_line(bundle: Path, pictures: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "predict", "-q", bundle, pictures[0], "-o", b"/none/a\n\xff\x1b"],
        cwd=ROOT, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: /none/a\\n\ufffd\\x1b: No such file or directory; check")
