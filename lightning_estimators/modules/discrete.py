"""Latent-variable models with layers of Bernoulli or categorical variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent
from torch.nn.functional import softplus

from lightning_estimators.distributions import base_distribution, probabilities
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules.latent import LatentImageModel, at_least_float32, check_choice
from lightning_estimators.networks import MLP, LatentMLP
from lightning_estimators.objectives import BernoulliLinear, Objective
from lightning_estimators.objectives.bernoulli_cost import bernoulli_cost
from lightning_estimators.private_api import unvalidated_one_hot_categorical

__all__ = ["DiscreteLatentModel"]


class DiscreteLatentModel(LatentImageModel):
    r"""A model of images x with L layers of discrete latents b, trained on the negative ELBO.

    Layer 1 is next to the image. The model infers by $q(b_1|x)\, q(b_2|b_1) \dots$, generates by
    $p(b_L)\, p(b_{L-1}|b_L) \dots p(x|b_1)$, and minimises

    $$-\mathrm{ELBO} = E_q\Big[-\log p(x|b_1) + \sum_i \log q(b_i|b_{i-1}) - \log p(b_i|b_{i+1})\Big].$$

    per image, where $b_0$ is x and $p(b_L|b_{L+1})$ is the prior $p(b_L)$. Each layer has a copy of the estimator,
    which takes the expectation over the layer; the cost given to it contains the expectation over the layer above, so
    that estimators are nested. The costs are `objectives`, so that exact rules, which need the cost with every
    coordinate changed, are cheap.

    Pixels are Bernoulli variables; grey images enter the same formula, which is then a cross-entropy. Networks receive
    latents as 2b − 1, and the encoder receives x minus the training mean. The pixels' bias starts at
    logit(clip(mean, .001, .999)).

    The training mean is set once, when a model that has none is first fitted: to `data_mean` if given, else to the
    attribute `mean` of the datamodule. It is saved in checkpoints.

    The following is logged besides what `EstimatorModule` logs, all in nats per image, averaged over images.

    - `val/loss`: negative ELBO at one sample from q (never a relaxed sample, even if the estimator uses those).
    - `test/elbo`: ELBO, averaged over `test_samples` samples from q.
    - `test/bound`: importance-weighted bound $\log \frac1K \sum_k p(x, b_k) / q(b_k|x)$ with K = `test_samples`: an
      estimate of the log-likelihood that lies below it in expectation.

    Args:
        estimator: Estimates the expectations and their gradients; each layer gets a copy.
        image_shape: Channels, height and width of the images.
        latent: Family of the latents: "bernoulli" or "categorical".
        num_latents: Number of variables in each layer, from the data upwards.
        num_categories: Number of categories of each variable, at least 2; for categorical latents only.
        hidden: Widths of the hidden tanh layers in the network of every conditional distribution, listed from the data
            upwards; the networks of p, which lead downwards, use them in reverse order. Empty for linear networks.
        prior: Whether the logits of the top layer's prior, which start at 0, are "learned" or stay "fixed".
        kl: "analytic" uses closed forms, given a sample of the layer below: in the top layer that of the KL divergence
            of q from the prior, in the others that of the entropy of q. "sampled" leaves all of log q − log p inside
            the expectation.
        data_mean: Mean of the training images, one number per pixel or one for all; None to take the datamodule's.
        test_samples: Number of samples for `test/elbo` and `test/bound`, drawn in chunks of bounded memory.
        **training: Optimizers and their schedulers, see `EstimatorModule`.

    Raises:
        TypeError: The estimator does not support the family of the latents.
        ValueError: A size is out of range, or a name is unknown.

    Source: Grathwohl et al. (2018), *Backpropagation through the void* (section 5.2 of its draft),
    https://arxiv.org/abs/1711.00123; Echraibi et al. (2020), *Generalized stochastic backpropagation*, appendix B,
    https://hal.science/hal-02968975. Importance-weighted bound: Burda, Grosse & Salakhutdinov (2016), *Importance
    weighted autoencoders*, eq. 8, https://arxiv.org/abs/1509.00519.

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
        **training: Any,
    ) -> None:
        super().__init__(**training)
        check_choice("latent", latent, ("bernoulli", "categorical"))
        check_choice("prior", prior, ("learned", "fixed"))
        check_choice("kl", kl, ("analytic", "sampled"))
        if not num_latents or min(num_latents) < 1:
            raise ValueError(
                f"num_latents must name at least one layer, each of at least 1 variable, got {num_latents}."
            )
        if latent == "categorical" and num_categories < 2:
            raise ValueError(f"num_categories must be at least 2, got {num_categories}.")
        self.latent, self.kl, self.hidden = latent, kl, list(hidden)
        self.event_shapes = [(n, num_categories) if latent == "categorical" else (n,) for n in num_latents]
        num_pixels = self._num_pixels(image_shape)
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
        self._add_estimators(estimator, image_shape, data_mean, test_samples)

    def _reconstruction(self, i: int, below: Tensor) -> Objective:
        if self.hidden or (i > 0 and self.latent == "categorical"):
            return super()._reconstruction(i, below)
        network = cast(LatentMLP, self.decoder[i])
        weight, bias = at_least_float32(network.first.weight), at_least_float32(network.first.bias)
        return BernoulliLinear(weight, bias, below, len(self.event_shapes[i]), signed=network.signed)

    def _log_probs(self, i: int, z: Tensor, q: Distribution) -> Tensor:
        # Linear in z, so it is also defined between 0 and 1, where relaxations evaluate it. The logits of a categorical
        # are normalised, so they are its log probabilities.
        logits = _logits(q)
        return z * logits if self.latent == "categorical" else z * logits - softplus(logits)

    def _kl(self, i: int, q: Distribution) -> Tensor:
        # log p and log q are linear in b: their expectations are their values at the probabilities.
        logits, p = _logits(q), probabilities(q)
        bernoulli = self.latent == "bernoulli"
        if i < len(self.event_shapes) - 1:
            terms = p * logits - softplus(logits) if bernoulli else p * logits
        else:  # the prior's terms are worked out once, and not for every example
            prior = at_least_float32(self.prior)
            if bernoulli:
                terms = p * (logits - prior) - softplus(logits) + softplus(prior)
            else:
                terms = p * (logits - prior.log_softmax(-1))
        return terms.flatten(-len(q.event_shape)).sum(-1)

    def _pixel_cost(self, pixels: Tensor, output: Tensor) -> Tensor:
        return bernoulli_cost(output, pixels)

    def _means(self, output: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(output))

    def _output_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clip(0.001, 0.999))

    def _prior(self) -> Distribution:
        return self._q(len(self.event_shapes) - 1, self.prior.flatten())

    def _q(self, i: int, output: Tensor) -> Distribution:
        # In half precision probabilities would round to 1. Not validated here: the training loop reports logits that
        # are not finite, and says at which step.
        logits = at_least_float32(output.reshape(*output.shape[:-1], *self.event_shapes[i]))
        bernoulli = self.latent == "bernoulli"
        base = Bernoulli(logits=logits, validate_args=False) if bernoulli else unvalidated_one_hot_categorical(logits)
        return Independent(base, 1, validate_args=False)


def _logits(q: Distribution) -> Tensor:
    return cast(Tensor, base_distribution(q).logits)  # type: ignore[attr-defined]
