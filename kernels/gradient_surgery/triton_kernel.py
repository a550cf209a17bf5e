"""The Triton kernels of gradient surgery, their launcher, and their build for a GPU that is not here.

The only file that imports triton. A program works on a tile of ROWS rows by BLOCK columns, BLOCK being WIDTH
rounded up to a power of two; arithmetic and sums are fp32, whatever the gradient's dtype.
"""

from __future__ import annotations

import inspect
import subprocess
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

INTERPRETED = triton.knobs.runtime.interpret
if isinstance(tl.sum, triton.JITFunction) == INTERPRETED:
    raise ImportError("TRITON_INTERPRET: changed after triton was imported, expected it to be set before")

VERSION = triton.__version__
DISASSEMBLER = triton.knobs.nvidia.cuobjdump.path
MAX_WIDTH = 4096
# Row numbers are 32-bit, and the loop looks one step of all programs past the last row.
MAX_ROWS = 2**31 - 2**22
# With 8 elements a thread the weights, this gradient and the next one fit into 64 registers, on which the
# number of resident programs counts. A tile of 512 gives weights and gradient the same layout from D = 257
# on; where they differ, each row pays a conversion.
TILE = 512
OPTIONS = {"enable_fp_fusion": True, "maxnreg": 64}
WARPS_PER_MULTIPROCESSOR = 32
TINY = tl.constexpr(2.0**-126)
HUGE = tl.constexpr(2.0**126)
_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
# What the driver would otherwise turn into one more build per value.
_PLAIN = [
    "rows", "align", "eps", "grad_row", "grad_col", "out_row", "out_col",
    "text_row", "text_col", "image_row", "image_col",
]  # fmt: skip


@triton.jit
def _relu(values):
    # Without the flag a maximum drops NaN, and a broken row would pass for a clean one.
    return tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _help(g_image, align):
    """Prior alignment: align * min(g_image, 0)."""
    return align * tl.minimum(g_image, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _peak(values):
    """Power of two at or below each row's largest magnitude, never 0, infinite where the row is not finite.

    Dividing by it is exact and keeps the squares of very small and very large rows in range.
    """
    largest = tl.maximum(tl.max(tl.abs(values), axis=1, keep_dims=True), TINY)
    return (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _norm(values):
    return tl.sqrt_rn(tl.sum(values * values, axis=1, keep_dims=True))


@triton.jit
def _add_pairs(up, down, other_up, other_down):
    # Two sums in one reduction: threads meet once rather than twice.
    return up + other_up, down + other_down


@triton.jit
def _inverse(length):
    """1 / length to the last bit or so, 0 for 0; IEEE division costs 12 registers more and once spilled."""
    length = tl.minimum(length, HUGE)
    guess = 1.0 / length
    guess = tl.fma(guess, tl.fma(-length, guess, 1.0), guess)
    return tl.where(length == 0.0, 0.0, guess)


@triton.jit
def _tile(base, row, col, row_stride, col_stride, WIDTH: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """Addresses of a tile; 64-bit offsets, and a stride that is known at build time where it can be."""
    if CONTIGUOUS:
        return base + row.to(tl.int64) * WIDTH + col
    return base + row.to(tl.int64) * row_stride + col.to(tl.int64) * col_stride


@triton.jit
def _operate(g, harm, help_term, poison, row, live, stats_ptr, PAPER: tl.constexpr):
    """Adds the help term and projects off harm, in the named order; [ROWS, BLOCK] fp32 throughout.

    poison is 0, or NaN where an input that may have been clipped away was not finite.
    """
    operand = g if PAPER else g + help_term
    share = tl.sum(operand * harm + poison, axis=1, keep_dims=True)
    result = operand - share * harm
    if PAPER:
        result += help_term
    if stats_ptr is not None:
        at = stats_ptr + row.to(tl.int64) * 3
        tl.store(at, tl.sum(operand * operand, axis=1, keep_dims=True), mask=live)
        tl.store(at + 1, share, mask=live)
        tl.store(at + 2, tl.sum(help_term * help_term, axis=1, keep_dims=True), mask=live)
    return result


@triton.jit(do_not_specialize=_PLAIN[:7])
def surgery_affine_kernel(
    grad_ptr, text_ptr, image_ptr, r_text_ptr, r_image_ptr, out_ptr, stats_ptr,
    rows, align, eps, grad_row, grad_col, out_row, out_col,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    CONTIGUOUS: tl.constexpr, PAPER: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """g_text[b] = r_text[b] w_text and g_image[b] = r_image[b] w_image.

    A program keeps both weights and the two possible lengths of the harmful direction, then takes every
    num_programs-th group of ROWS rows and asks for the next group before it works on this one. It asks for
    its first group before it measures the weights, so that a small batch waits for memory once.
    """
    col = tl.arange(0, BLOCK)[None, :]
    inside = col < WIDTH
    first = tl.program_id(0) * ROWS
    step = tl.num_programs(0) * ROWS
    row = first + tl.arange(0, ROWS)[:, None]
    at = _tile(grad_ptr, row, col, grad_row, grad_col, WIDTH, CONTIGUOUS)
    ahead = tl.load(at, mask=(row < rows) & inside, other=0.0)
    r_text_ahead = tl.load(r_text_ptr + row, mask=row < rows, other=0.0)
    r_image_ahead = tl.load(r_image_ptr + row, mask=row < rows, other=0.0)
    w_text = tl.load(text_ptr + col, mask=inside, other=0.0).to(tl.float32)
    w_image = tl.load(image_ptr + col, mask=inside, other=0.0).to(tl.float32)
    shrink = 1.0 / _peak(w_text)
    w_text = w_text * shrink
    if FULL:
        length_up = _norm(w_text)
        length_down = length_up
    else:
        up, down = _relu(w_text), _relu(-w_text)
        up, down = tl.reduce((up * up, down * down), 1, _add_pairs, keep_dims=True)
        length_up, length_down = tl.sqrt_rn(up), tl.sqrt_rn(down)

    for start in range(first, rows, step):
        g = ahead.to(tl.float32)
        row = start + tl.arange(0, ROWS)[:, None]
        live = row < rows
        r_text = r_text_ahead.to(tl.float32)
        r_image = r_image_ahead.to(tl.float32)
        more = row < rows - step
        at = _tile(grad_ptr, row + step, col, grad_row, grad_col, WIDTH, CONTIGUOUS)
        ahead = tl.load(at, mask=more & inside, other=0.0)
        r_text_ahead = tl.load(r_text_ptr + row + step, mask=more, other=0.0)
        r_image_ahead = tl.load(r_image_ptr + row + step, mask=more, other=0.0)

        sign = tl.where(r_text > 0.0, 1.0, tl.where(r_text < 0.0, -1.0, 0.0))
        # |r| is divided out of the direction, so that it may be as small as it likes.
        fade = tl.where(eps == 0.0, 0.0, eps * shrink / tl.abs(r_text))
        length = tl.where(r_text > 0.0, length_up, length_down) + fade
        harm = w_text * (sign * _inverse(length))
        if not FULL:
            harm = _relu(harm)
        help_term = _help(r_image * w_image, align)
        poison = 0.0 * r_text + 0.0 * r_image
        result = _operate(g, harm, help_term, poison, row, live, stats_ptr, PAPER)
        at = _tile(out_ptr, row, col, out_row, out_col, WIDTH, CONTIGUOUS)
        tl.store(at, result.to(out_ptr.dtype.element_ty), mask=live & inside)


@triton.jit(do_not_specialize=_PLAIN)
def surgery_kernel(
    grad_ptr, text_ptr, image_ptr, out_ptr, stats_ptr,
    rows, align, eps, grad_row, grad_col, out_row, out_col, text_row, text_col, image_row, image_col,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    CONTIGUOUS: tl.constexpr, PAPER: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """g_text and g_image as tensors; a program does ROWS rows."""
    col = tl.arange(0, BLOCK)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    live = row < rows
    mask = live & (col < WIDTH)
    at = _tile(text_ptr, row, col, text_row, text_col, WIDTH, CONTIGUOUS)
    g_text = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    at = _tile(image_ptr, row, col, image_row, image_col, WIDTH, CONTIGUOUS)
    g_image = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    at = _tile(grad_ptr, row, col, grad_row, grad_col, WIDTH, CONTIGUOUS)
    g = tl.load(at, mask=mask, other=0.0).to(tl.float32)

    poison = 0.0 * g_text + 0.0 * g_image
    harm = g_text
    if not FULL:
        harm = _relu(harm)
    shrink = 1.0 / _peak(harm)
    harm = harm * shrink
    harm = harm * _inverse(_norm(harm) + eps * shrink)
    result = _operate(g, harm, _help(g_image, align), poison, row, live, stats_ptr, PAPER)
    at = _tile(out_ptr, row, col, out_row, out_col, WIDTH, CONTIGUOUS)
    tl.store(at, result.to(out_ptr.dtype.element_ty), mask=mask)


def shape_tile(width: int) -> tuple[int, int, int]:
    """Returns columns, rows and warps of a tile."""
    block = triton.next_power_of_2(width)
    rows = max(1, TILE // block)
    return block, rows, block * rows // 256


def launch(
    grad: Tensor, text: Tensor, image: Tensor, r_text: Tensor | None, r_image: Tensor | None,
    out: Tensor, stats: Tensor | None, *, align: float, eps: float, paper: bool, full: bool,
) -> None:  # fmt: skip
    """Runs the affine kernel, or the general one where the residuals are None, on grad's device.

    The arguments are as checked by ``op``; ``out`` may be ``grad``.
    """
    if grad.is_cuda and grad.device.index != torch.cuda.current_device():
        with torch.cuda.device(grad.device):
            launch(
                grad, text, image, r_text, r_image, out, stats,
                align=align, eps=eps, paper=paper, full=full,
            )  # fmt: skip
        return
    rows, width = grad.shape
    block, group, warps = shape_tile(width)
    groups = -(-rows // group)
    scalars = (rows, float(align), float(eps), *grad.stride(), *out.stride())
    contiguous = grad.is_contiguous() and out.is_contiguous()
    if r_text is None or r_image is None:
        contiguous = contiguous and text.is_contiguous() and image.is_contiguous()
        surgery_kernel[(groups,)](
            grad, text, image, out, stats, *scalars, *text.stride(), *image.stride(),
            width, block, group, contiguous, paper, full, num_warps=warps, **OPTIONS,
        )  # fmt: skip
        return
    programs = min(groups, _resident_programs(grad.device, warps))
    surgery_affine_kernel[(programs,)](
        grad, text.contiguous(), image.contiguous(), r_text.contiguous(), r_image.contiguous(), out, stats,
        *scalars, width, block, group, contiguous, paper, full, num_warps=warps, **OPTIONS,
    )  # fmt: skip


@lru_cache
def _resident_programs(device: torch.device, warps: int) -> int:
    """How many programs run at once at 64 registers a thread; 2 in the interpreter, so that each loops."""
    if device.type != "cuda":
        return 2
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return multiprocessors * max(1, WARPS_PER_MULTIPROCESSOR // warps)


@lru_cache
def can_build(capability: int) -> bool:
    """Says whether the assembler inside the installed triton knows this compute capability (87 for 8.7)."""
    # Older releases (3.5) ship one assembler for all targets and take no argument here.
    ptxas = get_ptxas(capability) if inspect.signature(get_ptxas).parameters else get_ptxas()
    listing = subprocess.run([ptxas.path, "--help"], capture_output=True, text=True, check=True)
    return f"'{sm_arch_from_capability(capability)}'" in listing.stdout


def build(
    capability: int, width: int, dtype: torch.dtype, *,
    affine: bool, paper: bool = False, full: bool = False, stats: bool = False, aligned: bool = True,
) -> Any:  # fmt: skip
    """Compiles what ``launch`` would run for contiguous tensors, without a GPU.

    Args:
        capability: compute capability as a number, 87 for 8.7.
        width: D.
        dtype: of grad; weights and residuals are float32, g_text and g_image as grad.
        affine: the affine kernel, else the general one.
        paper: the paper's order.
        full: the harmful direction with its negative part.
        stats: with the statistics.
        aligned: tensors start at a multiple of 16 bytes, as PyTorch allocates them.

    Returns:
        triton's compiled kernel: ``asm`` (ttir, ttgir, llir, ptx, cubin) and ``metadata``.

    Raises:
        ValueError: this process interprets kernels, so that it cannot compile them.
    """
    if INTERPRETED:
        raise ValueError("TRITON_INTERPRET: found set, expected it unset where kernels are compiled")
    kernel = surgery_affine_kernel if affine else surgery_kernel
    block, rows, warps = shape_tile(width)
    constants: dict[str, Any] = {
        "WIDTH": width, "BLOCK": block, "ROWS": rows, "CONTIGUOUS": True, "PAPER": paper, "FULL": full,
    }  # fmt: skip
    if not stats:
        constants["stats_ptr"] = None
    types = {"rows": "i32", "align": "fp32", "eps": "fp32", "stats_ptr": "*fp32"}
    signature, hints = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            of_grad = not affine or name in ("grad_ptr", "out_ptr")
            signature[name] = types.get(name) or (_POINTERS[dtype] if of_grad else "*fp32")
            if aligned:
                hints[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = types.get(name, "i32")
    return triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=hints),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, **OPTIONS},
    )
