"""What a user installs: how much it is, where it can be had, and every Python that it says it runs on.

These ask the package index, and so are slow tests; without it they are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runtime

ROOT = Path(runtime.__file__).parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
MOST_MEGABYTES = 200
# manylinux_2_28 stands for JetPack 6 and every server of these years; older platforms run there too.
AARCH64 = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 29)] + ["manylinux2014_aarch64"]
TEST_PACKAGES = ("pytest>=8.3,<10", "hypothesis>=6.100,<7", "onnx>=1.18,<1.24")

pytestmark = pytest.mark.slow


def project() -> dict[str, object]:
    import tomllib

    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def requirements() -> list[str]:
    facts = project()
    return [*facts["dependencies"], *facts["optional-dependencies"]["cpu"]]  # type: ignore[index, misc]


def command(*arguments: object, timeout: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYENV_VERSION")
    } | variables
    return subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment,
    )


def pip(python: Path | str, *arguments: object) -> None:
    done = command(python, "-m", "pip", "--disable-pip-version-check", *arguments)
    if done.returncode and any(
        text in done.stderr for text in ("connection", "Temporary failure", "Retrying")
    ):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr[-3000:]


def is_runnable(python: str, version: str) -> bool:
    """Says whether it is a Python of this version; version managers leave names that run nothing."""
    done = command(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    return done.stdout.strip() == version


def interpreter(version: str) -> str | None:
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    found = [str(p) for p in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    found += [name for name in [shutil.which(f"python{version}")] if name]
    return next((python for python in found if is_runnable(python, version)), None)


@pytest.fixture
def make_venv(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    def make(python: str) -> Path:
        done = command(python, "-m", "venv", tmp_path / "venv")
        assert done.returncode == 0, done.stderr
        return tmp_path / "venv" / "bin" / "python"

    yield make
    shutil.rmtree(tmp_path / "venv", ignore_errors=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what is packed: a build writes beside its sources."""
    folder = tmp_path / "source"
    for name in ("train", "export", "runtime", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def megabytes(folder: Path) -> float:
    """Returns what the files take, in units of 10^6 bytes; bytecode caches are no part of an installation."""
    files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sum(p.stat().st_size for p in files) / 1e6


def test_install__of_cpu_stays_small_and_judges_a_picture(
    make_venv: Callable[[str], Path], source: Path, bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    newest = next(p for v in reversed(VERSIONS) if (p := interpreter(v)) is not None and v != "3.10")
    python = make_venv(newest)
    purelib = command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    before = megabytes(Path(purelib))
    pip(python, "install", "--quiet", "--no-compile", f"{source}[cpu]")
    added = megabytes(Path(purelib)) - before
    assert 100 < added <= MOST_MEGABYTES, f"{added:.0f} MB"
    names = command(python, "-m", "pip", "list", "--format=freeze").stdout.lower()
    assert not any(name in names for name in ("torch", "scipy", "sympy", "tensorrt"))
    script = python.parent / "dgsnet-runtime"
    done = command(script, "predict", bundle, pictures[0], "--cache-dir", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert str(pictures[0]) in done.stdout
    heavy = "import sys, runtime; print(*{'numpy', 'PIL', 'onnxruntime', 'click'} & set(sys.modules))"
    assert command(python, "-c", heavy).stdout.split() == []


@pytest.mark.parametrize("version", VERSIONS)
def test_dependencies__have_wheels_for_aarch64(version: str, tmp_path: Path) -> None:
    """Each requirement, and all that it brings, for the boards that the runtime is made for."""
    pip(
        sys.executable, "download", "--quiet", "--only-binary=:all:", "--dest", tmp_path,
        "--python-version", version, "--implementation", "cp", "--abi", f"cp{version.replace('.', '')}",
        "--abi", "abi3", "--abi", "none",
        *(word for platform in AARCH64 for word in ("--platform", platform)), *requirements(),
    )  # fmt: skip
    wheels = sorted(path.name for path in tmp_path.glob("*.whl"))
    assert {name.split("-")[0].lower() for name in wheels} >= {"numpy", "pillow", "click", "onnxruntime"}
    assert all(name.endswith(("aarch64.whl", "-none-any.whl")) for name in wheels), wheels


@pytest.mark.parametrize("version", VERSIONS)
def test_runtime__passes_its_tests_on(version: str, make_venv: Callable[[str], Path], tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} found")
    inside = make_venv(python)
    pip(inside, "install", "--quiet", *requirements(), *TEST_PACKAGES)
    done = command(
        inside, "-m", "pytest", "-q", "-m", "not slow and not gpu and not tensorrt", "-p", "no:cacheprovider",
        "--rootdir", ROOT, "-c", ROOT / "pyproject.toml", f"--basetemp={tmp_path / 'inner'}",
        ROOT / "tests" / "runtime", timeout=1500, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
