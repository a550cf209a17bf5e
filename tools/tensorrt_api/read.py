"""Reads the surface of TensorRT off a bindings wheel, without TensorRT's libraries and without a GPU.

The extension module in the wheel needs three shared libraries and ten C functions of them when it is
imported, and calls none. Three libraries that return 0 are compiled here in their place (``cc`` is needed).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path

import click

from tools.tensorrt_api.surface import SURFACES, save_surface, surface_from_module

_LIBRARY = re.compile(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+")
_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getInferLibVersion",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)


def read_wheel(wheel: Path, output: Path) -> None:
    """Writes the surface of a bindings wheel, read by a child process that sees the empty libraries.

    Args:
        wheel: ``tensorrt_cu12_bindings-10.3.0-cp311-...whl``, for the Python that runs this.
        output: JSON file to write.

    Raises:
        click.ClickException: the wheel is none of TensorRT's bindings, or cannot be imported.
    """
    match = re.match(r"tensorrt_cu\d+_bindings-([\d.]+)-(cp\d+)-", wheel.name)
    if match is None:
        raise click.ClickException(f"{wheel.name}: expected a wheel tensorrt_cu<NN>_bindings-<version>-...")
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if match[2] != here:
        raise click.ClickException(f"{wheel.name}: found a wheel for {match[2]}, expected {here}")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        for extension in Path(folder, "tensorrt_bindings").glob("*.so"):
            for name in set(_LIBRARY.findall(extension.read_bytes())):
                compile_empty_library(Path(folder, name.decode()))
        child = subprocess.run(
            [sys.executable, "-m", "tools.tensorrt_api.read", "tensorrt_bindings", match[1], str(output)],
            env=os.environ | {"LD_LIBRARY_PATH": folder, "PYTHONPATH": f"{folder}{os.pathsep}{_root()}"},
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode:
        raise click.ClickException(f"{wheel.name}: cannot be read: {child.stderr.strip().splitlines()[-1]}")


def compile_empty_library(path: Path) -> None:
    """Writes a shared library in which every function that the bindings ask for returns 0."""
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS)
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)


def _root() -> Path:
    return Path(__file__).parents[2]


@click.command()
@click.argument("source")
@click.argument("version", required=False)
@click.argument("output", required=False, type=click.Path(path_type=Path))
def main(source: str, version: str | None, output: Path | None) -> None:
    """Reads SOURCE, a bindings wheel or the name of an importable module, into surfaces/."""
    if source.endswith(".whl"):
        wheel = Path(source)
        read_wheel(wheel, output or SURFACES / f"tensorrt-{wheel.name.split('-')[1]}.json")
        return
    module = import_module(source)
    version = version or str(module.__version__)
    name = source.removesuffix("_bindings")
    save_surface(surface_from_module(module, version), output or SURFACES / f"{name}-{version}.json")


if __name__ == "__main__":
    main()
