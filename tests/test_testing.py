"""The conformance suite itself: it passes a user's plug-in, and fails broken ones by name."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Cauchy, Gamma, Normal, OneHotCategorical

from lightning_estimators.baselines import Baseline, MovingAverage
from lightning_estimators.distributions import base_distribution, sample
from lightning_estimators.estimators import REBAR, REINFORCE, RELAX, Enumeration, Estimate, GradientEstimator
from lightning_estimators.networks import Surrogate
from lightning_estimators.noise import uniform
from lightning_estimators.testing import (
    BOUND,
    COMPARISONS,
    FALSE_ALARM_RATE,
    ExactExpectation,
    Moments,
    Report,
    check,
    check_estimator,
    nested_moments,
)
from lightning_estimators.testing.contract import check_copies, check_noise, check_shapes
from lightning_estimators.testing.gradients import check_bias


class PairedSigns(GradientEstimator):
    """A user's plug-in: Dong, Mnih & Tucker (2020), *DisARM*, eq. 6, written against the documented interface."""

    families = (Bernoulli,)

    def is_unbiased(self, q):
        return True

    def evaluations(self, q):
        return 2 * self.num_samples, 0

    def estimate(self, q, leaves, f, context):
        logits = base_distribution(q).logits.detach()
        u = uniform(q.batch_shape, q.event_shape, dtype=logits.dtype, device=logits.device)
        b1, b2 = ((v < torch.sigmoid(logits)).to(logits.dtype) for v in (u, 1 - u))
        f1, f2 = f(b1), f(b2)
        half_difference = (0.5 * (f1 - f2)).reshape(f1.shape + (1,) * len(q.event_shape))
        gradient = half_difference * (-1) ** b2 * (b1 != b2) * torch.sigmoid(logits.abs())
        if "probs" in leaves:  # the parameter that was given
            slope = torch.sigmoid(logits) * torch.sigmoid(-logits)
            return Estimate((f1 + f2) / 2, {"probs": gradient / slope.clamp_min(torch.finfo(slope.dtype).tiny)})
        return Estimate((f1 + f2) / 2, {"logits": gradient})


def test_a_plug_in_written_from_the_documentation_passes():
    report = check_estimator(PairedSigns)
    assert report.comparisons > 20
    assert 0 < max(report.largest_z.values()) < BOUND


class CurrentCostBaseline(MovingAverage):
    """Takes the current cost in before it subtracts."""

    def forward(self, cost, context):
        super().forward(cost, context)
        return cost - self.average.to(cost.dtype), None


class BatchMean(Baseline):
    """Subtracts the mean over the batch, the element's own cost included."""

    def forward(self, cost, context):
        return cost - cost.mean(), None


class WrongSign(REBAR):
    """Subtracts ∇c(z) − ∇c(z̃) where it should add it."""

    def _gradient(self, c, leaf, *, create_graph):
        return -super()._gradient(c, leaf, create_graph=create_graph)


class SlightlyBiased(REBAR):
    """Leaves out 5 % of the correction."""

    def _gradient(self, c, leaf, *, create_graph):
        return 0.95 * super()._gradient(c, leaf, create_graph=create_graph)


class WrongCost(REBAR):
    def evaluations(self, q):
        return 2, 2


class WrongGradientCost(REBAR):
    def evaluations(self, q):
        return 3, 1


class AcceptsEverything(REBAR):
    """Refuses no family."""

    families = (Bernoulli,)

    def check(self, q):
        pass


class DeclaredBiased(REBAR):
    def is_unbiased(self, q):
        return False


class IgnoresShape(REINFORCE):
    """Averages over the batch."""

    def forward(self, q, f, context=None):
        return super().forward(q, f, context).mean()


class LosesPrecision(REINFORCE):
    def forward(self, q, f, context=None):
        return super().forward(q, f, context).float()


class DetachedValue(REINFORCE):
    """Gives f's own parameters no gradient."""

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        return Estimate(estimate.value.detach(), estimate.gradients)


class OverflowsWhenSaturated(REINFORCE):
    def estimate(self, q, leaves, f, context):
        z, probs = sample(q), base_distribution(q).mean.detach()
        value = f(z)
        score = z / probs - (1 - z) / (1 - probs)  # in the probability, without the factor p (1 - p) that cancels it
        gradient = value.detach().reshape(value.shape + (1,) * len(q.event_shape)) * score * probs * (1 - probs)
        return Estimate(value, {"logits": gradient})

    families = (Bernoulli,)


class ForgetsState(REINFORCE):
    """Keeps its average where state_dict does not see it."""

    def __init__(self):
        super().__init__()
        self.seen = 0.0

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        shifted = {name: g + self.seen * (sample(q) - q.mean.detach()) for name, g in estimate.gradients.items()}
        self.seen += 0.1
        return Estimate(estimate.value, shifted)


class HidesSetting(REINFORCE):
    def __init__(self, strength=1.0):
        super().__init__()
        self.strength = strength


class FollowsSign(REBAR):
    """Adds its surrogate loss to the value, so that own parameters follow the sign of the loss."""

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        if estimate.surrogate_loss is None:
            return estimate
        return replace(estimate, value=estimate.value + estimate.surrogate_loss - estimate.surrogate_loss.detach())


class MinimisesAnotherCost(REBAR):
    """Its surrogate loss is not the variance, but half of it."""

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        return (
            estimate
            if estimate.surrogate_loss is None
            else replace(estimate, surrogate_loss=0.5 * estimate.surrogate_loss)
        )


class MaximisesVariance(REBAR):
    learns_variance = False  # so that only training shows it

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        return (
            estimate if estimate.surrogate_loss is None else replace(estimate, surrogate_loss=-estimate.surrogate_loss)
        )


class LeavesParameterOut(RELAX):
    def __init__(self):
        super().__init__(Surrogate(hidden=[3], activation="tanh"))
        self.unused = nn.Parameter(torch.zeros(()))


BROKEN = {
    "moving average of the current cost": (lambda: REINFORCE(CurrentCostBaseline(decay=0.9)), "batch of one"),
    "batch mean": (lambda: REINFORCE(BatchMean()), "batch of one"),
    "wrong sign": (WrongSign, "batch of one"),
    "slightly biased": (SlightlyBiased, "(bias|coupling)"),
    "wrong cost": (WrongCost, "evaluations"),
    "wrong cost of the gradient": (WrongGradientCost, "evaluations"),
    "accepts everything": (AcceptsEverything, "refusals"),
    "declared biased": (DeclaredBiased, "bias"),
    "ignores shape": (IgnoresShape, "shapes"),
    "loses precision": (LosesPrecision, "shapes"),
    "detached value": (DetachedValue, "reach"),
    "overflows": (OverflowsWhenSaturated, "saturated"),
    "forgets state": (ForgetsState, "copies"),
    "hides a setting": (HidesSetting, "copies"),
    "follows the sign": (FollowsSign, "surrogate gradient"),
    "minimises another cost": (MinimisesAnotherCost, "variance gradient"),
    "maximises the variance": (MaximisesVariance, "training"),
    "leaves a parameter out": (LeavesParameterOut, "reach"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_estimators_fail_by_name(name):
    factory, check = BROKEN[name]
    with pytest.raises(AssertionError, match=f"^{check}: "):
        check_estimator(factory, stop_at_first=True)


def test_messages_name_problem_figure_and_bound():
    with pytest.raises(AssertionError, match=rf"bias: Bernoulli, one layer: .* logits .* > {BOUND:.2f}"):
        check_bias(WrongSign, Report())


def test_the_bound_is_that_of_the_rate():
    tail = 2 * (1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(BOUND, dtype=torch.float64)))
    assert tail.item() * COMPARISONS == pytest.approx(FALSE_ALARM_RATE, rel=1e-3)


def test_the_state_of_the_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_estimator(Enumeration)
    assert torch.equal(before, torch.get_rng_state())


def test_families_without_a_problem_are_named():
    class Heavy(REINFORCE):
        families = (Cauchy,)

    with pytest.raises(ValueError, match="Cauchy"):
        check_estimator(Heavy)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_exact_figures_agree_with_enumeration(family, layers):
    problem = ExactExpectation(family, layers)
    moments = nested_moments(problem, [Enumeration] * layers)
    for name in moments.exact:
        assert moments.error(name)[0].abs().max() < 1e-12


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical, Normal, Gamma])
def test_exact_gradients_agree_with_finite_differences_of_the_exact_value(family):
    problem = ExactExpectation(family, layers=2, variables=2 if family in (Bernoulli, OneHotCategorical) else 1)
    exact = problem.exact()
    parameters = problem.parameters()
    for name, p in parameters.items():
        direction = torch.randn(p.shape, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            shifted = {**parameters, name: p + step * direction}
            values.append(_exact_value(problem, shifted))
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx((exact[name] * direction).sum().item(), abs=1e-7)


def test_more_continuous_variables_than_the_grid_has_axes_are_refused():
    with pytest.raises(ValueError, match="integrated over two variables, got 2 in each layer"):
        ExactExpectation(Gamma, layers=2).exact()


def _exact_value(problem, parameters):
    shifted = ExactExpectation(problem.family, problem.layers, problem.variables)
    object.__setattr__(shifted, "parameters", lambda: {name: p.clone() for name, p in parameters.items()})
    return shifted.exact()["value"].item()


def test_moments_find_a_shift_of_six_standard_errors_and_pass_one_of_five():
    noise = torch.randn(10_000, 2, dtype=torch.float64)
    centred = noise - noise.mean(0)
    for shift, fails in ((0.0, False), (0.05, False), (0.06, True)):
        moments = Moments({"x": torch.zeros(2, dtype=torch.float64)})
        moments.add({"x": centred + shift})
        report = Report()
        if fails:
            with pytest.raises(AssertionError, match=r"\|z\| = 5\.96 > 5\.45"):
                report.unbiased("check", "problem", moments)
        else:
            report.unbiased("check", "problem", moments)
            assert report.comparisons == 2


class DrawsElsewhere(PairedSigns):
    """Takes its noise from torch, where no enclosing estimator can share it."""

    def estimate(self, q, leaves, f, context):
        logits = leaves["logits"].detach()
        b = (torch.rand_like(logits) < torch.sigmoid(logits)).to(logits.dtype)
        value = f(b)
        score = b - torch.sigmoid(logits)
        signal = value.detach().reshape(value.shape + (1,) * len(q.event_shape))
        return Estimate(value, {"logits": signal * score})


def test_noise_drawn_elsewhere_is_found():
    with pytest.raises(AssertionError, match=r"^noise: Bernoulli: .*noise\.uniform.*not by torch\.rand"):
        check_noise(DrawsElsewhere, Report())
    check_noise(PairedSigns, Report())


def test_all_failures_are_told_and_an_error_of_the_plug_in_is_shown_as_such(monkeypatch):
    class Broken(PairedSigns):
        def estimate(self, q, leaves, f, context):
            raise RuntimeError("not written yet")

    monkeypatch.setattr(check, "CHECKS", (check_shapes, check_noise, check_copies))
    with pytest.raises(AssertionError) as caught:
        check_estimator(Broken)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["shapes", "noise", "copies"]
    assert all(
        "raised RuntimeError: not written yet, in" in line and 'raise RuntimeError("not wri' in line for line in lines
    )


def test_classes_defined_inside_a_function_or_a_notebook_are_checked():
    class Local(PairedSigns):
        pass

    check_copies(Local, Report())
