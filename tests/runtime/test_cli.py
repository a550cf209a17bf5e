"""The command line as a user meets it: one subprocess a question."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime

ROOT = Path(runtime.__file__).parent.parent


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(os.fsencode, map(str, arguments))],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_predict__prints_one_row_a_picture(bundle: Path, pictures: list[Path]) -> None:
    done = run("predict", bundle, *pictures[:2])
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.decode().splitlines()
    assert header.split() == ["verdict", "p(gen.)", "margin", "picture"]
    assert [row.split()[-1] for row in rows] == [str(path) for path in pictures[:2]]
    assert all(row.split()[0] in ("real", "generated") for row in rows)
    assert b"onnxruntime:cpu" in done.stderr
    assert b"not tensorrt: the bundle holds no engine for it" in done.stderr


def test_predict__json_and_exit_code_with_a_bad_item(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    done = run("predict", bundle, pictures[0], tmp_path / "none.png", pictures[1], "--json", "-q")
    assert done.returncode == 2
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["error"] is None for line in lines] == [True, False, True]
    assert b"no such file" in done.stderr


def test_predict__csv_folder_and_names_on_stdin(bundle: Path, pictures: list[Path]) -> None:
    done = run("predict", bundle, pictures[0].parent, "-", "-0", "--csv", stdin=bytes(pictures[5]) + b"\0")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.decode().splitlines()))
    assert [row["path"] for row in rows] == [str(path) for path in [*pictures, pictures[5]]]
    assert all(row["error_code"] == "" and 0 <= float(row["probability"]) <= 1 for row in rows)


def test_predict__names_that_are_not_utf8(bundle: Path, pictures: list[Path]) -> None:
    folder = pictures[0].parent
    os.rename(pictures[0], os.fsencode(folder) + b"/caf\xe9.png")
    for option in ("--json", "--csv", "-v"):
        done = run("predict", bundle, folder, option)
        assert done.returncode == 0, done.stderr
        assert "caf\ufffd.png" in done.stdout.decode("utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--backend", "tensorrt"], 3, "backend 'tensorrt' cannot run here"),
        (["--backend", "onnxruntime:cuda"], 3, "no CUDA device"),
        (["--backend", "magic"], 2, "expected one of auto"),
        (["--engine", "none"], 2, "this bundle holds model"),
        (["--batch-size", "99"], 2, "takes 1 to 8"),
        (["--json", "--csv"], 2, "exclude each other"),
        (["--verify", "perhaps"], 2, "perhaps"),
        (["--max-pixels", "100"], 2, "expected at most 100 in all"),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) else None,
)
def test_predict__exit_codes(
    bundle: Path, pictures: list[Path], arguments: list[str], code: int, message: str
) -> None:
    done = run("predict", bundle, pictures[0], *arguments)
    assert (done.returncode, message in done.stderr.decode()) == (code, True), done.stderr
    assert b"Traceback" not in done.stderr


def test_predict__refuses_a_damaged_bundle_before_any_verdict(bundle: Path, pictures: list[Path]) -> None:
    path = bundle / "golden.npz"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    done = run("predict", bundle, pictures[0], "--no-selftest")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith("error: ")
    assert done.stderr.count(b"\n") == 1


def test_predict__of_an_empty_folder_is_bad_input(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("predict", bundle, tmp_path / "empty")
    assert done.returncode == 2
    assert b"no pictures found" in done.stderr


def test_info__shows_the_bundle(bundle: Path) -> None:
    done = run("info", bundle, "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert facts["here"]["backend"] == "onnxruntime:cpu"
    assert set(facts["files"]) == {"model.onnx", "golden.npz"}
    plain = run("info", bundle)
    assert facts["digest"] in plain.stdout.decode()
    assert run("info", bundle.parent).returncode == 2


def test_selftest__passes_and_fails(bundle: Path, reseal: object) -> None:
    good = run("selftest", bundle, "--json")
    report = json.loads(good.stdout)
    assert (good.returncode, report["passed"], len(report["checks"]), report["images"]) == (0, True, 4, 16)
    content = json.loads((bundle / "manifest.json").read_text())
    reseal(bundle, tolerances=content["tolerances"] | {"fp32_max_abs_logit": 1e-9})
    bad = run("selftest", bundle)
    assert bad.returncode == 1
    assert b"FAILED" in bad.stdout


HEAVY = ["onnxruntime", "onnx", "numpy", "PIL", "torch", "tensorrt"]
PROBE = "import sys; print(*sorted(set({heavy!r}) & {{name.split('.')[0] for name in sys.modules}}))"


@pytest.mark.parametrize("command", [[], ["predict"], ["info"], ["selftest"]], ids=str)
def test_help__loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys, atexit; atexit.register(lambda: print('LOADED', "
        f"*sorted(set({HEAVY!r}) & {{n.split('.')[0] for n in sys.modules}})));"
        "from runtime.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_import_runtime__is_lazy_and_complete() -> None:
    code = f"import runtime; {PROBE.format(heavy=HEAVY)}; [getattr(runtime, n) for n in runtime.__all__]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
    assert runtime.__version__ == "0.1.0"
    assert set(runtime.__all__) <= set(dir(runtime))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = runtime.nonsense


def test_predict__a_closed_pipe_is_no_failed_gate(bundle: Path, pictures: list[Path], tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text("".join(f"{pictures[0]}\n" for _ in range(3000)))
    command = (
        f"{sys.executable} -m runtime predict -q {bundle} - < {names} | head -n 2; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 2


def test_predict__a_usage_error_of_click_still_exits_with_2(bundle: Path) -> None:
    for words in (("predict", bundle), ("predict", bundle, "--no-such-flag", "x"), ("nothing",)):
        assert run(*words).returncode == 2
    assert run("--help").returncode == 0
