"""A surface as a .pyi file, so that mypy reads our code as if that version of TensorRT were installed."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator
from typing import Any

_HEADER = """\
import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Never, SupportsFloat, SupportsInt, overload
from typing_extensions import Buffer
import tensorrt

__version__: str
"""
_PYTHON = {
    *(
        "Any",
        "Buffer",
        "None",
        "SupportsFloat",
        "SupportsInt",
        "builtins.bool",
        "bytes",
        "dict",
        "float",
        "int",
    ),
    *(
        "list",
        "memoryview",
        "object",
        "slice",
        "str",
        "tuple",
        "Sequence",
        "Iterable",
        "Iterator",
        "Callable",
    ),
}
# TensorRT has a value named bool, and pybind11 writes the C++ name of a class that is declared later.
_RENAMED = {
    **{"List": "list", "Tuple": "tuple", "Dict": "dict", "buffer": "Buffer"},
    **{"bool": "builtins.bool", "IParserError": "ParserError"},
}
_INDENT = "    "


def stub_from_surface(surface: dict[str, Any]) -> str:
    """Returns the text of ``tensorrt/__init__.pyi``.

    Besides what the surface holds there is one class ``_Module``: the module itself as a value. mypy has no
    other type for a module that is chosen when the program runs.
    """
    classes = surface["classes"]
    known = set(classes)
    lines = [_HEADER]
    for name in classes:
        lines += _class_lines(name, classes[name], known)
    module = ["__name__: str", "__version__: str", *(f"{name}: type[tensorrt.{name}]" for name in classes)]
    for name, signatures in surface["functions"].items():
        lines += _callable_lines(name, signatures, known, "function")
        module += _callable_lines(name, signatures, known, "method")
    values = [f"{name}: Final[tensorrt.{of}]" for name, of in surface["values"].items()]
    return "\n".join([*lines, *values, "class _Module:", *_indented([*module, *values])]) + "\n"


def _class_lines(name: str, shape: dict[str, Any], known: set[str]) -> list[str]:
    bases = ", ".join(f"tensorrt.{base}" for base in shape.get("bases", []))
    return [f"class {name.split('.')[-1]}({bases}):", *_indented(_body(name, shape, known))]


def _body(name: str, shape: dict[str, Any], known: set[str]) -> Iterator[str]:
    if "members" in shape:
        yield f"__members__: ClassVar[Mapping[str, tensorrt.{name}]]"
        yield "name: Final[str]"
        yield "value: Final[int]"
        yield "def __init__(self, value: SupportsInt) -> None: ..."
        yield "def __int__(self) -> int: ..."
        yield from (f"{member}: ClassVar[tensorrt.{name}]" for member in shape["members"])
    for inner, inner_shape in shape.get("classes", {}).items():
        yield from _class_lines(f"{name}.{inner}", inner_shape, known)
    for value, of in shape.get("values", {}).items():
        yield f"{value}: ClassVar[{_type(of, known)}]"
    for prop, (kind, settable) in shape.get("properties", {}).items():
        yield "@property"
        yield f"def {prop}(self) -> {_type(kind, known)}: ..."
        if settable:
            yield f"@{prop}.setter"
            yield f"def {prop}(self, value: {_argument(kind, known)} | None) -> None: ..."
    for method, signatures in shape.get("methods", {}).items():
        if signatures or method != "__init__":
            yield from _callable_lines(method, signatures, known, "method")
        else:
            yield "def __init__(self, not_for_callers: Never, /) -> None: ..."
    item = next(iter(shape.get("methods", {}).get("__getitem__", [])), "")
    if item and "__iter__" not in shape["methods"]:
        yield f"def __iter__(self) -> Iterator[{_type(item.rpartition(' -> ')[2], known)}]: ..."
    if name == "IHostMemory":
        # It has the buffer protocol, which a class shows from Python 3.12 on only.
        yield "def __buffer__(self, flags: int, /) -> memoryview: ..."
    yield "..."


def _callable_lines(name: str, signatures: list[str], known: set[str], kind: str) -> list[str]:
    lines = []
    for signature in signatures or ["(self, *args, **kwargs)"]:
        arguments, _, result = signature.rpartition(" -> ") if " -> " in signature else (signature, "", "")
        parts = _split(arguments.strip()[1:-1])
        is_bound = kind == "method" and parts and re.match(r"(self|this)\b", parts[0])
        lines += ["@overload"] if len(signatures) > 1 else []
        given = [_parameter(part, known) for part in (parts[1:] if is_bound else parts)]
        # C++ lets a required argument follow an optional one; Python then needs both.
        last = max((k for k, part in enumerate(given) if " = " not in part), default=0)
        given[:last] = [part.removesuffix(" = ...") for part in given[:last]]
        # pybind11 calls a nameless argument arg0. It is given by position only, and so is one named "in".
        nameless = [k for k, part in enumerate(given) if re.match(r"arg(\d+|_\w+):", part)]
        given[nameless[-1] + 1 if nameless else 0 : 0] = ["/"] if nameless else []
        if kind == "method":
            lines += [] if is_bound else ["@staticmethod"]
            given[0:0] = ["self"] if is_bound else []
        lines.append(f"def {name}({', '.join(given)}) -> {_type(result, known)}: ...")
    return lines


def _parameter(text: str, known: set[str]) -> str:
    match = re.fullmatch(r"(\*{0,2}\w+)(?:\s*:\s*(.+?))?(?:\s*=\s*(.+))?", text)
    if match is None:
        raise ValueError(f"found the argument {text!r}, expected name: type = default")
    name, kind, default = match.groups()
    name = f"arg_{name}" if keyword.iskeyword(name) else name
    optional = " | None" if default == "None" else ""
    return f"{name}: {_argument(kind or '', known)}{optional}{' = ...' if default else ''}"


def _argument(text: str, known: set[str]) -> str:
    """Returns the type that an argument takes: wider than the name where pybind11 converts."""
    kind = re.sub(r"\blist\[", "Sequence[", _type(text, known))
    kind = re.sub(r"\bint\b", "SupportsInt", kind)
    return re.sub(r"\btensorrt\.Dims\b", "tensorrt.Dims | Sequence[int]", kind)


def _type(text: str, known: set[str]) -> str:
    """Returns a type of Python, with Any for what the stub does not know (numpy, C++)."""
    text = re.sub(r"\b(typing|typing_extensions|collections\.abc)\.", "", text.strip())
    if not text or not re.fullmatch(r"[\w.\[\], |]+", text):
        return "Any"
    names = {}
    for word in re.findall(r"[\w.]+", text):
        name = _RENAMED.get(word, word)
        if name.split(".")[0] in known:
            name = f"tensorrt.{name}"
        elif name not in _PYTHON:
            return "Any"
        names[word] = name
    return re.sub(r"[\w.]+", lambda match: names[match[0]], text)


def _split(arguments: str) -> list[str]:
    """Splits at the commas that are inside no bracket."""
    parts, depth, start = [], 0, 0
    for k, letter in enumerate(arguments):
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append(arguments[start:k])
            start = k + 1
    return [part.strip() for part in (*parts, arguments[start:]) if part.strip()]


def _indented(lines: Iterable[str]) -> list[str]:
    return [_INDENT + line for line in lines]
