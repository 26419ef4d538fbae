"""Checks of the gradient of the model: whether it is unbiased, as declared, and reaches all parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, OneHotCategorical

from lightning_estimators.estimators import Enumeration, Pathwise
from lightning_estimators.estimators.combined import averages_costs
from lightning_estimators.testing.problems import ExactExpectation, expectation
from lightning_estimators.testing.statistics import BOUND, Moments, Report, largest_z, require
from lightning_estimators.testing.under_test import Factory, build, families, one_layer

__all__ = ["SAMPLES", "check_batch_of_one", "check_bias", "check_reach", "nested_moments"]

SAMPLES = 200_000
"""Independent estimates for each comparison of `check_bias`."""


def nested_moments(problem: ExactExpectation, factories: Sequence[Factory], samples: int = SAMPLES) -> Moments:
    """Return mean and variance of estimates for a problem, by estimators nested in one another, outermost first.

    The estimates are the batch elements of a few large calls, so that running averages from one call are used in the
    next one.
    """
    q = problem.distribution(problem.parameters()["logits"].unsqueeze(0))
    subjects = [build(factory, q, seed) for seed, factory in enumerate(factories)]
    for subject in subjects if problem.layers > 1 else []:
        subject.estimator.requires_grad_(requires_grad=False)  # learning is checked with one layer
    moments = Moments(problem.exact([subject.estimator for subject in subjects]))
    torch.manual_seed(0)
    moments.add(problem.estimates(subjects, 100))
    samples //= subjects[0].estimator.num_samples  # each estimate is an average of so many
    exact = all(bool((moments.error(name)[1] < 1e-12).all()) for name in moments.exact)
    while moments.count("value") < samples and not exact:  # if 100 estimates are equal, more would tell nothing new
        moments.add(problem.estimates(subjects, min(25_000, samples - moments.count("value"))))
    return moments


def nest(factory: Factory, family: type[Distribution], layers: int) -> list[Factory]:
    """Return factories of estimators for nested layers, outermost first.

    Usually the same estimator is used in all layers. An estimator whose objective is not the mean of the costs cannot
    take estimated costs, so it is used in the innermost layer, inside an exact one.
    """
    if layers == 1 or averages_costs(factory()):
        return [factory] * layers
    return [Enumeration if family in (Bernoulli, OneHotCategorical) else Pathwise, factory]


def check_bias(factory: Factory, report: Report) -> None:
    """The means of value and gradient are the exact ones; or, if the estimator is declared biased, they are not.

    Checked for one layer and for two nested layers; for two layers of continuous variables only if the estimator takes
    no discrete ones, since nesting works alike for all. A bias usually shows in a quarter of the estimates, so the
    others are drawn only if it does not.
    """
    found = families(factory)
    for family in found:
        for layers in (1, 2) if family in (Bernoulli, OneHotCategorical) or Bernoulli not in found else (1,):
            # One layer has two variables, which interact. Two layers interact also with one variable each, which is
            # enough for the families whose exact sums are slower than those of Bernoulli variables.
            problem = ExactExpectation(family, layers, variables=1 if layers == 2 and family is not Bernoulli else 2)
            if not averages_costs(factory()) and family not in (Bernoulli, OneHotCategorical):
                problem = ExactExpectation(family, variables=1)  # the integral is over two samples of one variable
                if factory().num_samples > 2:
                    continue
            subjects = nest(factory, family, layers)
            if factory().is_unbiased(problem.distribution(problem.parameters()["logits"])):
                report.unbiased("bias", str(problem), nested_moments(problem, subjects))
                continue
            moments = nested_moments(problem, subjects, SAMPLES // 4)
            if largest_z(moments) <= BOUND:
                moments = nested_moments(problem, subjects)
            report.biased("bias", str(problem), moments)


def check_batch_of_one(factory: Factory, report: Report) -> None:
    """The mean of the gradient is right over many calls with a single batch element.

    An estimator is biased if its baseline depends on the current cost. In a large batch one element has little weight,
    so this hardly shows; in a batch of one it shows fully. The cost is ±1 with equal probability, for which a good
    baseline leaves no variance, so that even a small bias is seen. For continuous families the cost is z.
    """
    family = families(factory)[0]  # running averages work alike for all families
    one_hot, discrete = family is OneHotCategorical, family in (Bernoulli, OneHotCategorical)
    logits = torch.zeros((1, 1, 2) if one_hot else (1, 1), dtype=torch.float64, requires_grad=True)
    if not factory().is_unbiased(one_layer(family, logits)):
        return

    def cost(z: Tensor) -> Tensor:
        z = (z[..., 0] if one_hot else z).sum(-1)
        return 2 * z - 1 if discrete else z

    if not averages_costs(factory()):
        if not discrete:
            return
        p = one_layer(family, logits).mean.flatten()[0]
        costs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        objective = expectation(costs, torch.stack([p, 1 - p]), factory())
    else:
        objective = cost(one_layer(family, logits).mean).sum()
    (exact,) = torch.autograd.grad(objective, logits)
    moments = Moments({"the gradient": exact[0]})
    subject = build(factory, one_layer(family, logits))

    def estimate() -> Tensor:
        return torch.autograd.grad(subject(one_layer(family, logits), cost).sum(), logits)[0]

    def seeded() -> Tensor:
        torch.manual_seed(0)
        return estimate()

    running = not torch.equal(seeded(), seeded())
    for _ in range(500 if running else 0):  # until running averages have settled
        estimate()
    for _ in range(3000 if running else 300):
        moments.add({"the gradient": estimate()})
    report.unbiased("batch of one", f"{family.__name__}, one variable", moments)


def check_reach(factory: Factory, report: Report) -> None:
    """Gradients reach the distribution, the parameters of f, and the own parameters of all nested estimators."""
    check = "reach"
    for family in families(factory):
        for layers in (1, 2):
            variables = 2 if family in (Bernoulli, OneHotCategorical) else 3 - layers
            problem = ExactExpectation(family, layers, variables)
            q = problem.distribution(problem.parameters()["logits"].unsqueeze(0))
            subjects = [build(f, q, seed) for seed, f in enumerate(nest(factory, family, layers))]
            for name, gradient in problem.estimates(subjects, 50, backward=True).items():
                used = bool((gradient != 0).any()) and bool(gradient.isfinite().all())
                require(used, check, str(problem), f"no or no finite gradient reaches {name}")
            for depth, subject in enumerate(subjects):
                for name, p in subject.own().items():
                    reached = p.grad is not None and bool(p.grad.isfinite().all()) and bool((p.grad != 0).any())
                    where = f"its own {name} at depth {depth}"
                    require(reached, check, str(problem), f"no or no finite gradient reaches {where}: {p.grad}")
