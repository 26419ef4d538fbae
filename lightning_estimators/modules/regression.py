"""Logistic regression with a distribution over its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Laplace, Normal, kl_divergence
from torch.nn.functional import logsigmoid
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules.base import EstimatorModule
from lightning_estimators.modules.dataset_elbo import DatasetELBO
from lightning_estimators.objectives import BernoulliLinear, Scaled

__all__ = ["BayesianLogisticRegression"]

WEIGHT_FAMILIES: dict[str, type[Laplace] | type[Normal]] = {"laplace": Laplace, "normal": Normal}

MAX_ELEMENTS = 2**24
"""Most logits that evaluation holds in memory at once: 64 MiB in float32."""


class BayesianLogisticRegression(EstimatorModule):
    r"""Fits $q(w) = \prod_j q(w_j)$ to the posterior of the weights of $p(y|x, w) = \sigma(y\, x^T w)$, y ∈ {−1, 1}.

    Minimises the negative ELBO of the training set of N examples, estimated from minibatches of B examples,

    $$-\mathrm{ELBO} = N\, E_q\Big[\frac1B \sum_{n=1}^B -\log\sigma(y_n x_n^T w)\Big] + D_{KL}[q(w) \| p(w)],$$

    in nats of the whole training set. The estimator takes a single expectation, over one weight vector that all
    examples of the minibatch share: `q.batch_shape` is `()`. The cost, in brackets, is a scaled `BernoulliLinear`, so
    that coordinate changes, slopes and derivatives of any order are matrix products. The KL divergence is computed in
    closed form for every pair of families.

    The following is logged besides what `EstimatorModule` logs (where `train/loss` is the negative ELBO). ELBOs are in
    nats of a whole data set, and expectations over w are averages over `eval_samples` draws from q.

    - `val/elbo`, `test/elbo`: N times the mean log-likelihood of the split's examples, minus the KL divergence, so that
      they can be compared with `-train/loss`.
    - `val/accuracy`, `test/accuracy`: share of the split's examples whose label has predictive probability above 1/2.
    - `whole/elbo`, `whole/accuracy`: the same for the second loader of validation and of test, if there is one. It is
      taken to hold the whole data set (as that of `datamodules.BreastCancer` does), so this ELBO is the lower bound on
      the evidence of just these examples: the sum, not N times the mean, of their log-likelihoods, minus the KL
      divergence.

    The regression of Echraibi et al. (2020) has no intercept. With `bias=True` there is one, as an additional weight
    with the same prior: the last entry of `loc` and `log_scale`.

    The scales start at `initial_scale`, below those of the posterior. The series form of `StochasticBackprop` needs
    this: its terms grow like $(b_j x_{nj})^{2n}$ in the scale $b_j$ of weight j, so where features reach 12 standard
    deviations, as in the breast cancer data, and b = 1, order 8 yields nothing but noise for the gradient of the
    scales. Other estimators may start anywhere.

    Args:
        estimator: Estimates the expectation and its gradient; Echraibi et al. (2020) use 50 samples (`num_samples` of
            the estimator).
        num_features: Length of x.
        num_data: Number N of training examples; if None, the datamodule's `train_size` is read whenever training
            starts.
        prior: Family of the prior of each weight, of location 0: "laplace" or "normal".
        prior_scale: Scale of the prior.
        posterior: Family of q: "laplace" or "normal".
        initial_scale: Initial scale of every weight in q, in units of the prior's scale; locations start at 0.
        bias: Whether to add an intercept.
        eval_samples: Number of draws of w in validation, test and prediction.
        **training: Optimizers and their schedulers, see `EstimatorModule`.

    Raises:
        TypeError: The estimator does not support the posterior.
        ValueError: A name is unknown or a number is out of range.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, section 6.2, eqs. 27–29 (eq. 29 is the KL
    divergence for a prior scale of 1), https://hal.science/hal-02968975.

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import StochasticBackprop
        >>> _ = torch.manual_seed(0)
        >>> model = BayesianLogisticRegression(StochasticBackprop(num_samples=50), num_features=3, num_data=1000)
        >>> x, y = torch.randn(8, 3), torch.ones(8)
        >>> loss = model.loss((x, y))
        >>> loss.mean().backward()
        >>> loss.shape, sorted(model.parameter_groups())
        (torch.Size([8]), ['loc', 'log_scale'])
    """

    data_size: Tensor

    def __init__(
        self,
        estimator: GradientEstimator,
        num_features: int,
        *,
        num_data: int | None = None,
        prior: Literal["laplace", "normal"] = "laplace",
        prior_scale: float = 1.0,
        posterior: Literal["laplace", "normal"] = "laplace",
        initial_scale: float = 0.1,
        bias: bool = False,
        eval_samples: int = 1000,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        for name, family in (("prior", prior), ("posterior", posterior)):
            if family not in WEIGHT_FAMILIES:
                raise ValueError(f"expected {name} to be one of {tuple(WEIGHT_FAMILIES)}, got {family!r}.")
        for name, scale in (("prior_scale", prior_scale), ("initial_scale", initial_scale)):
            if not 0 < scale < math.inf:
                raise ValueError(f"{name} must be a positive, finite number, got {scale!r}.")
        counts = {"num_features": num_features, "num_data": num_data, "eval_samples": eval_samples}
        for name, count in counts.items():
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {count!r}.")
        self.num_features, self.num_data, self.eval_samples, self.bias = num_features, num_data, eval_samples, bias
        self.prior, self.prior_scale, self.posterior = prior, prior_scale, posterior
        num_weights = num_features + int(bias)
        self.loc = nn.Parameter(torch.zeros(num_weights))
        self.log_scale = nn.Parameter(torch.full((num_weights,), math.log(initial_scale * prior_scale)))
        # N; 0 while unknown. A buffer, so that a model loaded from a checkpoint can be tested without the training set.
        self.register_buffer("data_size", torch.tensor(num_data or 0))
        self.estimator = estimator
        self.estimator.prepare(self.weights())
        self.elbo = nn.ModuleDict({name: DatasetELBO() for name in ("val", "test", "whole")})
        self.accuracy = nn.ModuleDict({name: BinaryAccuracy() for name in self.elbo})

    def setup(self, stage: str) -> None:
        """Read N from the datamodule unless it was given, and refuse data with another number of features."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        features = getattr(data, "num_features", self.num_features)
        if features != self.num_features:
            raise ValueError(
                f"BayesianLogisticRegression(num_features={self.num_features}) got {type(data).__name__} with "
                f"{features!r} features. Set num_features={features!r} (--model.num_features {features!r})."
            )
        if self.num_data is not None or (stage != "fit" and int(self.data_size) > 0):
            return
        size = getattr(data, "train_size", None)
        if isinstance(size, int) and size > 0:
            self.data_size.fill_(size)
        elif stage != "predict":
            raise ValueError(
                "BayesianLogisticRegression reweights minibatches to the size of the training set: expected the "
                "argument num_data, or a positive integer `train_size` at the datamodule; got "
                f"{'none' if size is None else repr(size)}. Without a datamodule give num_data=len(dataset)."
            )

    def weights(self) -> Distribution:
        """Return q(w), attached to the graph, of batch_shape `()` and event_shape `(num_features + bias,)`."""
        return Independent(WEIGHT_FAMILIES[self.posterior](self.loc, self.log_scale.exp(), validate_args=False), 1)

    def kl(self) -> Tensor:
        """Return the KL divergence of q from the prior, a scalar."""
        zeros = torch.zeros_like(self.loc)
        prior = WEIGHT_FAMILIES[self.prior](zeros, zeros + self.prior_scale, validate_args=False)
        return kl_divergence(self.weights(), Independent(prior, 1))

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Return the estimate of the negative ELBO of the training set, to be backpropagated.

        Args:
            batch: x, shape `(B, num_features)`, and y in {−1, 1}, shape `(B,)`.

        Returns:
            Tensor of shape `(B,)` whose entries are all equal, since the cost of a draw of the weights is a sum over
            the whole minibatch.
        """
        x, y = self._checked(batch)
        if int(self.data_size) == 0:
            raise ValueError("BayesianLogisticRegression does not know the size of the training set: give num_data.")
        # The mean, not the sum, so that what estimators learn about the cost also holds for a smaller last batch.
        cost = Scaled(BernoulliLinear(self._design(x), None, target=(y + 1) / 2), 1 / len(y))
        expected: Tensor = self.estimator(self.weights(), cost)
        return (self.data_size * expected + self.kl()).expand(len(y))

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the predictive probability of y = 1 and the expected log-likelihood of y, each of shape `(B,)`.

        Both are averages over the same `eval_samples` draws of w, which are made in chunks of bounded memory.

        Args:
            x: Features, shape `(B, num_features)`.
            y: Labels in {−1, 1}, shape `(B,)`; ones if not given.
        """
        x = self._design(x)
        y = x.new_ones(len(x)) if y is None else y
        q = self.weights()
        probability, log_likelihood = x.new_zeros(len(x)), x.new_zeros(len(x))
        chunk = max(1, MAX_ELEMENTS // len(x))
        for start in range(0, self.eval_samples, chunk):
            logits = q.sample(torch.Size([min(chunk, self.eval_samples - start)])) @ x.T
            probability += logits.sigmoid().sum(0)
            log_likelihood += logsigmoid(y * logits).sum(0)
        return probability / self.eval_samples, log_likelihood / self.eval_samples

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log `val/elbo` and `val/accuracy` (loader 0), or `whole/elbo` and `whole/accuracy` (loader 1)."""
        self._evaluation_step("whole" if dataloader_idx else "val", batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log `test/elbo` and `test/accuracy` (loader 0), or `whole/elbo` and `whole/accuracy` (loader 1)."""
        self._evaluation_step("whole" if dataloader_idx else "test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the predictive probability of y = 1, shape `(B,)`, for a batch `(x, y)` or x alone."""
        return self.evaluate(batch if isinstance(batch, Tensor) else batch[0])[0]

    def _evaluation_step(self, name: str, batch: Sequence[Tensor]) -> None:
        x, y = self._checked(batch)
        elbo, accuracy = cast(Metric, self.elbo[name]), cast(Metric, self.accuracy[name])
        probability, log_likelihood = self.evaluate(x, y)
        elbo.update(log_likelihood, self.kl(), None if name == "whole" else self.data_size)
        accuracy.update(probability, y > 0)
        for kind, metric in (("elbo", elbo), ("accuracy", accuracy)):
            self.log(
                f"{name}/{kind}",
                metric,
                on_step=False,
                on_epoch=True,
                prog_bar=name == "whole",
                batch_size=len(y),
                add_dataloader_idx=False,
            )

    def _checked(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        expected = f"a batch (x, y) of shapes (B, {self.num_features}) and (B,), y in {{-1, 1}}"
        if not isinstance(batch, Sequence) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
            raise ValueError(f"BayesianLogisticRegression expects {expected}; got {type(batch).__name__}.")
        x, y = batch
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"BayesianLogisticRegression expects {expected}; got {tuple(x.shape)} and {tuple(y.shape)}."
            )
        if not bool((y.abs() == 1).all()):
            raise ValueError(
                f"BayesianLogisticRegression expects {expected}; got labels {sorted(set(y.tolist()))[:5]}. "
                "Turn labels 0 and 1 into 2 * y - 1."
            )
        return x, y

    def _design(self, x: Tensor) -> Tensor:
        """Return x as a design matrix: checked, and with a column of ones if there is an intercept."""
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"BayesianLogisticRegression(num_features={self.num_features}) expects x of shape "
                f"(B, {self.num_features}), got {tuple(x.shape)}."
            )
        x = x.to(self.loc.dtype)
        return torch.cat([x, x.new_ones(len(x), 1)], 1) if self.bias else x
