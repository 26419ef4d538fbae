"""Building estimators and distributions for the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Gamma, Independent, Normal, OneHotCategorical, Poisson

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.testing.problems import from_logits

__all__ = ["CONTEXT", "Cost", "EstimatorUnderTest", "Factory", "accepts", "build", "families", "layouts", "one_layer"]

Factory = Callable[[], GradientEstimator]
"""A function without arguments that returns a new estimator at every call."""

TESTED_FAMILIES: tuple[type[Distribution], ...] = (Bernoulli, OneHotCategorical, Normal, Gamma)
"""The families with which the suite tests: the discrete ones, a continuous one on all numbers, and a positive one."""

COUNTS: tuple[type[Distribution], ...] = (Poisson,)
"""Further families, for estimators that name them: what takes any distribution is tested well enough without."""

CONTEXT = torch.tensor([0.5, -1.0], dtype=torch.float64)
"""The context (features of a data point) that is given to estimators that need one."""

Cost = Callable[[Tensor], Tensor]


@dataclass
class EstimatorUnderTest:
    """An estimator whose networks have the right sizes for a distribution, and whether it needs a context."""

    estimator: GradientEstimator
    needs_context: bool

    def __call__(self, q: Distribution, f: Cost) -> Tensor:
        """Call the estimator, with a context if it needs one."""
        context = None
        if self.needs_context:
            context = CONTEXT.to(q.mean.dtype).expand(*q.batch_shape, -1)
        out: Tensor = self.estimator(q, f, context)
        return out

    def own(self) -> dict[str, Tensor]:
        """Return the estimator's own trainable parameters by name."""
        return {name: p for name, p in self.estimator.named_parameters() if p.requires_grad}


def build(factory: Factory, q: Distribution, seed: int = 0) -> EstimatorUnderTest:
    """Make an estimator, and give its networks the sizes and the precision of q."""
    torch.manual_seed(seed)
    estimator = factory().to(q.mean.dtype)
    try:
        estimator.prepare(q, None)
    except ValueError:
        estimator.prepare(q, CONTEXT.to(q.mean.dtype).expand(*q.batch_shape, -1))
        return EstimatorUnderTest(estimator, needs_context=True)
    return EstimatorUnderTest(estimator, needs_context=False)


def families(factory: Factory) -> list[type[Distribution]]:
    """Return those families of the suite that the estimator declares and accepts.

    Raises:
        ValueError: There are none.
    """
    declared = factory().families
    possible = [family for family in TESTED_FAMILIES if issubclass(family, declared)]
    possible += [family for family in COUNTS if family in declared]
    found = [family for family in possible if accepts(factory, one_layer(family, torch.zeros(2, 2, 2)))]
    if not found:
        tested = ", ".join(family.__name__ for family in TESTED_FAMILIES + COUNTS)
        raise ValueError(
            f"the suite has problems for {tested}, of which the estimator takes none: it declares {declared}."
        )
    return found


def accepts(factory: Factory, q: Distribution) -> bool:
    """Whether the estimator's `check` accepts q."""
    try:
        factory().check(q)
    except TypeError:
        return False
    return True


def one_layer(family: type[Distribution], logits: Tensor) -> Distribution:
    """Return a distribution over vectors of scalars, or of one-hot variables whose categories are the last axis."""
    return Independent(from_logits(family, logits), 1)


def layouts(families: list[type[Distribution]], scale: float) -> Iterator[tuple[str, Tensor, Distribution]]:
    """Yield distributions of many shapes, given by logits and by probabilities, in float32 and float64.

    Each comes as a name, the leaf tensor that holds its parameters, and the distribution.

    Args:
        families: Families of the suite.
        scale: The standard deviation of the logits, which are normal; if it is infinite, the logits are 50 or -50.
    """
    generator = torch.Generator().manual_seed(0)
    for family, parameter, dtype in product(families, ("logits", "probs"), (torch.float32, torch.float64)):
        one_hot = family is OneHotCategorical
        if parameter == "probs" and not (one_hot or family is Bernoulli):
            continue
        for batch, event in product(((), (4,), (2, 3)), ((3,), (2, 3), (2, 2, 2)) if one_hot else ((), (3,), (2, 3))):
            logits = torch.randn((*batch, *event), generator=generator, dtype=torch.float64)
            logits = 50 * logits.sign() if scale == float("inf") else scale * logits
            if parameter == "probs":
                logits = torch.softmax(logits, -1) if one_hot else torch.sigmoid(logits)
            leaf = logits.to(dtype).requires_grad_()
            base = family(probs=leaf) if parameter == "probs" else from_logits(family, leaf)  # type: ignore[call-arg]
            variables = len(event) - 1 if one_hot else len(event)
            q = Independent(base, variables) if variables else base
            yield f"{family.__name__}({parameter}), batch {batch}, event {event}, {dtype}", leaf, q
