"""One Bernoulli variable: Figures 1 and 2 of Grathwohl et al. (2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.comparison import (
    Difference,
    Finding,
    Judge,
    Seeds,
    State,
    ahead,
    grouped,
    mean_of,
    of_estimator,
    seeds,
    stated,
    table,
)
from benchmarks.experiment import Row, Value
from benchmarks.figures import Panel, curves_by_estimator, curves_of, draw
from benchmarks.fit_experiment import FitExperiment, late_log_mean, late_mean, logged_curves
from lightning_estimators.cli import EstimatorCLI

__all__ = ["Toy"]

RELAXATION = "toy/relaxation at noise u"
SOLVED = 0.1
"""A run whose θ ends below this has found the solution, θ = 0."""
HARD = 0.499
"""The target of which the draft says that other estimators do not find the solution."""
ROUNDING = -30.0
"""Logarithms of variances below this are of rounding errors: the estimator is exact."""


def _least(row: Row) -> float:
    """Return the least possible expected loss."""
    target: float = row["settings"]["target"]
    return min(target, 1 - target) ** 2


def _excess(row: Row) -> float | None:
    """Return the exact loss beyond the least possible, mean over training."""
    mean = mean_of("loss")(row)
    return None if mean is None else mean - _least(row)


def _learned(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["settings"]["lr"] > 0]


def _fixed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["settings"]["lr"] == 0]


def _hard(rows: Sequence[Row], name: str) -> list[Row]:
    return of_estimator([row for row in _learned(rows) if row["settings"]["target"] == HARD], name)


def _solved(theta: Seeds) -> int:
    return sum(value < SOLVED for value in theta.values)


def _unsolved(rows: Sequence[Row]) -> Iterator[Finding]:
    for name in ("REINFORCE", "Concrete", "REBAR"):
        theta = seeds(_hard(rows, name), "theta")
        if theta is None:
            yield Finding("", name, "not run")
            continue
        state: State = "does not hold" if 2 * _solved(theta) > theta.n else "holds"
        yield Finding("", name, state, f"{name} finds it in {_solved(theta)} of {theta.n} seeds")


def _not_faster(rows: Sequence[Row]) -> Iterator[Finding]:
    rebar, reinforce = (seeds(_hard(rows, name), _excess) for name in ("REBAR", "REINFORCE"))
    if rebar is None or reinforce is None:
        yield Finding("", "REBAR against REINFORCE", "not run")
        return
    state: State = "does not hold" if Difference(rebar, reinforce).sign < 0 else "holds"
    text = f"excess loss over training: REBAR {stated(rebar)}, REINFORCE {stated(reinforce)}"
    yield Finding("", "REBAR against REINFORCE", state, text)


def _closest(name: str, rivals: Sequence[str]) -> Judge:
    judge = ahead([name], rivals, {"t = {}: excess loss over training": _excess}, by=["target"])
    return lambda rows: judge(_learned(rows))


def _rising_everywhere(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge the relaxation of RELAX by whether it rises in u, which moves θ towards 0."""
    for (target,), part in grouped(of_estimator(_fixed(rows), "RELAX"), "target").items():
        if relax := seeds(part, "rising"):
            rising, falling = (sum(share == end for share in relax.values) for end in (1, 0))
            text = f"it rises everywhere in {rising} of {relax.n} seeds, falls everywhere in {falling}"
            yield Finding(f"t = {target}", "RELAX", "holds" if rising == relax.n else "does not hold", text)


def _rising_above_target(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge the relaxation of REBAR by whether it rises exactly for u > t, u within 0.05 of t left out."""
    for (target,), part in grouped(of_estimator(_fixed(rows), "REBAR"), "target").items():
        t = float(target)
        right = [
            all(
                (later > now) == (u > t)
                for u, now, later in zip(curve["step"], curve["value"], curve["value"][1:], strict=False)
                if abs(u - t) > 0.05
            )
            for curve in curves_of(part, "relaxation")
        ]
        text = f"so in {sum(right)} of {len(right)} seeds"
        yield Finding(f"t = {target}", "REBAR", "holds" if all(right) else "does not hold", text)


class Toy(FitExperiment):
    """The toy experiment of Grathwohl et al. (2018), section 5.1, Figures 1 and 2."""

    name = "toy"
    judges: ClassVar[Mapping[str, Judge]] = {
        "unsolved": _unsolved,
        "not_faster": _not_faster,
        "relax_is_best": _closest("RELAX", ("REINFORCE", "Concrete", "REBAR")),
        "exact_is_best": _closest("StochasticBackprop", ("REINFORCE", "Concrete", "REBAR", "RELAX")),
        "relax_rises_everywhere": _rising_everywhere,
        "rebar_rises_above_target": _rising_above_target,
    }

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Return whether there is anything to learn: at a fixed θ only control variates learn."""
        return float(settings["lr"]) > 0 or settings["estimator"] in ("REBAR", "RELAX")

    def worked_out(self, settings: Mapping[str, Value], data_root: str) -> dict[str, Any]:
        """Return how steps are divided into ten epochs, and how often is measured."""
        steps = int(settings["steps"])
        if steps < 100 or steps % 100:
            raise ValueError(f"the toy takes a multiple of 100 steps, got {steps}.")
        return {"log_every": steps // self.sizes(settings)["measurements"], "num_batches": steps // 10}

    def evaluate(self, cli: EstimatorCLI, settings: Mapping[str, Value]) -> dict[str, float]:
        """Return exact loss, θ and the quality of the gradient at the end; keep the relaxation as a curve."""
        logged = logged_curves(cli.trainer)
        model, target = cli.model, float(settings["target"])
        loss = float(model.exact_loss())
        metrics = {
            "loss": loss,
            "excess_loss": loss - min(target, 1 - target) ** 2,
            "theta": float(model.logits.detach().sigmoid().mean()),
            "log_variance": late_log_mean(logged["toy/log_variance"]),
            "wrong_sign": late_mean(logged["toy/angle"]) / 180,
        }
        relaxation = model.relaxation_curve(points=self.curve_points)
        if relaxation is not None:
            u, relaxed, _ = relaxation
            logged[RELAXATION] = {"step": u.tolist(), "value": relaxed.tolist()}
            metrics["rising"] = float((relaxed.diff() > 0).double().mean())
        return metrics

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return a table of optimization, and one of relaxations at a fixed θ."""
        head = ("t", "estimator", "seeds", "exact loss − least", "the same, mean over training", "θ = P(b = 1)",
                f"seeds with θ < {SOLVED}", "step at which θ gets there", "log-variance", "wrong sign")  # fmt: skip
        fixed = ("t, with θ fixed at 1/2", "estimator", "seeds", "share of u where the relaxation rises",
                 "log-variance", "wrong sign")  # fmt: skip
        return table(head, [*_lines(_learned(rows), _learned_cells)]) + table(
            fixed, [*_lines(_fixed(rows), _fixed_cells)]
        )

    def figures(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Draw loss, θ, variance and relaxation, a row of panels for each target."""
        files = []
        for (steps,), group in grouped(rows, "steps").items():
            panels = [panel for part in grouped(group, "target").values() for panel in _panels(part)]
            files.append(draw(panels, folder / f"toy_{steps}.png", columns=5))
        return files


def _lines(rows: Sequence[Row], cells: Callable[[Sequence[Row]], Sequence[str]]) -> Iterator[Sequence[str]]:
    for (target,), group in grouped(rows, "target").items():
        for name in Toy.estimators:
            if part := of_estimator(group, name):
                variance = seeds(part, "log_variance")
                is_exact = variance is not None and max(variance.values) < ROUNDING
                count = sum("failed" not in row for row in part)
                last = "exact" if is_exact else stated(variance), stated(seeds(part, "wrong_sign"), 2)
                yield str(target), name, str(count), *cells(part), *last


def _learned_cells(rows: Sequence[Row]) -> Sequence[str]:
    theta = seeds(rows, "theta")
    firsts = [
        next((step for step, value in zip(curve["step"], curve["value"], strict=True) if value < SOLVED), None)
        for curve in curves_of(rows, "theta")
    ]
    reached = tuple(step for step in firsts if step is not None)
    return (
        stated(seeds(rows, "excess_loss")),
        stated(seeds(rows, _excess)),
        stated(theta),
        "–" if theta is None else f"{_solved(theta)} of {theta.n}",
        stated(Seeds(reached), 4) if reached else "–",
    )


def _fixed_cells(rows: Sequence[Row]) -> Sequence[str]:
    return (stated(seeds(rows, "rising")),)


def _panels(rows: Sequence[Row]) -> list[Panel]:
    title, learned = f"t = {rows[0]['settings']['target']}", _learned(rows)
    loss, theta, variance = (curves_by_estimator(learned, Toy.estimators, c) for c in ("loss", "theta", "log_variance"))
    relaxed = curves_by_estimator(_fixed(rows), Toy.estimators, "relaxation")
    return [
        Panel(title, "step", "exact loss", loss, marks={"least possible": _least(rows[0])}),
        Panel(title, "step", "θ = P(b = 1)", theta),
        Panel(title, "step", "log-variance of the gradient", variance, floor=ROUNDING),
        *(  # a panel for each, since what RELAX learns differs by thousandths
            Panel(f"{title}, θ = 1/2", "noise u", f"relaxation, {name}", {name: relaxed[name]})
            for name in ("REBAR", "RELAX")
        ),
    ]
