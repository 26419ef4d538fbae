"""Steps of Storchastic, in a process and an environment of its own, which `benchmarks.speed.storchastic` starts.

Requests are lines of JSON on the standard input, answers are lines of JSON on the standard output. This uses the public
interface of Storchastic 0.3.7, which has the GPL as its license: it is run by its own interpreter, and it is neither
copied nor imported anywhere else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import storch
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, OneHotCategorical
from torch.distributions.utils import clamp_probs

from benchmarks.speed import measure
from benchmarks.speed.measure import Program, Step, timed
from benchmarks.speed.plain import PlainModel, Problem, images

METHODS: dict[str, Callable[[Problem], storch.method.Method]] = {
    "REINFORCE": lambda p: storch.method.ScoreFunction(
        "z", n_samples=p.samples, baseline_factory="moving_average", exponential_decay=0.99
    ),
    "REINFORCE, leave one out": lambda p: storch.method.ScoreFunction(
        "z", n_samples=max(2, p.samples), baseline_factory="batch_average"
    ),
    "Concrete": lambda p: _gumbel_softmax(p, straight_through=False),
    "Concrete, straight-through": lambda p: _gumbel_softmax(p, straight_through=True),
    "REBAR": lambda p: _at_half(storch.method.REBAR("z", n_samples=p.samples)),
    "RELAX": lambda p: storch.method.RELAX("z", n_samples=p.samples, c_phi=Surrogate(p)),
    "RelaxedREBAR": lambda p: _at_half(storch.method.RELAX("z", n_samples=p.samples, c_phi=Surrogate(p), rebar=True)),
    "Enumeration": lambda p: storch.method.Expect("z"),
}
"""The methods of Storchastic, by the name of the same estimator in the package."""


class Surrogate(nn.Module):
    """The default surrogate network of the package's RELAX: two layers of 200 ReLU units on z and the image.

    Args:
        problem: Sizes.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.event_dim = len(problem.event_shape)
        entries = torch.Size(problem.event_shape).numel() + problem.pixels
        widths = [nn.Linear(entries, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 1)]
        self.layers = nn.Sequential(*widths)
        self.context: Tensor | None = None

    def forward(self, z: Tensor) -> Tensor:
        """Map z to numbers; RELAX calls this with a tensor of Storchastic, REBAR with a plain one, whose axes stay."""
        if isinstance(z, storch.Tensor):
            return storch.deterministic(self.value)(z)
        value = self.value(z)
        return value.reshape(*value.shape, *(1 for _ in range(self.event_dim)))

    def value(self, z: Tensor) -> Tensor:
        """Map `(..., *event_shape)` to `(...)`."""
        if self.event_dim == 2:
            z = z.flatten(-2)
        context = self.context.expand(*z.shape[:-1], -1)
        return self.layers(torch.cat([z, context], -1)).squeeze(-1)


class StorchasticModel(PlainModel):
    """The model of all programs, with a method of Storchastic.

    Args:
        problem: Sizes.
        estimator: Key of `METHODS`.
    """

    def __init__(self, problem: Problem, estimator: str) -> None:
        super().__init__(problem)
        self.method = METHODS[estimator](problem)
        # Storchastic trains control variates on the gradient with respect to the parameter named "probs".
        self.by_probs = isinstance(self.method, storch.method.RELAX)

    def posterior(self, logits: storch.Tensor) -> Distribution:
        """Return q(z | x)."""
        if self.problem.latent == "bernoulli":
            return Bernoulli(probs=clamp_probs(logits.sigmoid())) if self.by_probs else Bernoulli(logits=logits)
        return OneHotCategorical(probs=logits.softmax(-1)) if self.by_probs else OneHotCategorical(logits=logits)

    def loss(self, x: Tensor) -> Tensor:
        """Run backward and return the mean cost; Storchastic does both in one call."""
        if self.by_probs and isinstance(self.method.c_phi, Surrogate):
            self.method.c_phi.context = x - self.mean
        data = storch.denote_independent(x, 0, "data")
        logits = storch.deterministic(self.logits)(data)
        storch.add_cost(storch.deterministic(self.kl)(logits), "KL")
        z = self.method(self.posterior(logits))
        storch.add_cost(storch.deterministic(lambda z: self.cost(z, x))(z), "reconstruction")
        return storch.backward()

    def step(self, x: Tensor) -> Step:
        """Return a step: loss, backward, both optimizers."""
        own = list(self.method.parameters())
        optimizers = [torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters(), self.prior])]
        if own:
            optimizers.append(torch.optim.Adam(own))

        def run() -> None:
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.loss(x)
            for optimizer in optimizers:
                optimizer.step()

        return run


class Answers:
    """The requests: the name of a request is that of a method, and so are its arguments."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def loss(self, problem: dict[str, Any], estimator: str, tensors: str) -> float:
        """Return the mean cost at given weights and images."""
        model, x = _given(problem, estimator, tensors)
        return model.loss(x).item()

    def make(self, problem: dict[str, Any], estimator: str) -> int:
        """Make a program and return its number."""
        self.programs.append(timed(_make(_problem(problem), estimator)))
        return len(self.programs) - 1

    def run(self, program: int, steps: int) -> tuple[float, float]:
        """Run steps and return their seconds."""
        return self.programs[program](steps)

    def forget(self) -> None:
        """Drop all programs."""
        self.programs.clear()

    def peak(self, problem: dict[str, Any], estimator: str) -> dict[str, float]:
        """Return the peak memory of steps, measured in a process that does nothing else."""
        return _apart(measure.peak, lambda: _make(_problem(problem), estimator))

    def growth(self, problem: dict[str, Any], estimator: str, steps: int) -> dict[str, float]:
        """Return the growth of memory over steps, measured in a process that does nothing else."""
        return _apart(measure.growth, lambda: _make(_problem(problem), estimator), steps)

    def gradients(self, problem: dict[str, Any], estimator: str, tensors: str, repeats: int) -> list[list[float]]:
        """Return estimates of the gradient: that of the encoder's last bias, then that of the decoder's."""
        model, x = _given(problem, estimator, tensors)
        found = []
        for _ in range(repeats):
            model.zero_grad()
            model.loss(x)
            gradient = torch.cat([model.encoder[-1].bias.grad, model.decoder[-1].bias.grad])
            found.append(gradient.tolist())
        return found

    def versions(self) -> dict[str, str]:
        """Return versions."""
        from importlib import metadata

        return {name: metadata.version(name) for name in ("storchastic", "torch", "pyro-ppl")}


def main() -> None:
    """Answer requests until there are none."""
    answers = Answers()
    # Libraries may print, which goes to the standard error; the parent reads answers only.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        torch.set_num_threads(int(sys.argv[1]))
        warnings.simplefilter("ignore")  # Storchastic's second derivatives make reference cycles, of which torch warns
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"answer": getattr(answers, request["ask"])(**request["of"])}
            except Exception as error:
                storch.reset()
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=out, flush=True)


def _make(problem: Problem, estimator: str) -> Step:
    torch.manual_seed(0)
    x = images(problem).flatten(1)
    return StorchasticModel(problem, estimator).step(x)


def _given(problem: dict[str, Any], estimator: str, tensors: str) -> tuple[StorchasticModel, Tensor]:
    torch.manual_seed(0)
    model, given = StorchasticModel(_problem(problem), estimator), torch.load(Path(tensors), weights_only=True)
    own = [*model.encoder.parameters(), *model.decoder.parameters(), model.prior]
    with torch.no_grad():
        for parameter, value in zip(own, given["parameters"], strict=True):
            parameter.copy_(value)
    return model, given["images"].flatten(1)


def _problem(fields: dict[str, Any]) -> Problem:
    return Problem(**fields | {"hidden": tuple(fields["hidden"])})


def _apart(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    # A fork of this process, which must not have run anything on several threads.
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(function(*arguments)))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError("the process whose memory was measured ended without an answer.") from None
    finally:
        process.join()


def _gumbel_softmax(problem: Problem, *, straight_through: bool) -> storch.method.Method:
    return storch.method.GumbelSoftmax(
        "z",
        n_samples=problem.samples,
        straight_through=straight_through,
        initial_temperature=0.5,
        annealing_rate=0.0,
    )


def _at_half(method: storch.method.RELAX) -> storch.method.RELAX:
    with torch.no_grad():
        method.temperature.fill_(0.5)
    return method


if __name__ == "__main__":
    main()
