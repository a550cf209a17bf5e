"""The Python surface of one TensorRT: every class, method, argument, property and enum member, no prose.

pybind11 writes signatures into docstrings and into those of property getters; that is all that is read here.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

SURFACES = Path(__file__).parent / "surfaces"
_SPECIAL = {"__init__", "__len__", "__getitem__", "__setitem__", "__iter__", "__next__", "__contains__"}


def surface_from_module(module: ModuleType, version: str) -> dict[str, Any]:
    """Returns the surface of imported bindings.

    Args:
        module: ``tensorrt``, ``tensorrt_bindings`` or ``tensorrt_rtx_bindings``.
        version: of the distribution, with its build number where it has one.

    Returns:
        ``{"version", "classes": {name: class}, "functions": {name: [signature]}, "values": {name: class}}``;
        a class is ``{"bases", "methods": {name: [signature]}, "properties": {name: [type, settable]},
        "values", "members": [enum member], "classes"}``, each key only where it is not empty.
    """
    package = module.__name__.split(".")[0]
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    classes = {n: v for n, v in own.items() if inspect.isclass(v) and v.__module__.startswith(package)}
    functions = {n: v for n, v in own.items() if inspect.isroutine(v)}
    values = {n: v for n, v in own.items() if type(v) in classes.values()}
    return {
        "version": version,
        "classes": {name: _class(value, package) for name, value in sorted(classes.items())},
        "functions": {name: _signatures(name, value, package) for name, value in sorted(functions.items())},
        "values": {name: type(value).__qualname__ for name, value in sorted(values.items())},
    }


def save_surface(surface: dict[str, Any], path: Path) -> None:
    """Writes a surface with one line per class, so that a new version reads as a diff."""
    groups = []
    for group in ("classes", "functions", "values"):
        rows = (f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in surface[group].items())
        groups.append(f'"{group}": {{\n' + ",\n".join(rows) + "\n}")
    head = f'{{\n"version": {json.dumps(surface["version"])},\n'
    path.write_text(head + ",\n".join(groups) + "\n}\n", encoding="utf-8")


def load_surfaces(folder: Path = SURFACES) -> dict[str, dict[str, Any]]:
    """Returns the kept surfaces by file name without suffix, such as ``tensorrt-10.3.0``."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def names_of(surface: dict[str, Any]) -> set[str]:
    """Returns every name in a surface: of classes, functions, members, methods and properties."""
    found = {*surface.get("classes", {}), *surface.get("functions", {}), *surface.get("values", {})}
    found |= {*surface.get("methods", {}), *surface.get("properties", {}), *surface.get("members", [])}
    return found.union(*map(names_of, surface.get("classes", {}).values()))


def _class(cls: type, package: str) -> dict[str, Any]:
    members = getattr(cls, "__members__", None)
    if members is not None:
        return {"members": sorted(members)}
    found: dict[str, Any] = {
        "bases": [base.__name__ for base in cls.__bases__ if base.__module__.startswith(package)],
        "methods": {},
        "properties": {},
        "values": {},
        "classes": {},
    }
    for name, value in sorted(vars(cls).items()):
        if name.startswith("_") and name not in _SPECIAL:
            continue
        if inspect.isclass(value):
            # Logger.Severity is ILogger's, put there a second time.
            if value.__qualname__.startswith(cls.__qualname__ + "."):
                found["classes"][name] = _class(value, package)
        elif isinstance(value, property):
            found["properties"][name] = [_getter_type(value, package), value.fset is not None]
        elif callable(value) or isinstance(value, staticmethod):
            found["methods"][name] = _signatures(name, getattr(cls, name), package)
        else:
            found["values"][name] = type(value).__qualname__
    return {key: value for key, value in found.items() if value}


def _signatures(name: str, function: Any, package: str) -> list[str]:
    """Returns ``(self: A, b: int = 0) -> C`` for each overload."""
    if inspect.isfunction(function):
        return [str(inspect.signature(function))]
    lines = (function.__doc__ or "").splitlines()
    pattern = re.compile(rf"(?:\d+\. )?{re.escape(name)}(\(.*\)(?: -> .+)?)")
    return [_short(match[1], package) for line in lines if (match := pattern.fullmatch(line.strip()))][
        1 if "Overloaded function." in lines else 0 :
    ]


def _getter_type(value: property, package: str) -> str:
    match = re.search(r" -> (.+)", value.fget.__doc__ or "")
    return _short(match[1].strip(), package) if match else ""


def _short(text: str, package: str) -> str:
    """Drops the paths of modules and C++ namespaces in front of class names."""
    text = re.sub(rf"\b{package}(?:\.\w+)*?\.(?=[A-Z]|[a-z]\w*$)", "", text)
    return re.sub(r"\b(?:\w+::)+(?=[A-Z])", "", text)
