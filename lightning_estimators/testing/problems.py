"""Expectations over one or two layers of latents, so small that their exact value and gradient can be computed.

For discrete latents all outcomes are summed; for continuous ones the density is integrated on a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Gamma, Independent, Normal, OneHotCategorical, Poisson
from torch.nn.functional import log_softmax, one_hot, softplus

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.estimators.combined import averages_costs

__all__ = ["ExactExpectation", "expectation", "from_logits"]

Estimator = Callable[[Distribution, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True)
class ExactExpectation:
    r"""$E_{q(b_1) q(b_2 | b_1)} [v \cdot \tanh(W [b_1, b_2] + c) + \log q(b_1) + \log q(b_2 | b_1)]$, known exactly.

    It has everything that a latent-variable model has. The cost has parameters W, c and v, like a decoder, and depends
    directly on the parameters of q through log q, like an entropy term. With two layers, an estimator for the second
    one is nested in the cost of the first. All parameters can be given a batch axis, so that one backward pass yields
    an independent estimate of the gradient for each element of the batch. All numbers are float64.

    Args:
        family: `Bernoulli`, `OneHotCategorical`, `Normal`, `Gamma` or `Poisson` (see `from_logits`).
        layers: Number of layers, 1 or 2.
        variables: Number of latent variables in each layer.
        categories: Number of categories of each one-hot variable.
        hidden: Number of hidden units of the cost.
        seed: Seed of the parameters' values.

    Example:
        >>> from lightning_estimators.estimators import StochasticBackprop
        >>> problem = ExactExpectation(Bernoulli)
        >>> exact = problem.exact()
        >>> estimates = problem.estimates([StochasticBackprop()], samples=4)
        >>> exact["logits"].shape, estimates["logits"].shape
        (torch.Size([2]), torch.Size([4, 2]))
    """

    family: type[Distribution]
    layers: int = 1
    variables: int = 2
    categories: int = 3
    hidden: int = 2
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.family.__name__}, {'one layer' if self.layers == 1 else 'two nested layers'}"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The event shape of each layer."""
        return (self.variables, self.categories) if self.family is OneHotCategorical else (self.variables,)

    @property
    def features(self) -> int:
        """The number of entries of a layer's event."""
        return torch.Size(self.event_shape).numel()

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters by name, without a batch axis."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        parameters = {
            "logits": draw(*self.event_shape),
            "weight": 1.5 * draw(self.hidden, self.layers * self.features),
            "bias": draw(self.hidden),
            "output": 2 * draw(self.hidden),
        }
        if self.layers == 2:
            parameters["inner_weight"] = draw(self.features, self.features)
            parameters["inner_bias"] = draw(self.features)
        return parameters

    def distribution(self, logits: Tensor) -> Distribution:
        """Return the distribution of a layer with these logits."""
        return Independent(from_logits(self.family, logits), 1)

    def cost(self, parameters: dict[str, Tensor], *latents: Tensor) -> Tensor:
        """Return the cost of latents, which may have more leading axes than the parameters."""
        flat = [b.expand_as(latents[-1]).flatten(-len(self.event_shape)) for b in latents]
        x = torch.cat(flat, -1)
        hidden = torch.tanh((parameters["weight"] * x.unsqueeze(-2)).sum(-1) + parameters["bias"])
        total = (parameters["output"] * hidden).sum(-1) + self._log_prob(parameters["logits"], latents[0])
        if self.layers == 2:
            total = total + self._log_prob(self._inner_logits(parameters, latents[0]), latents[1])
        return total

    def estimates(self, estimators: Sequence[Estimator], samples: int, *, backward: bool = False) -> dict[str, Tensor]:
        """Return independent estimates of the objective (as `value`) and of its gradient in every parameter.

        Args:
            estimators: One for each layer, outermost first, called as `estimator(q, f)`.
            samples: How many estimates.
            backward: Whether to call `backward`, which also fills the gradients of the estimators' own parameters.

        Returns:
            By name, tensors of shape `(samples,)` + the shape of the exact number.
        """
        parameters = {
            name: p.expand(samples, *p.shape).clone().requires_grad_() for name, p in self.parameters().items()
        }

        def outer_cost(b: Tensor) -> Tensor:
            if self.layers == 1:
                return self.cost(parameters, b)
            inner = self.distribution(self._inner_logits(parameters, b))
            return estimators[1](inner, lambda c: self.cost(parameters, b, c))

        value = estimators[0](self.distribution(parameters["logits"]), outer_cost)
        if backward:
            torch.autograd.backward(value.sum())
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
        else:
            gradients = list(torch.autograd.grad(value.sum(), list(parameters.values())))
        return {"value": value.detach(), **dict(zip(parameters, gradients, strict=True))}

    def exact(self, estimators: Sequence[GradientEstimator] = ()) -> dict[str, Tensor]:
        """Return the exact objective (as `value`) and its exact gradient in every parameter.

        Args:
            estimators: One for each layer, outermost first. They matter only if some of them combine the costs of
                several samples to another objective than their mean (`combine`); the sum is then over all tuples of
                that many samples. None given: the mean.
        """
        parameters = {name: p.requires_grad_() for name, p in self.parameters().items()}
        if self.family in (Normal, Gamma, Poisson):
            value = self._integral(parameters, estimators)
        else:
            value = self._sum(parameters, [], estimators)
        gradients = torch.autograd.grad(value, list(parameters.values()))
        return {"value": value.detach(), **dict(zip(parameters, gradients, strict=True))}

    def _sum(
        self, parameters: dict[str, Tensor], above: list[Tensor], estimators: Sequence[GradientEstimator]
    ) -> Tensor:
        """Return the expectation over all layers except those whose latents are given in `above`."""
        if len(above) == self.layers:
            return self.cost(parameters, *above)
        logits = self._inner_logits(parameters, above[0]) if above else parameters["logits"]
        support = self._support()
        values = torch.stack([self._sum(parameters, [*above, b], estimators) for b in support])
        weights = torch.stack([self._probability(logits, b) for b in support])
        return expectation(values, weights, estimators[len(above)] if estimators else None)

    def _integral(self, parameters: dict[str, Tensor], estimators: Sequence[GradientEstimator]) -> Tensor:
        """Return the objective by integration over two variables.

        These are the two variables of one layer, those of two layers, or two samples of a single variable.
        """
        if estimators and not averages_costs(estimators[0]):
            z, weights = self._grid()
            density = self._log_prob(parameters["logits"], z.unsqueeze(-1)).exp()
            return expectation(self.cost(parameters, z.unsqueeze(-1)), weights * density, estimators[0])
        if self.layers * self.variables != 2:
            raise ValueError(f"{self} is integrated over two variables, got {self.variables} in each layer.")
        z, weights = self._grid()
        first, second = z.unsqueeze(-1), z.unsqueeze(-1)
        logits = parameters["logits"]
        if self.layers == 1:
            density = self._log_prob(logits[:1], first)[:, None] + self._log_prob(logits[1:], second)
            latents = [torch.cartesian_prod(z, z).reshape(len(z), len(z), 2)]
        else:
            inner = self._inner_logits(parameters, first).unsqueeze(1)
            density = self._log_prob(logits, first)[:, None] + self._log_prob(inner, second)
            shape = (len(z), len(z), 1)
            latents = [first.unsqueeze(1).expand(shape), second.expand(shape)]
        return weights @ (density.exp() * self.cost(parameters, *latents)) @ weights

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Return the points and weights by which functions of one variable are integrated, or summed over counts."""
        if self.family is Poisson:  # the rates are below 2.5, so counts above 40 have a probability below 1e-30
            return torch.arange(41, dtype=torch.float64), torch.ones(41, dtype=torch.float64)
        # On an evenly spaced grid the trapezoidal rule is accurate to all digits for smooth functions that vanish at
        # both ends. Densities of gamma variables are such functions of log z.
        gamma = self.family is Gamma
        y = torch.linspace(-80.0, 7.0, 436) if gamma else torch.linspace(-15.0, 15.0, 601)
        y = y.to(torch.float64)
        z = y.exp() if gamma else y
        return z, (y[1] - y[0]) * (z if gamma else torch.ones_like(z))

    def _inner_logits(self, parameters: dict[str, Tensor], b: Tensor) -> Tensor:
        x = b.flatten(-len(self.event_shape))
        flat = (parameters["inner_weight"] * x.unsqueeze(-2)).sum(-1) + parameters["inner_bias"]
        return flat.reshape(*flat.shape[:-1], *self.event_shape)

    def _log_prob(self, logits: Tensor, b: Tensor) -> Tensor:
        # Linear in b, so that it is smooth at relaxed b too, where torch's categorical would take the argmax.
        if self.family is Bernoulli:
            return (b * logits - softplus(logits)).sum(-1)
        if self.family is not OneHotCategorical:
            log_prob: Tensor = self.distribution(logits).log_prob(b)
            return log_prob
        return (b * log_softmax(logits, -1)).sum((-2, -1))

    def _support(self) -> list[Tensor]:
        states = 2 if self.family is Bernoulli else self.categories
        points = torch.cartesian_prod(*[torch.arange(states)] * self.variables).reshape(-1, self.variables)
        if self.family is not Bernoulli:
            points = one_hot(points, states)
        return list(points.to(torch.float64))

    def _probability(self, logits: Tensor, b: Tensor) -> Tensor:
        if self.family is Bernoulli:
            return torch.where(b > 0, torch.sigmoid(logits), torch.sigmoid(-logits)).prod()
        return (torch.softmax(logits, -1) * b).sum(-1).prod()


def expectation(values: Tensor, weights: Tensor, estimator: GradientEstimator | None = None) -> Tensor:
    """Return the exact mean of an estimator's objective.

    For an estimator that averages the costs of its samples, this is the expectation of the cost. For one that combines
    them in another way (`combine`), it is the mean over all tuples of `num_samples` samples.

    Args:
        values: The cost at every point of the support, shape `(points,)`.
        weights: The probabilities of the points, shape `(points,)`; they may be attached to a graph.
        estimator: The estimator; None for one that averages costs.
    """
    if estimator is None or averages_costs(estimator):
        return weights @ values
    points = torch.arange(len(values))
    tuples = torch.cartesian_prod(*[points] * estimator.num_samples).reshape(-1, estimator.num_samples).T
    return weights[tuples].prod(0) @ estimator.combine(values[tuples])


def from_logits(family: type[Distribution], logits: Tensor) -> Distribution:
    """Return a distribution of the family whose parameters are all functions of one real tensor l.

    Bernoulli and one-hot categorical variables have the logits l. The others are Normal(l, .1 + softplus(l)),
    Gamma(.5 + softplus(l), .5 + softplus(-l)) and Poisson(.5 + 2 sigmoid(l)).
    """
    if family is Normal:
        return Normal(logits, 0.1 + softplus(logits))
    if family is Gamma:
        return Gamma(0.5 + softplus(logits), 0.5 + softplus(-logits))
    if family is Poisson:
        return Poisson(0.5 + 2 * torch.sigmoid(logits))
    return family(logits=logits)  # type: ignore[call-arg]
