"""Latent-variable models with layers of normal, Laplace, gamma, beta or Dirichlet variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace, kl_divergence

from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.modules.families import LATENT_FAMILIES, log_densities
from lightning_estimators.modules.latent import LatentImageModel, at_least_float32, check_choice
from lightning_estimators.networks import MLP, LatentMLP
from lightning_estimators.objectives import BernoulliLinear, GaussianLinear, Objective
from lightning_estimators.objectives.bernoulli_cost import bernoulli_cost

__all__ = ["ContinuousLatentModel"]

Latent = Literal["normal", "laplace", "gamma", "beta", "dirichlet"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}


class ContinuousLatentModel(LatentImageModel):
    r"""A model of images x with L layers of continuous latents z, trained on the negative ELBO.

    Layer 1 is next to the image. The model infers by $q(z_1|x)\, q(z_2|z_1) \dots$, generates by
    $p(z_L)\, p(z_{L-1}|z_L) \dots p(x|z_1)$, and minimises

    $$-\mathrm{ELBO} = E_q\Big[-\log p(x|z_1) + \sum_i \log q(z_i|z_{i-1}) - \log p(z_i|z_{i+1})\Big].$$

    per image, where $z_0$ is x and $p(z_L|z_{L+1})$ is the prior $p(z_L)$. Layers may be of different families, but q
    and p of a layer are of the same one. The prior is the standard member of the top layer's family: normal(0, 1),
    Laplace(0, 1), gamma(`gamma_prior`), beta(1, 1) or Dirichlet(1). Positive parameters are a softplus of the network's
    output plus a lower bound (.001 for scales and rates, .1 for shapes), so that samples and densities stay finite in
    float32. The softplus is shifted so that output 0 gives the standard member.

    Each layer has a copy of the estimator, which takes the expectation over the layer; the cost given to it contains
    the expectation over the layer above, so that estimators are nested. The costs are `objectives`: where an estimator
    needs the cost at changed coordinates, or its derivatives, linear decoders of pixels have closed forms, and networks
    update their first layer by rank one. One loss, on an image of zeros, is computed when the model is built, so that
    an estimator that cannot handle the cost is refused at once.

    Networks receive latents as they are, and the encoder receives x minus the training mean. The pixels' bias starts
    where it gives that mean.

    The training mean is set once, when a model that has none is first fitted: to `data_mean` if given, else to the
    attribute `mean` of the datamodule. It is saved in checkpoints.

    The following is logged besides what `EstimatorModule` logs, all in nats per image, averaged over images. With a
    Gaussian likelihood these are logarithms of densities, and may have either sign.

    - `val/loss`: negative ELBO at one sample from q, whatever estimator is used in training.
    - `test/elbo`: ELBO, averaged over `test_samples` samples from q.
    - `test/bound`: importance-weighted bound $\log \frac1K \sum_k p(x, z_k) / q(z_k|x)$ with K = `test_samples`: an
      estimate of the log-likelihood that lies below it in expectation.

    Args:
        estimator: Estimates the expectations and their gradients; each layer gets a copy.
        image_shape: Channels, height and width of the images.
        latent: Family of the latents: one for all layers, or a list of one per layer, from the data upwards.
        num_latents: Number of variables in each layer, from the data upwards.
        num_categories: Number of entries of each Dirichlet variable, at least 2; for Dirichlet latents only.
        hidden: Widths of the hidden layers in the network of every conditional distribution, listed from the data
            upwards; the networks of p, which lead downwards, use them in reverse order. Empty for linear networks.
        activation: The activation after each hidden layer. A "relu" network has kinks, which derivatives above the
            first miss: stochastic backpropagation then uses first derivatives for normals, and its series form is
            refused.
        likelihood: With "bernoulli", pixels are Bernoulli variables; grey images in [0, 1] enter the same formula,
            which is then a cross-entropy. With "gaussian", pixels are normal with standard deviation `pixel_scale`.
        pixel_scale: Standard deviation of Gaussian pixels, in units of intensity.
        gamma_prior: Shape and rate of the prior of a gamma top layer.
        kl: "analytic" uses closed forms, given a sample of the layer below: in the top layer that of the KL divergence
            of q from the prior, in the others that of the entropy of q. "sampled" leaves all of log q − log p inside
            the expectation.
        data_mean: Mean of the training images, one number per pixel or one for all; None to take the datamodule's.
        test_samples: Number of samples for `test/elbo` and `test/bound`, drawn in chunks of bounded memory.
        **training: Optimizers and their schedulers, see `EstimatorModule`.

    Raises:
        TypeError: The estimator does not support the family of the latents.
        ValueError: A size is out of range, a name is unknown, or the estimator cannot handle the cost.

    Source: Kingma & Welling (2014), *Auto-encoding variational Bayes*, https://arxiv.org/abs/1312.6114. Families:
    Figurnov, Mohamed & Mnih (2018), *Implicit reparameterization gradients*, https://arxiv.org/abs/1805.08498, and
    Echraibi et al. (2020), *Generalized stochastic backpropagation*, https://hal.science/hal-02968975.
    Importance-weighted bound: Burda, Grosse & Salakhutdinov (2016), *Importance weighted autoencoders*, eq. 8,
    https://arxiv.org/abs/1509.00519.

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
            check_choice("latent", name, tuple(LATENT_FAMILIES))
        if len(names) != len(num_latents):
            raise ValueError(
                f"latent must be one family, or one for each of the {len(num_latents)} layers of num_latents; "
                f"got {latent}."
            )
        if "dirichlet" in names and num_categories < 2:
            raise ValueError(f"num_categories must be at least 2, got {num_categories}.")
        if not 0 < pixel_scale < math.inf:
            raise ValueError(f"pixel_scale must be positive and finite, got {pixel_scale}.")
        if len(gamma_prior) != 2 or not all(0 < number < math.inf for number in gamma_prior):
            raise ValueError(f"gamma_prior must be a shape and a rate, both positive and finite, got {gamma_prior}.")
        self.activation = activation
        self.families = [LATENT_FAMILIES[name] for name in names]
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
        """Compute one loss and discard it: some estimators can tell only from the cost that they cannot handle it."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            self.eval()  # so that running statistics do not change
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
        if self.likelihood == "bernoulli":
            return bernoulli_cost(output, pixels)
        output = at_least_float32(output)
        pixels = pixels.to(output.dtype).expand_as(output)
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
