"""The file name of an engine, and the two spellings of a GPU architecture."""

from __future__ import annotations

import re

from runtime.errors import UsageError

_VERSION_PREFIX = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}
_TARGET = re.compile(r"(?:sm)?_?(\d{1,2})(?:\.(\d))?")
_VERSION = re.compile(r"\d+(\.\d+){3}")


def target_from_text(text: str) -> str:
    """Returns the one spelling, ``sm_86``, of what may be written ``sm_86``, ``sm86``, ``86`` or ``8.6``.

    Raises:
        UsageError: it is none of these.
    """
    lowered = text.strip().lower()
    match = _TARGET.fullmatch(lowered)
    digits = "".join(part for part in match.groups() if part) if match else ""
    if len(digits) < 2 and not re.fullmatch(r"(?:sm)?_?\d{3}", lowered):
        raise UsageError(f"target {text!r}: expected a GPU architecture such as sm_86 or 8.6")
    return "sm_" + (digits if len(digits) >= 2 else re.sub(r"\D", "", lowered))


def target_number(target: str) -> int:
    """Returns 86 for ``sm_86``; the order in which targets are listed."""
    return int(target.removeprefix("sm_"))


def slug_from_text(text: str) -> str:
    """Returns a model's name as file names can hold it: lower-case letters, digits, ``.`` and ``-``.

    Raises:
        UsageError: nothing is left of it.
    """
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    if not slug:
        raise UsageError(f"model name {text!r}: expected at least one letter or digit")
    return slug[:80]


def engine_file_name(
    slug: str,
    precision: str,
    profile: tuple[int, int, int],
    targets: tuple[str, ...],
    backend: str,
    version: str,
) -> str:
    """Returns ``<slug>_<precision>_b<min>-<opt>-<max>_<sm86+sm89>_<rtx1.7.1.116>.engine``.

    Args:
        slug: name of the model; other characters than letters, digits, ``.`` and ``-`` become ``-``.
        precision: "fp16" or "fp32".
        profile: (min, opt, max) batch sizes.
        targets: architectures, each ``sm_<NN>``.
        backend: "tensorrt" or "tensorrt-rtx".
        version: four-part version of the library that built the engine.

    Raises:
        UsageError: the backend builds no engines, there is no target, or the version has not four parts.
    """
    if backend not in _VERSION_PREFIX:
        raise UsageError(
            f"backend {backend!r} builds no engine files, expected one of {sorted(_VERSION_PREFIX)}"
        )
    if not _VERSION.fullmatch(version) or not targets:
        raise UsageError(
            f"engine name: found version {version!r} and {len(targets)} targets, expected a.b.c.d and 1+"
        )
    places = "+".join(sorted((target.replace("_", "") for target in targets), key=lambda sm: int(sm[2:])))
    batch = "-".join(str(size) for size in profile)
    return f"{slug_from_text(slug)}_{precision}_b{batch}_{places}_{_VERSION_PREFIX[backend]}{version}.engine"
