"""Lightness is a fact: what an import and every --help load, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import runtime

HEAVY = (
    "torch",
    "triton",
    "open_clip",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx_bindings",
    "skimage",
    "sklearn",
    "scipy",
    "matplotlib",
    "tensorboard",
    "cuda",
    "pycuda",
    "safetensors",
    "cv2",
)
COMMANDS = {
    "train": (
        "",
        "demo-data",
        "caption",
        "fit",
        "evaluate",
        "calibrate",
        "import-official",
        "export-official",
    ),
    "export": ("", "build-engine", "onnx", "set-decision", "parity", "verify", "inspect", "doctor"),
    "runtime": ("", "predict", "bench", "info", "selftest"),
    "kernels": ("", "bench", "report"),
}


def loaded_after(code: str) -> set[str]:
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("room", ["kernels", "runtime", "train", "export"])
def test_import__of_a_room_loads_nothing_heavy(room: str) -> None:
    assert loaded_after(f"import {room}") & set(HEAVY) == set()


def test_import__of_kernels_is_light_until_a_name_is_used() -> None:
    assert "torch" in loaded_after("import kernels; kernels.surgery")


@pytest.mark.parametrize(("room", "command"), [(r, c) for r, names in COMMANDS.items() for c in names])
def test_help__of_every_command_loads_nothing_heavy(room: str, command: str) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    loaded = loaded_after(
        f"from {room}.cli import cli\n"
        f"try:\n    cli.main(args={arguments!r}, standalone_mode=False)\nexcept SystemExit:\n    pass"
    )
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize("room", list(COMMANDS))
def test_commands__are_all_listed_here(room: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from {room}.cli import cli; print(*sorted(cli.commands))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == set(COMMANDS[room]) - {""}


@pytest.mark.parametrize("room", list(COMMANDS))
def test_version__is_shown_by_every_command_line(room: str) -> None:
    words = [sys.executable, "-m", room, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"dgsnet-{room}, version {runtime.__version__}\n"
    assert done.stderr == ""
