"""What a plug-in works on: the parameters of q, per sample, detached and precise enough, and f in its own precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import as_one_hot, of_index
from lightning_estimators.estimators.attach import once_differentiable_parameter
from lightning_estimators.objectives import Objective, Observed, as_objective

if TYPE_CHECKING:
    from lightning_estimators.estimators.base import GradientEstimator

__all__ = ["as_vectors", "cost_in_its_precision", "parameters_per_sample"]


def as_vectors(
    estimator: GradientEstimator, q: Distribution, f: Callable[[Tensor], Tensor], sample_shape: tuple[int, ...]
) -> tuple[Distribution, Callable[[Tensor], Tensor]]:
    """Return q and f as plug-ins take them: an index as a one-hot vector, observed costs with an axis of samples.

    Args:
        estimator: Whose plug-in it is.
        q: The distribution that it was called with.
        f: The cost.
        sample_shape: The axes of samples that observed costs are to have in front of those of q.

    Raises:
        TypeError: The costs are observed, and the estimator needs f elsewhere.
        ValueError: Observed costs are of another shape, or of actions that were drawn from another distribution; or the
            estimator would couple its samples.
    """
    one_hot = as_one_hot(q)
    if not isinstance(f, Observed):
        return one_hot, f if one_hot is q else of_index(f)
    if not estimator.takes_observed_costs:
        where = {
            "none": "evaluates f at samples that it draws itself",
            "samples": "differentiates f at samples that it draws itself",
            "relaxed": "evaluates and differentiates f at relaxed samples, between the values of q",
        }[estimator.gradient_of_f]
        raise TypeError(
            f"{type(estimator).__name__} {where}, but an Observed cost is known at the actions that were taken, and "
            "nowhere else. Use REINFORCE, RELAX (discrete actions) or LAX (continuous actions)."
        )
    if estimator.coupling != "independent":
        raise ValueError(
            f"coupling={estimator.coupling!r} says how {type(estimator).__name__} draws its samples, but those of an "
            'Observed cost have been drawn. Use coupling="independent".'
        )
    return one_hot, f.laid_out_for(q, sample_shape)


def parameters_per_sample(
    estimator: GradientEstimator, q: Distribution, attached: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the parameters of q with an axis of samples in front, in at least float32.

    Half precision would round probabilities and noise, and so bias every estimate.

    They are leaves of a graph of their own, so that derivatives with respect to them are gradients of single samples;
    where the gradient is pathwise they are attached to those given, and refuse second derivatives that would be wrong.

    Args:
        estimator: Whose samples they are for.
        q: The distribution.
        attached: Its parameters by name, attached to the user's graph.
    """
    detach, twice = not estimator.is_pathwise(q), estimator.is_twice_differentiable(q)
    half = _half_precision(attached) is not None
    parameters: dict[str, Tensor] = {}
    for name, parameter in attached.items():
        parameter = parameter.float() if half else parameter
        if detach:
            parameter = parameter.detach()
        elif not twice and parameter.requires_grad:
            parameter = once_differentiable_parameter(parameter)
        parameters[name] = parameter.expand(estimator.num_samples, *parameter.shape)
        if detach and torch.is_grad_enabled():
            parameters[name].requires_grad_()
    return parameters


def cost_in_its_precision(f: Callable[[Tensor], Tensor], event_dim: int, attached: Mapping[str, Tensor]) -> Objective:
    """Return f as an objective that gets its samples in the precision in which q was given.

    Under autocast f is left alone, since autocast chooses the precision of every operation inside it.

    Args:
        f: The cost.
        event_dim: Number of event axes of q.
        attached: Parameters of q by name.
    """
    if isinstance(f, Observed):
        return f
    autocast = torch.is_autocast_enabled(next(iter(attached.values())).device.type)
    return as_objective(f, event_dim=event_dim, dtype=None if autocast else _half_precision(attached))


def _half_precision(parameters: Mapping[str, Tensor]) -> torch.dtype | None:
    return next((p.dtype for p in parameters.values() if p.dtype in (torch.bfloat16, torch.float16)), None)
