"""How the rows decide about the claims on discrete latents under images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.comparison import Difference, Finding, Judge, State, decided, grouped
from benchmarks.discrete_report import Setting, label, published, settings_of
from benchmarks.experiment import Row

__all__ = ["JUDGES", "READINGS"]

EXACT = label("StochasticBackprop", 1)
FRESH, ADAM = "log_variance_encoder", "log_variance_encoder_adam"
LABELS = {
    "train_elbo": "training ELBO",
    "test_bound": "test bound",
    FRESH: "log-variance",
    ADAM: "log-variance (Adam)",
}
VARIANCE_CLAIMED = {"bernoulli_linear": 2.0, "bernoulli_two_layer": 2.0, "categorical_nonlinear": 1.0}
"""Nats by which Echraibi et al. (2020) have the log-variance of the discrete rule below that of the others."""


JudgeGap = Callable[[Difference], tuple[State, str]]
"""Returns whether a claim holds, and what to say besides the difference by which it is judged."""


def _found(setting: Setting, one: str, other: str, metric: str, judge: JudgeGap) -> Finding:
    """Judge the difference of two estimators in one metric, if both were run."""
    gap, compared = setting.difference(one, other, metric), f"{one} against {other}"
    if gap is None:
        return Finding(setting.title, compared, "not run", setting.absent(one, other))
    state, text = judge(gap)
    told, found = f"{LABELS[metric]} {gap}{text}", {LABELS[metric]: gap.value}
    return Finding(setting.title, compared, state, told, gap.error is None, found)


def _sized(setting: Setting, other: str, metric: str, claimed: float, also: str | None = None) -> Finding:
    """Judge a difference from the discrete rule whose size the paper claims: three quarters of it are enough."""

    def judge(difference: Difference) -> tuple[State, str]:
        share = difference.value / claimed
        state: State = "holds" if share >= 0.75 else "smaller than claimed" if share >= 0 else "does not hold"
        beside = None if also is None else setting.difference(EXACT, other, also)
        text = f", claimed {claimed:+.2f}" + ("" if beside is None else f"; fresh {beside}")
        return state if difference.sign else "tie", text

    return _found(setting, EXACT, other, metric, judge)


def _relaxed_is_ahead(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge whether relaxed REBAR has a higher bound and less variance than REBAR."""
    for setting in settings_of(rows):
        bound, variance = (setting.difference("RelaxedREBAR", "REBAR", metric) for metric in ("train_elbo", FRESH))
        if bound is None or variance is None:
            absent = setting.absent("RelaxedREBAR", "REBAR")
            yield Finding(setting.title, "RelaxedREBAR against REBAR", "not run", absent)
            continue
        text = f"{LABELS['train_elbo']} {bound}, {LABELS[FRESH]} {variance}"
        found = {LABELS["train_elbo"]: bound.value, LABELS[FRESH]: variance.value}
        single = bound.error is None or variance.error is None
        state = decided([bound.sign, -variance.sign])
        yield Finding(setting.title, "RelaxedREBAR against REBAR", state, text, single, found)


def _relax_is_worse(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        if setting.model.startswith("bernoulli"):
            yield _found(setting, "RELAX", "REBAR", "train_elbo", lambda gap: (decided([-gap.sign]), ""))


def _exact_varies_less(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        others = ["REBAR", "RELAX", "RelaxedREBAR", *(["Concrete"] if setting.model.startswith("categorical") else [])]
        for other in others if setting.model in VARIANCE_CLAIMED else []:
            yield _sized(setting, other, ADAM, -VARIANCE_CLAIMED[setting.model], FRESH)


def _less_variance(findings: Sequence[Finding]) -> str:
    """Say how many times less variance the discrete rule has, by Adam's moments."""
    gaps = [-finding.differences[LABELS[ADAM]] for finding in findings]
    rebar = [gap for gap, f in zip(gaps, findings, strict=True) if f.comparison.endswith(" against REBAR")]
    times = [f"{math.exp(gap):.3g}" for part in (gaps, rebar) if part for gap in (min(part), max(part))]
    against = f", {times[2]} to {times[3]} times less than REBAR" if rebar else ""
    nats = f"{min(gaps):.1f} to {max(gaps):.1f} nats of log-variance"
    return f"its variance is {times[0]} to {times[1]} times smaller{against} ({nats})"


def _one_sample_is_enough(rows: Sequence[Row]) -> Iterator[Finding]:
    """Judge whether one sample is no worse than several: a tie does not hurt."""
    for setting in settings_of(rows):
        for samples in setting.several():
            several = label("StochasticBackprop", samples)
            yield _found(
                setting, EXACT, several, "test_bound", lambda gap: ("does not hold" if gap.sign < 0 else "holds", "")
            )


def _lost(findings: Sequence[Finding]) -> str:
    values = sorted(finding.differences[LABELS["test_bound"]] for finding in findings)
    return f"the test bound with one sample minus that with several is {values[0]:+.2f} to {values[-1]:+.2f} nats"


def _mean_varies_less(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        for samples in setting.several():

            def judge(gap: Difference, expected: float = -math.log(samples)) -> tuple[State, str]:
                off = abs(gap.value - expected)
                fits = off <= max(0.25, 2 * (gap.error or 0.0))
                state: State = "tie" if not math.isfinite(off) else "holds" if fits else "does not hold"
                return state, f", expected {expected:+.2f}"

            yield _found(setting, label("StochasticBackprop", samples), EXACT, FRESH, judge)


def _exact_has_the_best_likelihood(rows: Sequence[Row]) -> Iterator[Finding]:
    """Compare with Tables 1 and 2 of Echraibi et al. (2020): the exact rule against each of its rivals there."""
    for setting in settings_of(rows):
        paper = published(setting.data, setting.model, "test_bound")
        for other in [name for name in paper if not name.startswith("StochasticBackprop")]:
            claimed = paper[EXACT].value - paper[other].value
            # The published Grathwohl et al. (2018) calls relaxed REBAR "RELAX": the paper may mean either.
            for ours in [other, "RelaxedREBAR"] if other == "RELAX" else [other]:
                yield _sized(setting, ours, "test_bound", claimed)


def _rate_holds_back(rows: Sequence[Row]) -> Iterator[Finding]:
    """Compare runs of equal epochs at the paper's learning rate, 1e-4, with those at 1e-3."""
    for (data, model, epochs), part in grouped(rows, "data", "model", "epochs").items():
        by_lr = {setting.lr: setting for setting in settings_of(part)}
        for name in ("REBAR", "RELAX", "RelaxedREBAR") if by_lr.keys() >= {1e-4, 1e-3} else ():
            where = f"{data}, {model}, {epochs} epochs"
            low, high = (by_lr[lr].seeds(name, "test_bound") for lr in (1e-4, 1e-3))
            if low is None or high is None:
                missing = [f"lr {lr:g}" for lr, found in ((1e-4, low), (1e-3, high)) if found is None]
                yield Finding(where, name, "not run", ", ".join(missing))
                continue
            gap, text = Difference(high, low), []
            for lr, setting in sorted(by_lr.items()):
                if ahead := setting.difference(EXACT, name, "test_bound"):
                    text.append(f"; {EXACT} is ahead by {ahead} at {lr:g}")
            found = {LABELS["test_bound"]: gap.value}
            told = f"test bound {gap}{''.join(text)}"
            yield Finding(where, name, decided([gap.sign]), told, gap.error is None, found)


JUDGES: Mapping[str, Judge] = {
    "relaxed_is_ahead": _relaxed_is_ahead,
    "relax_is_worse": _relax_is_worse,
    "exact_varies_less": _exact_varies_less,
    "one_sample_is_enough": _one_sample_is_enough,
    "exact_has_the_best_likelihood": _exact_has_the_best_likelihood,
    "mean_varies_less": _mean_varies_less,
    "rate_holds_back": _rate_holds_back,
}
READINGS = {"exact_varies_less": _less_variance, "one_sample_is_enough": _lost}
