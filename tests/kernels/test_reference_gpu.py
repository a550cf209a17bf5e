"""The same surgery on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from kernels import surgery_affine


@pytest.mark.gpu
@pytest.mark.parametrize("order", ["released", "paper"])
def test_surgery_affine__gives_the_cpus_result_on_cuda(order: str) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = [
        torch.randn(*shape, generator=generator) for shape in ((32, 768), (768,), (32,), (768,), (32,))
    ]
    want = surgery_affine(*tensors, align=0.1, order=order)
    got = surgery_affine(*(t.cuda() for t in tensors), align=0.1, order=order)
    assert float((got.cpu() - want).norm() / want.norm()) < 1e-6
