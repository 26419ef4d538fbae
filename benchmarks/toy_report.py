"""What the rows of the toy experiment show: claims of Grathwohl et al. (2018), tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.comparison import Claim, Difference, Finding, Seeds, State, extreme, grouped, seeds, stated, table
from benchmarks.experiment import Curve, Row
from benchmarks.figures import Panel, curves_of, draw

__all__ = ["CLAIMS", "figures", "report"]

ESTIMATORS = ("REINFORCE", "Concrete", "REBAR", "RELAX", "StochasticBackprop")

SOLVED = 0.1
"""A run whose θ ends below this has found the solution, θ = 0."""

HARD = 0.499
"""The target of which the paper says that other estimators do not find the solution."""

ROUNDING = -30.0
"""Logarithms of variances below this are of rounding errors: the estimator is exact."""


def _learned(rows: Sequence[Row]) -> Iterator[tuple[float, dict[str, list[Row]]]]:
    for (target,), group in grouped([row for row in rows if row["settings"]["lr"] > 0], "target").items():
        yield float(target), dict(_by_estimator(group))


def _unsolved(rows: Sequence[Row]) -> Iterator[Finding]:
    for target, parts in _learned(rows):
        for name in ("REINFORCE", "Concrete", "REBAR") if target == HARD else ():
            theta = seeds(parts.get(name, []), "theta")
            if theta is None:
                yield Finding(f"t = {target}", name, "not run")
                continue
            state: State = "does not hold" if 2 * _solved(theta) > theta.n else "holds"
            yield Finding("", name, state, f"{name} finds it in {_solved(theta)} of {theta.n} seeds")


def _not_faster(rows: Sequence[Row]) -> Iterator[Finding]:
    for target, parts in _learned(rows):
        rebar, reinforce = (mean_excess(parts.get(name, [])) for name in ("REBAR", "REINFORCE"))
        if target == HARD and (rebar is None or reinforce is None):
            yield Finding("", "REBAR against REINFORCE", "not run")
        elif target == HARD and rebar is not None and reinforce is not None:
            state: State = "does not hold" if Difference(rebar, reinforce).sign < 0 else "holds"
            text = f"excess loss over training: REBAR {stated(rebar)}, REINFORCE {stated(reinforce)}"
            yield Finding("", "REBAR against REINFORCE", state, text)


def _closest(name: str, against: Sequence[str]) -> Callable[[Sequence[Row]], Iterator[Finding]]:
    def judge(rows: Sequence[Row]) -> Iterator[Finding]:
        for target, parts in _learned(rows):
            losses = {one: mean_excess(parts.get(one, [])) for one in [name, *against]}
            state, text = extreme(losses, [name])
            yield Finding(f"t = {target}", name, state, f"mean excess loss of {text}")

    return judge


def _everywhere(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge the relaxation of RELAX by whether it rises in u, which moves θ towards 0."""
    for target, name, part in _cells(rows, fixed=True):
        relax = seeds(part, "rising")
        if name == "RELAX" and relax is not None:
            rising, falling = (sum(share == end for share in relax.values) for end in (1, 0))
            text = f"it rises everywhere in {rising} of {relax.n} seeds, falls everywhere in {falling}"
            yield Finding(f"t = {target}", name, "holds" if rising == relax.n else "does not hold", text)


def _above_target(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge the relaxation of REBAR by whether it rises exactly for u > t, u within 0.05 of t left out."""
    for target, name, part in _cells(rows, fixed=True):
        if name != "REBAR":
            continue
        t = float(target)
        rises = [
            all((later > now) == (u > t) for u, now, later in _steps(curve) if abs(u - t) > 0.05)
            for curve in curves_of(part, "relaxation")
        ]
        state: State = "holds" if all(rises) else "does not hold"
        yield Finding(f"t = {target}", name, state, f"so in {sum(rises)} of {len(rises)} seeds")


def _steps(curve: Curve) -> list[tuple[float, float, float]]:
    return list(zip(curve["step"], curve["value"], curve["value"][1:], strict=False))


_SOURCE = "draft of Grathwohl et al. (2018), section 5.1"

CLAIMS = (
    Claim(
        "Do REINFORCE, Concrete and REBAR fail to find the solution for t = 0.499?",
        "REBAR and competing methods suffer from high variance and are unable to discover the true solution.",
        _SOURCE,
        _unsolved,
    ),
    Claim(
        "Is REBAR no faster than REINFORCE there?",
        "REBAR is unable to solve the problem noticeably faster than REINFORCE.",
        _SOURCE,
        _not_faster,
    ),
    Claim(
        "Is RELAX better on it than REINFORCE, Concrete and REBAR?",
        "Estimators with a fixed relaxation, or none, struggle to converge to the optimal value.",
        _SOURCE + ", Figure 1",
        _closest("RELAX", ("REINFORCE", "Concrete", "REBAR")),
    ),
    Claim(
        "Is stochastic backpropagation better than all of these?",
        "Its mean loss over training is the lowest.",
        None,
        _closest("StochasticBackprop", ("REINFORCE", "Concrete", "REBAR", "RELAX")),
    ),
    Claim(
        "Does RELAX learn a relaxation that points the right way for all noise u?",
        "The derivative of its relaxation points in the direction of decreased loss for all u.",
        _SOURCE + ", Figure 2",
        _everywhere,
    ),
    Claim(
        "Does REBAR's relaxation point the right way for u > t only?",
        "REBAR's fixed relaxation only does for values of u > t.",
        _SOURCE + ", Figure 2",
        _above_target,
    ),
)


def report(rows: Sequence[Row]) -> list[str]:
    """Return a table of optimization, and one of relaxations at a fixed θ."""
    head = ("t", "estimator", "seeds", "exact loss − least", "the same, mean over training", "θ = P(b = 1)",
            f"seeds with θ < {SOLVED}", "step at which θ gets there", "log-variance", "wrong sign")  # fmt: skip
    lines = table(head, [_line(target, name, part) for target, name, part in _cells(rows, fixed=False)])
    fixed = ("t, with θ fixed at 1/2", "estimator", "seeds", "share of u where the relaxation rises", "log-variance",
            "wrong sign")  # fmt: skip
    return lines + table(fixed, [_fixed_line(target, name, part) for target, name, part in _cells(rows, fixed=True)])


def figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw loss, θ, variance and relaxation, a row of panels for each target."""
    files = []
    for (steps,), group in grouped(rows, "steps").items():
        panels: list[Panel] = []
        for (target,), part in grouped(group, "target").items():
            panels += _panels(float(target), part)
        files.append(draw(panels, folder / f"toy_{steps}.png", columns=5))
    return files


def _cells(rows: Sequence[Row], *, fixed: bool) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield target, estimator and rows, of runs in which θ is fixed or not."""
    for (target,), group in grouped([r for r in rows if (r["settings"]["lr"] == 0) == fixed], "target").items():
        yield from ((str(target), name, part) for name, part in _by_estimator(group))


def _by_estimator(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    parts = {str(name): part for (name,), part in grouped(rows, "estimator").items()}
    return [(name, parts[name]) for name in ESTIMATORS if name in parts]


def _line(target: str, name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    theta = seeds(rows, "theta")
    firsts = [
        next((step for step, value in zip(curve["step"], curve["value"], strict=True) if value < SOLVED), None)
        for curve in curves_of(rows, "theta")
    ]
    reached = tuple(step for step in firsts if step is not None)
    return (
        target,
        name,
        "0" if theta is None else str(theta.n),
        stated(seeds(rows, "excess_loss")),
        stated(mean_excess(rows)),
        stated(theta),
        "–" if theta is None else f"{_solved(theta)} of {theta.n}",
        stated(Seeds(reached), 4) if reached else "–",
        _variance(seeds(rows, "log_variance")),
        stated(seeds(rows, "wrong_sign"), 2),
    )


def _fixed_line(target: str, name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    rising = seeds(rows, "rising")
    variance, wrong = seeds(rows, "log_variance"), seeds(rows, "wrong_sign")
    return target, name, "0" if rising is None else str(rising.n), stated(rising), _variance(variance), stated(wrong, 2)


def _solved(theta: Seeds) -> int:
    return sum(value < SOLVED for value in theta.values)


def _variance(figure: Seeds | None) -> str:
    return "exact" if figure is not None and max(figure.values) < ROUNDING else stated(figure)


def mean_excess(rows: Sequence[Row]) -> Seeds | None:
    """Return the exact loss beyond the least possible, mean over training."""
    values = []
    for row in rows:
        for curve in curves_of([row], "loss"):
            target = row["settings"]["target"]
            values.append(math.fsum(curve["value"]) / len(curve["value"]) - min(target, 1 - target) ** 2)
    return Seeds(tuple(values)) if values else None


def _panels(target: float, rows: Sequence[Row]) -> list[Panel]:
    learned = _by_estimator([row for row in rows if row["settings"]["lr"] > 0])
    fixed = _by_estimator([row for row in rows if row["settings"]["lr"] == 0])

    def lines(parts: Sequence[tuple[str, list[Row]]], name: str) -> dict[str, list[Curve]]:
        return {estimator: curves_of(part, name) for estimator, part in parts}

    step, title = "step", f"t = {target}"
    return [
        Panel(
            title, step, "exact loss", lines(learned, "loss"), marks={"least possible": min(target, 1 - target) ** 2}
        ),
        Panel(title, step, "θ = P(b = 1)", lines(learned, "theta")),
        Panel(title, step, "log-variance of the gradient", lines(learned, "log_variance"), floor=ROUNDING),
        *(  # apart: what RELAX learns differs by thousandths
            Panel(
                f"{title}, θ = 1/2", "noise u", f"relaxation, {name}", {name: lines(fixed, "relaxation").get(name, [])}
            )
            for name in ("REBAR", "RELAX")
        ),
    ]
