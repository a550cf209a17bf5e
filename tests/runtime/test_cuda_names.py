"""Every name of a CUDA binding that our code uses, against the binding itself or facts of its source."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import runtime.cuda
from tests.runtime.fakes.cuda_driver import fake_driver
from tests.runtime.fakes.device import FakeDevice
from tests.runtime.fakes.pycuda_driver import fake_pycuda

CUDA = Path(runtime.cuda.__path__[0])
PYCUDA = json.loads((Path(__file__).parents[1] / "data" / "pycuda_names.json").read_text(encoding="utf-8"))
# pycuda's objects are untyped in our code: which class a method is looked up in.
PYCUDA_OWNERS = {
    "self._device": "Device",
    "self._context": "Context",
    "context": "Context",
    "stream": "Stream",
    "self._streams[stream.handle]": "Stream",
}


def tree_of(name: str) -> ast.Module:
    return ast.parse((CUDA / name).read_text(encoding="utf-8"))


def names_behind(tree: ast.AST, owner: str) -> set[str]:
    """Returns every dotted name that stands behind ``owner``, such as CUresult.CUDA_SUCCESS."""
    found = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    return {text.removeprefix(f"{owner}.") for text in found if text.startswith(f"{owner}.")}


def driver_calls(tree: ast.AST) -> list[tuple[str, int]]:
    """Returns (function, number of arguments) of every ``self._call(self._driver.function, ...)``."""
    aliases = {
        node.targets[0].id: node.value.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
        and ast.unparse(node.value.value) == "self._driver"
    }
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call":
            function = ast.unparse(node.args[0])
            calls.append((aliases.get(function, function.removeprefix("self._driver.")), len(node.args) - 1))
    return calls


@pytest.fixture(scope="module")
def driver() -> Any:
    return pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed here")


def test_cuda_python__has_every_name_that_we_use(driver: Any) -> None:
    tree = tree_of("cuda_python.py")
    names = names_behind(tree, "self._driver") | {
        f"CUdevice_attribute.{name}" for name in names_behind(tree, "attribute")
    }
    assert {"cuMemAlloc", "CUresult.CUDA_SUCCESS"} <= names
    missing = []
    for name in names:
        value = driver
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            missing.append(name)
    assert missing == []


def test_cuda_python__takes_as_many_arguments_as_we_give(driver: Any) -> None:
    calls = driver_calls(tree_of("cuda_python.py"))
    assert len({name for name, _ in calls}) > 20
    wrong = {
        f"{name}: {given} given, it takes {list(inspect.signature(getattr(driver, name)).parameters)}"
        for name, given in calls
        if len(inspect.signature(getattr(driver, name)).parameters) != given
    }
    assert wrong == set()


def test_fake_driver__has_the_signatures_of_the_real_one(driver: Any) -> None:
    fake = fake_driver(FakeDevice())
    for name in [name for name in vars(fake) if name.startswith("cu")]:
        real = list(inspect.signature(getattr(driver, name)).parameters)
        assert list(inspect.signature(getattr(fake, name)).parameters) == real, name
    for kind in ("CUresult", "CUdevice_attribute", "CUstream_flags", "CUstreamCaptureMode"):
        for member in getattr(fake, kind):
            assert int(getattr(getattr(driver, kind), member.name)) == member.value, f"{kind}.{member.name}"
    assert int(driver.CU_MEMHOSTALLOC_DEVICEMAP) == fake.CU_MEMHOSTALLOC_DEVICEMAP


def test_pycuda__has_every_name_that_we_use() -> None:
    tree = tree_of("pycuda_api.py")
    used = names_behind(tree, "self._driver")
    assert {"mem_alloc", "Device.count", "Context.pop"} <= used
    known = set(PYCUDA["functions"]) | set(PYCUDA["classes"]) | {"device_attribute"}
    known |= {f"{name}.{member}" for name, members in PYCUDA["classes"].items() for member in members}
    assert used - known == set()
    assert names_behind(tree, "kinds") <= set(PYCUDA["device_attribute"])
    for owner, name in PYCUDA_OWNERS.items():
        assert names_behind(tree, owner) - {"handle", "native"} <= set(PYCUDA["classes"][name]), owner
    assert names_behind(tree, "allocation") == {"free"}
    for name in ("DeviceAllocation", "PagelockedHostAllocation"):
        assert "free" in PYCUDA["classes"][name]


def test_pycuda__takes_as_many_arguments_as_we_give() -> None:
    checked = set()
    for node in ast.walk(tree_of("pycuda_api.py")):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call":
            name = ast.literal_eval(node.args[0])
            if name in PYCUDA["functions"]:
                arguments = PYCUDA["functions"][name]
                needed = [a for a in arguments if not a.endswith("=")]
                assert len(needed) <= len(node.args) - 2 <= len(arguments), name
                checked.add(name)
    assert checked == set(PYCUDA["functions"])


def test_pycuda__has_no_graphs_as_our_code_says() -> None:
    assert PYCUDA["mentions_of_graph_capture"] == 0


def test_fake_pycuda__has_nothing_that_pycuda_has_not() -> None:
    fake = fake_pycuda(FakeDevice())
    for name in ("Device", "Context", "Stream"):
        members = {m for m in vars(getattr(fake, name)) if not m.startswith("__")}
        assert members <= set(PYCUDA["classes"][name]), name
    for name, arguments in PYCUDA["functions"].items():
        mine = inspect.signature(getattr(fake, name)).parameters
        assert list(mine) == [a.rstrip("=") for a in arguments][: len(mine)], name
