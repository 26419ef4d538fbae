"""Attaching a given sample to the parameters of a distribution, as if `rsample` had drawn it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Distribution,
    Exponential,
    Gamma,
    Gumbel,
    Laplace,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from lightning_estimators.distributions.parameters import base_distribution
from lightning_estimators.private_api import standard_gamma_derivative

__all__ = ["path_through"]


def path_through(q: Distribution, z: Tensor) -> Tensor:
    r"""Return the value z with the gradient in the parameters of q that `rsample` would give it had it drawn z.

    For location-scale families this is $\mu + \sigma \varepsilon$, where the noise $\varepsilon = (z - \mu) / \sigma$
    is a constant. For gamma variables the value of the distribution function F is a constant, so the derivative in the
    shape is $-\partial_\alpha F(z) / p(z)$. For a transformed distribution, the sample of its base is attached and then
    transformed.

    Args:
        q: Normal, Laplace, Cauchy, Gumbel, MultivariateNormal, Exponential or Gamma variables, or invertible transforms
            of these (such as LogNormal), with or without `Independent`.
        z: A sample of q, shape `batch_shape + event_shape`.

    Raises:
        TypeError: q is of another family.

    Example:
        >>> import torch
        >>> loc = torch.zeros(2, requires_grad=True)
        >>> path_through(Normal(loc, torch.ones(2)), torch.tensor([0.5, 2.0])).sum().backward()
        >>> loc.grad
        tensor([1., 1.])
    """
    q, z = base_distribution(q), z.detach()
    if isinstance(q, Normal | Laplace | Cauchy | Gumbel):  # Gumbel is a transformed uniform, but simpler like this
        return q.loc + q.scale * ((z - q.loc) / q.scale).detach()
    if isinstance(q, MultivariateNormal):
        deviation = (z - q.loc).detach().unsqueeze(-1)
        standard = torch.linalg.solve_triangular(q.scale_tril.detach(), deviation, upper=False)
        moved: Tensor = q.scale_tril @ standard
        return q.loc + moved.squeeze(-1)
    if isinstance(q, Exponential):
        return (z * q.rate).detach() / q.rate
    if isinstance(q, Gamma):
        shape, standard = q.concentration, (z * q.rate).detach()
        slope = standard_gamma_derivative(shape.detach(), standard)
        return (standard + slope * (shape - shape.detach())) / q.rate
    if isinstance(q, TransformedDistribution):
        base = z
        for transform in reversed(q.transforms):
            base = transform.inv(base)
        path = path_through(q.base_dist, base)
        for transform in q.transforms:
            path = transform(path)
        return path
    raise TypeError(
        f"the path of {type(q).__name__} through a sample that was drawn before is not known: only that of normal, "
        "Laplace, Cauchy, Gumbel, exponential and gamma variables, and of these transformed. Use REINFORCE, which "
        "needs none."
    )
