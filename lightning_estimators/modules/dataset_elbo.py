"""A metric: the ELBO of a model whose KL divergence counts once for the whole data set, not once per example."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["DatasetELBO"]


class DatasetELBO(Metric):
    r"""$\sum_n E_q[\log p(y_n|x_n, w)] - D_{KL}[q(w) \| p(w)]$ over the examples of all batches and processes.

    If a `size` N is given, the sum is replaced by N times the mean over the examples seen. This is an estimate of the
    ELBO of a data set of N examples, of which those seen are a sample.

    Example:
        >>> import torch
        >>> elbo = DatasetELBO()
        >>> elbo.update(torch.tensor([-1.0, -2.0]), kl=torch.tensor(5.0), size=torch.tensor(10))
        >>> elbo.update(torch.tensor([-3.0]), kl=torch.tensor(5.0), size=torch.tensor(10))
        >>> elbo.compute()
        tensor(-25.)
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    log_likelihood: Tensor
    count: Tensor
    kl: Tensor
    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, reduction in (("log_likelihood", "sum"), ("count", "sum"), ("kl", "mean"), ("size", "mean")):
            self.add_state(name, torch.zeros(()), dist_reduce_fx=reduction)

    def update(self, log_likelihood: Tensor, kl: Tensor, size: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            log_likelihood: Expected log-likelihood of each example, shape `(B,)`.
            kl: The KL divergence, the same at every update.
            size: Number N of examples in the data set, the same at every update; None for a plain sum.
        """
        self.log_likelihood = self.log_likelihood + log_likelihood.sum()
        self.count = self.count + len(log_likelihood)
        self.kl = kl.detach()
        self.size = torch.zeros_like(self.count) if size is None else size.to(self.count)

    def compute(self) -> Tensor:
        """Return the ELBO in nats."""
        weight = torch.where(self.size > 0, self.size / self.count, torch.ones_like(self.count))
        return self.log_likelihood * weight - self.kl
