"""Turning a cost written for a batch of examples, as most layers and losses of torch are, into one for estimators."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["per_example"]


def per_example(
    f: Callable[..., Tensor], *data: Tensor, event_dim: int = 1, batch_dim: int = 1
) -> Callable[[Tensor], Tensor]:
    """Return a cost for estimators, given a cost f that takes exactly one leading axis, the examples of a batch.

    Estimators evaluate a cost at z of shape `sample_shape + batch_shape + event_shape`, with any number of leading
    axes, but `cross_entropy`, convolutions and BatchNorm take exactly one. The returned cost merges all leading axes
    into one, repeats the data of the batch to match, calls f, and restores the axes. BatchNorm in training mode makes
    the cost of an example depend on the other examples, for which estimators are not made (see
    `GradientEstimator.forward`): use it in evaluation mode, or use GroupNorm.

    Args:
        f: Maps z of shape `(N,) + event_shape`, and each of the data, of shape `(N, ...)`, to costs of shape `(N,)`.
        data: Tensors that belong to the batch, such as targets or images, each of shape `batch_shape + ...`.
        event_dim: How many of the last axes of z are the event, categories of one-hot variables included.
        batch_dim: How many axes the batch has.

    Raises:
        ValueError: The data do not begin with the batch shape, or f returns another shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.distributions import Bernoulli, Independent
        >>> from lightning_estimators.estimators import REBAR
        >>> _ = torch.manual_seed(0)
        >>> decoder, labels = nn.Linear(3, 5), torch.tensor([0, 4, 2, 2])
        >>> def cost(z, y):
        ...     return nn.functional.cross_entropy(decoder(z), y, reduction="none")
        >>> logits = torch.zeros(4, 3, requires_grad=True)
        >>> loss = REBAR(num_samples=2)(Independent(Bernoulli(logits=logits), 1), per_example(cost, labels))
        >>> loss.shape
        torch.Size([4])
    """

    def cost(z: Tensor) -> Tensor:
        lead, event = z.shape[: z.ndim - event_dim], z.shape[z.ndim - event_dim :]
        batch = lead[len(lead) - batch_dim :]
        folded = []
        for tensor in data:
            if tensor.shape[:batch_dim] != batch:
                raise ValueError(
                    f"per_example expects data whose first {batch_dim} axes are those of the batch, {tuple(batch)}, "
                    f"got data of shape {tuple(tensor.shape)} for z of shape {tuple(z.shape)}, event_dim={event_dim}."
                )
            rest = tensor.shape[batch_dim:]
            folded.append(tensor.expand(*lead, *rest).reshape(lead.numel(), *rest))
        answer = f(z.reshape(lead.numel(), *event), *folded)
        if answer.shape != (lead.numel(),):
            raise ValueError(
                f"per_example expects one cost for each of {lead.numel()} examples, shape ({lead.numel()},), got "
                f'{tuple(answer.shape)}. Losses of torch need reduction="none", and a sum over what is behind the '
                "first axis."
            )
        return answer.reshape(lead)

    return cost
