"""Latent-variable models with layers of normal, Laplace, gamma, beta or Dirichlet variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules.families import FAMILIES, log_densities
from lightning_estimators.modules.latent import LatentImageModel, at_least_float32, check_choice
from lightning_estimators.networks import MLP, LatentMLP
from lightning_estimators.objectives import BernoulliLinear, GaussianLinear, Objective

__all__ = ["ContinuousLatentModel"]

Latent = Literal["normal", "laplace", "gamma", "beta", "dirichlet"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}


class ContinuousLatentModel(LatentImageModel):
    r"""A hierarchy of L layers of continuous latents under images, trained on the negative ELBO.

    Inference $q(z_1|x)\, q(z_2|z_1) \dots$, generation $p(z_L)\, p(z_{L-1}|z_L) \dots p(x|z_1)$, and the loss per image

    $$-\mathrm{ELBO} = E_q\Big[-\log p(x|z_1) + \sum_i \log q(z_i|z_{i-1}) - \log p(z_i|z_{i+1})\Big].$$

    Layers may be of different families; q and p of a layer are of the same. The top layer's prior is the standard
    member: normal(0, 1), Laplace(0, 1), gamma(`gamma_prior`), beta(1, 1), Dirichlet(1). Positive parameters are a
    softplus of the network's output above a floor (.001 for scales and rates, .1 for shapes), so that samples and
    densities stay finite in float32; an output of 0 stands for the standard member.

    The expectation over each layer is taken by a copy of one estimator, nested in that of the layer below. Latents
    enter networks as they are, the encoder sees x minus the training mean, and the bias of the pixels starts where it
    gives that mean. The costs given to the estimators are `objectives`: linear decoders of pixels answer exact rules by
    closed forms, networks by rank-one updates of their first layer. One loss on a made-up image is computed when the
    model is built, so that what an estimator refuses about the cost is known then.

    The training mean is taken once, when a model that has none is first fitted: from `data_mean` if given, else from
    the attribute `mean` of the datamodule. It is part of the checkpoint.

    Logged besides what `EstimatorModule` logs (all in nats per image, averaged over images; with a Gaussian likelihood
    they are densities, and may have either sign):

    - `val/loss`: negative ELBO at one sample of the latents, whatever the estimator does in training.
    - `test/elbo`: ELBO, averaged over `test_samples` samples.
    - `test/bound`: importance-weighted bound $\log \frac1K \sum_k p(x, z_k) / q(z_k|x)$ with K = `test_samples`: an
      estimate of the log-likelihood, from below.

    Args:
        estimator: Takes the expectations; copied for each layer.
        image_shape: Channels, height and width of the images.
        latent: Family of the latents, one for all layers or one for each, from the data upwards.
        num_latents: Variables per layer, from the data upwards.
        num_categories: Entries of each Dirichlet variable, at least 2; for Dirichlet latents only.
        hidden: Widths of the hidden layers of every conditional, from the data upwards in q and downwards in p; empty
            for linear conditionals.
        activation: What follows hidden layers. A "relu" network has kinks, which derivatives above the first miss:
            stochastic backpropagation then uses first derivatives for normals, and its series form is refused.
        likelihood: "bernoulli": pixels are Bernoulli variables of the given intensities in [0, 1] (for grey images, the
            same formula is their cross-entropy); "gaussian": normal of standard deviation `pixel_scale`.
        pixel_scale: Standard deviation of Gaussian pixels, in units of intensity.
        gamma_prior: Shape and rate of the prior of a gamma top layer.
        kl: "analytic" uses the closed form of the entropy of each q and of the top layer's KL given the layer below;
            "sampled" leaves log q − log p inside the expectation.
        data_mean: Mean of the training images, one number per pixel or one for all; None to ask the datamodule.
        test_samples: Samples K of `test/bound`; they are drawn in chunks of bounded memory.
        **training: Optimizers and their schedulers, see `EstimatorModule`.

    Raises:
        TypeError: The estimator does not support the latents.
        ValueError: A size or a name is impossible, or the estimator cannot handle the cost.

    Source: Kingma & Welling (2014), *Auto-encoding variational Bayes*; families: Figurnov, Mohamed & Mnih (2018) and
    the second paper. Importance-weighted bound: Burda et al. (2016), eq. 8.

    Example:
        >>> import torch
        >>> from lightning_estimators.estimators import StochasticBackprop
        >>> _ = torch.manual_seed(0)
        >>> model = ContinuousLatentModel(
        ...     StochasticBackprop(), (1, 4, 4), latent=["gamma", "normal"], num_latents=[5, 3], data_mean=0.5
        ... )
        >>> loss = model.loss(torch.rand(7, 1, 4, 4))
        >>> loss.mean().backward()
        >>> tuple(loss.shape), tuple(model.sample_prior(2).shape)
        ((7,), (2, 1, 4, 4))
    """

    def __init__(
        self,
        estimator: GradientEstimator,
        image_shape: tuple[int, int, int],
        *,
        latent: Latent | list[Latent] = "normal",
        num_latents: Sequence[int] = (20,),
        num_categories: int = 10,
        hidden: Sequence[int] = (),
        activation: Literal["relu", "tanh", "softplus"] = "relu",
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        pixel_scale: float = 0.1,
        gamma_prior: tuple[float, float] = (1.0, 1.0),
        kl: Literal["analytic", "sampled"] = "analytic",
        data_mean: float | list[float] | None = None,
        test_samples: int = 200,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("likelihood", likelihood, ("bernoulli", "gaussian"))
        check_choice("kl", kl, ("analytic", "sampled"))
        if not num_latents or min(num_latents) < 1:
            raise ValueError(
                f"num_latents must name at least one layer, each of at least 1 variable, got {num_latents}."
            )
        names = [latent] * len(num_latents) if isinstance(latent, str) else list(latent)
        for name in names:
            check_choice("latent", name, tuple(FAMILIES))
        if len(names) != len(num_latents):
            raise ValueError(
                f"latent must be one family, or one for each of the {len(num_latents)} layers of num_latents; "
                f"got {latent}."
            )
        if "dirichlet" in names and num_categories < 2:
            raise ValueError(f"num_categories must be at least 2, got {num_categories}.")
        if not pixel_scale > 0:
            raise ValueError(f"pixel_scale must be positive, got {pixel_scale}.")
        if len(gamma_prior) != 2 or not min(gamma_prior) > 0:
            raise ValueError(f"gamma_prior must be a shape and a rate, both positive, got {gamma_prior}.")
        self.activation = activation
        self.families = [FAMILIES[name] for name in names]
        self.likelihood, self.pixel_scale, self.kl, self.hidden = likelihood, pixel_scale, kl, list(hidden)
        top = self.families[-1]
        self.prior = tuple(gamma_prior) if names[-1] == "gamma" else top.standard
        self.event_shapes = [
            (n, num_categories) if name == "dirichlet" else (n,) for n, name in zip(num_latents, names, strict=True)
        ]
        num_pixels = self._num_pixels(image_shape)
        sizes = [len(f.floors) * math.prod(shape) for f, shape in zip(self.families, self.event_shapes, strict=True)]
        below = [num_pixels, *sizes[:-1]]
        make = ACTIVATIONS[activation]
        self.encoder = nn.ModuleList(
            LatentMLP(self.event_shapes[i - 1], hidden, size, make, signed=False)
            if i
            else MLP(num_pixels, hidden, size, make)
            for i, size in enumerate(sizes)
        )
        self.decoder = nn.ModuleList(
            LatentMLP(shape, list(reversed(hidden)), size, make, signed=False)
            for shape, size in zip(self.event_shapes, below, strict=True)
        )
        self._add_estimators(estimator, image_shape, data_mean, test_samples)
        self._rehearse(num_pixels)

    def _rehearse(self, num_pixels: int) -> None:
        """Compute one loss and forget it: some estimators see only in the cost that they cannot handle it."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            self.eval()  # running statistics stay as they are
            self.loss(torch.zeros(1, num_pixels))
            self.train()

    def _reconstruction(self, i: int, below: Tensor) -> Objective:
        if self.hidden or i > 0:
            return super()._reconstruction(i, below)
        weight, bias = (at_least_float32(tensor) for tensor in cast(LatentMLP, self.decoder[0]).affine())
        event_dim = len(self.event_shapes[0])
        if self.likelihood == "gaussian":
            return GaussianLinear(weight, bias, below, self.pixel_scale, event_dim)
        return BernoulliLinear(weight, bias, below, event_dim)

    def _has_kinks(self, i: int) -> bool:
        # The density of a Laplace variable has a kink in its location.
        return bool(self.hidden and self.activation == "relu") or (i > 0 and self.families[i - 1].make is Laplace)

    def _log_probs(self, i: int, z: Tensor, q: Distribution) -> Tensor:
        return log_densities(q, z)

    def _kl(self, i: int, q: Distribution) -> Tensor:
        kl: Tensor = kl_divergence(q, self._prior()) if i == len(self.families) - 1 else -q.entropy()
        return kl

    def _pixel_cost(self, pixels: Tensor, output: Tensor) -> Tensor:
        output = at_least_float32(output)
        pixels = pixels.to(output.dtype).expand_as(output)
        if self.likelihood == "bernoulli":
            return binary_cross_entropy_with_logits(output, pixels, reduction="none").sum(-1)
        log_scale = math.log(self.pixel_scale) + math.log(2 * math.pi) / 2
        return (((output - pixels) / self.pixel_scale).square() / 2 + log_scale).sum(-1)

    def _means(self, output: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(output)) if self.likelihood == "bernoulli" else at_least_float32(output)

    def _pixels_are_probabilities(self) -> bool:
        return self.likelihood == "bernoulli"

    def _output_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clip(0.001, 0.999)) if self.likelihood == "bernoulli" else mean

    def _prior(self) -> Distribution:
        like = at_least_float32(self.data_mean)
        shape = self.event_shapes[-1]
        return self.families[-1].of(*(like.new_full(shape, number) for number in self.prior))

    def _q(self, i: int, output: Tensor) -> Distribution:
        return self.families[i].on(at_least_float32(output), self.event_shapes[i])
