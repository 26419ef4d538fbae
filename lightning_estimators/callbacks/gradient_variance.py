"""A callback that logs the variance of the gradient, in which estimators differ, during training."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lightning_estimators.arguments import CheckedArguments
from lightning_estimators.callbacks.adam_moments import model_optimizers, moment_statistics, refusal
from lightning_estimators.callbacks.fresh_gradients import fresh_statistics
from lightning_estimators.logged_steps import step_is_logged
from lightning_estimators.moments import GradientStatistics
from lightning_estimators.rollout import Policy

__all__ = ["GradientVariance"]


class GradientVariance(CheckedArguments, pl.Callback):
    r"""Logs the variance of the gradient and its signal-to-noise ratio, per group of parameters and per latent layer.

    Let $g_1, \dots, g_K$ be estimates of the gradient of the mean loss with respect to a group of n entries,
    $\bar g$ their mean and $s_i^2 = \frac{1}{K-1} \sum_k (g_{k,i} - \bar g_i)^2$. Logged to all loggers and to
    `trainer.callback_metrics`, never in the progress bar:

    ===============================  ==================================================================================
    key                              meaning
    ===============================  ==================================================================================
    `gradient/<group>/variance`      $\frac{1}{n} \sum_i s_i^2$: the variance of an entry, averaged over the entries
    `gradient/<group>/log_variance`  its natural logarithm; -inf where the estimate has no variance
    `gradient/<group>/snr`           $\lVert \bar g \rVert / \sqrt{\sum_i s_i^2}$: norm of the mean gradient over the
                                     root of the total variance of one estimate; about $1/\sqrt{K}$ for pure noise, inf
                                     where there is no variance, 0 where there is no gradient
    ===============================  ==================================================================================

    The module may be any LightningModule that uses automatic optimization. If it is no `EstimatorModule`, its
    `training_step` is repeated to estimate the gradient.

    A `<group>` is a top-level attribute of the module with trainable parameters (such as `encoder` or `decoder`), those
    of estimators excluded. Or it is `logits/<path>` for the gradient estimator at `<path>` in the module: the gradient
    with respect to `distribution_parameters(q)` (such as logits) of the distribution q with which it is called, through
    q only. An entry of this gradient belongs to one data point, and the loss is the mean over a batch of B, so it is
    1/B times the gradient of the data point's own cost. If the estimator is called several times in a loss (because it
    is nested in another one), the first call on which the loss depends is used.

    Two methods:

    - `"fresh"`: before a logged step, K estimates are drawn at the weights and on the batch of that step. They differ
      only by the noise of the estimator (and of anything else that is random in the loss, such as dropout). Training is
      bit-identical with and without the callback, for any precision and number of processes: random generators,
      buffers, metrics and counters are restored, and nothing is accumulated in `.grad`. With several processes, the
      figures are those of the gradient averaged over processes. Their noise is independent, so its variance is the
      average of their variances divided by their number.
    - `"moments"`: after a logged step, from the second one on, mean and variance are read from Adam's bias-corrected
      moving averages of the gradient and of its square: $\bar g = \hat m$ and $s_i^2 = \hat v_i - \hat m_i^2$ (a
      negative average counts as 0). This takes no time. But it is the variance of the gradient as the optimizer saw it
      (clipped, accumulated), over the steps that the averages remember, so differences between batches and the change
      of the weights are included. It is available for parameters, not for the logits of layers.

    Cost: `"fresh"`: K evaluations of the loss and its gradient per measurement, memory for one more gradient;
    `"moments"`: none.

    Args:
        method: `"fresh"` or `"moments"`.
        num_samples: K, fresh estimates per measurement, at least 2; unused by `"moments"`.
        every_n_steps: Smallest number of optimizer steps between two measurements, rounded up to a step that is logged
            (`Trainer(log_every_n_steps=...)`); None to measure at every logged step. (With `accumulate_grad_batches`,
            the gradient is that of the last accumulated batch.)
        prefix: First part of the keys. Give different ones if you use several of these callbacks.

    Raises:
        ValueError: An argument is out of range.
        TypeError: At the start of `fit`: the module uses manual optimization, or its optimizer keeps no moments; or
            `"fresh"` is used with a policy (`rollout.Policy`).

    Source: "fresh": Grathwohl et al. (2018), *Backpropagation through the void*, Figure 2 (left),
    https://arxiv.org/abs/1711.00123; "moments": Echraibi et al. (2020), *Generalized stochastic backpropagation*,
    appendix B, https://hal.science/hal-02968975.

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import REBAR
        >>> from lightning_estimators.modules import DiscreteLatentModel
        >>> _ = torch.manual_seed(0)
        >>> model = DiscreteLatentModel(REBAR(), image_shape=(1, 4, 4), num_latents=[5, 3], data_mean=0.5)
        >>> trainer = pl.Trainer(
        ...     max_steps=1, log_every_n_steps=1, callbacks=[GradientVariance(num_samples=5)], accelerator="cpu",
        ...     logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        ... )
        >>> trainer.fit(model, torch.utils.data.DataLoader(torch.rand(8, 1, 4, 4), batch_size=8))
        >>> [key for key in sorted(trainer.callback_metrics) if key.endswith("/snr")]  # doctest: +NORMALIZE_WHITESPACE
        ['gradient/decoder/snr', 'gradient/encoder/snr', 'gradient/logits/estimators.0/snr',
         'gradient/logits/estimators.1/snr', 'gradient/prior/snr']
    """

    def __init__(
        self,
        method: Literal["fresh", "moments"] = "fresh",
        num_samples: int = 10,
        every_n_steps: int | None = None,
        prefix: str = "gradient",
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
        self.prefix = prefix
        self._due = False
        self._step = 0  # of the step that is measured

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse modules whose training step does more than compute a loss, and policies, whose noise is elsewhere."""
        if stage == "fit" and self.method == "fresh" and isinstance(pl_module, Policy):
            raise TypeError(
                "GradientVariance(method='fresh') draws gradients on one batch, and in a batch of a policy the actions "
                "are given, from which most of the variance comes: by REINFORCE there would be none. Use "
                "EstimatorComparison or compare(module, data.rollouts(module)), which act anew for every draw, or "
                "method='moments'."
            )
        if stage == "fit" and self.method == "fresh" and not pl_module.automatic_optimization:
            raise TypeError(
                f"GradientVariance(method='fresh') repeats the training step of {type(pl_module).__name__} to draw "
                "gradients, but with automatic_optimization=False that step also changes the weights. Use automatic "
                "optimization (one backward fills the gradients of model and estimators; see "
                "lightning_estimators.modules.chain_optimizers), or method='moments'."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse `"moments"` with an optimizer that has none."""
        if self.method == "moments":
            for optimizer in model_optimizers(trainer, pl_module):
                # The moments do not exist before the first step; Adamax has betas, but a maximum for the second.
                adam_like = all("betas" in options for options in optimizer.param_groups)
                if not adam_like or isinstance(optimizer, torch.optim.Adamax):
                    raise TypeError(refusal(optimizer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether this step is measured; draw the fresh estimates, at the weights this step uses."""
        self._due = self._is_due(trainer, batch_idx)
        self._step = trainer.global_step
        if self._due and self.method == "fresh":
            self._log(trainer, fresh_statistics(trainer, pl_module, batch, batch_idx, self.num_samples))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the optimizer's moments."""
        # Also at the first step, so that an optimizer without moments is refused at once and not much later.
        if self.method == "moments" and (self._due or trainer.global_step <= 1):
            statistics = moment_statistics(trainer, pl_module)
            if self._due:
                self._log(trainer, statistics)

    def _is_due(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if not step_is_logged(trainer, batch_idx):
            return False
        if self.every_n_steps is None or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside the class
            return True
        # Of the logged steps, the first one at or after each multiple of every_n_steps.
        log_every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set outside the class
        return (trainer.global_step + 1) % self.every_n_steps < log_every

    def _log(self, trainer: pl.Trainer, statistics: dict[str, GradientStatistics]) -> None:
        named = {
            f"{self.prefix}/{group}/{name}": figure
            for group, of_group in statistics.items()
            for name, figure in of_group.figures().items()
        }
        # Not `module.log`: Lightning writes a value again at every later logged step of the epoch, as if it were new.
        trainer.callback_metrics.update(named)
        if not named:
            return
        values = torch.stack(list(named.values())).tolist()  # one transfer from the device
        for logger in trainer.loggers:
            logger.log_metrics(dict(zip(named, values, strict=True)), step=self._step)


def _is_integer(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
