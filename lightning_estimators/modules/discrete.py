"""Latent-variable models with layers of Bernoulli or categorical variables."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, OneHotCategorical
from torch.nn.functional import log_softmax, softplus
from torchmetrics import MeanMetric

from lightning_estimators.distributions import base_distribution, sample
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules.base import EstimatorModule
from lightning_estimators.networks import MLP, LatentMLP
from lightning_estimators.objectives import BernoulliLinear, FirstLayerLinear, Objective, Separable, Sum

__all__ = ["DiscreteLatentModel"]

Expectation = Callable[[int, Distribution, Objective, Tensor], Tensor]
"""`(layer, q, f, context) -> E_q[f]`, shape `q.batch_shape`: by an estimator in training, at one sample else."""

MAX_ELEMENTS = 2**24
"""Numbers in the widest activation while a bound is computed: 64 MiB in float32."""


class DiscreteLatentModel(EstimatorModule):
    r"""A hierarchy of L layers of discrete latents under images, trained on the negative ELBO.

    Inference $q(b_1|x)\, q(b_2|b_1) \dots$, generation $p(b_L)\, p(b_{L-1}|b_L) \dots p(x|b_1)$, and the loss per image

    $$-\mathrm{ELBO} = E_q\Big[-\log p(x|b_1) + \sum_i \log q(b_i|b_{i-1}) - \log p(b_i|b_{i+1})\Big].$$

    The expectation over each layer is taken by a copy of one estimator, nested in that of the layer below. Pixels are
    Bernoulli variables of the given intensities (for grey images, the same formula is their cross-entropy). Latents
    enter networks as 2b − 1, the encoder sees x minus the training mean, and the bias of the pixels starts at
    logit(clip(mean, .001, .999)). The costs given to the estimators are `objectives`, so that exact rules are cheap.

    The training mean is taken once, when a model that has none is first fitted: from `data_mean` if given, else from
    the attribute `mean` of the datamodule. It is part of the checkpoint.

    Logged besides what `EstimatorModule` logs (all in nats per image, averaged over images):

    - `val/loss`: negative ELBO at one hard sample of the latents, whatever the estimator does in training.
    - `test/elbo`: ELBO, averaged over `test_samples` samples.
    - `test/bound`: importance-weighted bound $\log \frac1K \sum_k p(x, b_k) / q(b_k|x)$ with K = `test_samples`: an
      estimate of the log-likelihood, from below.

    Args:
        estimator: Takes the expectations; copied for each layer.
        image_shape: Channels, height and width of the images.
        latent: Family of the latents.
        num_latents: Variables per layer, from the data upwards.
        num_categories: Categories per variable; for categorical latents only.
        hidden: Widths of the hidden tanh layers of every conditional, from the data upwards in q and downwards in p;
            empty for linear conditionals.
        prior: Whether the logits of the top layer's prior, which start at 0, are learned or stay there.
        kl: "analytic" uses the closed form of the entropy of each q and of the top layer's KL given the layer below;
            "sampled" leaves log q − log p inside the expectation.
        data_mean: Mean of the training images, one number per pixel or one for all; None to ask the datamodule.
        test_samples: Samples K of `test/bound`; they are drawn in chunks of bounded memory.
        optimizer: See `EstimatorModule`, like all that follow.
        surrogate_optimizer: For the estimators' own parameters.
        lr_scheduler: For `optimizer`.
        surrogate_lr_scheduler: For `surrogate_optimizer`.
        lr_scheduler_interval: When both are stepped.
        gradient_clip_val: Bound on the model's gradient.
        gradient_clip_algorithm: What of it is bounded.
        accumulate_grad_batches: Batches per step.

    Raises:
        TypeError: The estimator does not support the latents.
        ValueError: A size or a name is impossible.

    Source: first paper, 5.2; second paper, appendix B. Importance-weighted bound: Burda et al. (2016), eq. 8.

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import REBAR
        >>> _ = torch.manual_seed(0)
        >>> model = DiscreteLatentModel(REBAR(), image_shape=(1, 4, 4), num_latents=[5, 3], data_mean=0.5)
        >>> loss = model.loss(torch.rand(7, 1, 4, 4))
        >>> loss.mean().backward()
        >>> tuple(loss.shape), tuple(model.sample_prior(2).shape)
        ((7,), (2, 1, 4, 4))
    """

    data_mean: Tensor
    mean_known: Tensor
    prior: Tensor

    def __init__(
        self,
        estimator: GradientEstimator,
        image_shape: tuple[int, int, int],
        *,
        latent: Literal["bernoulli", "categorical"] = "bernoulli",
        num_latents: Sequence[int] = (200,),
        num_categories: int = 10,
        hidden: Sequence[int] = (),
        prior: Literal["learned", "fixed"] = "learned",
        kl: Literal["analytic", "sampled"] = "analytic",
        data_mean: float | list[float] | None = None,
        test_samples: int = 200,
        optimizer: OptimizerCallable = torch.optim.Adam,
        surrogate_optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        surrogate_lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            surrogate_optimizer=surrogate_optimizer,
            lr_scheduler=lr_scheduler,
            surrogate_lr_scheduler=surrogate_lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
            accumulate_grad_batches=accumulate_grad_batches,
        )
        _check_choice("latent", latent, ("bernoulli", "categorical"))
        _check_choice("prior", prior, ("learned", "fixed"))
        _check_choice("kl", kl, ("analytic", "sampled"))
        if not num_latents or min(num_latents) < 1:
            raise ValueError(
                f"num_latents must name at least one layer, each of at least 1 variable, got {num_latents}."
            )
        if latent == "categorical" and num_categories < 2:
            raise ValueError(f"num_categories must be at least 2, got {num_categories}.")
        if test_samples < 1:
            raise ValueError(f"test_samples must be at least 1, got {test_samples}.")
        self.image_shape = tuple(image_shape)
        self.latent, self.kl, self.test_samples, self.hidden = latent, kl, test_samples, list(hidden)
        self.event_shapes = [(n, num_categories) if latent == "categorical" else (n,) for n in num_latents]
        num_pixels = math.prod(self.image_shape)
        sizes = [num_pixels, *(math.prod(shape) for shape in self.event_shapes)]
        self.encoder = nn.ModuleList(
            MLP(num_pixels, hidden, size) if i == 0 else LatentMLP(self.event_shapes[i - 1], hidden, size)
            for i, size in enumerate(sizes[1:])
        )
        self.decoder = nn.ModuleList(
            LatentMLP(shape, list(reversed(hidden)), below)
            for shape, below in zip(self.event_shapes, sizes, strict=False)
        )
        if prior == "learned":
            self.prior = nn.Parameter(torch.zeros(self.event_shapes[-1]))
        else:
            self.register_buffer("prior", torch.zeros(self.event_shapes[-1]))
        self.register_buffer("data_mean", torch.zeros(num_pixels))
        self.register_buffer("mean_known", torch.tensor(False))
        if data_mean is not None:
            self._set_data_mean(torch.as_tensor(data_mean))
        self.expectation = nn.ModuleList(copy.deepcopy(estimator) for _ in self.event_shapes)
        for i, size in enumerate(sizes[1:]):
            self._estimator(i).prepare(self._q(i, torch.zeros(1, size)), torch.zeros(1, num_pixels))
        # Imputing NaN by NaN keeps it visible: other strategies of torchmetrics drop it from the mean.
        self.val_loss = MeanMetric(nan_strategy=math.nan)
        self.test_elbo = MeanMetric(nan_strategy=math.nan)
        self.test_bound = MeanMetric(nan_strategy=math.nan)

    def setup(self, stage: str) -> None:
        """Take the training mean when a model that has none is first fitted."""
        super().setup(stage)
        if stage != "fit" or bool(self.mean_known):
            return
        mean = getattr(getattr(self.trainer, "datamodule", None), "mean", None)
        if not isinstance(mean, Tensor):
            raise ValueError(
                "DiscreteLatentModel needs the mean of the training images, to centre its input and to start the bias "
                "of its output: expected a tensor `mean` at the datamodule, or the argument data_mean (one number per "
                f"pixel, or one for all); got {'none' if mean is None else type(mean).__name__}. "
                "Without a datamodule give e.g. data_mean=images.mean(0).flatten().tolist()."
            )
        self._set_data_mean(mean)

    def loss(self, batch: Tensor) -> Tensor:
        """Return the negative ELBO of each image, to be backpropagated.

        Args:
            batch: Images in [0, 1], `(B, *image_shape)`.

        Returns:
            Tensor of shape `(B,)`.
        """
        return self._negative_elbo(batch, lambda i, q, f, context: cast(Tensor, self._estimator(i)(q, f, context)))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log `val/loss`."""
        self.val_loss.update(self._negative_elbo(batch, lambda i, q, f, context: f(sample(q))))
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch))

    def on_test_start(self) -> None:
        """Warn if there is nothing to test."""
        if not bool(self.mean_known):
            rank_zero_warn("Testing a DiscreteLatentModel that was never fitted: give ckpt_path to load a trained one.")

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log `test/elbo` and `test/bound`."""
        elbo, bound = self.bounds(batch, self.test_samples)
        self.test_elbo.update(elbo)
        self.test_bound.update(bound)
        self.log("test/elbo", self.test_elbo, on_step=False, on_epoch=True, batch_size=len(batch))
        self.log("test/bound", self.test_bound, on_step=False, on_epoch=True, batch_size=len(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor | list[Tensor]]:
        """Return `reconstructions` (pixel means, `(B, *image_shape)`) and `latents` (per layer, a sample of q)."""
        latents = self.infer(batch)
        return {"reconstructions": self._pixel_means(latents[0]), "latents": latents}

    @torch.no_grad()
    def infer(self, x: Tensor) -> list[Tensor]:
        """Draw the latents of each layer given images `(B, *image_shape)`; entries of shape `(B, *event_shape)`."""
        h, latents = self._pixels(x) - self.data_mean, []
        for i, network in enumerate(self.encoder):
            h = sample(self._q(i, network(h)))
            latents.append(h)
        return latents

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the pixel means given a sample of the latents of images x; shape and range of x."""
        return self._pixel_means(self.infer(x)[0])

    @torch.no_grad()
    def sample_prior(self, n: int) -> Tensor:
        """Draw n sets of latents from the top down and return their pixel means, `(n, *image_shape)`."""
        top = len(self.decoder) - 1
        b = sample(self._q(top, self.prior.flatten().expand(n, -1)))
        for i in range(top, 0, -1):
            b = sample(self._q(i - 1, self.decoder[i](b)))
        return self._pixel_means(b)

    @torch.no_grad()
    def bounds(self, x: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """Return the ELBO (mean log weight) and the importance-weighted bound (log mean weight), each `(B,)`.

        Args:
            x: Images, `(B, *image_shape)`.
            num_samples: Samples of the latents per image, drawn in chunks of bounded memory.
        """
        pixels = self._pixels(x)
        widest = max(*self.hidden, 0, len(self.data_mean), *(math.prod(shape) for shape in self.event_shapes))
        chunk = max(1, MAX_ELEMENTS // (len(pixels) * widest))
        total = torch.zeros((), device=pixels.device)
        log_total = torch.full((), -math.inf, device=pixels.device)
        for start in range(0, num_samples, chunk):
            log_weights = self.log_weights(pixels, min(chunk, num_samples - start))
            total = total + log_weights.sum(0)
            log_total = torch.logaddexp(log_total, log_weights.logsumexp(0))
        return total / num_samples, log_total - math.log(num_samples)

    @torch.no_grad()
    def log_weights(self, x: Tensor, num_samples: int) -> Tensor:
        """Return log p(x, b) − log q(b|x) at fresh samples b of q, shape `(num_samples, B)`."""
        below = self._pixels(x)
        q = self._q(0, self.encoder[0](below - self.data_mean)).expand((num_samples, len(below)))
        log_weights = torch.zeros((), device=below.device)
        for i, decoder in enumerate(self.decoder):
            if i > 0:
                q = self._q(i, self.encoder[i](below))
            b = sample(q)
            log_weights = log_weights + self._cross_entropy(b, _logits(q), i)
            log_weights = log_weights - self._cross_entropy(below, self._shaped(i - 1, decoder(b)), i - 1)
            below = b
        return log_weights - self._cross_entropy(below, self.prior, len(self.decoder) - 1)

    def _negative_elbo(self, x: Tensor, expectation: Expectation) -> Tensor:
        pixels = self._pixels(x)
        context = pixels - self.data_mean
        return self._expected(0, self._q(0, self.encoder[0](context)), pixels, context, expectation)

    def _expected(self, i: int, q: Distribution, below: Tensor, context: Tensor, expectation: Expectation) -> Tensor:
        """E over layers i and above of -log p(below | b_i) + log q - log p, shape `q.batch_shape`.

        Noise and coordinate changes of estimators add axes on the left of everything, so all broadcasts by itself.
        """
        top, event_dim, logits = i == len(self.decoder) - 1, len(q.event_shape), _logits(q)
        terms = [self._reconstruction(i, below)]
        if not top:
            terms.append(self._above(i, context, expectation))
        if self.kl == "sampled":
            terms.append(Separable(lambda b: self._log_ratio(b, logits, i), event_dim))
        value = expectation(i, q, terms[0] if len(terms) == 1 else Sum(terms), context)
        if self.kl == "analytic":
            # log p and log q are linear in b: their expectations are their values at the probabilities.
            value = value + self._log_ratio(base_distribution(q).mean, logits, i).flatten(-event_dim).sum(-1)
        return value

    def _reconstruction(self, i: int, below: Tensor) -> Objective:
        """-log p(below | b_i) as a function of b_i."""
        network, event_dim = cast(LatentMLP, self.decoder[i]), len(self.event_shapes[i])
        weight, bias = (_wide(tensor) for tensor in network.affine())
        if not self.hidden and (i == 0 or self.latent == "bernoulli"):
            return BernoulliLinear(weight, bias, below, event_dim)

        def rest(first: Tensor) -> Tensor:
            logits = self._shaped(i - 1, network.rest(first.to(network.first.weight.dtype)))
            return self._cross_entropy(below, logits, i - 1)

        return FirstLayerLinear(weight, bias, rest, event_dim)

    def _above(self, i: int, context: Tensor, expectation: Expectation) -> Objective:
        """Everything above layer i as a function of b_i, which is both input of q and output of p there."""
        network, shape = cast(LatentMLP, self.encoder[i + 1]), self.event_shapes[i]
        weight, bias = (_wide(tensor) for tensor in network.affine())
        width, size = len(bias), math.prod(shape)
        # b_i itself travels behind the first pre-activation, through an identity.
        identity = torch.eye(size, dtype=weight.dtype, device=weight.device).reshape(size, *shape)

        def rest(first: Tensor) -> Tensor:
            hidden, b = first[..., :width], first[..., width:]
            q = self._q(i + 1, network.rest(hidden.to(network.first.weight.dtype)))
            return self._expected(i + 1, q, b.reshape(*b.shape[:-1], *shape), context, expectation)

        return FirstLayerLinear(
            torch.cat([weight, identity]), torch.cat([bias, bias.new_zeros(size)]), rest, len(shape)
        )

    def _log_ratio(self, b: Tensor, logits: Tensor, i: int) -> Tensor:
        """Per variable, log q(b_i), minus log p(b_i) if that is the prior."""
        ratio = -self._cross_entropies(b, logits, i)
        return ratio + self._cross_entropies(b, self.prior, i) if i == len(self.decoder) - 1 else ratio

    def _cross_entropies(self, b: Tensor, logits: Tensor, i: int) -> Tensor:
        """-log p(b) per variable of layer i (-1: the pixels), extended linearly to b between 0 and 1."""
        logits = _wide(logits)
        if i >= 0 and self.latent == "categorical":
            return -b * log_softmax(logits, -1)
        return softplus(logits) - b * logits

    def _cross_entropy(self, b: Tensor, logits: Tensor, i: int) -> Tensor:
        event_dim = len(self.event_shapes[i]) if i >= 0 else 1
        return self._cross_entropies(b, logits, i).flatten(-event_dim).sum(-1)

    def _shaped(self, i: int, logits: Tensor) -> Tensor:
        """Give the output of a network the shape of layer i (-1: the pixels)."""
        return logits.reshape(*logits.shape[:-1], *self.event_shapes[i]) if i >= 0 else logits

    def _q(self, i: int, logits: Tensor) -> Distribution:
        """The latents of layer i given the output of a network."""
        family = Bernoulli if self.latent == "bernoulli" else OneHotCategorical
        # In half precision probabilities would round to 1. Not validated: the training loop reports logits that are
        # not finite, and names the step.
        logits = _wide(self._shaped(i, logits))
        return Independent(family(logits=logits, validate_args=False), 1, validate_args=False)

    def _pixel_means(self, b: Tensor) -> Tensor:
        return torch.sigmoid(_wide(self.decoder[0](b))).reshape(-1, *self.image_shape)

    def _pixels(self, x: Tensor) -> Tensor:
        """Images, one row each."""
        if not isinstance(x, Tensor) or (x.ndim != 2 and x.shape[1:] != self.image_shape):
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                "DiscreteLatentModel expects a batch to be one tensor of images of shape "
                f"{('B', *self.image_shape)}, got {given}. Set image_shape, or let the dataloader yield images alone."
            )
        return x.flatten(1)

    @torch.no_grad()
    def _set_data_mean(self, mean: Tensor) -> None:
        pixels = len(self.data_mean)
        if mean.numel() not in (1, pixels):
            raise ValueError(
                f"the data mean must have one number, or one per pixel of images of shape {self.image_shape}; "
                f"got shape {tuple(mean.shape)}."
            )
        self.data_mean.copy_(mean.reshape(-1).expand(pixels))
        cast(LatentMLP, self.decoder[0]).last.bias.copy_(torch.logit(self.data_mean.clip(0.001, 0.999)))
        self.mean_known.fill_(True)

    def _estimator(self, i: int) -> GradientEstimator:
        return cast(GradientEstimator, self.expectation[i])


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"expected {name} to be one of {known}, got {given!r}.")


def _logits(q: Distribution) -> Tensor:
    return cast(Tensor, base_distribution(q).logits)  # type: ignore[attr-defined]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
