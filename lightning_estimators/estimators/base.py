"""What every gradient estimator is: `estimator(q, f)`, an expectation one can backpropagate through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.configurable import Configurable
from lightning_estimators.distributions import base_distribution, distribution_parameters, rebuild, sample
from lightning_estimators.estimators.attach import attach_gradients, attach_surrogate_loss
from lightning_estimators.noise import is_replaying, replay_scope
from lightning_estimators.objectives import Objective, as_objective
from lightning_estimators.objectives.base import NotTwiceDifferentiableError, is_differentiated_twice

__all__ = ["Estimate", "GradientEstimator"]

Cost = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """What a plug-in answers, one entry per sample.

    Attributes:
        value: f at real samples, shape `(num_samples,) + batch_shape`, still attached to whatever f depends on.
        gradients: For each parameter of q by name, the estimate of its gradient, shape `(num_samples,)` + its shape.
            Empty when the value itself carries the gradient (`pathwise` estimators).
        surrogate_loss: What the surrogate parameters (those of the estimator itself) minimise, shape
            `(num_samples,) + batch_shape`: usually the sum of squares of the gradient, whose gradient is that of the
            variance. None when there is nothing to learn.
    """

    value: Tensor
    gradients: dict[str, Tensor] = field(default_factory=dict)
    surrogate_loss: Tensor | None = None


class GradientEstimator(Configurable, nn.Module, ABC):
    r"""Estimates $\nabla_\theta E_{z \sim q_\theta}[f(z)]$.

    Calling it returns a tensor of shape `q.batch_shape` whose *value* is f at real samples and whose *gradient* is

    - with respect to the parameters of q (and through them of the encoder): the estimator;
    - with respect to whatever f depends on directly (decoder, prior, an entropy term in q): the gradient of f;
    - with respect to the estimator's own parameters: the gradient of the estimator's variance, weighted by the
      absolute value of the upstream gradient, so that it does not matter whether the user minimises or maximises.

    Estimators nest: f may itself call an estimator. Under `torch.no_grad()` only the value is computed.

    Implementing one:

    1. Declare the class attributes below. The conformance suite in `lightning_estimators.testing` holds you to them.
    2. Implement `estimate`. It gets q rebuilt on `leaves`, with the samples as first batch axis, so that one sample of
       it is `num_samples` samples of the user's q, and derivatives with respect to `leaves` are the per-sample
       gradients to return.
    3. Use noise from `lightning_estimators.noise.uniform` (or `distributions.sample`), never from elsewhere, so that
       nested estimators can share it.
    4. Surrogate parameters? Return `surrogate_loss`; compute it only `if self.learns()`. Running statistics are
       persistent buffers, updated in training mode only, from values averaged over all ranks.
    5. Add a case to the conformance suite.

    Args:
        num_samples: Samples of z per batch element; the estimate is their average.
    """

    unbiased: ClassVar[bool]
    """Whether the mean of the estimate is the gradient."""
    families: ClassVar[tuple[type[Distribution], ...]]
    """Families of which q may be, alone or in an `Independent`."""
    needs_gradient: ClassVar[bool]
    """Whether f must be differentiable in z, at relaxed z."""
    evaluations: ClassVar[tuple[int, int]]
    """Evaluations of f and of its gradient in z per sample (override `cost` where they depend on q)."""
    pathwise: ClassVar[bool] = False
    """Whether the gradient flows through the value itself: q arrives attached, and `gradients` stays empty."""
    min_samples: ClassVar[int] = 1
    """The least `num_samples` that makes sense."""
    learns_variance: ClassVar[bool] = False
    """Whether `surrogate_loss` is the sum of squares of the gradient, so that its gradient is that of the variance."""

    def __init__(self, num_samples: int = 1) -> None:
        super().__init__()
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < self.min_samples:
            raise ValueError(
                f"{type(self).__name__} needs an integer num_samples of at least {self.min_samples}, "
                f"got {num_samples!r}."
            )
        self.num_samples = num_samples
        self.last_surrogate_loss: Tensor | None = None

    @abstractmethod
    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Answer value, gradients and surrogate loss for one sample of q (see "Implementing one").

        Args:
            q: Distribution with batch_shape `(num_samples,) + batch_shape`, built on `leaves`.
            leaves: Its parameters by name (`logits` for discrete families), detached and requiring grad; attached to
                the user's graph instead if the estimator is `pathwise`.
            f: The cost; callable, and able to answer `coordinate_change`.
            context: What learned parts may look at, broadcastable to `batch_shape + (features,)`, or None.
        """

    @replay_scope()
    def forward(self, q: Distribution, f: Cost, context: Tensor | None = None) -> Tensor:
        """Return an estimate of E[f(z)] that can be backpropagated.

        Args:
            q: Distribution whose parameters are attached to the graph.
            f: Cost to minimise, `sample_shape + batch_shape + event_shape -> sample_shape + batch_shape`.
            context: Features that learned parts of the estimator may look at (the data x), shape
                `batch_shape + (features,)`; data, so no gradient flows into it.

        Returns:
            Tensor of shape `q.batch_shape`.

        Raises:
            TypeError: q is not of a supported family.
            ValueError: q is too large, f returns another shape, or needs no gradient where one is needed; or this is
                called inside a cost of which a second derivative is taken (`is_twice_differentiable`).
        """
        if torch.compiler.is_compiling():
            # Derivatives inside derivatives are what torch cannot compile; what is around the estimator it can.
            return cast(Tensor, _run_eagerly(self, q, f, context))
        self.check(q)
        pathwise = self.is_pathwise(q)
        if is_differentiated_twice() and not self.is_twice_differentiable(q):
            raise NotTwiceDifferentiableError(
                f"{type(self).__name__} inside a cost that is to be differentiated twice or more: its gradient is an "
                "estimate, which cannot be differentiated again. Around it use an estimator that takes one derivative "
                'or none: Pathwise, REINFORCE, or StochasticBackprop(form="jump").'
            )
        attached = distribution_parameters(q)
        # Half precision would round probabilities and noise; f still gets the precision it was given.
        low = next((p.dtype for p in attached.values() if p.dtype in (torch.bfloat16, torch.float16)), None)
        wide = {name: p.float() if low is not None else p for name, p in attached.items()}
        autocast = torch.is_autocast_enabled(next(iter(attached.values())).device.type)
        f = as_objective(f, event_dim=len(q.event_shape), dtype=None if autocast else low)
        if not pathwise:
            wide = {name: p.detach() for name, p in wide.items()}
        expanded = {name: p.expand(self.num_samples, *p.shape) for name, p in wide.items()}
        if not torch.is_grad_enabled() and not pathwise:
            return self._average(f(sample(rebuild(q, expanded))))
        if not pathwise:
            for leaf in expanded.values():
                leaf.requires_grad_()
        estimate = self.estimate(rebuild(q, expanded), expanded, f, None if context is None else context.detach())
        self._check_estimate(estimate, q)
        value = self._average(estimate.value)
        names = [name for name in estimate.gradients if attached[name].requires_grad]
        if names:
            gradients = [self._average(estimate.gradients[name].detach()) for name in names]
            value = attach_gradients(value, gradients, [attached[name] for name in names])
        if estimate.surrogate_loss is not None and not is_replaying():
            # Samples are independent: the variance of their average is a share of the average of their variances.
            loss = self._average(estimate.surrogate_loss) / self.num_samples
            self.last_surrogate_loss = loss.detach().mean()
            if torch.is_grad_enabled() and loss.requires_grad:
                value = attach_surrogate_loss(value, loss, [p for p in self.parameters() if p.requires_grad])
        return value

    def check(self, q: Distribution) -> None:
        """Raise unless this estimator supports distributions like q (same family and event_shape); cheap.

        Modules call it when they are built, so that a combination that cannot work fails there.

        Raises:
            TypeError: q is not of a supported family.
        """
        if not isinstance(base_distribution(q), self.families):
            given = type(base_distribution(q)).__name__
            supported = ", ".join(family.__name__ for family in self.families)
            raise TypeError(
                f"{type(self).__name__} supports {supported}; got {given}. "
                "Use an estimator whose `families` include it (REINFORCE takes any distribution with a log_prob)."
            )

    def is_pathwise(self, q: Distribution) -> bool:
        """Whether the gradient for this q flows through the value; the class attribute unless overridden."""
        return self.pathwise

    def is_twice_differentiable(self, q: Distribution) -> bool:
        """Whether the gradient can be differentiated again, as rules with second derivatives do around this estimator.

        Gradients that are attached as numbers cannot; overridden where a pathwise gradient cannot either.
        """
        return self.is_pathwise(q)

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q and give learned parts of unknown size their size; no randomness is left behind.

        Call it before `parameters()` are given to DistributedDataParallel. Called once when a module is built.

        Args:
            q: A distribution of the family and event_shape that will come.
            context: A context of the number of features that will come, or None.
        """
        self.check(q)

    def cost(self, q: Distribution) -> tuple[int, int]:
        """Evaluations of f and of its gradient per batch element and call."""
        f, gradient = self.evaluations
        return f * self.num_samples, gradient * self.num_samples

    def learns(self) -> bool:
        """Whether own parameters are to be trained in this call.

        Not where an estimator around this one evaluates its cost again: the first evaluation trains them, and a control
        variate that depended on them would train them on itself.
        """
        return torch.is_grad_enabled() and not is_replaying() and any(p.requires_grad for p in self.parameters())

    def diagnostics(self) -> dict[str, Tensor]:
        """Figures worth a curve: detached 0-d tensors by name. The base logs `surrogate_loss` once there is one."""
        return {} if self.last_surrogate_loss is None else {"surrogate_loss": self.last_surrogate_loss}

    def extra_repr(self) -> str:
        """Show the settings in `repr`."""
        return f"num_samples={self.num_samples}"

    def _average(self, samples: Tensor) -> Tensor:
        return samples.mean(0) if self.num_samples > 1 else samples.squeeze(0)  # a view in the commonest case

    def _check_estimate(self, estimate: Estimate, q: Distribution) -> None:
        expected = (self.num_samples, *q.batch_shape)
        if estimate.value.shape != expected:
            raise ValueError(
                f"{type(self).__name__}.estimate must return a value of shape (num_samples,) + batch_shape = "
                f"{tuple(expected)}, got {tuple(estimate.value.shape)}."
            )


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's has no types
def _run_eagerly(estimator: GradientEstimator, q: Distribution, f: Cost, context: Tensor | None) -> Tensor:
    return estimator.forward(q, f, context)


def check_temperature(estimator: GradientEstimator, temperature: float) -> None:
    """Raise unless the temperature of a relaxation is a positive, finite number."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{type(estimator).__name__} needs a positive, finite temperature, got {temperature!r}.")


def depends_on(value: Tensor, z: Tensor) -> bool:
    """Whether the graph of the value reaches z, which is not a leaf.

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
