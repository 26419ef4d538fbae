"""Checks that need few statistics: shapes, errors, number of evaluations, BatchNorm in f, extreme logits, copies."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, OneHotCategorical

from lightning_estimators.configurable import import_path
from lightning_estimators.noise import CommonNoise
from lightning_estimators.testing.statistics import BOUND, Report, require
from lightning_estimators.testing.under_test import (
    Cost,
    EstimatorUnderTest,
    Factory,
    accepts,
    build,
    families,
    layouts,
    one_layer,
)

__all__ = [
    "check_copies",
    "check_evaluations",
    "check_noise",
    "check_norms",
    "check_refusals",
    "check_saturated",
    "check_shapes",
]


def weighted_squares(q: Distribution) -> Cost:
    """Return a smooth cost for the event shape of q, in which every coordinate has a different weight."""
    event = q.event_shape

    def cost(z: Tensor) -> Tensor:
        weights = torch.arange(1, event.numel() + 1, dtype=z.dtype).reshape(event)
        return (weights * (z - 0.3).square()).sum(tuple(range(-len(event), 0))) if event else (z - 0.3).square()

    return cost


def check_shapes(factory: Factory, report: Report) -> None:
    """The value has shape `q.batch_shape`, and the gradient is finite and has the shape of the parameter.

    Checked in float32 and float64, for several batch and event shapes, and for Bernoulli and one-hot categorical
    variables with logits and with probabilities. Under `torch.no_grad` only the value is computed.
    """
    check = "shapes"
    for name, leaf, q in layouts(families(factory), scale=1.0):
        subject = build(factory, q)
        value = subject(q, weighted_squares(q))
        found, expected = (value.shape, value.dtype), (q.batch_shape, leaf.dtype)
        require(found == expected, check, name, f"expected a value of {expected}, got {found}")
        require(value.requires_grad, check, name, "the value carries no gradient")
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        require(bool(value.isfinite().all()), check, name, f"the value is not finite: {value}")
        require(bool(gradient.isfinite().all()), check, name, f"the gradient is not finite: {gradient}")
        with torch.no_grad():
            value = subject(q, weighted_squares(q))
        require(not value.requires_grad, check, name, "the value requires grad under no_grad")
        require(value.shape == q.batch_shape, check, name, f"got shape {tuple(value.shape)} under no_grad")


def check_saturated(factory: Factory, report: Report) -> None:
    """The value, the gradient, and that of the estimator's own parameters are finite at logits of ±50.

    So they are for the corresponding probabilities, which round to 0 and 1.
    """
    check = "saturated"
    for name, leaf, q in layouts(families(factory), scale=float("inf")):
        subject = build(factory, q)
        value = subject(q, weighted_squares(q))
        torch.autograd.backward(value.sum())
        figures: dict[str, Tensor | None] = {"the value": value, "the gradient": leaf.grad}
        figures |= {f"the gradient of its own {n}": p.grad for n, p in subject.own().items()}
        for what, figure in figures.items():
            finite = figure is not None and bool(figure.isfinite().all())
            require(finite, check, name, f"{what} is missing or not finite: {figure}")


def check_refusals(factory: Factory, report: Report) -> None:
    """What cannot work raises an error.

    - Distributions of families that are not declared: TypeError, from `check` and from a call.
    - An f that returns another shape: ValueError.
    - An f without a gradient in z: ValueError if `gradient_of_f` says that a gradient is needed. Otherwise the estimate
      must be finite and not zero (for continuous families a ValueError is allowed too, since the rule of one family may
      need a gradient where that of another does not).
    """
    check = "refusals"
    logits = torch.zeros(4, 2, 3, requires_grad=True)
    others = [Bernoulli(logits=logits), OneHotCategorical(logits=logits), Normal(logits, torch.ones(4, 2, 3))]
    for other in others:
        name, declared = type(other).__name__, isinstance(other, factory().families)
        require(declared or not accepts(factory, other), check, name, "check(q) accepts a family that is not declared")
        if not accepts(factory, other):
            _refuses(TypeError, partial(factory(), other, lambda z: z.sum(-1)), check, name, "a call, as check(q) does")
    for family in families(factory):
        q = one_layer(family, logits)  # one backward at most, so that it can be used twice
        subject = build(factory, q)
        _refuses(ValueError, partial(subject, q, lambda z: z), check, family.__name__, "an f that returns z itself")
        scale = torch.ones((), requires_grad=True)  # black boxes may still have parameters

        def black_box(z: Tensor, scale: Tensor = scale, event: tuple[int, ...] = tuple(q.event_shape)) -> Tensor:
            return scale * (z.detach() > 0.5).to(z.dtype).sum(tuple(range(-len(event), 0)))

        discrete = family in (Bernoulli, OneHotCategorical)
        if subject.estimator.gradient_of_f != "none" or (
            not discrete and _raises(ValueError, partial(subject, q, black_box))
        ):
            what = "an f that has no gradient in z, which `gradient_of_f` says it needs"
            _refuses(ValueError, partial(subject, q, black_box), check, family.__name__, what)
        else:
            (gradient,) = torch.autograd.grad(subject(q, black_box).sum(), logits)
            seen = family is OneHotCategorical or bool((gradient != 0).any())  # exactly one entry is 1: a constant cost
            require(
                seen and bool(gradient.isfinite().all()),
                check,
                family.__name__,
                f"the gradient of a black box is zero or not finite: {gradient}",
            )


def check_evaluations(factory: Factory, report: Report) -> None:
    """`evaluations(q)` is how often f and its gradient are evaluated for each element of the batch.

    Only the gradient with respect to z is counted; the one in the parameters of f is evaluated once by all estimators.
    Checked for discrete families if the estimator takes any, since for continuous ones the numbers depend on the family
    and on f.
    """
    check = "evaluations"
    found = families(factory)
    discrete = [family for family in found if family in (Bernoulli, OneHotCategorical)]
    for family in discrete or found:
        logits = torch.zeros(5, 2, 3, dtype=torch.float64, requires_grad=True)
        q = one_layer(family, logits if family is OneHotCategorical else logits[..., 0])
        subject = build(factory, q)
        subject.estimator.requires_grad_(requires_grad=False)  # to train its own parameters, it would evaluate f again
        subject.estimator.allow_coupled_costs = True  # the search for coupled costs would evaluate f again
        counted = _Counted(weighted_squares(q), q.event_shape.numel())
        torch.autograd.grad(subject(q, counted).sum(), logits)
        asked = (counted.values / len(logits), counted.gradients / len(logits))
        declared = subject.estimator.evaluations(q)
        message = f"evaluations(q) says {declared} of f and of its gradient per batch element, counted {asked}"
        require(asked == declared, check, family.__name__, message)


def check_noise(factory: Factory, report: Report) -> None:
    """Noise is drawn by `noise.uniform` or `distributions.sample`, so that an enclosing estimator can repeat it.

    Checked for discrete families: along an axis that an enclosing estimator adds for common random numbers, all
    estimates must be equal.
    """
    for family in families(factory):
        if family not in (Bernoulli, OneHotCategorical):
            continue
        leaf = torch.zeros(2, 50, 2, 3, dtype=torch.float64, requires_grad=True)
        noise = CommonNoise(leaf.device)
        twice = one_layer(family, leaf)
        subject = build(factory, twice)
        with noise.replay(new_axis=len(twice.batch_shape) - 1):
            value = subject(twice, weighted_squares(twice))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        require(
            torch.allclose(gradient[0], gradient[1], rtol=1e-9, atol=1e-12),
            "noise",
            family.__name__,
            "noise that an enclosing estimator replays is drawn anew: draw it by lightning_estimators.noise.uniform or "
            "distributions.sample, not by torch.rand, torch.rand_like or q.sample()",
        )


def check_norms(factory: Factory, report: Report) -> None:
    """BatchNorm inside f sees samples, and none of the other points: its running mean is the mean of q."""
    for family in families(factory):
        logits = torch.linspace(-3, 0, 6, dtype=torch.float64).reshape(1, 2, 3).repeat(200, 1, 1)
        logits = (logits if family is OneHotCategorical else logits[..., 0]).requires_grad_()
        q = one_layer(family, logits)
        norm = nn.BatchNorm1d(q.event_shape.numel(), momentum=None, dtype=torch.float64)

        def cost(z: Tensor, norm: nn.Module = norm, event: torch.Size = q.event_shape) -> Tensor:
            rows: Tensor = norm(z.reshape(-1, event.numel()))
            return rows.sum(-1).reshape(z.shape[: z.ndim - len(event)])

        subject = build(factory, q)
        subject.estimator.allow_coupled_costs = True
        subject(q, cost)
        mean = q.mean[0].detach().flatten()
        error = (q.variance[0].detach().flatten() / len(logits)).sqrt()
        z = float(((norm.running_mean - mean) / error).abs().max())  # type: ignore[operator]  # a tensor: it tracks them
        message = (
            f"BatchNorm inside f has not seen samples alone, their mean is off by |z| = {z:.1f}, above {BOUND:.1f}: "
            "evaluate f elsewhere inside CommonNoise.replay or evaluated_elsewhere"
        )
        require(bool(norm.num_batches_tracked) and z < BOUND, "norms", family.__name__, message)


def check_copies(factory: Factory, report: Report) -> None:
    """Copies made by state_dict, deepcopy and pickle return the same estimate; repr shows every setting."""
    check = "copies"
    for family in families(factory):
        logits = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits = (logits if family is OneHotCategorical else logits[..., 0]).clone().requires_grad_()
        subject = build(factory, one_layer(family, logits))
        for _ in range(3):  # so that running averages and own parameters differ from their initial values
            q = one_layer(family, logits)
            torch.autograd.backward(subject(q, weighted_squares(q)).sum())
        for p in subject.own().values():
            p.data.add_(0.1)
        file = io.BytesIO()
        torch.save(subject.estimator.state_dict(), file)
        file.seek(0)
        loaded = build(factory, one_layer(family, logits), seed=1).estimator
        loaded.load_state_dict(torch.load(file, weights_only=True))
        copies = {
            "state_dict": loaded,
            "deepcopy": copy.deepcopy(subject.estimator),
        }
        if import_path(type(subject.estimator)):  # a class defined inside a function cannot be pickled
            copies["pickle"] = pickle.loads(pickle.dumps(subject.estimator))
        expected = _outcome(subject, family, logits)
        for how, estimator in copies.items():
            found = _outcome(EstimatorUnderTest(estimator, subject.needs_context), family, logits)
            same = all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
            require(same, check, family.__name__, f"{how}: another estimate under the same noise")
        shown = repr(subject.estimator)
        for setting in inspect.signature(type(subject.estimator)).parameters:
            named = f"{setting}=" in shown or f"({setting})" in shown
            require(named, check, family.__name__, f"repr does not show the setting {setting!r}: {shown}")


class _Counted:
    """Wraps a cost and counts the points at which it, and its gradient in z, are evaluated."""

    def __init__(self, f: Cost, event_size: int) -> None:
        self.f, self.event_size = f, event_size
        self.values = self.gradients = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.values += z.numel() // self.event_size
        if z.requires_grad:
            z = z.view_as(z)
            z.register_hook(self._count)  # type: ignore[no-untyped-call]
        return self.f(z)

    def _count(self, gradient: Tensor) -> None:
        self.gradients += gradient.numel() // self.event_size


def _outcome(subject: EstimatorUnderTest, family: type[Distribution], logits: Tensor) -> list[Tensor]:
    torch.manual_seed(7)
    q = one_layer(family, logits)
    value = subject(q, weighted_squares(q))
    sources = [logits, *subject.own().values()]
    gradients = torch.autograd.grad(value.sum(), sources, allow_unused=True, materialize_grads=True)
    return [value.detach(), *gradients]


def _raises(kind: type[Exception], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def _refuses(kind: type[Exception], call: Callable[[], object], check: str, problem: str, what: str) -> None:
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{check}: {problem}: {what}: expected {kind.__name__}, got {error!r}") from error
    raise AssertionError(f"{check}: {problem}: {what}: expected {kind.__name__}, nothing was raised")
