"""Expectations over one or two layers of latents, small enough to be summed, or integrated on a grid, exactly."""

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
    r"""$E_{q(b_1) q(b_2 | b_1)} [v \cdot \tanh(W [b_1, b_2] + c) + \log q(b_1) + \log q(b_2 | b_1)]$, exactly known.

    The cost has parameters of its own (W, c, v: a decoder) and depends on those of q directly (log q: an entropy term);
    a second layer is an estimator inside the cost of the first. Every parameter can carry a batch axis, so that one
    backward pass gives one independent estimate of the gradient per element of the batch. Everything is float64.

    Args:
        family: `Bernoulli`, `OneHotCategorical`, `Normal`, `Gamma` or `Poisson` (see `from_logits`).
        layers: 1 or 2.
        variables: Latent variables per layer.
        categories: Of each one-hot variable.
        hidden: Units of the cost.
        seed: Of the parameters.

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
        """Of each layer's latents."""
        return (self.variables, self.categories) if self.family is OneHotCategorical else (self.variables,)

    @property
    def features(self) -> int:
        """Length of a layer's latents, flattened."""
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
        """Return the layer's distribution."""
        return Independent(from_logits(self.family, logits), 1)

    def cost(self, parameters: dict[str, Tensor], *latents: Tensor) -> Tensor:
        """Return the cost of latents that may have more leading axes than the parameters."""
        flat = [b.expand_as(latents[-1]).flatten(-len(self.event_shape)) for b in latents]
        x = torch.cat(flat, -1)
        hidden = torch.tanh((parameters["weight"] * x.unsqueeze(-2)).sum(-1) + parameters["bias"])
        total = (parameters["output"] * hidden).sum(-1) + self._log_prob(parameters["logits"], latents[0])
        if self.layers == 2:
            total = total + self._log_prob(self._inner_logits(parameters, latents[0]), latents[1])
        return total

    def estimates(self, estimators: Sequence[Estimator], samples: int, *, backward: bool = False) -> dict[str, Tensor]:
        """Return independent estimates of the objective (`value`) and of its gradient in every parameter.

        Args:
            estimators: One for each layer, outermost first, called as `estimator(q, f)`.
            samples: How many.
            backward: Whether to call `backward`, which also fills the gradients of the estimators' own parameters.

        Returns:
            Tensors of shape `(samples,)` + that of the exact figure.
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
        """Return the objective (`value`) and its gradient in every parameter, by summing over the support.

        Args:
            estimators: One for each layer, outermost first, of which some `combine` the costs of their samples to
                another objective than the mean: the sum is then over all tuples of so many samples.
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
        """Return the expectation over all layers but those whose latents are given."""
        if len(above) == self.layers:
            return self.cost(parameters, *above)
        logits = self._inner_logits(parameters, above[0]) if above else parameters["logits"]
        support = self._support()
        values = torch.stack([self._sum(parameters, [*above, b], estimators) for b in support])
        weights = torch.stack([self._probability(logits, b) for b in support])
        return expectation(values, weights, estimators[len(above)] if estimators else None)

    def _integral(self, parameters: dict[str, Tensor], estimators: Sequence[GradientEstimator]) -> Tensor:
        """Return the objective on a grid over two variables: of one layer, one of each of two, or of two samples."""
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
        """Return points and weights of one variable."""
        if self.family is Poisson:  # of a rate below 2.5: a count above 40 has a probability below 1e-30
            return torch.arange(41, dtype=torch.float64), torch.ones(41, dtype=torch.float64)
        # Even grids integrate what is smooth and vanishes at the ends to all digits; gammas are so on the log scale.
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
        # Linear in b, so that it is smooth at relaxed b too (torch's categorical takes the argmax there).
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
    """Return the mean of the objective of an estimator over all tuples of samples: of one sample if it averages costs.

    Args:
        values: The cost at every point of the support, shape `(points,)`.
        weights: Their probabilities, which may be attached, of the same shape.
        estimator: Whose `num_samples` and `combine` count.
    """
    if estimator is None or averages_costs(estimator):
        return weights @ values
    points = torch.arange(len(values))
    tuples = torch.cartesian_prod(*[points] * estimator.num_samples).reshape(-1, estimator.num_samples).T
    return weights[tuples].prod(0) @ estimator.combine(values[tuples])


def from_logits(family: type[Distribution], logits: Tensor) -> Distribution:
    """Return a family of which all parameters are functions of one tensor of any real numbers.

    Bernoullis and one-hot variables by their logits l; Normal(l, .1 + softplus(l)); Gamma(.5 + softplus(l),
    .5 + softplus(-l)); Poisson(.5 + 2 sigmoid(l)).
    """
    if family is Normal:
        return Normal(logits, 0.1 + softplus(logits))
    if family is Gamma:
        return Gamma(0.5 + softplus(logits), 0.5 + softplus(-logits))
    if family is Poisson:
        return Poisson(0.5 + 2 * torch.sigmoid(logits))
    return family(logits=logits)  # type: ignore[call-arg]
