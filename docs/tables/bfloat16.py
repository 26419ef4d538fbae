"""Measure what bfloat16 autocast does to the gradients of the discrete estimators, and put the table into the docs.

Run as `python docs/tables/bfloat16.py`; rewrites the table in ../bfloat16.md. Seeds are fixed. Minutes on one core.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
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

DOCUMENT = Path(__file__).resolve().parents[1] / "bfloat16.md"
BEGIN, END = "<!-- begin: python docs/tables/bfloat16.py -->", "<!-- end -->"
IMAGES = 20
GROUPS, DRAWS = 20, 40
"""Draws come in groups; the figures of the groups tell the standard error."""

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
    """Return the one-layer model with weights that are the same for all estimators and data that are not far off."""
    torch.manual_seed(0)
    made = DiscreteLatentModel(
        estimator(),
        (1, 28, 28),
        latent="bernoulli" if latent == "bernoulli" else "categorical",
        num_latents=[200 if latent == "bernoulli" else 20],
        data_mean=0.2,
    )
    torch.manual_seed(1)  # the networks of some estimators were drawn after the model's
    with torch.no_grad():
        for layer in (made.encoder[0], made.decoder[0]):
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 2 / math.sqrt(parameter.shape[1]))
    return made


def gradient(made: DiscreteLatentModel, images: Tensor, seed: int, *, half: bool) -> Tensor:
    """Return one draw of the gradient in the encoder's weight; the seed decides the noise in both precisions."""
    torch.manual_seed(seed)
    weight = made.encoder[0].first.weight
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = made.loss(images).mean()
    return torch.autograd.grad(loss, weight)[0].flatten().double()


def measure(latent: str, estimator: Callable[[], GradientEstimator]) -> tuple[float, float, float]:
    """Return the relative bias of bfloat16, its standard error, and the ratio of total variances.

    The square of the bias is an average of products of independent groups, which noise does not raise.
    """
    made = model(latent, estimator)
    images = (torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(2)) < 0.2).float()
    for seed in range(100):  # for averages of past costs, which then stay as they are
        gradient(made, images, 10**6 + seed, half=False)
    made.eval()
    for parameters in made.expectation.parameters():
        parameters.requires_grad_(requires_grad=False)
    changes, means, squares = [], [[], []], [0.0, 0.0]
    for group in range(GROUPS):
        sums = [torch.zeros(()), torch.zeros(())]
        for draw in range(DRAWS):
            for half in (False, True):
                one = gradient(made, images, group * DRAWS + draw, half=half)
                sums[half] = sums[half] + one
                squares[half] += one.square().sum().item()
        for half in (False, True):
            means[half].append(sums[half] / DRAWS)
        changes.append(means[True][-1] - means[False][-1])
    change = torch.stack(changes)
    products = change @ change.T / torch.stack(means[False]).mean(0).square().sum()
    products.fill_diagonal_(0.0)
    count = GROUPS * DRAWS

    def square(kept: list[int]) -> float:
        return products[kept][:, kept].sum().item() / (len(kept) * (len(kept) - 1))

    every = list(range(GROUPS))
    left_out = torch.tensor([square([g for g in every if g != out]) for out in every])  # jackknife
    error = ((GROUPS - 1) / GROUPS * (left_out - left_out.mean()).square().sum()).sqrt().item()
    bias = math.sqrt(max(square(every), 0.0))
    variances = [
        squares[half] / count - torch.stack(means[half]).mean(0).square().sum().item() for half in (False, True)
    ]
    return bias, error / (2 * max(bias, math.sqrt(error))), variances[True] / variances[False]


def rows() -> list[str]:
    """Return the table's lines."""
    lines = ["| estimator | latents | bias, % | variance ratio |", "|---|---|---|---|"]
    for latent in ("bernoulli", "categorical"):
        for name, estimator in ESTIMATORS.items():
            bias, error, ratio = measure(latent, estimator)
            lines.append(f"| {name} | {latent} | {100 * bias:.2f} ± {100 * error:.2f} | {ratio:.3f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, and rewrite the table."""
    torch.set_num_threads(1)
    before, rest = DOCUMENT.read_text().split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(before + BEGIN + "\n\n" + "\n".join(rows()) + "\n\n" + END + after)


if __name__ == "__main__":
    main()
