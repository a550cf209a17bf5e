"""The command line as a user meets it: what it prints where, and how it exits."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime.cli import main
from runtime.tolerances import TOLERANCES, logit_tolerance

ROOT = Path(runtime.__file__).parent.parent


def run_process(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(os.fsencode, map(str, arguments))],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """The same main in this process, which saves each test a second of imports."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    logger = logging.getLogger("dgsnet")
    logger.setLevel(logging.INFO)
    code: object = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["runtime", *map(str, arguments)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                patch.setattr(handler, "stream", err)
        try:
            main()
        except SystemExit as end:
            code = end.code
    found = [stream.buffer.getvalue() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(list(map(str, arguments)), int(str(code)), *found)


def test_predict__prints_one_row_a_picture(bundle: Path, pictures: list[Path]) -> None:
    done = run_process("predict", bundle, *pictures[:2])
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.decode().splitlines()
    assert header.split() == ["verdict", "p(gen.)", "margin", "picture", "(threshold", "0.5)"]
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
    stdin = bytes(pictures[5]) + b"\0"
    done = run_process("predict", bundle, pictures[0].parent, "-", "-0", "--csv", stdin=stdin)
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
        (["--max-side", "300"], 2, "expected at most 300 on a side"),
        (["--views", "65"], 2, "views: found 65, expected 1 to 64"),
        (["--contexts", "2"], 2, "contexts: found 2, which onnxruntime does not have"),
        (["--cuda-api", "pycuda"], 2, "cuda-api: found 'pycuda', which onnxruntime does not have"),
        (["--cuda-graphs"], 2, "cuda-graphs: found True, which onnxruntime does not have"),
        (["--zero-copy"], 2, "zero-copy: found True, which onnxruntime does not have"),
        (["--rtx-kernels", "lazy"], 2, "expected an engine of tensorrt-rtx"),
        (["--camera", "0"], 2, "--camera takes no PATHS"),
        (["--watch", "none"], 2, "'none' does not exist"),
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


def test_predict__views_average_fixed_permutations(bundle: Path, pictures: list[Path]) -> None:
    one, many, again = (
        [
            json.loads(line)
            for line in run("predict", bundle, *pictures, "--json", "--views", views).stdout.splitlines()
        ]
        for views in (1, 5, 5)
    )
    assert [row["views"] for row in many] == [5] * 6
    assert [row["logit"] for row in many] == pytest.approx([row["logit"] for row in again], abs=1e-4)
    # The tiny graph looks at one corner of the mosaic, where each view shows another patch.
    assert max(abs(a["logit"] - b["logit"]) for a, b in zip(one, many, strict=True)) > 0.01


def test_predict__takes_truncated_files_only_when_allowed(
    bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(pictures[0].read_bytes()[:100_000])
    assert run("predict", bundle, path).returncode == 2
    done = run("predict", bundle, path, "--allow-truncated", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] in ("real", "generated")


@pytest.mark.parametrize(
    ("arguments", "is_prepacked"),
    [
        (["0.png"], False),
        (["0.png", "1.png", "2.png", "3.png"], False),
        (["0.png", "1.png", "2.png", "3.png", "4.png"], True),
        (["0.png", "--views", "4"], False),
        (["0.png", "1.png", "--views", "4"], True),
        (["."], True),
        (["0.png", "--prepack"], True),
        ([".", "--no-prepack"], False),
        (["0.png", "-"], True),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "prepacked" if value else "not",
)
def test_predict__prepacks_unless_it_has_few_files(
    bundle: Path,
    pictures: list[Path],
    arguments: list[str],
    is_prepacked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.commands.sources._stdin", lambda: io.BytesIO(b""))
    monkeypatch.chdir(pictures[0].parent)
    done = run("predict", bundle, *arguments, "-v")
    assert done.returncode == 0, done.stderr
    assert (b"weights are not prepacked" not in done.stderr) == is_prepacked


def test_predict__judges_alike_with_and_without_prepacking(bundle: Path, pictures: list[Path]) -> None:
    found = [run("predict", bundle, *pictures, "--json", flag) for flag in ("--prepack", "--no-prepack")]
    one, other = ([json.loads(line)["logit"] for line in done.stdout.splitlines()] for done in found)
    assert len(one) == len(pictures)
    assert one == pytest.approx(other, abs=logit_tolerance(TOLERANCES, "fp32"))


def test_predict__without_paths_says_what_it_takes(bundle: Path) -> None:
    done = run("predict", bundle)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith("error: no PATHS: name files or folders, -")


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
    assert (good.returncode, report["passed"], len(report["checks"]), report["images"]) == (0, True, 11, 16)
    content = json.loads((bundle / "manifest.json").read_text())
    reseal(bundle, tolerances=content["tolerances"] | {"fp32_max_abs_logit": 1e-9})
    bad = run("selftest", bundle)
    assert bad.returncode == 1
    assert b"FAILED" in bad.stdout


HEAVY = ["onnxruntime", "onnx", "numpy", "PIL", "torch", "tensorrt", "matplotlib", "cv2"]
PROBE = "import sys; print(*sorted(set({heavy!r}) & {{name.split('.')[0] for name in sys.modules}}))"


@pytest.mark.parametrize("command", [[], ["predict"], ["bench"], ["info"], ["selftest"]], ids=str)
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
