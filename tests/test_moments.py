import math

import pytest
import torch

from lightning_estimators.moments import GradientMoments, GradientStatistics

F64 = torch.float64


def gathered(estimates, sizes, **settings):
    moments = GradientMoments(**settings)
    for part in estimates.split(sizes):
        moments.update({"g": part})
    return moments


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [1, 9, 40]])
def test_any_way_of_taking_estimates_in_gives_mean_and_variance_of_all(sizes):
    estimates = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    moments = gathered(estimates, sizes)
    torch.testing.assert_close(moments.mean("g"), estimates.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moments.variance("g"), estimates.var(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moments.standard_error("g"), estimates.std(0) / math.sqrt(50), rtol=1e-12, atol=1e-14)
    total = gathered(estimates, sizes, per_entry=False).statistics("g")
    torch.testing.assert_close(total.total_variance, estimates.var(0).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(total.mean_norm, estimates.mean(0).norm(), rtol=1e-12, atol=0)
    assert total.entries == 6
    assert moments.count("g") == 50
    assert list(moments) == ["g"]


def test_merged_moments_are_those_of_all_estimates():
    estimates = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    first, second = GradientMoments(), GradientMoments()
    first.update({"a": estimates[:7]})
    second.update({"a": estimates[7:], "b": estimates})
    first.merge(second)
    for name in "ab":
        torch.testing.assert_close(first.mean(name), estimates.mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(first.variance(name), estimates.var(0), rtol=1e-12, atol=1e-14)
    second.update({"b": estimates})
    assert first.count("b") == 30  # what was merged is not shared


def test_a_large_mean_costs_no_digits():
    estimates = 1e4 + torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    variance = gathered(estimates, [1] * 1000).variance("g")
    torch.testing.assert_close(variance, estimates.double().var(0).float(), rtol=1e-2, atol=0)


def test_half_precision_is_gathered_in_single():
    estimates = (1 + torch.randn(100, 3, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    moments = gathered(estimates, [1] * 100)
    assert moments.mean("g").dtype == torch.float32
    torch.testing.assert_close(moments.variance("g"), estimates.float().var(0), rtol=1e-4, atol=0)


def test_figures():
    moments = GradientMoments()
    moments.update({"x": torch.tensor([[1.0, 2.0], [3.0, 2.0]]), "none": torch.zeros(2, 2), "exact": torch.ones(2, 3)})
    figures = {name: float(figure) for name, figure in moments.figures().items()}
    expected = {"x/variance": 1.0, "x/log_variance": 0.0, "x/snr": 2.0, "none/variance": 0.0, "none/snr": 0.0}
    expected |= {"none/log_variance": -math.inf, "exact/snr": math.inf}
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert GradientStatistics(*torch.tensor([4.0, 3.0, 2.0])).figures()["snr"] == 1.5


def test_one_estimate_has_no_variance():
    moments = GradientMoments()
    moments.update({"g": torch.ones(1, 2)})
    assert moments.variance("g").isnan().all()
    assert moments.mean("g").tolist() == [1, 1]


def test_what_does_not_fit_is_refused():
    moments = GradientMoments(per_entry=False)
    moments.update({"g": torch.ones(1, 2)})
    with pytest.raises(ValueError, match=r"expected estimates of 'g' of shape \(count,\) \+ \(2,\)"):
        moments.update({"g": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="per_entry=True"):
        moments.variance("g")
    with pytest.raises(ValueError, match="same per_entry"):
        GradientMoments().merge(moments)
