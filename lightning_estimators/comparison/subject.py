"""What estimators are compared on: a module and a batch, or a distribution and a cost, at fixed weights."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_estimators.comparison.calls import normalizes_batches, watched_calls, without_graph
from lightning_estimators.comparison.candidates import Place, known_estimators
from lightning_estimators.comparison.dependencies import leaves_of, modules_of
from lightning_estimators.comparison.weights import Weights
from lightning_estimators.counter_noise import counter_noise
from lightning_estimators.distributions import distribution_parameters, rebuild, sample
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.isolation import mute, remember
from lightning_estimators.model_parts import gradient_estimators, parameter_groups
from lightning_estimators.module_gradients import Gradients, draw_gradients, training_loss
from lightning_estimators.moments import flatten

__all__ = ["Drawn", "ModuleSubject", "PairSubject", "Subject"]


@dataclass(frozen=True)
class Drawn:
    """One estimate of the gradient by group, of what the candidate learns, and how long it took."""

    gradients: dict[str, Tensor]
    own: list[Tensor | None]
    seconds: float


class Subject(ABC):
    """Something whose gradient can be drawn again and again, by other estimators than its own, leaving no trace.

    Implementing one: set `places`, `parts` and `device` before the first draw, and implement the abstract methods.

    Attributes:
        places: Where estimators are called, by path.
        parts: Modules that run; buffers and attributes are restored after every draw, weights are checked by `weights`.
        inputs: Values that a draw reads, such as a batch, put back like the parts.
        device: Where noise is drawn.
        seed: Of all noise.
        couples: Whether costs of batch elements depend on one another, so that the gradient depends on the estimator.
    """

    couples: bool
    places: dict[str, Place]
    parts: list[nn.Module]
    inputs: list[Any]
    device: torch.device

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @abstractmethod
    def totals(self) -> list[str]:
        """Return the groups that make up the whole gradient."""

    @abstractmethod
    def _gradients(self, estimators: Mapping[str, GradientEstimator], own: Sequence[nn.Parameter]) -> Gradients:
        """Return one estimate under the noise of torch's generators."""

    def known_estimators(self) -> list[GradientEstimator]:
        """Return what is tried where no candidates are given."""
        return known_estimators()

    @functools.cached_property
    def rounding(self) -> float:
        """How large rounding errors of gradients may be, relative to them."""
        dtypes = {p.dtype for part in self.parts for p in part.parameters()}
        dtypes |= {p.dtype for place in self.places.values() for p in distribution_parameters(place.q).values()}
        if torch.is_autocast_enabled(self.device.type) or dtypes & {torch.bfloat16, torch.float16}:
            return 1e-2
        return 1e-5 if torch.float32 in dtypes else 1e-10

    @functools.cached_property
    def weights(self) -> Weights:
        """The parameters as they were, which nothing may change."""
        return Weights([*(named for part in self.parts for named in part.named_parameters()), *self._tensors()])

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """Return tensors that require grad outside all modules, with names."""
        return []

    def session(self, *candidates: nn.Module) -> Callable[[], None]:
        """Return a function that puts the subject, and the candidates given, back to what they are now."""
        return remember(*self.parts, *self.inputs, *candidates)

    def draw(
        self,
        estimators: Mapping[str, GradientEstimator],
        counters: Sequence[int],
        restore: Callable[[], None],
        own: Sequence[nn.Parameter] = (),
    ) -> Drawn:
        """Return one estimate of the gradient.

        Args:
            estimators: By place.
            counters: Seed of the noise, beside that of the subject.
            restore: From `session`; called afterwards, whatever happens.
            own: Parameters of the estimators whose gradients are wanted.

        Raises:
            FloatingPointError: It is not finite.
        """
        for part in self.parts:
            if isinstance(part, pl.LightningModule):
                mute(part)
        torch.clear_autocast_cache()  # it holds graphs of the draw before
        dtype = torch.get_default_dtype()
        try:
            with counter_noise(self.device, self.seed, *counters), torch.enable_grad():
                start = time.perf_counter()
                drawn = self._gradients(estimators, own)
                gradients = drawn.groups | self._of_latents(drawn)
                finite = all(bool(g.isfinite().all()) for g in gradients.values())  # waits for the device
                seconds = time.perf_counter() - start
        finally:
            torch.set_default_dtype(dtype)
            restore()
        if not finite:
            raise FloatingPointError("its gradient is not finite (NaN or infinity).")
        return Drawn(gradients, drawn.own, seconds)

    def _of_latents(self, drawn: Gradients) -> dict[str, Tensor]:
        """Return one vector for each place, of the same size whatever the estimators around it do."""
        vectors = {}
        for path, found in drawn.latents.items():
            if path in self.places:
                place = self.places[path]
                own_dims = {
                    name: p.ndim - len(place.q.batch_shape) for name, p in distribution_parameters(place.q).items()
                }
                dims = {name: place.batch_dims + own for name, own in own_dims.items()}
                kept = [g.sum_to_size(g.shape[g.ndim - dims[name] :]) for name, g in found.items()]
                vectors[f"logits/{path}"] = flatten(kept)
        return vectors


class ModuleSubject(Subject):
    """A LightningModule on one batch.

    Args:
        module: Any LightningModule with automatic optimization that holds gradient estimators.
        batch: What its data loader yields, on the module's device.
        seed: Of all noise.

    Raises:
        TypeError: It steps its optimizers itself.
        ValueError: Its loss calls no gradient estimator.
    """

    def __init__(self, module: pl.LightningModule, batch: Any, seed: int) -> None:
        super().__init__(seed)
        if not module.automatic_optimization:
            raise TypeError(
                f"compare repeats the training step of {type(module).__name__} to draw gradients, but with "
                "automatic_optimization=False that step also changes the weights. Use automatic optimization (one "
                "backward fills the gradients of model and estimators)."
            )
        self.module, self.batch, self.device = module, batch, module.device
        self.parts, self.inputs = [module], [batch]
        self.groups = parameter_groups(module)
        self.own = gradient_estimators(module)
        self.places = {}
        with watched_calls(module, self.own) as seen:
            self.draw({}, (0, 0), self.session())
        self.places = seen.places
        self.couples = seen.couples or any(place.own.allow_coupled_costs for place in seen.places.values() if place.own)
        if not self.places:
            raise ValueError(
                f"the loss of {type(module).__name__} calls no gradient estimator: expected one of "
                f"lightning_estimators.estimators among the modules inside it, got {list(self.own) or 'none'}."
            )

    def totals(self) -> list[str]:
        """Return the groups of parameters, or those of the latents where all parameters are frozen."""
        return list(self.groups) or [f"logits/{path}" for path in self.places]

    def on(self, batch: Any) -> ModuleSubject:
        """Return the same on another batch."""
        other = object.__new__(ModuleSubject)
        vars(other).update(vars(self) | {"batch": batch, "inputs": [batch]})
        return other

    def _gradients(self, estimators: Mapping[str, GradientEstimator], own: Sequence[nn.Parameter]) -> Gradients:
        with _exchanged(self.own, estimators), self._precision():
            return draw_gradients(
                lambda: training_loss(self.module, self.batch, 0, "compare"), self.groups, self.own, own
            )

    def _precision(self) -> AbstractContextManager[object]:
        try:
            plugin = self.module.trainer.precision_plugin
        except RuntimeError:  # not in a Trainer
            return ExitStack()
        return plugin.train_step_context()


class PairSubject(Subject):
    """The mean over the batch of E[f(z)], z from q.

    Its groups are `logits/q`, the parameters of q, and `f`, the tensors that require grad which f(z) depends on.

    Args:
        q: A distribution.
        f: A cost.
        context: What learned estimators may look at, or None.
        seed: Of all noise.
    """

    def __init__(self, q: Distribution, f: Callable[[Tensor], Tensor], context: Tensor | None, seed: int) -> None:
        super().__init__(seed)
        parameters = distribution_parameters(q)
        if not any(p.requires_grad for p in parameters.values()):
            q = rebuild(q, {name: p.detach().requires_grad_() for name, p in parameters.items()})
            parameters = distribution_parameters(q)
        self.q, self.f, self.context = q, f, context
        self.device = next(iter(parameters.values())).device
        self.parts = list(modules_of(f))
        self.inputs = [p.detach() for p in parameters.values()] + ([] if context is None else [context])
        self.places = {"q": Place(None, without_graph(q), context, len(q.batch_shape))}
        self.couples = any(normalizes_batches(part) for module in self.parts for part in module.modules())
        restore = self.session()
        try:
            with counter_noise(self.device, seed, 0, 0), torch.enable_grad():
                leaves = leaves_of(f(sample(q)), stop=[p for p in parameters.values() if p.requires_grad])
        finally:
            restore()
        self.groups = {"f": leaves} if leaves else {}

    def totals(self) -> list[str]:
        """Return both."""
        return ["logits/q", *self.groups]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [
            *distribution_parameters(self.q).items(),
            *(("a tensor of f", leaf) for leaf in self.groups.get("f", ())),
        ]

    def _gradients(self, estimators: Mapping[str, GradientEstimator], own: Sequence[nn.Parameter]) -> Gradients:
        estimator = estimators["q"]
        return draw_gradients(
            lambda: estimator(self.q, self.f, self.context).mean(),
            self.groups,
            {"q": estimator},
            own,
            retain_graph=True,
        )


@contextmanager
def _exchanged(own: Mapping[str, GradientEstimator], others: Mapping[str, GradientEstimator]) -> Iterator[None]:
    """Let calls of estimators go to others, wherever in the module they come from."""
    for path, other in others.items():
        vars(own[path])["forward"] = other  # before the method of the class
    try:
        yield
    finally:
        for path in others:
            vars(own[path]).pop("forward", None)
