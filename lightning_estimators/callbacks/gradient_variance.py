"""The variance of the gradient, which is what estimators differ in, as curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_estimators.callbacks.isolation import isolated
from lightning_estimators.distributions import distribution_parameters
from lightning_estimators.modules import EstimatorModule

__all__ = ["GradientVariance"]

# Noise streams of `EstimatorModule.seed_noise` from here on are free for callbacks; draw k uses stream 4 + k.
_FIRST_STREAM = 4


class GradientVariance(pl.Callback):
    r"""Logs the variance of the gradient and its signal-to-noise ratio, per group of parameters and per latent layer.

    Let $g_1, \dots, g_K$ be estimates of the gradient of the mean loss with respect to a group of n entries,
    $\bar g$ their mean and $s_i^2 = \frac{1}{K-1} \sum_k (g_{k,i} - \bar g_i)^2$. Logged, never in the progress bar:

    ===============================  ==================================================================================
    key                              meaning
    ===============================  ==================================================================================
    `gradient/<group>/variance`      $\frac{1}{n} \sum_i s_i^2$: the variance of an entry, averaged over the entries
    `gradient/<group>/log_variance`  its natural logarithm; -inf where the estimate has no variance
    `gradient/<group>/snr`           $\lVert \bar g \rVert / \sqrt{\sum_i s_i^2}$: norm of the mean gradient over the
                                     root of the total variance of one estimate; about $1/\sqrt{K}$ for pure noise, inf
                                     where there is no variance, 0 where there is no gradient
    ===============================  ==================================================================================

    A `<group>` is a name in `module.parameter_groups()` (such as `encoder` or `decoder`), or `logits/<path>` for an
    estimator in `module.estimators()`: the gradient with respect to `distribution_parameters(q)` (its logits, where it
    has logits) of the q it is given, through q only. An entry is one number of one data point, so these gradients, of
    the mean over a batch of B, are 1/B times those of a data point's own cost. Of several calls per loss (an estimator
    nested in another), the first that the loss depends on counts.

    Two methods:

    - `"fresh"`: before a logged step, at the weights of that step, K fresh estimates on the batch of that step. What
      varies is the noise of the estimator alone (and of whatever else is random in the loss, such as dropout). Training
      is bit-identical with and without the callback, whatever the precision and the number of processes: buffers and
      random generators are restored, and nothing is accumulated in `.grad`. With several processes, the figures
      are those of the gradient averaged over them: their noise is independent, so its variance is the average of
      their variances divided by their number.
    - `"moments"`: after a logged step, from Adam's bias-corrected moving averages of the gradient and of its square:
      $s_i^2 = \hat v_i - \hat m_i^2$ and $\bar g = \hat m$, from the second step on; a negative average counts as 0.
      Free, but it is the variance of the gradient as the optimizer saw it (clipped, accumulated) over the steps that
      the averages remember: differences between batches and the drift of the weights count too. Parameters only: the
      logits of layers have no moments.

    Cost: `"fresh"`: K evaluations of the loss and its gradient per measurement, memory for one more gradient;
    `"moments"`: none.

    Args:
        method: `"fresh"` or `"moments"`.
        num_samples: K, fresh estimates per measurement, at least 2; unused by `"moments"`.
        every_n_steps: Least number of batches between two measurements, rounded up to steps that
            `Trainer(log_every_n_steps=...)` logs; None measures at each of those. (With `accumulate_grad_batches` the
            gradient is still that of one batch.)

    Raises:
        ValueError: An argument is out of range.
        TypeError: At the start of `fit`: the module is no `EstimatorModule`, or its optimizer keeps no moments.

    Source: "fresh": Grathwohl et al. (2018), Figure 2 (left); "moments": Echraibi et al. (2020), appendix B.

    Example:
        >>> callback = GradientVariance(num_samples=10, every_n_steps=500)
        >>> trainer = pl.Trainer(callbacks=[callback], log_every_n_steps=50, logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        method: Literal["fresh", "moments"] = "fresh",
        num_samples: int = 10,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__()
        if method not in ("fresh", "moments"):
            raise ValueError(f"method must be 'fresh' or 'moments', got {method!r}.")
        if not _is_integer(num_samples) or num_samples < 2:
            raise ValueError(
                f"num_samples must be an integer of at least 2: a variance needs two; got {num_samples!r}."
            )
        if every_n_steps is not None and (not _is_integer(every_n_steps) or every_n_steps < 1):
            raise ValueError(
                f"every_n_steps must be a positive integer, or None for each logged step; got {every_n_steps!r}. "
                "To measure nothing, leave the callback out."
            )
        self.method = method
        self.num_samples = num_samples
        self.every_n_steps = every_n_steps
        self._due = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse modules that do not say what their estimators and groups are."""
        if stage == "fit" and not isinstance(pl_module, EstimatorModule):
            raise TypeError(
                "GradientVariance needs a module derived from lightning_estimators.modules.EstimatorModule, got "
                f"{type(pl_module).__name__}. Derive it from EstimatorModule (one method, `loss`), or remove the "
                "callback."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse `"moments"` with an optimizer that has none."""
        if self.method == "moments":
            for optimizer in _model_optimizers(trainer, cast(EstimatorModule, pl_module)):
                # The moments do not exist before the first step; Adamax keeps a maximum instead of the second.
                if not all("betas" in group for group in optimizer.param_groups) or isinstance(
                    optimizer, torch.optim.Adamax
                ):
                    raise TypeError(_no_moments(optimizer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether this step is measured; draw the fresh estimates, at the weights this step uses."""
        self._due = self._is_due(trainer)
        if self._due and self.method == "fresh":
            _log(pl_module, self._fresh(trainer, cast(EstimatorModule, pl_module), batch, batch_idx))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the optimizer's moments."""
        if self._due and self.method == "moments":
            _log(pl_module, self._moments(trainer, cast(EstimatorModule, pl_module)))

    def _is_due(self, trainer: pl.Trainer) -> bool:
        # What Lightning's own callbacks ask before they spend time on something that would not be logged.
        if not (trainer._logger_connector.should_update_logs or trainer.fast_dev_run):  # type: ignore[attr-defined]
            return False
        # Logged steps come every log_every_n_steps; of those, the first at or after each multiple of every_n_steps.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1  # the count that decides what is logged
        period: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.every_n_steps is None or step % self.every_n_steps < period

    def _fresh(self, trainer: pl.Trainer, module: EstimatorModule, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        groups = _trainable_groups(module)
        parameters = [parameter for group in groups.values() for parameter in group]
        means: dict[str, Tensor] = {}
        squares: dict[str, Tensor] = {}  # Welford: sum over draws of squared deviations, summed over the entries
        with isolated(module), torch.enable_grad():
            for k in range(self.num_samples):
                module.seed_noise(_FIRST_STREAM + k, batch_idx)
                with trainer.precision_plugin.train_step_context(), _captured(module) as calls:
                    loss = module.loss(batch).mean()
                    latent = [p for of_path in calls.values() for call in of_path for p in call]
                    found = iter(torch.autograd.grad(loss, [*parameters, *latent], allow_unused=True))
                gradients = {
                    name: _flat([_or_zero(next(found), parameter) for parameter in group])
                    for name, group in groups.items()
                }
                for path, of_path in calls.items():
                    reached = [[(next(found), p) for p in call] for call in of_path]
                    first = next((call for call in reached if any(g is not None for g, _ in call)), None)
                    if first is not None:
                        gradients[f"logits/{path}"] = _flat([_or_zero(g, p) for g, p in first])
                for name, gradient in gradients.items():
                    mean = means.setdefault(name, torch.zeros_like(gradient))
                    deviation = gradient - mean
                    mean += deviation / (k + 1)
                    squares[name] = squares.get(name, 0) + (deviation * (gradient - mean)).sum()
        world = trainer.world_size
        figures: dict[str, Tensor] = {}
        for name, mean in means.items():
            total = squares[name] / (self.num_samples - 1)
            if name in groups:  # the same entries on every rank: the gradient is the average over ranks
                mean = trainer.strategy.reduce(mean, reduce_op="mean")
                total = trainer.strategy.reduce(total, reduce_op="mean") / world
                norm, entries = mean.norm(), mean.new_tensor(mean.numel())
            else:  # every rank has its own data points, of which the mean loss over all ranks has 1/world the gradient
                parts = torch.stack([total, mean.square().sum(), mean.new_tensor(mean.numel())])
                total, norm, entries = trainer.strategy.reduce(parts, reduce_op="sum")
                total, norm = total / world**2, norm.sqrt() / world
            figures |= _figures(name, total, norm, entries)
        return figures

    def _moments(self, trainer: pl.Trainer, module: EstimatorModule) -> dict[str, Tensor]:
        moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        for optimizer in _model_optimizers(trainer, module):
            for options in optimizer.param_groups:
                for parameter in options["params"]:
                    state = optimizer.state.get(parameter, {})
                    if state and not {"exp_avg", "exp_avg_sq", "step"} <= state.keys():
                        raise TypeError(_no_moments(optimizer))
                    # Before the second step there is one gradient, and no variance.
                    if state and (step := float(state["step"])) > 1:
                        first, second = (
                            state[key].to(torch.promote_types(parameter.dtype, torch.float32)) / (1 - beta**step)
                            for key, beta in zip(("exp_avg", "exp_avg_sq"), options["betas"], strict=True)
                        )
                        moments[parameter] = first, second
        figures: dict[str, Tensor] = {}
        for name, group in _trainable_groups(module).items():
            known = [moments[parameter] for parameter in group if parameter in moments]
            if known:
                mean, square = (_flat(list(part)) for part in zip(*known, strict=True))
                total = (square - mean.square()).sum().clamp_min(0)
                figures |= _figures(name, total, mean.norm(), mean.new_tensor(mean.numel()))
        return figures


def _figures(group: str, total: Tensor, norm: Tensor, entries: Tensor) -> dict[str, Tensor]:
    variance = total / entries
    snr = torch.where(norm > 0, norm / total.sqrt(), norm)
    named = {"variance": variance, "log_variance": variance.log(), "snr": snr}
    return {f"gradient/{group}/{name}": figure for name, figure in named.items()}


def _log(module: pl.LightningModule, figures: Mapping[str, Tensor]) -> None:
    for key, figure in figures.items():
        # Equal on all ranks already, and a moment's figure: nothing to synchronise or to average over an epoch.
        module.log(key, figure, on_step=True, on_epoch=False, prog_bar=False)


@contextmanager
def _captured(module: EstimatorModule) -> Iterator[dict[str, list[list[Tensor]]]]:
    """Collect, per estimator and call, the parameters of q that a gradient can flow into."""
    calls: dict[str, list[list[Tensor]]] = {path: [] for path in module.estimators()}
    handles = []
    for path, estimator in module.estimators().items():

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            q = args[0] if args else kwargs["q"]
            attached = [p for p in distribution_parameters(q).values() if p.requires_grad]
            if torch.is_grad_enabled() and attached:
                calls[path].append(attached)

        handles.append(estimator.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _trainable_groups(module: EstimatorModule) -> dict[str, list[nn.Parameter]]:
    groups = {name: [p for p in group if p.requires_grad] for name, group in module.parameter_groups().items()}
    return {name: group for name, group in groups.items() if group}


def _model_optimizers(trainer: pl.Trainer, module: EstimatorModule) -> list[Optimizer]:
    """Return the optimizers that hold the model's parameters; the estimators' own may be of any kind."""
    model = {parameter for group in module.parameter_groups().values() for parameter in group}
    held = [o for o in trainer.optimizers if any(p in model for options in o.param_groups for p in options["params"])]
    if not held:
        raise TypeError(
            "GradientVariance(method='moments') reads Adam's moments, but the module has no optimizer for its "
            "parameters. Return one from configure_optimizers, or use method='fresh'."
        )
    return held


def _no_moments(optimizer: Optimizer) -> str:
    return (
        "GradientVariance(method='moments') reads the state `exp_avg` and `exp_avg_sq` that Adam, AdamW, NAdam and "
        f"RAdam keep; the module's optimizer is {type(optimizer).__name__}. Use one of those, or method='fresh'."
    )


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _flat(parts: list[Tensor]) -> Tensor:
    """Join to one vector, in at least float32: half precision would round differences between estimates away."""
    return torch.cat([p.detach().reshape(-1).to(torch.promote_types(p.dtype, torch.float32)) for p in parts])


def _is_integer(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
