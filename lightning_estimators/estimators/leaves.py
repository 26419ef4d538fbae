"""What a plug-in works on: the parameters of q, per sample, detached and precise enough, and f in its own precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_estimators.objectives import Objective, as_objective

__all__ = ["cost_in_its_precision", "parameters_per_sample"]


def parameters_per_sample(attached: Mapping[str, Tensor], num_samples: int, *, detach: bool) -> dict[str, Tensor]:
    """Return the parameters of q with an axis of samples in front, in at least float32.

    Half precision would round probabilities and noise, and so bias every estimate.

    Args:
        attached: Parameters by name, attached to the user's graph.
        num_samples: Length of the new axis.
        detach: Whether to return leaves of a graph of their own. Derivatives with respect to them are then gradients
            of single samples.
    """
    half = _half_precision(attached) is not None
    parameters: dict[str, Tensor] = {}
    for name, parameter in attached.items():
        parameter = parameter.float() if half else parameter
        parameter = parameter.detach() if detach else parameter
        parameters[name] = parameter.expand(num_samples, *parameter.shape)
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
    autocast = torch.is_autocast_enabled(next(iter(attached.values())).device.type)
    return as_objective(f, event_dim=event_dim, dtype=None if autocast else _half_precision(attached))


def _half_precision(parameters: Mapping[str, Tensor]) -> torch.dtype | None:
    return next((p.dtype for p in parameters.values() if p.dtype in (torch.bfloat16, torch.float16)), None)
