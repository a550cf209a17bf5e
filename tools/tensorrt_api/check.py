"""Proves every TensorRT name and argument in our code against each kept surface: mypy, once per version.

The code holds the module in a variable (``trt.api``), typed ``tensorrt._Module`` for mypy alone. A name that
not every version has stands behind ``hasattr(owner, "name")``, which mypy follows: inside, the name is
checked where it exists and unknown where it does not. What would hide a name from mypy is refused: getattr,
a member of an enum by its text, ``Any`` in a folder that works with TensorRT, and ``type: ignore``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tools.tensorrt_api.hidden import hidden_names
from tools.tensorrt_api.stubs import stub_from_surface
from tools.tensorrt_api.surface import load_surfaces

ROOT = Path(__file__).parents[2]
# All of these folders is checked and may not say Any; elsewhere only files that load TensorRT are.
FOLDERS = ("export/engine", "runtime/backends/tensorrt")
_LOADS = re.compile(r"\bload_trt\b|\bTrtModule\b|\bimport tensorrt\b")
_HIDDEN = "hidden-name"
# What our files import besides is read for its types and not reported: the everyday run of mypy does that.
_CONFIG = """\
[mypy]
python_version = 3.11
strict = true
disallow_any_explicit = true
warn_return_any = false
warn_unused_ignores = false
explicit_package_bases = true
follow_imports = silent
[mypy-tensorrt]
ignore_errors = true
[mypy-onnx.*,onnxruntime.*,torch.*,train.*,tensorrt_rtx.*,tensorrt_rtx_bindings.*,cuda.*]
follow_imports = skip
ignore_missing_imports = true
"""


@dataclass(frozen=True)
class Declared:
    """An error that is right to stand: the file, what the line holds, the code of the error, and why."""

    file: str
    line_holds: str
    code: str
    reason: str


DECLARED = (
    Declared(
        "export/engine/config.py",
        "config.set_compute_capability(trt.architectures[target], index)",
        "arg-type",
        "TensorRT-RTX alone has ComputeCapability: no annotation may name it, its members are held as object",
    ),
    Declared(
        "export/engine/parsed_network.py",
        "layer.__class__ = kind",
        "assignment",
        "TensorRT gives every layer out as ILayer; giving it its own class is the documented way to the rest",
    ),
)


def default_files(root: Path = ROOT) -> list[Path]:
    """Returns every file of ours that can hold a TensorRT name."""
    files = {path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    for room in ("export", "runtime"):
        for path in (root / room).rglob("*.py"):
            if _LOADS.search(path.read_text(encoding="utf-8")):
                files.add(path)
    return sorted(files)


def problems_in(
    files: Iterable[Path],
    *,
    root: Path = ROOT,
    work: Path | None = None,
    declared: tuple[Declared, ...] = DECLARED,
) -> list[str]:
    """Returns one line per problem, ``file:line: what is wrong [versions]``; empty when all is proved.

    Args:
        files: Python files below ``root``.
        root: folder that imports start from.
        work: folder for stubs and mypy's cache, default ``build/tensorrt-api``.
        declared: the errors that may stand; one that no longer occurs is a problem too.
    """
    files = [path.resolve().relative_to(root.resolve()) for path in files]
    sources = {str(path): (root / path).read_text(encoding="utf-8") for path in files}
    surfaces = load_surfaces()
    work = work or root / "build" / "tensorrt-api"
    errors = [
        (file, line, text, _HIDDEN, "")
        for file, source in sources.items()
        for line, text in hidden_names(source, list(surfaces.values()))
    ]
    for version, surface in surfaces.items():
        stubs = _stub_folder(work / version, surface)
        errors += [(*error, version) for error in _mypy_errors(files, root, work, stubs)]
    found: dict[tuple[str, int, str], list[str]] = {}
    unused = [entry for entry in declared if entry.file in sources]
    for file, line, text, code, version in errors:
        row = sources[file].splitlines()[line - 1]
        entries = [d for d in declared if (d.file, d.code) == (file, code) and d.line_holds in row]
        unused = [entry for entry in unused if entry not in entries]
        is_elsewhere = not file.startswith(tuple(f"{folder}/" for folder in FOLDERS))
        if not entries and not (code == "explicit-any" and is_elsewhere):
            found.setdefault((file, line, f"{text}  [{code}]"), []).append(version)
    return [
        f"{file}:{line}: {text}"
        + (f" ({', '.join(seen)})" if all(seen) and len(seen) < len(surfaces) else "")
        for (file, line, text), seen in sorted(found.items())
    ] + [f"{entry.file}: declared but not found: {entry.line_holds}" for entry in unused]


def _stub_folder(folder: Path, surface: dict[str, Any]) -> Path:
    """Writes the stub of one version and mypy's settings into a folder, unless they are there already."""
    files = {"tensorrt/__init__.pyi": stub_from_surface(surface), "mypy.ini": _CONFIG}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return folder.resolve()


def _mypy_errors(
    files: list[Path], root: Path, work: Path, stubs: Path
) -> Iterator[tuple[str, int, str, str]]:
    """Yields (file, line, message, code) of one run of mypy against one version."""
    # One cache for all versions: it goes by content, so only the stub and what uses it are read anew.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(stubs / "mypy.ini"), "--output", "json"),
            *("--cache-dir", str((work / "cache").resolve()), *map(str, files)),
        ],
        cwd=root,
        env=os.environ | {"MYPYPATH": str(stubs)},
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [row for row in done.stdout.splitlines() if row.startswith("{")]
    if done.returncode not in (0, 1) or bool(rows) != bool(done.returncode):
        raise click.ClickException(f"mypy did not run: {(done.stderr or done.stdout).strip()[-300:]}")
    for row in map(json.loads, rows):
        if row["severity"] == "error":
            yield row["file"], row["line"], row["message"], row["code"]


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(files: tuple[Path, ...]) -> None:
    """Checks FILES, or every file of ours that holds a TensorRT name, and exits with 1 on a problem."""
    chosen = list(files) or default_files()
    problems = problems_in(chosen)
    for line in problems:
        click.echo(line)
    versions = ", ".join(load_surfaces())
    click.echo(f"TensorRT names: {len(problems)} problems in {len(chosen)} files against {versions}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
