"""What the table of record measures at frozen weights: variance, bias, the noise of the data, time and memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.record_model import BATCH, Frozen, LeakyModel
from benchmarks.speed.measure import alternate, peak, quartiles, timed
from benchmarks.speed.package import training_step
from lightning_estimators.estimators import REINFORCE, GradientEstimator
from lightning_estimators.moments import GradientMoments, flatten

__all__ = ["GROUPS", "LEARNING_RATE", "Reference", "costs", "data_noise", "fit", "square_of_mean", "statistics"]

GROUPS = 10
"""Groups into which the draws are divided; standard errors come from differences between groups."""

LEARNING_RATE = 0.01
"""Adam's, for what an estimator learns at the frozen weights."""

EXAMPLES = {"logits": BATCH, "encoder": 1}
"""By how much squares are divided: those of the logits are means over the examples of the batch."""


class Reference:
    """The gradient to which means are compared: those of the unbiased estimators so far, weighted by their precision.

    Args:
        folder: Has a file for each estimator, with the mean gradient of each group of draws.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, label: str, means: dict[str, Tensor], variances: dict[str, float]) -> None:
        """Take in an estimator.

        Args:
            label: Its name; what was taken in under this name before is replaced.
            means: Of each group, shape `(GROUPS, entries)`.
            variances: Total variance of the mean over all groups.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{label}.pt"
        torch.save({name: (mean, variances[name]) for name, mean in means.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def pooled(self, name: str, without: str) -> tuple[Tensor, float] | None:
        """Return the reference of each group, and the total variance of its mean; None if there is none.

        Args:
            name: "logits" or "encoder".
            without: An estimator that is left out, since it is compared with the reference.
        """
        files = [path for path in sorted(self.folder.glob("*.pt")) if path.stem != without]
        if not files:
            return None
        weighted, precision = torch.zeros(()), 0.0
        for path in files:
            mean, variance = torch.load(path, weights_only=True)[name]
            weighted, precision = weighted + mean / variance, precision + 1 / variance
        return weighted / precision, 1 / precision


def fit(model: LeakyModel, batches: Iterator[Tensor], steps: int) -> int:
    """Train what the estimators of a frozen model learn, parameters and running statistics, and nothing else.

    Args:
        model: Its own weights stay as they are.
        batches: Of training images, one for each step.
        steps: Of Adam; 0 are taken, and returned, where nothing is learned.
    """
    learned = model.surrogate_parameters()
    if not learned and not list(model.estimators.buffers()):
        return 0
    model.train()
    optimizer = torch.optim.Adam(learned, lr=LEARNING_RATE) if learned else None
    for batch in islice(batches, steps):
        loss = model.loss(batch).mean()
        if optimizer is not None:
            gradients = torch.autograd.grad(loss, learned, allow_unused=True)
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return steps


def statistics(model: LeakyModel, batch: Tensor, draws: int, reference: Reference, label: str) -> dict[str, float]:
    """Estimate the gradient many times on one batch; return its variance, its square and its bias.

    Args:
        model: Its estimators do not learn meanwhile.
        batch: Images.
        draws: Estimates, a multiple of `GROUPS`.
        reference: Takes in the means afterwards, if the estimator says that it is unbiased.
        label: Of the estimator.
    """
    if draws < 2 * GROUPS or draws % GROUPS:
        raise ValueError(f"expected draws to be a multiple of {GROUPS}, at least {2 * GROUPS}, got {draws}.")
    _freeze(model)
    torch.manual_seed(zlib.crc32(label.encode()))
    found = _claims(model, batch)
    groups, total = [GradientMoments(per_entry=False) for _ in range(GROUPS)], GradientMoments(per_entry=False)
    for group in groups:
        for _ in range(draws // GROUPS):
            group.update({name: gradient.unsqueeze(0) for name, gradient in _gradients(model, batch).items()})
        total.merge(group)
    means = {name: torch.stack([group.mean(name) for group in groups]) for name in EXAMPLES}
    variances = {name: float(total.statistics(name).total_variance) for name in EXAMPLES}
    for name, examples in EXAMPLES.items():
        of_groups = torch.stack([group.statistics(name).total_variance for group in groups]).double()
        found[f"variance_{name}"] = variances[name] / examples
        found[f"variance_{name}_error"] = float(of_groups.std()) / GROUPS**0.5 / examples
        found[f"square_{name}"] = square_of_mean(means[name])[0] / examples
        pooled = reference.pooled(name, label)
        if pooled is not None:
            bias, error = square_of_mean(means[name] - pooled[0])
            found[f"bias_{name}"], found[f"bias_{name}_error"] = bias / examples, error / examples
            found[f"reference_{name}"] = pooled[1] / examples
    if found["unbiased"]:
        reference.add(label, means, {name: variance / draws for name, variance in variances.items()})
    return found


def square_of_mean(groups: Tensor) -> tuple[float, float]:
    r"""Estimate the squared norm of the mean of independent vectors without bias, and the standard error of that.

    With n vectors $d_i$ and $m_{ij} = d_i \cdot d_j$, the estimate is the mean of $m_{ij}$ over all pairs. Its variance
    is $\frac{4(n-2)}{n(n-1)} \mathrm{Cov}(m_{ij}, m_{ik}) + \frac{2}{n(n-1)} \mathrm{Var}(m_{ij})$ (Hoeffding, 1948, *A
    class of statistics with asymptotically normal distribution*, eq. 5.13, https://doi.org/10.1214/aoms/1177730196),
    where both are estimated from products of entries that share one index, two indices, or none.

    Args:
        groups: The vectors, shape `(n, entries)`, n at least 4.
    """
    n = len(groups)
    products = groups.double() @ groups.double().T
    products.fill_diagonal_(0)
    square = products.square().sum()
    one_shared = products.sum(0).square().sum() - square
    none_shared = products.sum().square() - 2 * square - 4 * one_shared
    pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
    apart = none_shared / (triples * (n - 3))
    covariance, variance = (one_shared / triples - apart).clamp_min(0), (square / pairs - apart).clamp_min(0)
    error = (4 * (n - 2) * covariance + 2 * variance).div(pairs).sqrt()
    return float(products.sum() / pairs), float(error)


def data_noise(model: LeakyModel, batches: Iterator[Tensor], count: int) -> dict[str, float]:
    """Return the variance, over batches of data, of the exact gradient in the encoder's parameters.

    Two independent estimates on a batch share the noise of the data only, so the variance is the mean of their inner
    product on one batch less that on two.

    Args:
        model: Its estimators are unbiased, of low variance, and do not learn meanwhile.
        batches: Of training images.
        count: Number of batches, at least 3.
    """
    _freeze(model)
    drawn = [[_gradients(model, batch)["encoder"] for _ in range(2)] for batch in islice(batches, count)]
    one, other = (torch.stack(gradients).double() for gradients in zip(*drawn, strict=True))
    products = one @ other.T
    between, between_without = _off_diagonal_mean(products)
    within = products.diagonal()
    without = (within.sum() - within) / (count - 1) - between_without
    return {
        "batches": count,
        "variance_encoder": float(within.mean() - between),
        "variance_encoder_error": _jackknife(without),
        "square_encoder": float(between),
    }


def costs(frozen: Frozen, make: Callable[[], GradientEstimator], batch: Tensor, seconds: float) -> dict[str, float]:
    """Time training steps, in turns with those of REINFORCE, by the processor's clock; measure the memory of a step.

    Args:
        frozen: Makes the models, whose weights do change here.
        make: Makes the estimator.
        batch: Images.
        seconds: Of wall time for all steps together.
    """
    steps = {True: training_step(frozen.model(make()), batch), False: training_step(frozen.model(REINFORCE()), batch)}
    times = alternate({ours: timed(step) for ours, step in steps.items()}, seconds, block=0.05, min_rounds=10)
    ratios = [one / other for one, other in zip(times[True].cpu, times[False].cpu, strict=True)]
    low, median, high = quartiles(ratios)
    return {
        "time": median,
        "time_quartile1": low,
        "time_quartile3": high,
        "step_ms": 1e3 * quartiles(times[True].cpu)[1],
        "reinforce_step_ms": 1e3 * quartiles(times[False].cpu)[1],
        "memory_mib": peak(lambda: training_step(frozen.model(make()), batch))["program_mib"],
    }


def _freeze(model: LeakyModel) -> None:
    model.eval()  # running statistics stay as they are
    for parameter in model.estimators.parameters():
        parameter.requires_grad_(False)  # no time is spent on the gradients of what is learned


def _claims(model: LeakyModel, batch: Tensor) -> dict[str, float]:
    """Return whether all estimators say that they are unbiased and, of a single one, how often it evaluates f."""
    seen: list[tuple[GradientEstimator, Distribution]] = []
    handles = [
        estimator.register_forward_pre_hook(lambda module, arguments: seen.append((module, arguments[0])))
        for estimator in model.estimators
    ]
    model.loss(batch)
    for handle in handles:
        handle.remove()
    found = {"unbiased": float(all(estimator.is_unbiased(q) for estimator, q in seen))}
    if len(model.estimators) == 1:
        estimator, q = seen[0]
        found["evaluations"], found["gradients"] = map(float, estimator.evaluations(q))
    return found


def _gradients(model: LeakyModel, batch: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each example's cost in the logits of layer 1, and of the mean cost in the encoder."""
    outputs: list[Tensor] = []
    handle = model.encoder[0].register_forward_hook(lambda module, arguments, output: outputs.append(output))
    loss = model.loss(batch).mean()
    handle.remove()
    of_logits, *of_encoder = torch.autograd.grad(loss, [outputs[0], *model.encoder.parameters()])
    return {"logits": len(batch) * of_logits.flatten(), "encoder": flatten(of_encoder)}


def _off_diagonal_mean(products: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of a matrix beside its diagonal, and the same without each row and its column in turn."""
    n, diagonal = len(products), products.diagonal()
    total = products.sum() - diagonal.sum()
    without = total - (products.sum(0) + products.sum(1) - 2 * diagonal)
    return total / (n * (n - 1)), without / ((n - 1) * (n - 2))


def _jackknife(without: Tensor) -> float:
    """Return the standard error of a statistic from its values without each observation in turn."""
    n = len(without)
    return float(((n - 1) / n * (without - without.mean()).square().sum()).sqrt())
