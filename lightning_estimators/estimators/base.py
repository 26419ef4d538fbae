"""What every gradient estimator is: `estimator(q, f)`, an expectation one can backpropagate through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.configurable import Configurable
from lightning_estimators.distributions import (
    check_no_hidden_parameters,
    distribution_parameters,
    rebuild,
    sample,
)
from lightning_estimators.estimators.attach import attach_gradients, attach_surrogate_loss
from lightning_estimators.estimators.checks import (
    check_context,
    check_coupling,
    check_derivatives,
    check_family,
    check_no_tangents,
    check_num_samples,
    explain_function_transform,
)
from lightning_estimators.estimators.coupled_costs import refuse_coupled_costs
from lightning_estimators.estimators.estimate import Estimate, average, average_share, check_estimate, square_of_average
from lightning_estimators.estimators.leaves import as_vectors, cost_in_its_precision, parameters_per_sample
from lightning_estimators.noise import Coupling, coupled_samples, is_replaying, replay_scope
from lightning_estimators.objectives import Objective, Observed

__all__ = ["GradientEstimator"]

Cost = Callable[[Tensor], Tensor]


class GradientEstimator(Configurable, nn.Module, ABC):
    r"""Estimates $\nabla_\theta E_{z \sim q_\theta}[f(z)]$.

    Calling it returns a tensor of shape `q.batch_shape` whose *value* is f at real samples and whose *gradient* is

    - with respect to the parameters of q (and through them of the encoder): the estimator;
    - with respect to whatever f depends on directly (decoder, prior, an entropy term in q): the gradient of f;
    - with respect to the surrogate parameters, those of the estimator itself: the gradient of its surrogate loss,
      usually its variance, weighted by the absolute value of the upstream gradient, so that it does not matter whether
      the user minimises or maximises.

    Estimators nest: f may itself call an estimator, with one sample each as deep as Python may recurse (about eleven
    frames a level). Under `torch.no_grad()` only the value is computed.

    Implementing one:

    1. Set the class attribute `families`, and `gradient_of_f` if you need one. Implement the claims `is_unbiased(q)`
       and `evaluations(q)`. The conformance suite in `lightning_estimators.testing` holds you to all of them.
    2. Implement `estimate`. It gets q rebuilt on `leaves`, with the samples as first batch axis: one sample of this q
       is `num_samples` samples of the user's q, and derivatives with respect to `leaves` are gradients per sample.
       Return value and gradients per sample, and they are averaged; or combine the samples yourself (see `Estimate`).
       Is the objective another function of the samples' costs than their mean? Override `combine`.
    3. Draw noise by `lightning_estimators.noise.uniform` (or `distributions.sample`), never otherwise, so that nested
       estimators can share it.
    4. Do you need the gradient of f in z? `cost_gradient.value_and_gradient(self, f, z)` returns both, and refuses an
       f without one. Where z is no sample, evaluate f inside `evaluated_elsewhere` or `CommonNoise.replay`.
    5. Pass `num_samples` and `coupling` on to this class; set `needs_independent_samples` if you compare samples.
    6. Surrogate parameters? Return `surrogate_loss`; compute it only `if self.learns()`. Running statistics are
       persistent buffers, updated in training mode only, from values averaged over all ranks.
    7. Add a case to the conformance suite.

    Args:
        num_samples: Samples of z per batch element; the estimate is their average.
        coupling: How these depend on one another, so that errors cancel (`noise.coupled_samples`): each keeps its
            distribution, and so the mean. q must be one that `distributions.can_be_coupled`.

    Raises:
        ValueError: `num_samples` is too small or does not fit the coupling; samples must be independent.
    """

    families: ClassVar[tuple[type[Distribution], ...]]
    """Families of which q may be, alone or in an `Independent`."""
    gradient_of_f: ClassVar[Literal["none", "samples", "relaxed"]] = "none"
    """Which gradient of f in z is always needed: none, at samples of q, or at relaxed ones, between values of q."""
    min_samples: ClassVar[int] = 1
    """The least `num_samples` that makes sense."""
    needs_independent_samples: ClassVar[bool] = False
    """Whether the samples must be independent of one another: no `coupling`."""
    learns_variance: ClassVar[bool] = False
    """Whether the gradient of `Estimate.surrogate_loss` is that of the variance of the estimate."""
    takes_observed_costs: ClassVar[bool] = False
    """Whether f may be `Observed` at samples that others drew: `estimate` takes them from `observed_actions(f)`."""

    def __init__(self, num_samples: int = 1, coupling: Coupling = "independent") -> None:
        super().__init__()
        self._coupling: Coupling = "independent"
        self.num_samples = num_samples
        self.coupling = coupling
        self.allow_coupled_costs = False
        self.last_surrogate_loss: Tensor | None = None
        self._has_looked_for_coupled_costs = False

    @property
    def num_samples(self) -> int:
        """Samples of z per batch element."""
        return self._num_samples

    @num_samples.setter
    def num_samples(self, value: int) -> None:
        self._check_num_samples(value)
        self._check_coupling(self.coupling, value)
        self._num_samples = value

    @property
    def coupling(self) -> Coupling:
        """How the samples depend on one another."""
        return self._coupling

    @coupling.setter
    def coupling(self, value: Coupling) -> None:
        self._check_coupling(value, self.num_samples)
        self._coupling = value

    @abstractmethod
    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Answer value, gradients and surrogate loss (see "Implementing one").

        Args:
            q: Distribution with batch_shape `(num_samples,) + batch_shape`, built on `leaves`.
            leaves: Its parameters by name (`logits` for discrete families; `probs` where
                those were given and one of them is 0 or 1), detached and requiring grad; attached to
                the user's graph instead if `is_pathwise(q)`.
            f: The cost; callable, and able to answer `coordinate_change`.
            context: What learned parts may look at, broadcastable to `batch_shape + (features,)`, or None.
        """

    @abstractmethod
    def is_unbiased(self, q: Distribution) -> bool:
        """Whether the mean of the estimate is the gradient, for distributions like q."""

    @abstractmethod
    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return how often a call evaluates f, and its gradient in z, per batch element, if f is a plain callable."""

    def is_pathwise(self, q: Distribution) -> bool:
        """Whether the gradient flows through the value itself: `leaves` are attached, and `gradients` stays empty."""
        return False

    def is_twice_differentiable(self, q: Distribution) -> bool:
        """Whether the gradient can be differentiated again, as rules with second derivatives do around this estimator.

        Gradients that are attached as numbers cannot; override it where a pathwise gradient cannot either.
        """
        return self.is_pathwise(q)

    def combine(self, costs: Tensor) -> Tensor:
        """Return the objective as a function of the costs of all samples: their mean.

        An estimator of another objective overrides it, and sets `needs_independent_samples`.

        Args:
            costs: f at the samples, shape `(num_samples,) + batch_shape`.

        Returns:
            Tensor of shape `batch_shape`.
        """
        return average(costs, costs.ndim - 1)

    @replay_scope()
    def forward(self, q: Distribution, f: Cost, context: Tensor | None = None) -> Tensor:
        """Return an estimate of E[f(z)] that can be backpropagated.

        Args:
            q: Distribution whose parameters are attached to the graph.
            f: Cost to minimise, `sample_shape + batch_shape + event_shape -> sample_shape + batch_shape`. The cost of a
                batch element must depend on its own latents only: a contrastive loss, or BatchNorm in training mode,
                couples the batch, which is then one event with one cost. The first training step evaluates f twice more
                to find this out (`allow_coupled_costs = True` leaves it out). f must not change z in place.
            context: Features that learned parts of the estimator may look at (the data x), shape
                `batch_shape + (features,)`; data, so no gradient flows into it.

        Returns:
            Tensor of shape `q.batch_shape`.

        Raises:
            TypeError: q is not of a supported family, or has tensors to learn that are none of its parameters.
            ValueError: q is too large; f returns another shape, has no gradient where one is needed, changes z in place
                or couples the batch; the context has another shape; or this is called inside a cost of which a second
                derivative is taken (`is_twice_differentiable`).
            RuntimeError: Called inside `torch.func.grad`, `vmap` or forward-mode differentiation.
        """
        if torch.compiler.is_compiling():
            # Derivatives inside derivatives are what torch cannot compile; what is around the estimator it can.
            from lightning_estimators.estimators.eager import run_eagerly

            return run_eagerly(self, q, f, context)
        try:
            return self._forward(q, f, context)
        except RuntimeError as error:
            explain_function_transform(error)
            raise

    def _forward(self, q: Distribution, f: Cost, context: Tensor | None) -> Tensor:
        self.check(q)
        # One sample, in the cost of an estimator that takes one: its axis serves as well, so nests may be deep.
        is_inside = self.num_samples == 1 and len(q.batch_shape) > 1 and q.batch_shape[0] == 1
        q, f = as_vectors(self, q, f, () if is_inside else (self.num_samples,))
        if not (pathwise := self.is_pathwise(q)):
            check_no_hidden_parameters(q)
        check_derivatives(self, q)
        attached = distribution_parameters(q)
        check_context(context, q.batch_shape)
        check_no_tangents(attached.values())
        cost = cost_in_its_precision(f, len(q.event_shape), attached)
        batch_shape = q.batch_shape
        if is_inside:
            batch_shape, attached = batch_shape[1:], {name: p.squeeze(0) for name, p in attached.items()}
        leaves = parameters_per_sample(self, q, attached)
        if not self._has_looked_for_coupled_costs:
            # Detached, so that nothing is saved for a backward pass, which activation checkpointing would find amiss.
            self._look_for_coupled_costs(rebuild(q, {name: leaf.detach() for name, leaf in leaves.items()}), cost)
        with coupled_samples(self.coupling, (self.num_samples, *batch_shape)):
            if not torch.is_grad_enabled() and not pathwise:
                value = self.combine(cost.costs if isinstance(cost, Observed) else cost(sample(rebuild(q, leaves))))
                return value.unsqueeze(0) if is_inside else value
            estimate = self.estimate(rebuild(q, leaves), leaves, cost, None if context is None else context.detach())
        check_estimate(estimate, type(self).__name__, self.num_samples, batch_shape, attached)
        value = estimate.value if estimate.value.ndim == len(batch_shape) else self.combine(estimate.value)
        value = self._with_surrogate_loss(self._with_gradients(value, estimate, attached), estimate, attached)
        return value.unsqueeze(0) if is_inside else value

    def check(self, q: Distribution) -> None:
        """Raise unless this estimator supports distributions like q (same family and event_shape); cheap.

        Modules call it when they are built, so that a combination that cannot work fails there. Overriders call it.

        Raises:
            TypeError: q is not of a supported family, or its samples cannot be coupled as they should be.
        """
        check_family(self, q)

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q and give learned parts of unknown size their size; no randomness is left behind.

        Call it before `parameters()` are given to DistributedDataParallel. Called once when a module is built.

        Args:
            q: A distribution of the family and event_shape that will come.
            context: A context of the number of features that will come, or None.
        """
        self.check(q)

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
        return f"num_samples={self.num_samples}, coupling={self.coupling!r}"

    def _check_num_samples(self, value: int) -> None:
        check_num_samples(self, value)

    def _check_coupling(self, value: Coupling, num_samples: int) -> None:
        check_coupling(self, value, num_samples)

    def _look_for_coupled_costs(self, q: Distribution, cost: Objective) -> None:
        # Evaluates f twice more, in the first training step only.
        if self.allow_coupled_costs or not self.training or not torch.is_grad_enabled() or is_replaying():
            return
        self._has_looked_for_coupled_costs = True
        refuse_coupled_costs(self, q, cost)

    def _with_gradients(self, value: Tensor, estimate: Estimate, attached: Mapping[str, Tensor]) -> Tensor:
        learned = {name: p for name, p in attached.items() if name in estimate.gradients and p.requires_grad}
        if not learned:
            return value
        gradients = [average(estimate.gradients[name].detach(), p.ndim) for name, p in learned.items()]
        return attach_gradients(value, gradients, list(learned.values()))

    def _with_surrogate_loss(self, value: Tensor, estimate: Estimate, attached: Mapping[str, Tensor]) -> Tensor:
        if estimate.surrogate_loss is None or is_replaying():
            return value
        loss = estimate.surrogate_loss
        if loss.ndim > value.ndim:
            # The variance of an average of samples that depend on one another is not a matter of single variances.
            coupled = self.learns_variance and self.coupling != "independent"
            loss = square_of_average(estimate.gradients, value.shape, attached) if coupled else average_share(loss)
        self.last_surrogate_loss = loss.detach().mean()
        if not (torch.is_grad_enabled() and loss.requires_grad):
            return value
        return attach_surrogate_loss(value, loss, [p for p in self.parameters() if p.requires_grad])
