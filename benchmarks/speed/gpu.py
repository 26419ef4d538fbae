"""What has to be true of the package on a GPU, as a list of checks with one line of answer each.

    python -m benchmarks.speed.gpu                        # on a CUDA device: about ten minutes
    python -m benchmarks.speed.gpu --device cpu --quick   # sees that the checks run; what needs a GPU says so

1. Gradients are those of the CPU, from the same noise, in both precisions.
2. Steps cost little more than the same estimators in plain PyTorch on the same device.
3. No step makes the host wait for the device, after the first.
4. How many kernels a step launches, beside plain PyTorch.
5. Loss and backward can be captured as a CUDA graph.
6. Gradients under bfloat16 autocast are finite.
7. Memory and time with 10,000 latents.

Nothing here has been measured on a GPU yet: targets are what the CPU's figures and the papers' suggest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import package, plain
from benchmarks.speed.measure import Step
from benchmarks.speed.plain import PROBLEMS, Problem, images, tiny

__all__ = ["main"]

MODELS = ("bernoulli linear", "bernoulli nonlinear", "categorical linear", "categorical nonlinear")
TARGETS = {
    ("REINFORCE", "REINFORCE"): dict.fromkeys(MODELS, 1.1),
    ("Concrete", "Concrete"): dict.fromkeys(MODELS, 1.1),
    ("StochasticBackprop", "Concrete"): dict(zip(MODELS, (1.2, 1.5, 1.2, 1.77), strict=True)),
}
"""An estimator and the plain program that it is compared with: the largest ratio for each model."""

ESTIMATORS = [name for name in package.ESTIMATORS if name != "Enumeration"]


def main(arguments: list[str] | None = None) -> int:
    """Run the checks and return 0, or 2 where there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "There is no GPU here (torch.cuda.is_available() is False), so nothing was checked. "
            "To see that the checks run: python -m benchmarks.speed.gpu --device cpu --quick",
            file=sys.stderr,
        )
        return 2
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'no GPU'}")
    torch.backends.cuda.matmul.allow_tf32 = False
    problems = {name: tiny(PROBLEMS[name]) if options.quick else PROBLEMS[name] for name in MODELS}
    for name, problem in problems.items():
        for estimator in ESTIMATORS:
            for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
                _report(
                    f"gradients, {name}, {estimator}, {dtype}", _agree, problem, estimator, device, dtype, tolerance
                )
    for name, problem in problems.items():
        for (estimator, against), limits in TARGETS.items():
            seconds = 0.1 if options.quick else 4.0
            _report(f"step, {name}, {estimator}", _ratio, problem, estimator, against, device, seconds, limits[name])
        for estimator in ESTIMATORS:
            _report(f"waits, {name}, {estimator}", _waits, problem, estimator, device)
            _report(f"kernels, {name}, {estimator}", _kernels, problem, estimator, device)
            _report(f"graph, {name}, {estimator}", _capture, problem, estimator, device)
            _report(f"bfloat16, {name}, {estimator}", _bfloat16, problem, estimator, device)
    linear = PROBLEMS["bernoulli linear"]
    large = replace(tiny(linear), variables=40) if options.quick else replace(linear, variables=10_000)
    _report(f"{large.variables} latents", _memory, large, device)
    return 0


def _report(what: str, check: Callable[..., str], *arguments: Any) -> None:
    try:
        answer = check(*arguments)
    except Exception as error:  # one check that fails tells nothing of the others
        answer = f"FAILED: {type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
    print(f"{what}: {answer}", flush=True)


def _model(problem: Problem, estimator: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return package.model(problem, package.ESTIMATORS[estimator](problem.samples)).to(device, dtype)


@contextmanager
def _noise_of_the_cpu() -> Iterator[None]:
    """Draw noise on the CPU in double precision and move it, so that every device gets the same numbers."""
    drawing = torch.rand

    def rand(*shape: Any, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        return drawing(*shape, dtype=torch.float64).to(device, dtype).clamp(1e-7, 1 - 1e-7)

    def state(device: Any) -> Tensor:
        return torch.get_rng_state()

    def put(state: Tensor, device: Any) -> None:
        torch.set_rng_state(state)

    with (
        mock.patch("torch.rand", rand),
        mock.patch("torch.cuda.get_rng_state", state),
        mock.patch("torch.cuda.set_rng_state", put),
    ):
        yield


def _gradients(problem: Problem, estimator: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    model = _model(problem, estimator, device, dtype)
    torch.manual_seed(5)
    x = images(problem).to(device, dtype)
    with _noise_of_the_cpu():
        model.loss(x).mean().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten().double().cpu() for gradient in gradients])


def _agree(problem: Problem, estimator: str, device: torch.device, dtype: torch.dtype, tolerance: float) -> str:
    expected = _gradients(problem, estimator, torch.device("cpu"), dtype)
    error = ((_gradients(problem, estimator, device, dtype) - expected).norm() / expected.norm()).item()
    return f"{'ok' if error <= tolerance else 'BAD'}, relative error {error:.1e}"


def _ours(problem: Problem, estimator: str, device: torch.device) -> Step:
    return package.training_step(_model(problem, estimator, device), images(problem).to(device))


def _plain(problem: Problem, estimator: str, device: torch.device) -> Step:
    torch.manual_seed(0)
    model, x = plain.ESTIMATORS[estimator](problem).to(device), images(problem).flatten(1).to(device)
    optimizer = torch.optim.Adam(model.parameters())

    def run() -> None:
        optimizer.zero_grad()
        model.loss(x).mean().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ratio(problem: Problem, estimator: str, against: str, device: torch.device, seconds: float, limit: float) -> str:
    programs = _ours(problem, estimator, device), _plain(problem, against, device)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for program, found in zip(programs, times, strict=True):
            program()
            _wait(device)
            begin = time.perf_counter()
            for _ in range(5):
                program()
            _wait(device)
            found.append((time.perf_counter() - begin) / 5)
    ratio = statistics.median(ours / other for ours, other in zip(*times, strict=True))
    ms = 1e3 * statistics.median(times[0])
    return f"{ms:.3f} ms, {ratio:.2f} of plain {against} (at most {limit:g}: {'met' if ratio <= limit else 'not met'})"


def _waits(problem: Problem, estimator: str, device: torch.device) -> str:
    if device.type != "cuda":
        return "needs a GPU (tests/modules/test_no_waiting.py looks for reads on a device without values)"
    step = _ours(problem, estimator, device)
    step()
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "ok, none"


def _kernels(problem: Problem, estimator: str, device: torch.device) -> str:
    step = _ours(problem, estimator, device)
    step()
    step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as found:
        step()
        _wait(device)
    names = [event.name for event in found.events()]
    operators, reads = sum(name.startswith("aten::") for name in names), names.count("aten::_local_scalar_dense")
    launches = sum("LaunchKernel" in name for name in names)
    return f"{launches} launches, {operators} operators, {reads} reads of a value"


def _capture(problem: Problem, estimator: str, device: torch.device) -> str:
    if device.type != "cuda":
        return "needs a GPU"
    model, x = _model(problem, estimator, device), images(problem).to(device)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not annotate it
    with torch.cuda.stream(side):
        for _ in range(3):
            model.zero_grad()
            model.loss(x).mean().backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.loss(x).mean().backward()
    first, second = (_replayed(graph, model) for _ in range(2))
    return "ok" if bool((first != second).any()) else "BAD: every replay draws the same noise"


def _replayed(graph: torch.cuda.CUDAGraph, model: Any) -> Tensor:
    graph.replay()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def _bfloat16(problem: Problem, estimator: str, device: torch.device) -> str:
    model, x = _model(problem, estimator, device), images(problem).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = model.loss(x).mean()
    loss.backward()
    finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    return f"{'ok' if finite else 'BAD'}, loss {loss.item():.2f}"


def _memory(problem: Problem, device: torch.device) -> str:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step = _ours(problem, "StochasticBackprop", device)
    step()
    _wait(device)
    begin = time.perf_counter()
    step()
    _wait(device)
    ms = 1e3 * (time.perf_counter() - begin)
    return f"{ms:.1f} ms" + (
        f", {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB at most" if device.type == "cuda" else ""
    )


if __name__ == "__main__":
    sys.exit(main())
