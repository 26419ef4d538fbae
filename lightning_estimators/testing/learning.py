"""Checks of an estimator's own parameters: they are trained on the variance of the gradient, and training lowers it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.distributions import Bernoulli, OneHotCategorical

from lightning_estimators.distributions import distribution_parameters, rebuild
from lightning_estimators.moments import GradientMoments
from lightning_estimators.testing.problems import ExactExpectation
from lightning_estimators.testing.statistics import Moments, Report, require
from lightning_estimators.testing.under_test import EstimatorUnderTest, Factory, build, families

__all__ = ["check_surrogate_gradient", "check_training", "check_variance_gradient", "total_variance"]


def _run(subject: EstimatorUnderTest, problem: ExactExpectation, batch: int) -> tuple[list[Tensor], Tensor]:
    """Return the parameters of q with a batch axis, and the value of the estimator for the problem's cost.

    They are the parameters of q itself, and not the logits from which the problem computes them, since the variance
    that an estimator minimises is that of its gradient with respect to the parameters of q.
    """
    parameters = problem.parameters()
    q = problem.distribution(parameters["logits"].expand(batch, *problem.event_shape))
    leaves = {name: p.detach().clone().requires_grad_() for name, p in distribution_parameters(q).items()}
    return list(leaves.values()), subject(rebuild(q, leaves), lambda b: problem.cost(parameters, b))


def _built(factory: Factory, problem: ExactExpectation) -> EstimatorUnderTest:
    return build(factory, problem.distribution(problem.parameters()["logits"].unsqueeze(0)))


def total_variance(subject: EstimatorUnderTest, problem: ExactExpectation, samples: int, seed: int = 0) -> float:
    """Return the variance of the gradient with respect to the parameters of q, summed over all their entries."""
    torch.manual_seed(seed)
    leaves, value = _run(subject, problem, samples)
    moments = GradientMoments()
    moments.update({str(index): g for index, g in enumerate(torch.autograd.grad(value.sum(), leaves))})
    return sum(moments.statistics(name).total_variance.item() for name in moments)


def check_surrogate_gradient(factory: Factory, report: Report) -> None:
    """The gradient of own parameters is multiplied by the absolute value of the upstream gradient.

    So it does not depend on the sign of the loss, and scaling the loss scales it. Only checked for estimators that
    return a `surrogate_loss`: if the value itself depends on own parameters, these are trained on the loss instead.
    """
    check = "surrogate gradient"
    for family in families(factory):
        problem = ExactExpectation(family)
        start = _built(factory, problem)
        if not start.own():
            continue

        def own(
            upstream: Tensor, start: EstimatorUnderTest = start, problem: ExactExpectation = problem
        ) -> tuple[Tensor, bool]:
            subject = copy.deepcopy(start)
            torch.manual_seed(0)
            torch.autograd.backward(_run(subject, problem, len(upstream))[1], upstream)
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in subject.own().values()]
            return torch.cat([g.flatten() for g in grads]), subject.estimator.last_surrogate_loss is not None

        weights = torch.tensor([0.5, -1.0, 2.0, -0.25, 3.0], dtype=torch.float64)
        reference, controlled = own(weights)
        if not controlled:
            continue
        name = str(problem)
        require(bool((reference != 0).any()), check, name, "own parameters get no gradient")
        expected = {
            "the sign of the upstream gradient matters": own(-weights)[0],
            "twice the upstream gradient does not give twice the gradient": own(2 * weights)[0] / 2,
            "batch elements do not enter by the absolute value of their upstream gradients": sum(
                w.abs() * own(e)[0] for w, e in zip(weights, torch.eye(5, dtype=torch.float64), strict=True)
            ),
        }
        for what, figure in expected.items():
            require(bool(torch.allclose(figure, reference, rtol=1e-9, atol=1e-12)), check, name, what)


def check_variance_gradient(factory: Factory, report: Report) -> None:
    """The gradient of own parameters is that of the variance; compared with finite differences of measured variances.

    Only for estimators that declare `learns_variance`. Both sides of a central difference are measured with the same
    noise. With one sample, with coupled samples, or where the estimator combines the samples itself, gradient and
    difference agree for every draw of the noise; they are compared along a random direction for every own parameter.
    Otherwise the surrogate loss is an average of the variances of single samples, and they agree only in the mean; then
    one direction across all own parameters is compared over many draws.
    """
    check, batch = "variance gradient", 500
    if not factory().learns_variance:
        return
    for family in families(factory):
        problem = ExactExpectation(family)
        subject = _built(factory, problem)
        own = subject.own()
        if not own:
            continue
        for p in own.values():  # away from special values such as η = 1
            p.data.add_(0.1)
        noise_by_noise = subject.estimator.num_samples == 1 or subject.estimator.coupling != "independent"
        groups = [[name] for name in own] if noise_by_noise else [list(own)]
        for group in groups:
            what = "the derivative of the variance in its own " + ", ".join(group)
            direction = {name: torch.randn_like(own[name]) for name in group}
            moments = Moments({what: torch.zeros((), dtype=torch.float64)})
            scale = torch.zeros(())
            for seed in range(1 if noise_by_noise else 100):
                attached, difference = _derivatives(subject, problem, direction, batch, seed)
                scale = difference.abs() if seed == 0 else scale  # one unit for all draws
                require(bool(difference != 0), check, str(problem), f"{what} is zero")
                moments.add({what: ((attached - difference) / scale).unsqueeze(0)})
                if seed == 0 and bool((attached - difference).abs() < 1e-4 * scale):
                    break  # they agree for this draw, so further draws are not needed
            report.unbiased(check, str(problem), moments, slack=1e-4)


def _derivatives(
    subject: EstimatorUnderTest,
    problem: ExactExpectation,
    direction: dict[str, Tensor],
    batch: int,
    seed: int,
    step: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Return the derivative of the second moment along a direction of own parameters: by backward, and numerically."""
    own = subject.own()
    torch.manual_seed(seed)
    loss = _run(subject, problem, batch)[1].mean()
    gradients = torch.autograd.grad(loss, [own[n] for n in direction], allow_unused=True, materialize_grads=True)
    attached = torch.stack([(g * d).sum() for g, d in zip(gradients, direction.values(), strict=True)]).sum()

    def shift(distance: float) -> None:
        for name, d in direction.items():
            own[name].data.add_(distance * d)

    ends = []
    for sign in (1, -1):
        shift(sign * step)
        torch.manual_seed(seed)
        leaves, value = _run(subject, problem, batch)
        gradients = torch.autograd.grad(value.sum(), leaves)
        ends.append(torch.stack([gradient.square().sum() / batch for gradient in gradients]).sum())
        shift(-sign * step)
    return attached, (ends[0] - ends[1]) / (2 * step)


def check_training(factory: Factory, report: Report) -> None:
    """Training an unbiased estimator's own parameters for 200 steps lowers the variance of the gradient.

    For continuous families this is checked only if `learns_variance`: a learned baseline, which is fitted to the cost
    and not to the variance, can raise the variance there.
    """
    check = "training"
    for family in families(factory):
        if not factory().learns_variance and family not in (Bernoulli, OneHotCategorical):
            continue
        problem = ExactExpectation(family)
        subject = _built(factory, problem)
        unbiased = subject.estimator.is_unbiased(problem.distribution(problem.parameters()["logits"]))
        if not (unbiased and subject.own()):
            continue
        for _ in range(10):  # let running averages settle, which would lower the variance without any training
            _run(subject, problem, 100)
        if subject.estimator.last_surrogate_loss is None:
            continue
        before = total_variance(copy.deepcopy(subject), problem, 20_000)
        optimizer = torch.optim.Adam(subject.own().values(), lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            torch.autograd.backward(_run(subject, problem, 100)[1].mean())
            optimizer.step()
        after = total_variance(copy.deepcopy(subject), problem, 20_000)
        require(after < before, check, str(problem), f"the variance went from {before:.4g} to {after:.4g}")
