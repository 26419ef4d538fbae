"""Generalized stochastic backpropagation: derivatives moved from the parameters to the random variable."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast

from torch import Tensor
from torch.distributions import Bernoulli, Beta, Dirichlet, Distribution, OneHotCategorical

from lightning_estimators.distributions import (
    Delta,
    as_one_hot,
    base_distribution,
    distribution_parameters,
    probabilities,
    sample,
)
from lightning_estimators.estimators.base import GradientEstimator
from lightning_estimators.estimators.cost_gradient import depends_on
from lightning_estimators.estimators.estimate import Estimate
from lightning_estimators.estimators.learned_changes import LearnedChanges
from lightning_estimators.noise import Coupling
from lightning_estimators.objectives import Objective
from lightning_estimators.objectives.compilation import compile_choice
from lightning_estimators.objectives.sampled_changes import SampledChanges
from lightning_estimators.rules import cumulant_for, has_cumulant, has_rule, rule_for
from lightning_estimators.rules.series import exponential_rule, series_rule

__all__ = ["StochasticBackprop"]

MAX_SERIES_COST = 100_000
"""The most `event size * 3^order` of derivatives by automatic differentiation, each pass three times the one before."""


class StochasticBackprop(GradientEstimator):
    r"""Estimates the gradient by the rule of the family, in every coordinate, at a sample of the others.

    With $K_\theta$ the cumulant generating function of one coordinate,
    $\nabla_\theta E[f] = E[(\nabla_\theta K_\theta)(d/dz) f(z)]$. For discrete families this is a difference: Bernoulli
    $p_j' [f(1, z_{-j}) - f(0, z_{-j})]$; categorical, the sum over K − 1 alternatives against a reference. For
    continuous ones it is the sum of a series in derivatives of f:

    - `form="jump"` sums the series in closed form to random jumps of one coordinate (tables in
      `lightning_estimators.rules`): exact, unbiased, no derivative above the first (the second for normals).
    - `form="series"` truncates it at `order`, as Echraibi et al. do: *biased* unless f ends the series. Where f is not
      very smooth the series diverges (Laplace(.3, .8) and exp(−z²/2) + sin(1.7 z): −1.42, +.80, +6.7 at 1, 2, 4 terms
      for −.618).

    Costs that are quadratic or exponential in z and say so (`Objective.degree`, `Objective.exponential`) get the exact
    sum of the series in either form. A `Delta` gets ordinary backpropagation.

    Requirements: none of f for discrete families; for the others what the rule needs (`f_gradient`). Cost: one
    evaluation of f, and its changes or slopes in every coordinate: D (or D (K - 1)) evaluations for a plain callable,
    in chunks; one rank-one update each for an objective that knows its structure (`lightning_estimators.objectives`).
    With several latents pathwise gradients, where there are, cost one evaluation and often vary less.

    With `num_changes=m` only m changes are evaluated for each sample, and the others are guessed from the gradient of f
    by what earlier calls taught (`objectives.sampled_changes` has the formula): one evaluation of f, two of its
    gradient, and m without gradient, instead of D evaluations, still unbiased, with more variance by the errors of the
    guesses and less by a control variate across coordinates. Rules of continuous families and counts ask for one to
    five kinds of changes, m of each; they take f as a black box then, whose gradient serves the guess only. Costs with
    closed changes stay exact.

    Args:
        form: "jump" or "series"; discrete families keep their exact rule in both.
        order: N, the last derivative of the series; required by it, refused otherwise.
        f_gradient: Whether rules differentiate f (True) or take it as a black box (False); by default whichever f
            allows: its gradient if it has one in z and the family has such a rule.
            What autograd calls a gradient may miss some of f: that of a step (`round`, `floor`, `sign`) is 0, which
            asks for False; and second derivatives, of which the scale of a normal has its own, miss kinks (`relu`,
            `abs`), which asks for False too, or for Pathwise.
        num_samples: S, samples per batch element; Echraibi et al. find one enough.
        coupling: How these depend on one another; see `GradientEstimator`.
        compile: Whether objectives may fuse their loops with `torch.compile`, which takes some seconds once: None for
            large problems where a compiler is found, True always (with a warning where it fails), False never. Same
            numbers to float32's rounding.
        num_changes: m, changes evaluated for each sample; None for all of them. What is learned belongs to one layer:
            give every layer an estimator of its own.

    Raises:
        TypeError: The family of q has no rule of the kind asked for.
        ValueError: `form`, `order`, `f_gradient` and `num_changes` do not fit each other, or the event has another size
            than what was learned of its changes; f cannot be differentiated where it must be;
            the order is out of reach of automatic differentiation for an f without structure.

    Source: Echraibi et al. (2020), *Generalized stochastic backpropagation*, theorems 1 and 2,
    https://hal.science/hal-02968975. The discrete rule is the local expectation gradient of Titsias & Lázaro-Gredilla
    (2015), *Local expectation gradients for black box variational inference*, https://arxiv.org/abs/1503.01494.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli, Independent
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> loss = StochasticBackprop()(Independent(Bernoulli(logits=logits), 1), lambda b: b.sum(-1))
        >>> loss.sum().backward()
        >>> logits.grad[0]  # exact: f is a sum over coordinates
        tensor([0.2500, 0.2500, 0.2500])
    """

    families: ClassVar[tuple[type[Distribution], ...]] = (Distribution,)

    def __init__(
        self,
        form: Literal["jump", "series"] = "jump",
        order: int | None = None,
        f_gradient: bool | None = None,  # noqa: FBT001
        num_samples: int = 1,
        coupling: Coupling = "independent",
        compile: bool | None = None,  # noqa: FBT001
        num_changes: int | None = None,
    ) -> None:
        super().__init__(num_samples, coupling)
        if form not in ("jump", "series"):
            raise ValueError(f'form must be "jump" or "series", got {form!r}.')
        if (form == "series") != (order is not None):
            raise ValueError(
                f'form="series" needs an order and form="jump" takes none; got form={form!r}, order={order!r}.'
            )
        if order is not None and order < 1:
            raise ValueError(f"order must be an integer of at least 1, got {order!r}.")
        if form == "series" and f_gradient is False:
            raise ValueError('form="series" differentiates f; for a black box use form="jump", f_gradient=False.')
        check_num_changes(num_changes, form, f_gradient)
        self.form, self.order, self.f_gradient, self.num_changes = form, order, f_gradient, num_changes
        self.compiled = compile  # `compile` is a method of modules
        self.learned_changes = None if num_changes is None else LearnedChanges()

    def is_unbiased(self, q: Distribution) -> bool:
        """Whether the rule of the family is exact: a series that is cut off is not."""
        return self.form == "jump" or is_discrete(q) or self.is_pathwise(q)

    def is_pathwise(self, q: Distribution) -> bool:
        """Whether the gradient flows through the sample: for point masses."""
        return isinstance(base_distribution(q), Delta)

    def check(self, q: Distribution) -> None:
        """Refuse families without a rule of the kind asked for."""
        super().check(q)
        if self.is_pathwise(q):
            return
        q = as_one_hot(q)
        if self.num_changes is not None:
            rule_for(q, f_gradient=False)
        elif is_discrete(q):
            rule_for(q, f_gradient=self.f_gradient is True)
        elif self.form == "series":
            if not isinstance(base_distribution(q), Beta | Dirichlet):  # normalised gammas
                cumulant_for(q)
        elif self.f_gradient is not None:
            rule_for(q, f_gradient=self.f_gradient)
        elif not has_rule(q, f_gradient=True):
            rule_for(q, f_gradient=False)

    def prepare(self, q: Distribution, context: Tensor | None = None) -> None:
        """Check q, and size what is learned of changes."""
        super().prepare(q, context)
        if self.learned_changes is not None:
            like = next(iter(distribution_parameters(q).values()))
            self.learned_changes.prepare(as_one_hot(q).event_shape.numel(), like)

    def evaluations(self, q: Distribution) -> tuple[int, int]:
        """Return, for discrete q, one evaluation of f, one as reference of the changes, and one per change.

        For sampled changes f is differentiated once at each sample, unless it is not to be.
        """
        q = as_one_hot(q)
        size = math.prod(q.event_shape)
        categorical = isinstance(base_distribution(q), OneHotCategorical)
        changes = size - size // q.event_shape[-1] if categorical else size
        if self.num_changes is not None and self.num_changes < changes:
            return self.num_samples * (self.num_changes + 1), 0 if self.f_gradient is False else self.num_samples
        return self.num_samples * (changes + 2), 0

    def estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective, context: Tensor | None) -> Estimate:
        """Sample, and apply the rule at the sample."""
        with compile_choice(self.compiled):
            return self._estimate(q, leaves, f)

    def _estimate(self, q: Distribution, leaves: dict[str, Tensor], f: Objective) -> Estimate:
        if self.is_pathwise(q):
            z = leaves["value"].view_as(leaves["value"])  # a node of its own: f may reach the point another way
            value = f(z)
            if z.requires_grad and not depends_on(value, z):
                raise ValueError(
                    "the rule of Delta is backpropagation, but f(z) has no gradient in z. Give f one, or q a family "
                    "with randomness to learn from."
                )
            return Estimate(value)
        z = sample(q)
        if self.learned_changes is not None and not sums_series(q, z, f):
            return self._with_sampled_changes(q, z, f, self.learned_changes)
        value = f(z)
        if is_discrete(q):
            return Estimate(value, rule_for(q, f_gradient=False)(q, z, f))
        if has_cumulant(q):
            if f.degree is not None:
                return Estimate(value, series_rule(q, z, f, max(f.degree, 1)))
            if (gradients := exponential_rule(q, z, f)) is not None:
                return Estimate(value, gradients)
        if self.order is not None:
            self._check_series(q, z, f)
            return Estimate(value, series_rule(q, z, f, self.order))
        return Estimate(value, rule_for(q, f_gradient=self._differentiates(q, z, f))(q, z, f))

    def _with_sampled_changes(self, q: Distribution, z: Tensor, f: Objective, learned: LearnedChanges) -> Estimate:
        learned.prepare(q.event_shape.numel(), z)
        past, repeated = learned.past(z.device), learned.is_repeated(z.device)
        base, num_changes = base_distribution(q), cast(int, self.num_changes)
        # Coordinates of these are independent, and their rules weight no change by what another coordinate is.
        mean = probabilities(q).detach() if isinstance(base, Bernoulli | OneHotCategorical) else None
        differentiate = self.f_gradient is not False
        changes = SampledChanges(f, z, num_changes, learned.model(past), differentiate=differentiate, mean=mean)
        gradients = rule_for(q, f_gradient=False)(q, z, changes)
        if learned.takes_in(z.device, repeated=repeated):
            learned.take_in(changes, width=q.event_shape[-1] if isinstance(base, OneHotCategorical) else 1)
        return Estimate(changes.at_point, gradients)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return those of the base class, and how many calls were left out of what is learned of changes."""
        return super().diagnostics() | (self.learned_changes.diagnostics() if self.learned_changes else {})

    def extra_repr(self) -> str:
        """Show the settings."""
        ways = f"form={self.form!r}, order={self.order}, f_gradient={self.f_gradient}, compile={self.compiled}"
        return f"{ways}, num_changes={self.num_changes}, {super().extra_repr()}"

    def _differentiates(self, q: Distribution, z: Tensor, f: Objective) -> bool:
        """Which rule f allows, where it was left open."""
        if self.f_gradient is False:
            return False
        if f.is_differentiable(z):
            return has_rule(q, f_gradient=True)
        if self.f_gradient:
            raise ValueError(
                "StochasticBackprop(f_gradient=True) differentiates f, but f(z) has no gradient in z. "
                "Use f_gradient=False, or None to let f decide."
            )
        if not has_rule(q, f_gradient=False):
            raise ValueError(
                f"the rule of {type(base_distribution(q)).__name__} differentiates f, but f(z) has no gradient in z. "
                "For a black-box f use REINFORCE, or LAX where the family has rsample."
            )
        return False

    def _check_series(self, q: Distribution, z: Tensor, f: Objective) -> None:
        if not f.is_differentiable(z):
            raise ValueError(
                'StochasticBackprop(form="series") differentiates f, but f(z) has no gradient in z. '
                'Use form="jump", which takes f as a black box where the family allows, or REINFORCE.'
            )
        size = math.prod(q.event_shape)
        if self.order is not None and not f.closed_derivatives and size * 3**self.order > MAX_SERIES_COST:
            raise ValueError(
                f"derivatives of order {self.order} in {size} coordinates of an f without structure take about "
                f"{size} * 3^{self.order} passes. Give f as an objective with closed-form derivatives "
                '(lightning_estimators.objectives), lower the order, or use form="jump".'
            )


def sums_series(q: Distribution, z: Tensor, f: Objective) -> bool:
    """Whether f ends the series of q, or has a closed form of its sum."""
    return not is_discrete(q) and has_cumulant(q) and (f.degree is not None or f.exponential(z) is not None)


def is_discrete(q: Distribution) -> bool:
    """Whether q is of a family with a finite support, whose rule is exact."""
    return base_distribution(q).has_enumerate_support


def check_num_changes(num_changes: int | None, form: str, f_gradient: bool | None) -> None:  # noqa: FBT001
    """Raise unless the number of changes fits the other settings."""
    if num_changes is None:
        return
    if isinstance(num_changes, bool) or not isinstance(num_changes, int) or num_changes < 1:
        raise ValueError(f"num_changes must be an integer of at least 1, or None for all changes, got {num_changes!r}.")
    if form == "series" or f_gradient:
        raise ValueError(
            "num_changes samples the differences of rules that take f as a black box, and guesses the others from the "
            f'gradient of f where it has one; got form={form!r}, f_gradient={f_gradient!r}. Use form="jump" and '
            "f_gradient=None, or False to leave the gradient out."
        )
