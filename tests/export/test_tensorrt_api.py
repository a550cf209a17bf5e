"""The check of TensorRT names: it passes our code, and each kind of mistake makes it fail."""

from __future__ import annotations

import ast
import ctypes
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import cast

import click
import pytest

from tools.tensorrt_api.check import DECLARED, Declared, default_files, problems_in
from tools.tensorrt_api.read import compile_empty_library, read_wheel
from tools.tensorrt_api.stubs import stub_from_surface
from tools.tensorrt_api.surface import SURFACES, load_surfaces, names_of, save_surface, surface_from_module

ROOT = Path(__file__).parents[2]
VERSIONS = (
    "tensorrt-10.13.0.35",
    "tensorrt-10.16.0.72",
    "tensorrt-10.3.0",
    "tensorrt-11.4.0.106",
    "tensorrt_rtx-1.7.1.116",
)
OLD, V11, RTX = VERSIONS[:3], VERSIONS[3], VERSIONS[4]
HEAD = """\
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import tensorrt
def use(
    api: tensorrt._Module, builder: tensorrt.Builder, config: tensorrt.IBuilderConfig,
    network: tensorrt.INetworkDefinition, layer: tensorrt.ILayer, runtime: tensorrt.Runtime,
) -> None:
    'uses TensorRT'
"""
# name: (what the line under test says, what is found, the versions in which it is found)
MISTAKES = {
    "misspelt method": ("builder.create_bilder_config()", "has no attribute", VERSIONS),
    "misspelt class": ("api.OnnxPasrer(network, api.Logger())", "has no attribute", VERSIONS),
    "misspelt property": ("config.progres_monitor = None", "has no attribute", VERSIONS),
    "misspelt property of a layer's output": ("layer.get_output(0).dtpye", "has no attribute", VERSIONS),
    "misspelt enum member": ("config.clear_flag(api.BuilderFlag.TF23)", "has no attribute", VERSIONS),
    "removed flag": ("config.set_flag(api.BuilderFlag.FP16)", '"FP16"', (V11, RTX)),
    "removed property": ("builder.platform_has_fast_fp16", "platform_has_fast_fp16", (V11, RTX)),
    "removed in 10": ("config.max_workspace_size = 1", "max_workspace_size", VERSIONS),
    "later than 10.13": (
        "network.add_attention(layer.get_output(0), layer.get_output(0), layer.get_output(0), "
        "api.AttentionNormalizationOp.SOFTMAX, False)",
        '"add_attention"',
        (VERSIONS[0], VERSIONS[2]),
    ),
    "one version only": ("config.num_compute_capabilities = 1", "num_compute_capabilities", (*OLD, V11)),
    "one family only": ("api.ComputeCapability.SM86", '"ComputeCapability"', (*OLD, V11)),
    "later than 10.3": ("api.BuilderFlag.EDITABLE_TIMING_CACHE", "EDITABLE_TIMING_CACHE", (VERSIONS[2],)),
    "a keyword of later versions": (
        "builder.build_serialized_network(network, config, kernel_text=None)",
        "kernel_text",
        (VERSIONS[0], VERSIONS[2], RTX),
    ),
    "wrong keyword": ("config.set_flag(flags=api.BuilderFlag.TF32)", "Unexpected keyword argument", VERSIONS),
    "too many arguments": ("config.set_flag(api.BuilderFlag.TF32, True)", "Too many arguments", VERSIONS),
    "too few arguments": (
        "builder.build_serialized_network(network)",
        "Missing positional argument",
        VERSIONS,
    ),
    "arguments in the wrong order": (
        "builder.build_serialized_network(config, network)",
        "incompatible type",
        VERSIONS,
    ),
    "a value of another enum": ("config.set_flag(api.DataType.HALF)", "incompatible type", VERSIONS),
    "a class that is never made": ("api.IBuilderConfig()", "Too few arguments", VERSIONS),
    "a property that cannot be set": ("network.num_layers = 3", "read-only", VERSIONS),
    "overload that does not exist": ("builder.create_network(0, 1)", "Too many arguments", VERSIONS),
    "a method on a layer of another kind": ("layer.attention", '"attention"', VERSIONS),
    "behind the test of another name": (
        'if hasattr(config, "num_compute_capabilities"):\n        config.get_compute_capability(0)',
        "get_compute_capability",
        (*OLD, V11),
    ),
    "wrong where a tested name exists": (
        'if hasattr(config, "set_compute_capability"):\n        config.set_compute_capability(0)',
        "Missing positional argument",
        (RTX,),
    ),
    "used after the test": (
        'if hasattr(api.BuilderFlag, "FP16"):\n        pass\n    api.BuilderFlag.FP16',
        '"FP16"',
        (V11, RTX),
    ),
    "misspelt callback argument": (
        "class M(tensorrt.IProgressMonitor):\n        def phase_start(self, name: str) -> None: ...",
        "Signature of",
        VERSIONS,
    ),
    "test of a name that nothing has": ('if hasattr(config, "bogus"):\n        pass', "bogus", ()),
    "test of a name that another enum has": (
        'if hasattr(api.BuilderFlag, "HALF"):\n        pass',
        "hasattr() of api.BuilderFlag.HALF",
        (),
    ),
    "test of a class that the module lacks": ('if hasattr(api, "HALF"):\n        pass', "api.HALF", ()),
    "name in a string": ('getattr(config, "set_flag")', "found getattr()", ()),
    "member in a string": ('api.LayerType.__members__["CONV"]', "member of an enum by its text", ()),
    "member looked up": ('api.LayerType.__members__.get("CONV")', "member of an enum by its text", ()),
    "member asked for": ('"CONV" in api.LayerType.__members__', "member of an enum by its text", ()),
    "name of one version in the other branch": (
        "if TYPE_CHECKING:\n        base = 1\n    else:\n        base = api.ComputeCapability",
        "found 'ComputeCapability' where mypy does not look",
        (),
    ),
    "errors switched off": ("builder.nothing()  # type: ignore[attr-defined]", "found type: ignore", ()),
}
RIGHT = """\
    log = api.Logger(api.Logger.WARNING)
    api.OnnxParser(network=network, logger=log).get_error(0).desc()
    config.clear_flag(flag=api.BuilderFlag.TF32)
    builder.create_optimization_profile().set_shape("x", (1, 3), (2, 3), (4, 3))
    runtime.deserialize_cuda_engine(builder.build_serialized_network(network, config))
    sum(layer.get_output(0).shape)
    if hasattr(api.BuilderFlag, "FP16"):
        config.set_flag(api.BuilderFlag.FP16)
    if not hasattr(api, "ComputeCapability") or not hasattr(config, "set_compute_capability"):
        return
    config.set_compute_capability(api.ComputeCapability.SM86, 0)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the check says of each mistake, all from one run, because each starts mypy five times."""
    root = tmp_path_factory.mktemp("mistakes")
    names = {f"mistake_{k}.py": name for k, name in enumerate(MISTAKES)}
    for file, name in names.items():
        (root / file).write_text(f"{HEAD}    {MISTAKES[name][0]}\n", encoding="utf-8")
    (root / "right.py").write_text(HEAD + RIGHT, encoding="utf-8")
    lines = problems_in(root.glob("*.py"), root=root, declared=())
    return {
        name: [line for line in lines if line.startswith(file + ":")]
        for file, name in {**names, "right.py": "right"}.items()
    }


@pytest.mark.parametrize("name", list(MISTAKES))
def test_check__finds(name: str, found: dict[str, list[str]]) -> None:
    _, message, versions = MISTAKES[name]
    assert any(message in line for line in found[name]), found[name]
    # Overloads make mypy word the same mistake in another way for another version.
    named = [re.search(r" \((tensorrt[^()]+)\)$", line) for line in found[name]]
    lists = [match[1].split(", ") if match else list(VERSIONS) for match in named]
    assert {version for names in lists for version in names} == set(versions or VERSIONS), found[name]


def test_check__passes_right_use_and_feature_tests(found: dict[str, list[str]]) -> None:
    assert found["right"] == []


def test_check__our_code_is_proved_against_five_versions() -> None:
    files = default_files()
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"export/engine/builder.py", "export/engine/watch.py", "export/engine/trt_module.py"} <= names
    assert tuple(load_surfaces()) == VERSIONS
    assert problems_in(files) == []


def test_check__any_hides_names_and_is_refused(tmp_path: Path) -> None:
    for folder in ("export/engine", "export"):
        path = tmp_path / folder / "built.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from typing import Any\ndef use(builder: Any) -> None: ...\n", encoding="utf-8")
    lines = problems_in(tmp_path.rglob("*.py"), root=tmp_path, declared=())
    assert lines == ['export/engine/built.py:2: Explicit "Any" is not allowed  [explicit-any]']


def test_check__a_declared_error_may_stand_until_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def use(a: int) -> str:\n    return a\n", encoding="utf-8")
    entry = Declared("a.py", "return a", "return-value", "a test")
    assert problems_in([tmp_path / "a.py"], root=tmp_path, declared=(entry,)) == []
    (tmp_path / "a.py").write_text("def use(a: str) -> str:\n    return a\n", encoding="utf-8")
    assert problems_in([tmp_path / "a.py"], root=tmp_path, declared=(entry,)) == [
        "a.py: declared but not found: return a"
    ]
    assert all(entry.reason for entry in DECLARED)


def test_check__exits_with_1_on_a_problem(tmp_path: Path) -> None:
    path = ROOT / "build" / "tensorrt-api" / "with_a_mistake.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEAD}    builder.nothing()\n", encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tools.tensorrt_api.check", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.unlink()
    assert done.returncode == 1
    assert 'with_a_mistake.py:10: "Builder" has no attribute "nothing"' in done.stdout
    assert "TensorRT names: 1 problems in 1 files" in done.stdout


@pytest.fixture
def bindings() -> ModuleType:
    """The installed TensorRT-RTX, imported as load_trt does."""
    pytest.importorskip("tensorrt_rtx_bindings", reason='pip install "dgsnet[tensorrt-rtx]"')
    from export.engine.trt_module import load_trt

    return cast(ModuleType, load_trt("tensorrt-rtx").api)


def test_surface__kept_one_is_what_the_installed_bindings_show(bindings: ModuleType, tmp_path: Path) -> None:
    kept = SURFACES / f"tensorrt_rtx-{bindings.__version__}.json"
    if not kept.is_file():
        pytest.skip(f"TensorRT-RTX {bindings.__version__} is installed; {RTX} is kept")
    save_surface(surface_from_module(bindings, bindings.__version__), tmp_path / "read.json")
    assert (tmp_path / "read.json").read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")


def test_surface__holds_what_the_versions_differ_in() -> None:
    surfaces = load_surfaces()
    flags = {name: set(surface["classes"]["BuilderFlag"]["members"]) for name, surface in surfaces.items()}
    assert {name for name, members in flags.items() if "FP16" in members} == set(OLD)
    assert {name for name, surface in surfaces.items() if "ComputeCapability" in surface["classes"]} == {RTX}
    dtype = {name: surface["classes"]["ITensor"]["properties"]["dtype"] for name, surface in surfaces.items()}
    assert dtype[OLD[2]] == ["DataType", True]
    assert dtype[V11] == ["DataType", False]
    named = {"Builder", "create_network", "TF32", "volume", "float32", "INTERNAL_ERROR"}
    assert named <= names_of(surfaces[V11])


def test_stub__says_what_pybind11_takes() -> None:
    surface = {
        "version": "1.0",
        "classes": {
            "Dims": {"methods": {"__getitem__": ["(self: Dims, arg0: int) -> int"]}},
            "Kind": {"members": ["A", "B"]},
            "Maker": {
                "bases": ["Dims"],
                "methods": {
                    "__init__": [],
                    "go": ["(self: Maker, shape: Dims, a: Kind = <A: 0>, text: str = None) -> List[int]"],
                    "mixed": ["(self: Maker, a: int = 0, b: x::Odd[2]) -> bool"],
                },
                "properties": {"kind": ["Kind", True], "size": ["int", False]},
            },
        },
        "functions": {"volume": ["(iterable)"]},
        "values": {"first": "Kind"},
    }
    rows = [row.strip() for row in stub_from_surface(surface).splitlines()]
    ast.parse(stub_from_surface(surface))
    for expected in (
        "def __getitem__(self, arg0: SupportsInt, /) -> int: ...",
        "def __iter__(self) -> Iterator[int]: ...",
        "class Maker(tensorrt.Dims):",
        "def __init__(self, not_for_callers: Never, /) -> None: ...",
        "def go(self, shape: tensorrt.Dims | Sequence[int], a: tensorrt.Kind = ..., text: str | None = ...)"
        " -> list[int]: ...",
        "def mixed(self, a: SupportsInt, b: Any) -> builtins.bool: ...",
        "def kind(self, value: tensorrt.Kind | None) -> None: ...",
        "A: ClassVar[tensorrt.Kind]",
        "def volume(iterable: Any) -> Any: ...",
        "Maker: type[tensorrt.Maker]",
        "first: Final[tensorrt.Kind]",
    ):
        assert expected in rows
    assert "def size(self, value: SupportsInt | None) -> None: ..." not in rows


def test_read__a_wheel_is_read_in_a_child_process(tmp_path: Path) -> None:
    code = "class Builder:\n    def build(self, network): ...\nclass Flag:\n    __members__ = {'A': 1}\n"
    wheel = tmp_path / f"tensorrt_cu13_bindings-9.9.9-cp{sys.version_info[0]}{sys.version_info[1]}-none.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tensorrt_bindings/__init__.py", code)
    read_wheel(wheel, tmp_path / "read.json")
    surface = json.loads((tmp_path / "read.json").read_text(encoding="utf-8"))
    assert surface["version"] == "9.9.9"
    assert surface["classes"]["Builder"]["methods"] == {"build": ["(self, network)"]}
    assert surface["classes"]["Flag"] == {"members": ["A"]}
    with pytest.raises(click.ClickException, match="found a wheel for cp26, expected cp3"):
        read_wheel(Path("tensorrt_cu12_bindings-10.3.0-cp26-none.whl"), tmp_path / "a.json")
    with pytest.raises(click.ClickException, match="expected a wheel tensorrt_cu<NN>_bindings"):
        read_wheel(Path("numpy-2.4.0-cp311-none.whl"), tmp_path / "a.json")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_read__empty_libraries_have_what_the_bindings_ask_for(tmp_path: Path) -> None:
    compile_empty_library(tmp_path / "libnvinfer.so.10")
    library = ctypes.CDLL(str(tmp_path / "libnvinfer.so.10"))
    assert library.createInferBuilder_INTERNAL() == 0
    assert library.initLibNvInferPlugins() == 0
