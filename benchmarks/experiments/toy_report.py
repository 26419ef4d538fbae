"""What the toy's rows say: tables, the paper's claims, figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.charts import Panel, curves_of, draw
from benchmarks.experiment import Curve, Row
from benchmarks.seeds import Difference, Seeds
from benchmarks.summary import Answer, extreme, failures, grouped, quoted, seeds, stated, table

__all__ = ["figures", "report"]

ESTIMATORS = ("REINFORCE", "Concrete", "REBAR", "RELAX", "StochasticBackprop")

HARD = 0.499
"""The target of the paper's sentences."""

SOLVED = 0.1
"""Below this θ the solution counts as found."""

ROUNDING = -30.0
"""Logarithms of variances below this are of rounding errors."""


def report(rows: Sequence[Row]) -> list[str]:
    """Return tables, and what the paper says of them."""
    learned = grouped([row for row in rows if row["settings"]["lr"] > 0], "steps", "target", "lr")
    lines = []
    for (steps, target, lr), group in learned.items():
        lines.append(
            f"\nt = {target}, {steps} steps, lr {lr}; exact loss beyond the least possible, at the end and "
            "as mean over training; θ = P(b = 1):"
        )
        head = ("estimator", "loss", "mean loss", "θ", f"seeds with θ < {SOLVED}", "first there, step", "log-variance")
        lines += table((*head, "wrong sign", "n"), [_line(name, part) for name, part in _by_estimator(group)])
        lines += _claims(float(target), group)
    for (steps, target), group in grouped([r for r in rows if r["settings"]["lr"] == 0], "steps", "target").items():
        lines.append(f"\nt = {target}, θ fixed at 1/2, relaxation after {steps} steps:")
        fixed_head = ("estimator", "share of u where it rises", "log-variance", "wrong sign", "n")
        lines += table(fixed_head, [_fixed_line(name, part) for name, part in _by_estimator(group)])
        lines += _relaxation_claims(float(target), group)
    return [*(lines or ["No rows yet."]), *failures(rows)]


def figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw loss, θ, variance and relaxation, a row for each target."""
    files = []
    for (steps,), group in grouped(rows, "steps").items():
        panels: list[Panel] = []
        for (target,), part in grouped(group, "target").items():
            panels += _panels(float(target), part)
        files.append(draw(panels, folder / f"toy_{steps}.png", columns=5))
    return files


def _claims(target: float, rows: Sequence[Row]) -> Iterator[str]:
    parts = dict(_by_estimator(rows))
    unable = {name: _unable(parts.get(name, [])) for name in ("REINFORCE", "Concrete", "REBAR")}
    excess = {name: _mean_excess(parts.get(name, [])) for name in ESTIMATORS}
    rebar, reinforce = excess["REBAR"], excess["REINFORCE"]
    faster = Answer("not measured")
    if rebar is not None and reinforce is not None:
        sign = Difference(rebar, reinforce).sign
        faster = Answer("no" if sign < 0 else "yes", f"{stated(rebar)} against {stated(reinforce)}")
    relax = extreme({name: excess[name] for name in ("REINFORCE", "Concrete", "REBAR", "RELAX")}, ["RELAX"])
    exact = extreme(excess, ["StochasticBackprop"])
    basis = "By the exact loss, mean over training."
    if target == HARD:
        yield quoted(
            "REBAR and competing methods suffer from high variance and are unable to discover the true solution",
            "first paper, 5.1, of t = .499",
            f"By whether most seeds end with θ above {SOLVED}.",
            unable,
        )
        yield quoted(
            "The fixed Concrete relaxation of REBAR is […] unable to solve this problem noticeably faster than "
            "REINFORCE",
            "first paper, 5.1",
            basis,
            {"": faster},
        )
    yield quoted(
        "Estimators with fixed (or no relaxation) struggle to converge to the optimal value",
        "first paper, Figure 1; RELAX is closer to it",
        basis,
        {"": relax},
    )
    yield quoted("Stochastic backpropagation is closer to it than all of these", "ours", basis, {"": exact})


def _by_estimator(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    parts = {str(name): part for (name,), part in grouped(rows, "estimator").items()}
    return [(name, parts[name]) for name in ESTIMATORS if name in parts]


def _solved(theta: Seeds) -> int:
    return sum(value < SOLVED for value in theta.values)


def _unable(rows: Sequence[Row]) -> Answer:
    theta = seeds(rows, "theta")
    if theta is None:
        return Answer("not measured")
    return Answer("no" if 2 * _solved(theta) > theta.n else "yes", f"{_solved(theta)} of {theta.n} seeds find it")


def _line(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    theta, variance = seeds(rows, "theta"), seeds(rows, "log_variance")
    firsts = [
        next((step for step, value in zip(curve["step"], curve["value"], strict=True) if value < SOLVED), None)
        for curve in curves_of(rows, "theta")
    ]
    reached = tuple(step for step in firsts if step is not None)
    return (
        name,
        stated(seeds(rows, "excess_loss")),
        stated(_mean_excess(rows)),
        stated(theta),
        "–" if theta is None else f"{_solved(theta)} of {theta.n}",
        stated(Seeds(reached), 4) if reached else "–",
        _variance(variance),
        stated(seeds(rows, "wrong_sign"), 2),
        "0" if theta is None else str(theta.n),
    )


def _mean_excess(rows: Sequence[Row]) -> Seeds | None:
    values = []
    for row in rows:
        for curve in curves_of([row], "loss"):
            target = row["settings"]["target"]
            values.append(math.fsum(curve["value"]) / len(curve["value"]) - min(target, 1 - target) ** 2)
    return Seeds(tuple(values)) if values else None


def _fixed_line(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    rising = seeds(rows, "rising")
    variance, wrong = seeds(rows, "log_variance"), seeds(rows, "wrong_sign")
    return name, stated(rising), _variance(variance), stated(wrong, 2), "0" if rising is None else str(rising.n)


def _variance(figure: Seeds | None) -> str:
    return "exact" if figure is not None and max(figure.values) < ROUNDING else stated(figure)


def _relaxation_claims(target: float, rows: Sequence[Row]) -> list[str]:
    parts = dict(_by_estimator(rows))
    relax, rebar = seeds(parts.get("RELAX", []), "rising"), seeds(parts.get("REBAR", []), "rising")
    everywhere = below = Answer("not measured")
    if relax is not None:
        rising, falling = (sum(share == end for share in relax.values) for end in (1, 0))
        found = f"in {rising} of {relax.n} seeds it does, in {falling} it falls everywhere"
        everywhere = Answer("yes" if rising == relax.n else "no", found)
    if rebar is not None:
        rises = [
            all((later > now) == (u > target) for u, now, later in _steps(curve) if abs(u - target) > 0.05)
            for curve in curves_of(parts["REBAR"], "relaxation")
        ]
        below = Answer("yes" if all(rises) else "no", f"{sum(rises)} of {len(rises)} seeds")
    basis = "By whether the relaxation rises in u, which moves θ towards 0."
    return [
        quoted(
            "RELAX learns a relaxation whose derivative points in the direction of decreased loss for all values of "
            "reparameterization noise u",
            "first paper, 5.1, Figure 2",
            basis,
            {"": everywhere},
        ),
        quoted(
            "REBAR's fixed relaxation only does for values of u > t",
            "first paper, 5.1, Figure 2",
            basis + " (u within .05 of t left out.)",
            {"": below},
        ),
    ]


def _steps(curve: Curve) -> list[tuple[float, float, float]]:
    return list(zip(curve["step"], curve["value"], curve["value"][1:], strict=False))


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
