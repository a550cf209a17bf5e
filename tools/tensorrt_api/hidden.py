"""What mypy passes over: names in strings, errors switched off, and branches that it does not read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from tools.tensorrt_api.surface import names_of

# A class whose base the everyday run of mypy knows as Any.
_SUBCLASS = re.compile(r"\s*class \w+\(.+\):  # type: ignore\[misc\]")


def hidden_names(source: str, surfaces: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """Yields (line, problem) for each place of a file where mypy would prove nothing.

    Args:
        source: text of the file.
        surfaces: what the versions have.
    """
    names = [names_of(surface) for surface in surfaces]
    for number, text in enumerate(source.splitlines(), 1):
        if "type: ignore" in text and not _SUBCLASS.fullmatch(text):
            yield number, "found type: ignore, expected an entry with its reason in DECLARED of the check"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _names_at_run_time(node, set.intersection(*names))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from _names_in_text(node, node.func.id, surfaces)
        elif isinstance(node, ast.expr) and _reads_member_by_text(node):
            yield node.lineno, "found a member of an enum by its text, expected the attribute itself"


def _names_at_run_time(node: ast.If, every: set[str]) -> Iterator[tuple[int, str]]:
    for statement in node.orelse:
        for inner in ast.walk(statement):
            if isinstance(inner, ast.Attribute) and inner.attr not in every:
                yield inner.lineno, f"found {inner.attr!r} where mypy does not look; not every version has it"


def _names_in_text(call: ast.Call, called: str, surfaces: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    if called in ("getattr", "setattr"):
        yield call.lineno, f'found {called}(), expected the attribute itself, behind hasattr(owner, "name")'
    elif called == "hasattr":
        owner, name = call.args
        if not isinstance(name, ast.Constant):
            yield call.lineno, "found hasattr() of a name in a variable, expected the name itself"
        elif not any(name.value in _names_of_owner(owner, surface) for surface in surfaces):
            of = f"{ast.unparse(owner)}.{name.value!s}"
            yield call.lineno, f"found hasattr() of {of}, which no version of TensorRT has"


def _names_of_owner(owner: ast.expr, surface: dict[str, Any]) -> set[str]:
    """Returns what an owner can have: what its class has where that is written out, ``api.BuilderFlag``."""
    classes = surface["classes"]
    if isinstance(owner, ast.Attribute) and re.fullmatch(r"[A-Z]\w+", owner.attr):
        return names_of(classes[owner.attr]) if owner.attr in classes else set()
    if getattr(owner, "attr", "") == "api" or getattr(owner, "id", "") == "api":
        return {*classes, *surface["functions"], *surface["values"]}
    return names_of(surface)


def _reads_member_by_text(node: ast.AST) -> bool:
    """Whether a node is ``E.__members__["X"]``, ``E.__members__.get("X")`` or ``"X" in E.__members__``."""
    if isinstance(node, ast.Subscript):
        return _is_members(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "get" and _is_members(node.func.value)
    return isinstance(node, ast.Compare) and any(map(_is_members, node.comparators))


def _is_members(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "__members__"
