"""Series of a sum of softplus functions: exact to rounding relative to the moves, whatever their size."""

import pytest
import torch

from lightning_estimators.objectives.softplus_series import flip_changes, series_terms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("reach", [1e-6, 1e-3, 0.026, 0.1, 0.24, 0.3, 0.6, 0.61, 1.4])
def test_both_signs_of_moves_to_rounding(reach, bias, dtype):
    torch.manual_seed(0)
    a, w = (bias * torch.randn(5, 50)).to(dtype), ((2 * torch.rand(7, 50) - 1) * reach).to(dtype)
    x = (a > 0).to(dtype) if bias > 1 else torch.rand(5, 50).to(dtype)
    largest = w.abs().max().item()
    odd, even = flip_changes(a, x, w, largest, 10**6)
    at, move, right = a.double()[:, None], w.double(), x.double()[:, None]
    positive = (at > 0).double()
    for sign in (1, -1):
        # softplus is that of -|a|, where no digit is lost, and a straight line.
        q = torch.sigmoid(-at.abs()) * torch.expm1(sign * move * (1 - 2 * positive))
        exact = (torch.log1p(q) + (positive - right) * sign * move).sum(-1)
        error = ((sign * odd + even).double() - exact).abs().max()
        assert error < 3 * torch.finfo(dtype).eps * move.abs().sum(-1).max()


def test_more_terms_for_larger_moves():
    terms = [series_terms(reach, torch.float32) for reach in (0.0, 0.2, 0.3, 0.6, 0.7, 2.0, 4.8)]
    assert terms == sorted(terms)
    assert terms[0] == 4
    assert terms[2] == 6
    assert terms[-1] <= 24
    assert series_terms(float("nan"), torch.float32) > 1000
