"""What the plug-in of a gradient estimator answers, and whether it has the right shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Estimate", "average", "average_share", "check_estimate", "square_of_average"]


@dataclass(frozen=True)
class Estimate:
    """What a plug-in answers.

    Every tensor has either one entry per sample, with `num_samples` as its first axis, or no such axis, if the plug-in
    has combined the samples itself. The base class averages those of the first kind, and takes the others as they are.

    Attributes:
        value: f at real samples, shape `(num_samples,) + batch_shape` or `batch_shape`, attached to whatever f depends
            on.
        gradients: For each parameter of q, by name, the estimate of the gradient with respect to it, shape
            `(num_samples,)` + the parameter's, or the parameter's. Empty when the value itself carries the gradient
            (`is_pathwise`).
        surrogate_loss: What the surrogate parameters, those of the estimator itself, minimise: usually the sum of
            squares of the gradient, which has the gradient of the variance. With one entry per sample, shape
            `(num_samples,) + batch_shape`, it is that of each sample's own gradient (where samples are coupled, an
            estimator with `learns_variance` gets that of the average of `gradients` instead, which must then carry a
            graph); of shape `batch_shape`, it is that of the gradient they are combined to. None when there is
            nothing to learn.
    """

    value: Tensor
    gradients: dict[str, Tensor] = field(default_factory=dict)
    surrogate_loss: Tensor | None = None


def average(entries: Tensor, ndim: int) -> Tensor:
    """Return the mean over samples of a tensor that has `ndim` axes without its axis of samples."""
    if entries.ndim == ndim:
        return entries
    return entries.mean(0) if len(entries) > 1 else entries.squeeze(0)  # a view in the commonest case


def average_share(losses: Tensor) -> Tensor:
    """Return the variance of an average of independent samples from those of the samples, along the first axis."""
    return average(losses, losses.ndim - 1) / len(losses)


def square_of_average(
    gradients: Mapping[str, Tensor], batch_shape: torch.Size, parameters: Mapping[str, Tensor]
) -> Tensor:
    """Return the sum of squares of the gradient that is averaged over samples, shape `batch_shape`.

    Its derivative in own parameters of the estimator is that of the variance of the average, whatever ties the samples.

    Args:
        gradients: By name, attached to own parameters; per sample or combined, as in `Estimate`.
        batch_shape: Of q.
        parameters: Of q, by name.
    """
    averages = [average(gradient, parameters[name].ndim) for name, gradient in gradients.items()]
    entries = [g.reshape(*batch_shape, g.shape[len(batch_shape) :].numel()) for g in averages]
    return torch.cat(entries, -1).square().sum(-1)


def check_estimate(
    estimate: Estimate, plug_in: str, num_samples: int, batch_shape: torch.Size, parameters: Mapping[str, Tensor]
) -> None:
    """Raise unless an estimate has the shapes that `Estimate` describes.

    Args:
        estimate: What the plug-in answered.
        plug_in: The name of its class.
        num_samples: Samples per batch element.
        batch_shape: Of q.
        parameters: Of q, by name.

    Raises:
        ValueError: It has not.
    """
    named = {"value": (estimate.value, batch_shape)}
    named |= {f"gradient of {name!r}": (g, parameters[name].shape) for name, g in estimate.gradients.items()}
    if estimate.surrogate_loss is not None:
        named["surrogate_loss"] = (estimate.surrogate_loss, batch_shape)
    for what, (found, shape) in named.items():
        if found.shape not in (shape, (num_samples, *shape)):
            raise ValueError(
                f"{plug_in}.estimate must return a {what} of shape {(num_samples, *shape)}, one entry per sample, or "
                f"{tuple(shape)}, samples combined; got {tuple(found.shape)}."
            )
