"""What the surgery operator takes: each refusal is one line, with what was found and what was expected."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

ORDERS = ("released", "paper")
HARMS = ("positive", "full")
BACKENDS = ("auto", "triton", "torch")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_settings(grad: Tensor, align: float, order: str, harm: str, eps: float, backend: str) -> bool:
    """Refuses what does not fit; returns whether the call is triton's."""
    if order not in ORDERS:
        raise ValueError(f"order: found {order!r}, expected one of {ORDERS}")
    if harm not in HARMS:
        raise ValueError(f"harm: found {harm!r}, expected one of {HARMS}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: found {backend!r}, expected one of {BACKENDS}")
    for name, value, least in (("eps", eps, 0.0), ("align", align, -sys.float_info.max)):
        try:
            fits = least <= value < math.inf
        except TypeError as err:
            raise TypeError(f"{name}: found {value!r}, expected a number") from err
        if not fits:
            raise ValueError(f"{name}: found {value}, expected a finite number, for eps 0 or more")
    _check_strided("grad", grad)
    if grad.ndim != 2 or grad.shape[1] == 0:
        raise ValueError(f"grad: found shape {tuple(grad.shape)}, expected [batch, width], width 1 or more")
    if grad.dtype not in DTYPES:
        raise TypeError(f"grad: found {grad.dtype}, expected one of {DTYPES}")
    if grad.requires_grad and torch.is_grad_enabled():
        raise ValueError("grad: found a tensor that requires grad, expected a constant: call .detach() on it")
    if backend == "triton":
        if grad.dtype == torch.float64:
            raise TypeError("grad: found float64, expected half or float32 for triton: use backend='torch'")
        return True
    return backend == "auto" and grad.is_cuda and grad.dtype != torch.float64


def _check_strided(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: found {type(tensor).__name__}, expected a tensor")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: found {tensor.layout}, expected a dense tensor: call .to_dense() on it")


def check_tensor(name: str, tensor: Tensor, grad: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses a tensor that does not go with ``grad``."""
    _check_strided(name, tensor)
    if tensor.shape != shape:
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if tensor.device != grad.device:
        raise ValueError(f"{name}: found on {tensor.device}, expected grad's device {grad.device}")
    if tensor.dtype != grad.dtype and tensor.dtype != torch.float32:
        raise TypeError(f"{name}: found {tensor.dtype}, expected float32 or grad's {grad.dtype}")


def check_targets(grad: Tensor, out: Tensor | None, stats: Tensor | None) -> None:
    """Refuses tensors that the result cannot be written into."""
    if out is not None:
        check_tensor("out", out, grad, grad.shape)
        if out.dtype != grad.dtype:
            raise TypeError(f"out: found {out.dtype}, expected grad's {grad.dtype}")
        if _meets_itself(out):
            raise ValueError(
                f"out: found strides {out.stride()}, expected one element per place in memory: use another"
            )
    if stats is not None:
        check_tensor("stats", stats, grad, (grad.shape[0], 3))
        if stats.dtype != torch.float32:
            raise TypeError(f"stats: found {stats.dtype}, expected torch.float32")
        if not stats.is_contiguous():
            raise ValueError(f"stats: found strides {stats.stride()}, expected a contiguous tensor")
    for name, target in (("out", out), ("stats", stats)):
        # Triton writes without autograd's knowledge: the tensor's history would stay what it was.
        if target is not None and target.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: found a tensor that requires grad, expected a constant: call .detach()"
            )


def _meets_itself(matrix: Tensor) -> bool:
    """Says whether two elements of a matrix share a place, or whether that is hard to tell."""
    inner, outer = sorted(zip(matrix.stride(), matrix.shape, strict=True))
    return (inner[0] == 0 and inner[1] > 1) or (outer[1] > 1 and outer[0] <= (inner[1] - 1) * inner[0])


def check_memory(
    grad: Tensor, constants: tuple[Tensor | None, ...], out: Tensor, stats: Tensor | None
) -> None:
    """Refuses targets in memory that is still to be read, or that both would be written into."""
    first, end = _span(out)
    in_place = first == grad.data_ptr() and out.stride() == grad.stride()
    read = [_span(tensor) for tensor in constants if tensor is not None]
    for start, stop in read if in_place else (*read, _span(grad)):
        if first < stop and start < end:
            raise ValueError("out: found memory of an input, expected grad itself or a tensor of its own")
    if stats is None:
        return
    of_stats, stats_end = _span(stats)
    for start, stop in (*read, _span(grad), (first, end)):
        if of_stats < stop and start < stats_end:
            raise ValueError("stats: found memory of another argument, expected a tensor of its own")


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a tensor, and of the first one behind its last element."""
    first = tensor.data_ptr()
    if tensor.is_contiguous() or not tensor.numel():
        return first, first + tensor.nbytes
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()
