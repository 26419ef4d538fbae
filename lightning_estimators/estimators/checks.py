"""What an estimator refuses of its arguments before it computes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions import Distribution

from lightning_estimators.distributions import as_one_hot, base_distribution, check_can_be_coupled
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives.derivatives import NotTwiceDifferentiableError, is_differentiated_twice

if TYPE_CHECKING:
    from lightning_estimators.baselines import Baseline
    from lightning_estimators.estimators.base import GradientEstimator

__all__ = [
    "check_context",
    "check_coupling",
    "check_derivatives",
    "check_family",
    "check_no_tangents",
    "check_not_combined",
    "check_num_samples",
    "combined_costs",
    "explain_function_transform",
]


def check_num_samples(estimator: GradientEstimator, num_samples: int) -> None:
    """Raise unless the number of samples is one that the estimator can do with.

    Raises:
        ValueError: It is not.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < estimator.min_samples:
        raise ValueError(
            f"{type(estimator).__name__} needs an integer num_samples of at least {estimator.min_samples}, "
            f"got {num_samples!r}."
        )


def check_coupling(owner: GradientEstimator | Baseline, coupling: Coupling, num_samples: int) -> None:
    """Raise unless samples may depend on one another in the way asked for, and are as many as it takes.

    Args:
        owner: The estimator, or its baseline.
        coupling: How the samples depend on one another.
        num_samples: Their number.

    Raises:
        ValueError: They may not, or are not.
    """
    name = type(owner).__name__
    if coupling not in get_args(Coupling):
        raise ValueError(f"{name} needs a coupling among {', '.join(get_args(Coupling))}; got {coupling!r}.")
    if coupling == "independent":
        return
    if owner.needs_independent_samples:
        raise ValueError(
            f"{name} compares samples with one another, for which they must be independent, got coupling={coupling!r}. "
            'Use coupling="independent", or an estimator in which every sample stands alone.'
        )
    if coupling == "antithetic" and num_samples != 2:
        raise ValueError(
            f'coupling="antithetic" makes a pair of samples, so {name} needs num_samples=2, got {num_samples}. For '
            'more use coupling="stratified".'
        )
    if num_samples < 2:
        raise ValueError(f"coupling={coupling!r} needs {name} to have num_samples of at least 2, got {num_samples}.")


def check_family(estimator: GradientEstimator, q: Distribution) -> None:
    """Raise unless q is of a family that the estimator declares, and its samples are as the estimator needs them.

    Raises:
        TypeError: It is not; it is an index, and the estimator differentiates f in z; its samples cannot be coupled.
    """
    name, given = type(estimator).__name__, type(base_distribution(q)).__name__
    if estimator.gradient_of_f != "none" and as_one_hot(q) is not q:
        raise TypeError(
            f"{name} differentiates f in z, and {given} is an index, in which nothing has a derivative. Give "
            "OneHotCategorical with the same logits and an f of one-hot vectors, or use an estimator that takes f as a "
            "black box (RELAX, REINFORCE, StochasticBackprop)."
        )
    if not isinstance(base_distribution(as_one_hot(q)), estimator.families):
        supported = ", ".join(family.__name__ for family in estimator.families)
        raise TypeError(
            f"{name} supports {supported}; got {given}. "
            "Use an estimator whose `families` include it (REINFORCE takes any distribution with a log_prob)."
        )
    if estimator.coupling != "independent":
        check_can_be_coupled(as_one_hot(q))


_combined_by: ContextVar[str | None] = ContextVar("combined_by", default=None)


@contextmanager
def combined_costs(name: str) -> Iterator[None]:
    """Tell estimators inside f that their costs are not averaged, which only those that are exact or pathwise can bear.

    Args:
        name: Of the estimator that combines the costs otherwise.
    """
    token = _combined_by.set(name)
    try:
        yield
    finally:
        _combined_by.reset(token)


def check_not_combined(estimator: GradientEstimator, q: Distribution) -> None:
    """Raise if the value of the estimator is combined with others but not averaged, and its gradient is an estimate.

    Raises:
        ValueError: It is: the product of a weight and an estimate that share their noise has another mean.
    """
    around = _combined_by.get()
    exact = estimator.is_pathwise(q) and estimator.is_twice_differentiable(q)
    if around is not None and torch.is_grad_enabled() and not exact:
        name = type(estimator).__name__
        raise ValueError(
            f"{name} inside the cost of {around}: the objective of {around} is no average of costs, so an estimate of "
            "the gradient of one would be weighted by what it depends on, and biased. There use Enumeration, or "
            "Pathwise for a distribution with an explicit rsample; or draw all latents in one distribution."
        )


def check_derivatives(estimator: GradientEstimator, q: Distribution) -> None:
    """Raise if the gradient of the estimator is to be differentiated again, around it, and cannot be.

    Raises:
        NotTwiceDifferentiableError: It is.
        ValueError: See `check_not_combined`.
    """
    check_not_combined(estimator, q)
    if is_differentiated_twice() and not estimator.is_twice_differentiable(q):
        raise NotTwiceDifferentiableError(
            f"{type(estimator).__name__} inside a cost that is to be differentiated twice or more: its gradient is an "
            "estimate, which cannot be differentiated again. Around it use an estimator that takes one derivative "
            'or none: Pathwise, REINFORCE, or StochasticBackprop(form="jump").'
        )


def check_context(context: Tensor | None, batch_shape: torch.Size) -> None:
    """Raise unless the context is a tensor of features for each element of the batch.

    Raises:
        TypeError: It is no tensor.
        ValueError: Its shape does not broadcast to `batch_shape + (features,)`; one axis alone does not tell whether it
            is that of the batch.
    """
    if context is None:
        return
    if not isinstance(context, Tensor):
        raise TypeError(f"context must be a tensor of features or None, got an object of class {type(context)}.")
    lead = context.shape[:-1]
    fits = context.ndim > min(1, len(batch_shape)) and len(lead) <= len(batch_shape)
    fits = fits and all(a in (1, b) for a, b in zip(reversed(lead), reversed(batch_shape), strict=False))
    if not fits:
        raise ValueError(
            f"context must have the shape batch_shape + (features,) = {tuple(batch_shape)} + (features,), got "
            f"{tuple(context.shape)}. One feature for each element is context.unsqueeze(-1)."
        )


def check_no_tangents(parameters: Iterable[Tensor]) -> None:
    """Raise if a parameter carries a tangent of forward-mode differentiation, which would be lost."""
    unpack: Callable[[Tensor], forward_ad.UnpackedDualTensor] = forward_ad.unpack_dual
    if any(unpack(p).tangent is not None for p in parameters):
        raise RuntimeError(
            "a gradient estimate exists in reverse mode only: the parameters of q carry tangents of forward-mode "
            "differentiation (torch.autograd.forward_ad, torch.func.jvp), which would be lost. Use loss.backward() or "
            "torch.autograd.grad."
        )


def explain_function_transform(error: RuntimeError) -> None:
    """Raise in place of an error that `torch.func.grad`, `vmap` and the like cause, and say what works."""
    message = str(error)
    if any(words in message for words in ("with functorch transforms", "vmap:", "being transformed")):
        raise RuntimeError(
            "gradient estimators cannot be called inside torch.func.grad, vmap, jvp or jacrev, which do not see "
            "gradients that are sent by hand. Use loss.backward() or torch.autograd.grad, and batch axes of q in place "
            f"of vmap. ({message.splitlines()[0]})"
        ) from error
