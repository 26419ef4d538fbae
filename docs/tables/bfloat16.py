"""Measure what bfloat16 does to the gradients of the discrete estimators, and write the table in docs/bfloat16.md.

Run as `python docs/tables/bfloat16.py`. Seeds are fixed. It takes minutes on one core.
"""

import math
from collections.abc import Callable, Iterator

import torch
from document import write_table
from torch import Tensor

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.estimators import (
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    GradientEstimator,
    RelaxedREBAR,
    StochasticBackprop,
)
from lightning_estimators.modules import DiscreteLatentModel
from lightning_estimators.moments import GradientMoments

IMAGES = 20
GROUPS, DRAWS = 20, 40
"""Number of groups, and of gradients in each; the spread over groups gives the standard error."""

ESTIMATORS: dict[str, Callable[[], GradientEstimator]] = {
    "REINFORCE, moving average": REINFORCE,
    "REINFORCE, leave one out (2 samples)": lambda: REINFORCE(LeaveOneOut(), num_samples=2),
    "Concrete": Concrete,
    "Concrete, straight-through": lambda: Concrete(straight_through=True),
    "REBAR": REBAR,
    "RELAX": RELAX,
    "RelaxedREBAR": RelaxedREBAR,
    "StochasticBackprop": StochasticBackprop,
}


def model(latent: str, estimator: Callable[[], GradientEstimator]) -> DiscreteLatentModel:
    """Return the one-layer model, with the same weights for all estimators and a signal in its latents."""
    torch.manual_seed(0)
    made = DiscreteLatentModel(
        estimator(),
        (1, 28, 28),
        latent="bernoulli" if latent == "bernoulli" else "categorical",
        num_latents=[200 if latent == "bernoulli" else 20],
        data_mean=0.2,
    )
    torch.manual_seed(1)  # here, because some estimators have drawn weights of their own
    with torch.no_grad():
        for layer in (made.encoder[0], made.decoder[0]):
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 2 / math.sqrt(parameter.shape[1]))
    return made


def gradient(made: DiscreteLatentModel, images: Tensor, seed: int, *, half: bool) -> Tensor:
    """Return an estimate of the gradient in the encoder's weight, with the same noise in both precisions."""
    torch.manual_seed(seed)
    weight = made.encoder[0].first.weight
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = made.loss(images).mean()
    return torch.autograd.grad(loss, weight)[0].flatten().double()


def measure(latent: str, estimator: Callable[[], GradientEstimator]) -> tuple[float, float, float]:
    """Return the relative bias of bfloat16, its standard error, and the ratio of total variances.

    The square of the bias is estimated by products of different groups, whose noise is independent and has mean zero.
    """
    made = model(latent, estimator)
    images = (torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(2)) < 0.2).float()
    for seed in range(100):  # a moving average of past costs settles, and is not updated after that
        gradient(made, images, 10**6 + seed, half=False)
    made.eval()
    for own in made.gradient_estimators().values():
        own.requires_grad_(requires_grad=False)
    total = {half: GradientMoments(per_entry=False) for half in (False, True)}
    changes = []
    for group in range(GROUPS):
        moments = {half: GradientMoments(per_entry=False) for half in (False, True)}
        for draw in range(DRAWS):
            for half in (False, True):
                one = gradient(made, images, group * DRAWS + draw, half=half)
                moments[half].update({"weight": one.unsqueeze(0)})
        changes.append(moments[True].mean("weight") - moments[False].mean("weight"))
        for half in (False, True):
            total[half].merge(moments[half])
    change = torch.stack(changes)
    products = change @ change.T / total[False].mean("weight").square().sum()
    products.fill_diagonal_(0.0)

    def square(kept: list[int]) -> float:
        return products[kept][:, kept].sum().item() / (len(kept) * (len(kept) - 1))

    every = list(range(GROUPS))
    left_out = torch.tensor([square([g for g in every if g != out]) for out in every])  # jackknife
    error = ((GROUPS - 1) / GROUPS * (left_out - left_out.mean()).square().sum()).sqrt().item()
    bias = math.sqrt(max(square(every), 0.0))
    variances = [total[half].statistics("weight").total_variance.item() for half in (False, True)]
    return bias, error / (2 * max(bias, math.sqrt(error))), variances[True] / variances[False]


def rows() -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| estimator | latents | bias, % | variance ratio |\n|---|---|---|---|"
    for latent in ("bernoulli", "categorical"):
        for name, estimator in ESTIMATORS.items():
            bias, error, ratio = measure(latent, estimator)
            yield f"| {name} | {latent} | {100 * bias:.2f} ± {100 * error:.2f} | {ratio:.3f} |"


if __name__ == "__main__":
    write_table("bfloat16.md", __file__, rows())
