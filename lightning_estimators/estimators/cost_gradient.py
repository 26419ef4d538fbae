"""The gradient of f in z: how a plug-in takes it, and how it refuses an f that has none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_estimators.objectives import Objective

__all__ = ["check_differentiable", "depends_on", "value_and_gradient"]


def value_and_gradient(
    estimator: nn.Module, f: Objective, z: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return f(z) and its gradient in z.

    Cost: one evaluation of f and of its gradient.

    Args:
        estimator: Whose class is named when f is refused.
        f: The cost.
        z: Samples, hard or relaxed, shape `sample_shape + batch_shape + event_shape`. They are detached first, so no
            gradient flows into them.
        create_graph: Whether the gradient is to be differentiated itself, by an estimator that learns from it.

    Returns:
        The value, shape `sample_shape + batch_shape`, attached to whatever else f depends on (a decoder), and the
        gradient, of the shape of z, as numbers unless `create_graph`.

    Raises:
        ValueError: f(z) has no gradient in z: f ignores z, or leaves the graph of autograd on the way.

    Example:
        >>> from lightning_estimators.estimators import REINFORCE
        >>> from lightning_estimators.objectives import CallableObjective
        >>> f = CallableObjective(lambda z: z.square().sum(-1))
        >>> value_and_gradient(REINFORCE(), f, torch.tensor([[1.0, 2.0]]))
        (tensor([5.], grad_fn=<SumBackward1>), tensor([[2., 4.]]))
    """
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        value = f(leaf)
        gradient: Tensor | None = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(
                value, leaf, torch.ones_like(value), retain_graph=True, create_graph=create_graph, allow_unused=True
            )
    if gradient is None:
        raise _refusal(estimator)
    return value, gradient


def check_differentiable(estimator: nn.Module, value: Tensor, z: Tensor) -> None:
    """Refuse an f whose value is cut off from the samples that carry the gradient.

    An f with parameters of its own requires grad even then, so only the graph of autograd can tell: it must lead from
    the value to the samples. Without this check a black box would get an estimate that is wrong and looks right.

    Args:
        estimator: Whose class is named when f is refused.
        value: f(z).
        z: Samples that are attached to the parameters of q. They must have a node of their own in the graph (`view_as`
            gives them one), since f may reach the parameters some other way.

    Raises:
        ValueError: The graph does not lead there.
    """
    if z.requires_grad and not depends_on(value, z):
        raise _refusal(estimator)


def _refusal(estimator: nn.Module) -> ValueError:
    return ValueError(
        f"{type(estimator).__name__} differentiates f, but f(z) has no gradient in z. "
        "Compute f from z by differentiable operations, without detaching it on the way. For an f that is a black box "
        "use RELAX, REINFORCE or StochasticBackprop(f_gradient=False), whichever supports the family of q."
    )


def depends_on(value: Tensor, z: Tensor) -> bool:
    """Whether the graph of the value leads to z, which must have a node of its own in it (see `check_differentiable`).

    That the value requires grad says nothing: f may have parameters of its own.
    """
    todo, seen = [value.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is z.grad_fn:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
    return False
