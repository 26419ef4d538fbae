"""The definition of a change, one point at a time."""

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

LEADS = [(), (5,), (3, 5)]
SCALAR_EVENTS = [(), (4,), (2, 3)]
ONE_HOT_EVENTS = [(3,), (4, 3), (2, 2, 5)]


def brute_force(f, z: Tensor, z_new: Tensor, event_dim: int) -> Tensor:
    """f(z with one coordinate moved) - f(z), by a loop."""
    if z_new.ndim > z.ndim:
        return torch.stack([_one_alternative(f, z, new, event_dim, category_dims=1) for new in z_new])
    return _one_alternative(f, z, z_new, event_dim, category_dims=0)


def _one_alternative(f, z, new, event_dim, category_dims):
    lead = z.ndim - event_dim
    coords = z.shape[lead : z.ndim - category_dims]
    out = z.new_zeros((*z.shape[:lead], *coords))
    for j in itertools.product(*map(range, coords)):
        at = (slice(None),) * lead + j
        moved = z.clone()
        moved[at] = new[at]
        out[at] = f(moved) - f(z)
    return out


def bits(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).double()


def one_hot(*shape: int) -> tuple[Tensor, Tensor]:
    """A random one-hot z of that shape, and its K - 1 other classes in cyclic order as alternatives."""
    k = shape[-1]
    index = torch.randint(0, k, tuple(shape[:-1]))
    others = (index + torch.arange(1, k).reshape(-1, *(1,) * index.ndim)) % k
    return F.one_hot(index, k).double(), F.one_hot(others, k).double()
