"""Checks of own parameters: their gradient is that of the variance, whatever is upstream; training them lowers it."""

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
    """Return the parameters of q with a batch axis, and the estimate for the problem's cost, whose own are frozen.

    The parameters of q themselves, not what they are made from: an estimator's variance is that of its gradient there.
    """
    parameters = problem.parameters()
    q = problem.distribution(parameters["logits"].expand(batch, *problem.event_shape))
    leaves = {name: p.detach().clone().requires_grad_() for name, p in distribution_parameters(q).items()}
    return list(leaves.values()), subject(rebuild(q, leaves), lambda b: problem.cost(parameters, b))


def _built(factory: Factory, problem: ExactExpectation) -> EstimatorUnderTest:
    return build(factory, problem.distribution(problem.parameters()["logits"].unsqueeze(0)))


def total_variance(subject: EstimatorUnderTest, problem: ExactExpectation, samples: int, seed: int = 0) -> float:
    """Return the variance of the gradient in the parameters of q, summed over them."""
    torch.manual_seed(seed)
    leaves, value = _run(subject, problem, samples)
    moments = GradientMoments()
    moments.update({str(index): g for index, g in enumerate(torch.autograd.grad(value.sum(), leaves))})
    return sum(moments.statistics(name).total_variance.item() for name in moments)


def check_surrogate_gradient(factory: Factory, report: Report) -> None:
    """The gradient of own parameters is weighted by the absolute upstream gradient of every batch element.

    Only for estimators that return a `surrogate_loss`; where the value itself depends on own parameters, these follow
    the loss instead.
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
    """The gradient of own parameters against central differences of the measured variance under common noise.

    Only for estimators that declare `learns_variance`. With one sample, coupled ones, or samples that the plug-in
    combines itself, the two agree noise by noise, in a random direction of every own parameter; else they agree in the
    mean, since the surrogate loss is a share of single variances, and one direction across all own parameters is tried
    under many noises.
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
                scale = difference.abs() if seed == 0 else scale  # so that one slack serves all
                require(bool(difference != 0), check, str(problem), f"{what} is zero")
                moments.add({what: ((attached - difference) / scale).unsqueeze(0)})
                if seed == 0 and bool((attached - difference).abs() < 1e-4 * scale):
                    break  # noise by noise
            report.unbiased(check, str(problem), moments, slack=1e-4)


def _derivatives(
    subject: EstimatorUnderTest,
    problem: ExactExpectation,
    direction: dict[str, Tensor],
    batch: int,
    seed: int,
    step: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Directional derivative of the second moment in own parameters: of backward, and by central difference."""
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
    """200 steps on a `surrogate_loss` lower the variance of the gradient (if it is unbiased).

    For continuous families only if `learns_variance`: there a baseline that is close to the cost can vary more.
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
        for _ in range(10):  # running statistics settle, so that what is measured is the training
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
