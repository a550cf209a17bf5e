from __future__ import annotations

import math

import pytest
import torch

from train.model.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8, 0.999])
def test_dropout__drops_with_probability_p_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(1)
    count = 1_000_003
    dropped = Dropout(p)(torch.ones(count))
    kept = dropped != 0
    # Five standard deviations of a binomial share.
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count)
    assert torch.unique(dropped[kept]).numel() == 1
    assert dropped[kept][0].item() == pytest.approx(1 / (1 - p), rel=2**-16 / (1 - p))


def test_dropout__draws_neighbours_independently() -> None:
    torch.manual_seed(2)
    count = 400_000
    dropped = (Dropout(0.5)(torch.ones(count)) != 0).double() - 0.5
    for distance in range(1, 9):
        correlation = (dropped[distance:] * dropped[:-distance]).mean().item() / 0.25
        assert abs(correlation) < 5 / math.sqrt(count), f"elements {distance} apart"
    # Every element of a word of four is as likely as the others.
    assert (dropped.view(-1, 4).mean(0).abs() < 5 * 0.5 / math.sqrt(count / 4)).all()


def test_dropout__gradient_passes_where_the_value_did() -> None:
    x = torch.randn(7, 5, 3, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.4)(x)
    y.sum().backward()
    torch.testing.assert_close(y, x.detach() * x.grad)
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_dropout__follows_torch_seed_and_leaves_inference_alone() -> None:
    layer, x = Dropout(0.3), torch.randn(33, 17)
    torch.manual_seed(4)
    first = layer(x)
    torch.manual_seed(4)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dropout__keeps_dtype_shape_and_odd_sizes(dtype: torch.dtype) -> None:
    y = Dropout(0.5)(torch.ones(3, 1, 7, dtype=dtype))
    assert y.dtype == dtype
    assert y.shape == (3, 1, 7)
    assert Dropout(0.5)(torch.ones(0, 4)).shape == (0, 4)
