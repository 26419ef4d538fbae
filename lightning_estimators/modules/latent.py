"""The base class of latent-variable models of images: everything that does not depend on the family of the latents."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torchmetrics import MeanMetric

from lightning_estimators.distributions import sample
from lightning_estimators.estimators import GradientEstimator
from lightning_estimators.estimators.combined import averages_costs
from lightning_estimators.modules.images import ImageModel
from lightning_estimators.networks import MLP, LatentMLP
from lightning_estimators.objectives import FirstLayerLinear, Objective, Separable, Sum
from lightning_estimators.objectives.derivatives import NotTwiceDifferentiableError, is_differentiated_twice

__all__ = ["Expectation", "LatentImageModel", "at_least_float32", "check_choice"]

Expectation = Callable[[int, Distribution, Objective, Tensor], Tensor]
"""A function `(layer, q, f, context) -> E_q[f]`, shape `q.batch_shape`; an estimator in training, else one sample."""

MAX_ELEMENTS = 2**20
"""The largest size of an activation while a bound is computed: 4 MiB in float32, which fits in a CPU's cache."""


class LatentImageModel(ImageModel, ABC):
    r"""A model of images x with L layers of latents z, trained on the negative ELBO.

    Layer 1 is next to the image. The model infers by $q(z_1|x)\, q(z_2|z_1) \dots$, generates by
    $p(z_L)\, p(z_{L-1}|z_L) \dots p(x|z_1)$, and minimises

    $$-\mathrm{ELBO} = E_q\Big[-\log p(x|z_1) + \sum_i \log q(z_i|z_{i-1}) - \log p(z_i|z_{i+1})\Big].$$

    per image, where $z_0$ is x and $p(z_L|z_{L+1})$ is the prior $p(z_L)$. Each layer has a copy of the estimator,
    which takes the expectation over the layer; the cost given to it contains the expectation over the layer above, so
    that estimators are nested. The encoder receives x minus the training mean, and the pixels' bias starts where it
    gives that mean (`ImageModel`).

    Implementing one:

    1. In `__init__`, after `super().__init__(...)`, set `kl` and `event_shapes` (of the latents, from the data upwards)
       and build the networks. In code layers are counted from 0: `encoder[0]` is an `MLP` of pixels, `encoder[i]` a
       `LatentMLP` of layer i - 1, and `decoder[i]` a `LatentMLP` of layer i whose output parametrises layer i - 1
       (for i = 0, the pixels).
    2. Call `_add_estimators(estimator, image_shape, data_mean, test_samples)` at the end of `__init__`.
    3. Implement the abstract methods. Override `_reconstruction` where the structure of the decoder makes the cost
       cheaper, and `_has_kinks` where the networks are not smooth.

    The following is logged besides what `EstimatorModule` logs, all in nats per image, averaged over images.

    - `val/loss`: negative ELBO at one sample from q (never a relaxed sample, even if the estimator uses those).
    - `test/elbo`: ELBO, averaged over `test_samples` samples from q.
    - `test/bound`: importance-weighted bound $\log \frac1K \sum_k p(x, z_k) / q(z_k|x)$ with K = `test_samples`: an
      estimate of the log-likelihood that lies below it in expectation.

    Source of the bound: Burda, Grosse & Salakhutdinov (2016), *Importance weighted autoencoders*, eq. 8,
    https://arxiv.org/abs/1509.00519.
    """

    kl: str
    event_shapes: list[tuple[int, ...]]
    encoder: nn.ModuleList
    decoder: nn.ModuleList

    @abstractmethod
    def _q(self, i: int, output: Tensor) -> Distribution:
        """Return the distribution of layer i given the output of a network; its event shape is `event_shapes[i]`."""

    @abstractmethod
    def _prior(self) -> Distribution:
        """Return the prior of the top layer, batch shape `()`."""

    @abstractmethod
    def _log_probs(self, i: int, z: Tensor, q: Distribution) -> Tensor:
        """Return log q(z) of layer i as parts, one per entry of z, of which part j depends on z_j only."""

    @abstractmethod
    def _kl(self, i: int, q: Distribution) -> Tensor:
        """Return, in closed form, KL(q, prior) in the top layer, else minus the entropy of q; shape `q.batch_shape`."""

    @abstractmethod
    def _pixel_cost(self, pixels: Tensor, output: Tensor) -> Tensor:
        """Return -log p(x|z) given the output of `decoder[0]`, of its shape without the last axis."""

    @abstractmethod
    def _means(self, output: Tensor) -> Tensor:
        """Return the means of the pixels given the output of `decoder[0]`."""

    def _has_kinks(self, i: int) -> bool:
        """Whether the cost has kinks as a function of z_i, which derivatives above the first would miss."""
        return False

    def _add_estimators(
        self,
        estimator: GradientEstimator,
        image_shape: tuple[int, int, int],
        data_mean: float | list[float] | None,
        test_samples: int,
    ) -> None:
        """Give every layer a copy of the estimator, refuse one that cannot work, and set up mean and metrics."""
        if test_samples < 1:
            raise ValueError(f"test_samples must be at least 1, got {test_samples}.")
        if not averages_costs(estimator) and (self.kl == "analytic" or len(self.event_shapes) > 1):
            raise ValueError(
                f"{type(estimator).__name__} minimises another function of the costs than their mean, which is a bound "
                "on the likelihood only if the costs hold all of log q - log p and there is nothing random in them: "
                'use kl="sampled" and one layer of latents.'
            )
        self.test_samples = test_samples
        self._centre(image_shape, data_mean)
        self.estimators = nn.ModuleList(copy.deepcopy(estimator) for _ in self.event_shapes)
        for i, network in enumerate(self.encoder):
            output = torch.zeros(1, cast(MLP, network).last.out_features)
            self._estimator(i).prepare(self._q(i, output), torch.zeros(1, len(self.data_mean)))
        # Replacing NaN by NaN keeps it visible: by default torchmetrics would drop it from the mean.
        self.val_loss = MeanMetric(nan_strategy=math.nan)
        self.test_elbo = MeanMetric(nan_strategy=math.nan)
        self.test_bound = MeanMetric(nan_strategy=math.nan)

    def loss(self, batch: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the negative ELBO of each image, to be backpropagated.

        Args:
            batch: Images, `(B, *image_shape)`, or a tuple or list that begins with them.

        Returns:
            Tensor of shape `(B,)`.
        """
        return self._negative_elbo(batch, lambda i, q, f, context: cast(Tensor, self._estimator(i)(q, f, context)))

    def validation_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> None:
        """Log `val/loss`."""
        self.val_loss.update(self._negative_elbo(batch, lambda i, q, f, context: f(sample(q))))
        self.log(
            "val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=self.num_examples(batch)
        )

    def test_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> None:
        """Log `test/elbo` and `test/bound`."""
        elbo, bound = self.bounds(batch, self.test_samples)
        self.test_elbo.update(elbo)
        self.test_bound.update(bound)
        self.log("test/elbo", self.test_elbo, on_step=False, on_epoch=True)
        self.log("test/bound", self.test_bound, on_step=False, on_epoch=True)

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> dict[str, Tensor | list[Tensor]]:
        """Return `reconstructions` (pixel means, `(B, *image_shape)`) and `latents` (for each layer, a sample of q)."""
        latents = self.infer(batch)
        return {"reconstructions": self._pixel_means(latents[0]), "latents": latents}

    @torch.no_grad()
    def infer(self, x: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Draw the latents given images `(B, *image_shape)`; for each layer a tensor of shape `(B, *event_shape)`."""
        h, latents = self._pixels(x) - self.data_mean, []
        for i, network in enumerate(self.encoder):
            h = sample(self._q(i, network(h)))
            latents.append(h)
        return latents

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the pixel means given a sample of the latents of images x, with the shape and range of x."""
        return self._pixel_means(self.infer(x)[0])

    @torch.no_grad()
    def sample_prior(self, n: int) -> Tensor:
        """Draw n sets of latents from the top down and return their pixel means, `(n, *image_shape)`."""
        z = sample(self._prior().expand((n,)))
        for i in range(len(self.decoder) - 1, 0, -1):
            z = sample(self._q(i - 1, self.decoder[i](z)))
        return self._pixel_means(z)

    @torch.no_grad()
    def bounds(self, x: Tensor | Sequence[Tensor], num_samples: int) -> tuple[Tensor, Tensor]:
        """Return the ELBO (mean log weight) and the importance-weighted bound (log mean weight), both of shape `(B,)`.

        Args:
            x: Images, `(B, *image_shape)`.
            num_samples: Samples of the latents per image, drawn in chunks of bounded memory.
        """
        pixels = self._pixels(x)
        linear = [m for network in (self.encoder, self.decoder) for m in network.modules() if isinstance(m, nn.Linear)]
        widest = max(max(layer.in_features, layer.out_features) for layer in linear)
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
        """Return log p(x, z) − log q(z|x) at fresh samples z of q, shape `(num_samples, B)`."""
        below = self._pixels(x)
        q = self._q(0, self.encoder[0](below - self.data_mean)).expand((num_samples, len(below)))
        log_weights = torch.zeros((), device=below.device)
        for i, decoder in enumerate(self.decoder):
            if i > 0:
                q = self._q(i, self.encoder[i](below))
            z = sample(q)
            log_weights = log_weights - self._log_prob(i, z, q) - self._cost(i, below, decoder(z))
            below = z
        return log_weights + self._log_prob(len(self.decoder) - 1, below, self._prior())

    def _negative_elbo(self, x: Tensor | Sequence[Tensor], expectation: Expectation) -> Tensor:
        pixels = self._pixels(x)
        context = pixels - self.data_mean
        return self._expected(0, self._q(0, self.encoder[0](context)), pixels, context, expectation)

    def _expected(self, i: int, q: Distribution, below: Tensor, context: Tensor, expectation: Expectation) -> Tensor:
        """Return the expectation over layers i and above of -log p(below | z_i) + log q - log p, shape `q.batch_shape`.

        Estimators that draw several samples or change coordinates add axes on the left, over which all terms broadcast.
        """
        terms = [self._reconstruction(i, below)]
        if i < len(self.decoder) - 1:
            terms.append(self._above(i, context, expectation))
        if self.kl == "sampled":
            terms.append(Separable(lambda z: self._log_ratios(i, z, q), len(q.event_shape)))
        value = expectation(i, q, terms[0] if len(terms) == 1 else Sum(terms), context)
        return value + self._kl(i, q) if self.kl == "analytic" else value

    def _reconstruction(self, i: int, below: Tensor) -> Objective:
        """Return -log p(below | z_i) as a function of z_i."""
        network = cast(LatentMLP, self.decoder[i])
        weight, bias = (at_least_float32(tensor) for tensor in network.affine())

        def rest(first: Tensor) -> Tensor:
            self._refuse_kinks(i)
            return self._cost(i, below, network.rest(first.to(network.first.weight.dtype)))

        return FirstLayerLinear(weight, bias, rest, len(self.event_shapes[i]))

    def _above(self, i: int, context: Tensor, expectation: Expectation) -> Objective:
        """Return the cost of the layers above i as a function of z_i: their q depends on it, their p models it."""
        network, shape = cast(LatentMLP, self.encoder[i + 1]), self.event_shapes[i]
        weight, bias = (at_least_float32(tensor) for tensor in network.affine())
        width, size = len(bias), math.prod(shape)
        # The cost needs z_i itself too. An identity appends it to the first pre-activation, which is linear in z_i.
        identity = torch.eye(size, dtype=weight.dtype, device=weight.device).reshape(size, *shape)

        def rest(first: Tensor) -> Tensor:
            self._refuse_kinks(i)
            hidden, z = first[..., :width], first[..., width:]
            q = self._q(i + 1, network.rest(hidden.to(network.first.weight.dtype)))
            return self._expected(i + 1, q, z.reshape(*z.shape[:-1], *shape), context, expectation)

        return FirstLayerLinear(
            torch.cat([weight, identity]), torch.cat([bias, bias.new_zeros(size)]), rest, len(shape)
        )

    def _refuse_kinks(self, i: int) -> None:
        if is_differentiated_twice() and self._has_kinks(i):
            raise NotTwiceDifferentiableError(
                f"the cost of {type(self).__name__} has kinks in the latents of layer {i}, which derivatives above the "
                "first miss. Use smooth activations and families, or an estimator that takes one derivative or none: "
                'Pathwise, REINFORCE, or StochasticBackprop(form="jump").'
            )

    def _cost(self, i: int, below: Tensor, output: Tensor) -> Tensor:
        """Return -log p(below | z_i) given the output of `decoder[i]`."""
        return self._pixel_cost(below, output) if i == 0 else -self._log_prob(i - 1, below, self._q(i - 1, output))

    def _log_ratios(self, i: int, z: Tensor, q: Distribution) -> Tensor:
        """Return, for each entry of z_i, log q(z_i), or in the top layer log q(z_i) - log p(z_i)."""
        ratios = self._log_probs(i, z, q)
        return ratios - self._log_probs(i, z, self._prior()) if i == len(self.decoder) - 1 else ratios

    def _log_prob(self, i: int, z: Tensor, q: Distribution) -> Tensor:
        return self._log_probs(i, z, q).flatten(-len(self.event_shapes[i])).sum(-1)

    def _pixel_means(self, z: Tensor) -> Tensor:
        return self._means(self.decoder[0](z)).reshape(-1, *self.image_shape)

    def _output_layer(self) -> nn.Linear:
        return cast(LatentMLP, self.decoder[0]).last

    def _estimator(self, i: int) -> GradientEstimator:
        return cast(GradientEstimator, self.estimators[i])


def check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    """Raise a ValueError unless `given` is one of the known choices."""
    if given not in known:
        raise ValueError(f"expected {name} to be one of {known}, got {given!r}.")


def at_least_float32(x: Tensor) -> Tensor:
    """Return x, converted to float32 if it is in half precision, which would round probabilities and noise."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
