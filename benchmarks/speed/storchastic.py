"""Storchastic, for comparison: its steps run in a process of another interpreter.

python3 -m venv storchastic && storchastic/bin/pip install storchastic==0.3.7
python -m benchmarks.speed --storchastic storchastic/bin/python
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import package
from benchmarks.speed.measure import Program
from benchmarks.speed.plain import Problem, images, tiny
from lightning_estimators.modules import DiscreteLatentModel
from lightning_estimators.moments import GradientMoments

__all__ = ["BIASES", "LEAKS", "SUPPORTED", "Storchastic"]

SUPPORTED = (
    "REINFORCE",
    "REINFORCE, leave one out",
    "Concrete",
    "Concrete, straight-through",
    "REBAR",
    "RELAX",
    "RelaxedREBAR",
    "Enumeration",
)
"""The estimators for discrete latents that Storchastic has as well."""

BIASES = ("REINFORCE, leave one out", "RELAX", "REBAR", "RelaxedREBAR")
"""The estimators whose bias is measured: those that are unbiased in the package."""

LEAKS = ("REINFORCE", "Concrete", "RELAX", "REBAR", "RelaxedREBAR")
"""The estimators whose growth of memory is measured."""


class Storchastic:
    """Two processes that run Storchastic, of which one runs steps and the other measures memory; a context manager.

    Args:
        python: Interpreter of an environment that has Storchastic.
        threads: Of torch.

    Raises:
        RuntimeError: A process ends, or answers with an error.
    """

    def __init__(self, python: Path, threads: int) -> None:
        self._steps = Process(python, threads)
        self._forks = Process(python, threads)  # must not run steps: it forks, which OpenMP does not survive
        self.versions: dict[str, str] = self._steps.ask("versions")

    def __enter__(self) -> Storchastic:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._steps.end()
        self._forks.end()

    def program(self, problem: Problem, estimator: str) -> Program | None:
        """Return a program, if Storchastic has the estimator; checked to compute the same loss as the package."""
        if estimator not in SUPPORTED:
            return None
        check_loss(self, problem, estimator)
        number = self._steps.ask("make", problem=asdict(problem), estimator=estimator)

        def run(steps: int) -> tuple[float, float]:
            wall, cpu = self._steps.ask("run", program=number, steps=steps)
            return wall, cpu

        return run

    def loss(self, problem: Problem, estimator: str, parameters: Sequence[Tensor], batch: Tensor) -> float:
        """Return the mean cost at given weights."""
        with _saved(parameters, batch) as path:
            loss: float = self._steps.ask("loss", problem=asdict(problem), estimator=estimator, tensors=str(path))
        return loss

    def gradients(
        self, problem: Problem, estimator: str, parameters: Sequence[Tensor], batch: Tensor, repeats: int
    ) -> Tensor:
        """Return estimates of the gradient, one per row: that of the encoder's last bias, then the decoder's."""
        with _saved(parameters, batch) as path:
            asked = {"problem": asdict(problem), "estimator": estimator, "tensors": str(path)}
            return torch.tensor(self._steps.ask("gradients", **asked, repeats=repeats))

    def forget(self) -> None:
        """Drop all programs made."""
        self._steps.ask("forget")

    def peak(self, problem: Problem, estimator: str) -> dict[str, float]:
        """Return the peak memory of steps (`memory.peak`)."""
        answer: dict[str, float] = self._forks.ask("peak", problem=asdict(problem), estimator=estimator)
        return answer

    def growth(self, problem: Problem, estimator: str, steps: int) -> dict[str, float]:
        """Return the growth of memory (`memory.growth`)."""
        answer: dict[str, float] = self._forks.ask("growth", problem=asdict(problem), estimator=estimator, steps=steps)
        return answer


class Process:
    """A process that answers requests: see `benchmarks.speed.storchastic_process`.

    Args:
        python: Interpreter.
        threads: Of torch.
    """

    def __init__(self, python: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.speed.storchastic_process", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": ""},  # its packages are its own
        )

    def ask(self, what: str, **of: Any) -> Any:
        """Return the answer.

        Raises:
            RuntimeError: The process ends, or answers with an error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"ask": what, "of": of}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of Storchastic ended; its own message is above.")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"Storchastic, asked for {what} of {of}: {answer['error']}")
        return answer["answer"]

    def end(self) -> None:
        """Close its input, at which it ends, and wait for that."""
        self._process.communicate()


def check_loss(peer: Storchastic, problem: Problem, estimator: str) -> None:
    """Compare the loss of Storchastic with that of the package, at the same weights and images.

    The logits of the latents are made so large that neither noise nor temperature matters.

    Raises:
        RuntimeError: The losses differ by more than 1e-4 of their size; probabilities are not quite 0 and 1.
    """
    torch.manual_seed(1)
    module = _module(problem, estimator)
    batch, last = images(problem), parameters_of(module)[1 + 2 * len(problem.hidden)]
    with torch.no_grad():
        parameters_of(module)[2 * len(problem.hidden)].zero_()
        if problem.latent == "bernoulli":
            last.copy_(60.0 * (torch.rand_like(last) < 0.5) - 30.0)
        else:
            chosen = torch.randint(problem.categories, (problem.variables,))
            last.copy_(30.0 * torch.nn.functional.one_hot(chosen, problem.categories).flatten())
        mine = module.loss(batch).mean().item()
    theirs = peer.loss(problem, estimator, parameters_of(module), batch)
    if not abs(mine - theirs) <= 1e-4 * abs(mine):
        raise RuntimeError(f"expected one loss of {estimator} for {problem}, got {mine} here, {theirs} of Storchastic.")


def bias(peer: Storchastic | None, estimator: str, repeats: int, batch: int = 2000) -> dict[str, float]:
    """Measure the bias of a gradient of a tiny model, whose exact gradient is known by enumeration.

    All images of a batch are the same, so that one gradient is a mean of many estimates.

    Args:
        peer: Storchastic; None for the estimator of the package.
        estimator: Name of the estimator.
        repeats: Number of gradients.
        batch: Images in the batch of each gradient.

    Returns:
        For `encoder` and `decoder`: the norm of the mean error and of its standard error, relative to the norm of the
        gradient, and the largest error of an entry in standard errors.
    """
    problem = replace(tiny(Problem()), batch=batch)
    torch.manual_seed(2)
    module = _module(problem, estimator)
    x = images(replace(problem, batch=1)).expand(batch, -1, -1, -1)
    with torch.no_grad():  # with larger weights the cost is far from linear in the latents
        parameters_of(module)[2].mul_(5)
    exact = _module(problem, "Enumeration")
    exact.load_state_dict({k: v for k, v in module.state_dict().items() if k in exact.state_dict()})
    truth = _gradient(exact, x[:1])
    if peer is None:
        found = torch.stack([_gradient(module, x) for _ in range(repeats)])
    else:
        found = peer.gradients(problem, estimator, parameters_of(module), x, repeats)
    moments = GradientMoments()
    moments.update({"all": found})
    error, standard_error = moments.mean("all") - truth, moments.standard_error("all")
    result = {}
    for name, part in (("encoder", slice(problem.variables)), ("decoder", slice(problem.variables, None))):
        result[f"{name}_bias"] = (error[part].norm() / truth[part].norm()).item()
        result[f"{name}_standard_error"] = (standard_error[part].norm() / truth[part].norm()).item()
        result[f"{name}_largest_z"] = (error[part] / standard_error[part].clamp_min(1e-12)).abs().max().item()
    return result


def parameters_of(module: DiscreteLatentModel) -> list[Tensor]:
    """Return the parameters that all programs have, in the same order: encoder, decoder, prior."""
    return [*module.encoder.parameters(), *module.decoder.parameters(), module.prior]


def _module(problem: Problem, estimator: str) -> DiscreteLatentModel:
    return package.model(problem, package.ESTIMATORS[estimator](problem.samples))


def _gradient(module: DiscreteLatentModel, batch: Tensor) -> Tensor:
    module.zero_grad()
    module.loss(batch).mean().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    gradients = [p.grad for p in (parameters_of(module)[1], parameters_of(module)[3])]
    return torch.cat([g for g in gradients if g is not None])


@contextmanager
def _saved(parameters: Sequence[Tensor], batch: Tensor) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.pt"
        torch.save({"parameters": [p.detach().clone() for p in parameters], "images": batch.clone()}, path)
        yield path
