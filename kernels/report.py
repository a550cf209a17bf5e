"""Resources of the compiled kernels, per target, found by building them here without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kernels.gradient_surgery import triton_kernel

# Orin and Hopper with every width; what else CLIP is trained on, and Thor, with ViT-L's.
WIDE_TARGETS = (87, 90)
NARROW_TARGETS = (80, 86, 89, 100, 110, 120)
WIDTHS = (512, 768, 1000, 1024, 1280, 4096, 513)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMS = ("affine", "general")
MAX_REGISTERS = 64
# Below this many bytes a row no longer fills the warps with 16-byte accesses.
MIN_VECTOR_ROW_BYTES = 512
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class Variant:
    """One kernel to build: form, width, dtype and the options that are fixed at build time."""

    form: str
    target: int
    width: int
    dtype: str
    order: str = "released"
    harm: str = "positive"
    stats: bool = False


@dataclass
class Row:
    """What a build takes; not ``supported``, and the rest 0, where the installed triton lacks the target.

    spills counts the local loads and stores of the machine code; shared and stack are bytes; mix counts the
    machine's instructions by kind.
    """

    variant: Variant
    supported: bool = True
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    warps: int = 0
    mix: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def list_variants(
    forms: Iterable[str] = FORMS,
    dtypes: Iterable[str] = tuple(DTYPES),
    targets: Iterable[int] = (),
    widths: Iterable[int] = (),
) -> Iterator[Variant]:
    """Yields the report's builds; without ``targets`` and ``widths`` those named at the top of this file."""
    targets, widths = tuple(targets), tuple(widths)
    for form in forms:
        for dtype in dtypes:
            for target in targets or WIDE_TARGETS + NARROW_TARGETS:
                chosen = widths or (WIDTHS if targets or target in WIDE_TARGETS else (768,))
                for width in chosen:
                    yield Variant(form, target, width, dtype)


def measure(variant: Variant) -> Row:
    """Builds one kernel and reads its resources back.

    Raises:
        ValueError: TRITON_INTERPRET is set, so that nothing can be compiled.
    """
    if not triton_kernel.can_build(variant.target):
        return Row(variant, supported=False)
    built = triton_kernel.build(
        variant.target, variant.width, DTYPES[variant.dtype],
        affine=variant.form == "affine", paper=variant.order == "paper", full=variant.harm == "full",
        stats=variant.stats,
    )  # fmt: skip
    registers, stack, instructions = _disassemble(built.asm["cubin"])
    row = Row(
        variant,
        registers=registers,
        stack=stack,
        spills=_count(instructions, "LDL") + _count(instructions, "STL"),
        shared=built.metadata.shared,
        warps=built.metadata.num_warps,
        mix=_mix(instructions),
    )
    row.problems = _problems(row, built)
    return row


def _disassemble(cubin: bytes) -> tuple[int, int, Counter[str]]:
    """Returns registers, stack bytes and the count of every machine instruction."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run(
                [triton_kernel.DISASSEMBLER, option, str(path)], capture_output=True, text=True, check=True
            ).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    found = _RESOURCES.search(usage)
    if found is None:
        raise ValueError(f"cuobjdump: found {usage[:200]!r}, expected REG and STACK")
    return int(found[1]), int(found[2]), Counter(_INSTRUCTION.findall(code))


def _count(instructions: Counter[str], *prefixes: str) -> int:
    return sum(n for name, n in instructions.items() if name.startswith(prefixes))


def _mix(instructions: Counter[str]) -> dict[str, int]:
    loads, stores = _count(instructions, "LDG"), _count(instructions, "STG")
    vector_loads = sum(n for name, n in instructions.items() if name.startswith("LDG") and ".128" in name)
    vector_stores = sum(n for name, n in instructions.items() if name.startswith("STG") and ".128" in name)
    return {
        "all": instructions.total(),
        "load_128": vector_loads,
        "load_less": loads - vector_loads,
        "store_128": vector_stores,
        "store_less": stores - vector_stores,
        "float": _count(instructions, "FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "MUFU"),
        "shuffle": _count(instructions, "SHFL", "REDUX", "CREDUX"),
        "shared_access": _count(instructions, "LDS", "STS"),
        "barrier": _count(instructions, "BAR"),
    }


def _problems(row: Row, built: Any) -> list[str]:
    problems = []
    if row.spills or row.stack:
        problems.append(f"{row.spills} spills, {row.stack} bytes of stack, expected none")
    if row.registers > MAX_REGISTERS:
        problems.append(f"{row.registers} registers, expected at most {MAX_REGISTERS}")
    variant = row.variant
    # A maximum that drops NaN would let a broken row pass for a clean one.
    wanted = ("min.NaN.f32",) if variant.harm == "full" else ("min.NaN.f32", "max.NaN.f32")
    problems += [f"no {name} in the code" for name in wanted if name not in built.asm["ptx"]]
    problems += _vector_problems(row)
    return problems


def _vector_problems(row: Row) -> list[str]:
    """Looks for accesses to grad of less than 16 bytes, where a row's length allows 16."""
    variant = row.variant
    size = DTYPES[variant.dtype].itemsize
    if variant.width * size % 16 or variant.width * size < MIN_VECTOR_ROW_BYTES:
        return []
    block, rows, _ = triton_kernel.shape_tile(variant.width)
    accesses = block * rows * size // (row.warps * 32 * 16)
    # The affine loop reads grad at two places (ahead of it, and for the next round); weights come on top.
    tensors = 2 if variant.form == "affine" else 3
    # Both residuals for the rows that a thread sees, likewise at two places, and weights of which it holds
    # less than 16 bytes. Were grad loaded element by element, there would be at least 8 more.
    residuals = 4 * min(rows, 2 * accesses)
    small_loads = residuals + 2 * (block < 4 * 32 * row.warps) if variant.form == "affine" else 0
    small_stores = 3 * accesses if variant.stats else 0
    problems = []
    for kind, least, most in (
        ("load", tensors * accesses, small_loads), ("store", accesses, small_stores)
    ):  # fmt: skip
        wide, narrow = row.mix[f"{kind}_128"], row.mix[f"{kind}_less"]
        if wide < least or narrow > most:
            problems.append(
                f"{kind}s: found {wide} of 16 bytes and {narrow} of less, "
                f"expected at least {least} and at most {most}"
            )
    return problems
