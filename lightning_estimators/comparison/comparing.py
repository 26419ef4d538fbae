"""`compare`: which gradient estimator suits a model, at its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.comparison.batches import Batches
from lightning_estimators.comparison.result import Comparison
from lightning_estimators.comparison.rollouts import ON_ROLLOUTS, RolloutSubject, acted_rollouts
from lightning_estimators.comparison.run import Options, run
from lightning_estimators.comparison.subject import ModuleSubject, PairSubject
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.isolation import generators_kept, remember
from lightning_estimators.rollout import Policy

__all__ = ["compare"]

_ACTING_SHARE = 0.25  # of the budget, for rollouts of a policy

Pair = tuple[Distribution, Callable[[Tensor], Tensor]]


def compare(
    subject: pl.LightningModule | Pair,
    batch: Any = None,
    estimators: Sequence[GradientEstimator] | None = None,
    budget: float = 60.0,
    *,
    context: Tensor | None = None,
    exchange: Literal["all", "each"] = "all",
    draws: int | None = None,
    learning_steps: int = 300,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    r"""Compare gradient estimators on a model, at the weights that it has: bias, variance, time and memory.

    Every candidate draws estimates g of the gradient of the mean loss on one batch. Of these are told, for the whole
    gradient and for each group of parameters: the variance, the squared bias against a reference, with their standard
    errors, the signal-to-noise ratio, and what a step costs (`Row`). What matters in the end is `work_variance`:
    variance × seconds, since an estimator of half the variance may take twice as long and be as good.

    The reference is exact where the latents have a small finite support, or the cost has a closed form (`Linear` and
    quadratic objectives). Otherwise it is pooled from the means of the unbiased estimators of this package (leave-one-
    out REINFORCE and pathwise gradients or stochastic backpropagation are always among them), without those of the
    candidate's own class. The noise of both means is subtracted, so that it is not taken for bias.

    The module is drawn from as in a training step: in training mode, unless a part of a module in training mode is in
    evaluation mode; in the precision of its Trainer, or of the `torch.autocast` around this call. Afterwards its
    weights, buffers, attributes, `.grad` and all random generators are what they were.

    A candidate takes every place that it fits; at others the module's own estimator stays. Candidates are copies; those
    that learn first have `learning_steps` steps of Adam, of learning rate 0.01, at the weights of the module. One that
    raises, returns numbers that are not finite or takes too long is `refused`, and nothing else comes of it. An
    interruption from the keyboard ends the measurement with what there is.

    Args:
        subject: Any LightningModule with automatic optimization that holds gradient estimators; or a pair of a
            distribution q and a cost f, for the gradient of the mean over the batch of E[f(z)].
        batch: For a module: what its data loader yields, or a `DataLoader`, of which the first batch is taken. Then the
            variance of the gradient between batches is measured too, below which nothing is gained. For a policy
            (`rollout.Policy`): rollouts that it acts at these weights (`Gymnasium.rollouts(module)`), of which every
            draw takes another one, since acting is where most of the variance comes from.
        estimators: The candidates; None for every class of the package, and every imported subclass of
            `GradientEstimator`, that fits, with its default and a few other settings.
        budget: Seconds, for everything. Estimates are drawn where errors are largest until it ends.
        context: For a pair: features that learned estimators may look at.
        exchange: Where there are several latents: "all" at once, or "each", one candidate for every place.
        draws: Estimates of every candidate, if that many are enough: the figures are then a function of the seed, but
            for times, as long as the budget does not end.
        learning_steps: Steps that candidates have to learn, at most; 35 % of the budget is kept for them all.
        seed: Of all noise.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        TypeError: The subject is neither, or lacks a batch; or an element of `estimators` is no estimator.
        ValueError: A number is out of range, or the module's loss calls no estimator.

    Source: the bias test is the approximation of Box (1954), *Some theorems on quadratic forms applied in the study of
    analysis of variance problems, I*, theorem 6.1, https://doi.org/10.1214/aoms/1177728786.

    Example:
        >>> from torch.distributions import Bernoulli, Independent
        >>> from lightning_estimators import compare
        >>> from lightning_estimators.estimators import Concrete, REINFORCE, StochasticBackprop
        >>> q = Independent(Bernoulli(logits=torch.zeros(3)), 1)
        >>> candidates = [StochasticBackprop(), REINFORCE(), Concrete(temperature=3.0)]
        >>> result = compare((q, lambda b: (b.sum(-1) - 1.2) ** 2), estimators=candidates, draws=200)
        >>> result.reference.kind, [round(row.variance, 2) for row in result.rows[:2]]
        ('exact', [0.36, 0.59])
        >>> [row.bias_z > 4 for row in result.rows]
        [False, False, True]
    """
    _check(subject, batch, estimators, draws, learning_steps)
    _check_seconds(budget)
    options = Options(budget, exchange, draws, learning_steps, progress)
    with _untouched(subject):
        if not isinstance(subject, pl.LightningModule):
            return run(PairSubject(*subject, context, seed), estimators, options)
        if not subject.training:
            subject.train()
        if isinstance(subject, Policy):
            return _on_rollouts(subject, batch, estimators, options, seed)
        batches = Batches(subject, batch)
        try:
            return run(ModuleSubject(subject, next(iter(batches)), seed), estimators, options, batches)
        except StopIteration:
            raise ValueError("compare needs a batch, and the loader yields none.") from None
        finally:
            batches.close()


def _on_rollouts(
    policy: pl.LightningModule, source: Any, estimators: Sequence[GradientEstimator] | None, options: Options, seed: int
) -> Comparison:
    """Compare on rollouts of a policy, each of which is one draw."""
    began = time.monotonic()
    subject = RolloutSubject(policy, acted_rollouts(policy, source, _ACTING_SHARE * options.budget), seed)
    draws = min(options.draws or len(subject.measured), len(subject.measured))
    budget = max(0.1 * options.budget, options.budget - (time.monotonic() - began))
    result = run(subject, estimators, replace(options, budget=budget, draws=draws))
    result.notes.append(ON_ROLLOUTS)
    return result


@contextmanager
def _untouched(subject: pl.LightningModule | Pair) -> Iterator[None]:
    """Put back, whatever happens, all that a module and the process share with what runs inside."""
    restore = remember(subject) if isinstance(subject, pl.LightningModule) else remember()
    dtype = torch.get_default_dtype()
    cuda = isinstance(subject, pl.LightningModule) and subject.device.type == "cuda"
    cuda = cuda or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's has no types
    try:
        with generators_kept(include_cuda=cuda), _unlogged(subject):
            yield
    finally:
        torch.set_default_dtype(dtype)
        restore()


@contextmanager
def _unlogged(subject: pl.LightningModule | Pair) -> Iterator[None]:
    """Let what a training step writes to `self.logger` go nowhere: a draw is no step."""
    try:
        trainer = subject.trainer if isinstance(subject, pl.LightningModule) else None
    except RuntimeError:  # not in a Trainer
        trainer = None
    if not isinstance(trainer, pl.Trainer):
        yield
        return
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers


def _check(
    subject: object, batch: object, estimators: Sequence[object] | None, draws: int | None, learning_steps: int
) -> None:
    pair = isinstance(subject, tuple) and len(subject) == 2 and isinstance(subject[0], Distribution)
    if not isinstance(subject, pl.LightningModule) and not (pair and callable(cast(Any, subject)[1])):
        raise TypeError(
            "compare expects a LightningModule and a batch, or a pair (q, f) of a torch.distributions.Distribution and "
            f"a callable; got {type(subject).__name__}."
        )
    if isinstance(subject, pl.LightningModule) and batch is None:
        raise TypeError("compare needs a batch of the module, or a DataLoader: compare(module, batch).")
    if not isinstance(subject, pl.LightningModule) and batch is not None:
        raise TypeError("compare takes no batch beside a pair (q, f), which is one: compare((q, f), estimators=[...]).")
    if estimators is not None and not isinstance(estimators, Sequence):
        raise TypeError(f"estimators must be a sequence, such as [REBAR()], got {type(estimators).__name__}.")
    wrong = [one for one in estimators or [] if not isinstance(one, GradientEstimator)]
    if wrong:
        raise TypeError(f"estimators must be gradient estimators that are built, such as [REBAR()]; got {wrong[0]!r}.")
    if draws is not None and draws < 4:
        raise ValueError(f"draws must be at least 4, of which a variance and its error can be told, got {draws}.")
    if learning_steps < 0:
        raise ValueError(f"learning_steps must not be negative, got {learning_steps}.")


def _check_seconds(budget: float) -> None:
    if not (budget > 0 and math.isfinite(budget)):
        raise ValueError(f"budget must be a positive number of seconds, got {budget!r}.")
