"""Checks of the gradient of the model: unbiased or not as declared, and reaching everything."""

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
"""Independent estimates per comparison of `check_bias`."""


def nested_moments(problem: ExactExpectation, factories: Sequence[Factory], samples: int = SAMPLES) -> Moments:
    """Return the moments of estimates of a problem by estimators nested in one another, outermost first.

    The estimates are the batches of a few large calls, so that running statistics of one are in use in the next.
    """
    q = problem.distribution(problem.parameters()["logits"].unsqueeze(0))
    subjects = [build(factory, q, seed) for seed, factory in enumerate(factories)]
    for subject in subjects if problem.layers > 1 else []:
        subject.estimator.requires_grad_(requires_grad=False)  # one layer while learning, two while not
    moments = Moments(problem.exact([subject.estimator for subject in subjects]))
    torch.manual_seed(0)
    moments.add(problem.estimates(subjects, 100))
    samples //= subjects[0].estimator.num_samples  # each estimate is an average of so many
    exact = all(bool((moments.error(name)[1] < 1e-12).all()) for name in moments.exact)
    while moments.count("value") < samples and not exact:  # 100 equal estimates say as much as any number
        moments.add(problem.estimates(subjects, min(25_000, samples - moments.count("value"))))
    return moments


def nest(factory: Factory, family: type[Distribution], layers: int) -> list[Factory]:
    """Return estimators for so many layers, outermost first: the same in all, or the one inside an exact one.

    The latter where the objective is another than the mean of the costs: then it takes no estimates for costs.
    """
    if layers == 1 or averages_costs(factory()):
        return [factory] * layers
    return [Enumeration if family in (Bernoulli, OneHotCategorical) else Pathwise, factory]


def check_bias(factory: Factory, report: Report) -> None:
    """Mean of value and gradient against the exact sum, for one layer and two nested ones; or bias, if declared.

    Most biases show in a quarter of the estimates; where one does not, all are drawn.
    Two layers of continuous variables only where there are no discrete ones: nesting is the same for all.
    """
    found = families(factory)
    for family in found:
        for layers in (1, 2) if family in (Bernoulli, OneHotCategorical) or Bernoulli not in found else (1,):
            # Two variables interact in one layer; in two nested ones of other than bits one variable is enough.
            problem = ExactExpectation(family, layers, variables=1 if layers == 2 and family is not Bernoulli else 2)
            if not averages_costs(factory()) and family not in (Bernoulli, OneHotCategorical):
                problem = ExactExpectation(family, variables=1)  # of which two samples are integrated
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
    """Mean of the gradient over a sequence of calls with a single batch element.

    Large batches hide what a running statistic, or another element, takes from the current cost: here it is all.
    The cost is ±1 with equal probability, where a good baseline leaves no variance and so the least bias shows;
    for continuous families it is z.
    """
    family = families(factory)[0]  # what batches and running statistics do is the same for all
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
    for _ in range(500 if running else 0):  # running statistics settle
        estimate()
    for _ in range(3000 if running else 300):
        moments.add({"the gradient": estimate()})
    report.unbiased("batch of one", f"{family.__name__}, one variable", moments)


def check_reach(factory: Factory, report: Report) -> None:
    """Gradients reach the distribution, all parameters of f, and all own parameters, also of a nested estimator."""
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
