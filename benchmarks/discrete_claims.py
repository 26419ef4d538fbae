"""The papers' claims about discrete latents under images, as questions that the rows answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks.comparison import Claim, Difference, Finding, State
from benchmarks.discrete_report import Entry, Setting, name_of, published, settings_of
from benchmarks.experiment import Row

__all__ = ["CLAIMS"]

EXACT: Entry = ("StochasticBackprop", 1)
REBAR, RELAX, RELAXED, CONCRETE = (("REBAR", 1), ("RELAX", 1), ("RelaxedREBAR", 1), ("Concrete", 1))
FRESH, ADAM = "log_variance_encoder", "log_variance_encoder_adam"
LABELS = {
    "train_elbo": "training ELBO",
    "test_bound": "test bound",
    FRESH: "log-variance",
    ADAM: "log-variance (Adam)",
}
VARIANCE_CLAIMED = {"bernoulli_linear": 2.0, "bernoulli_two_layer": 2.0, "categorical_nonlinear": 1.0}
"""Nats by which Echraibi et al. (2020) have the log-variance of the discrete rule below that of the others."""


def _relaxed(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        yield _compare(setting, RELAXED, REBAR, {"train_elbo": 1, FRESH: -1})


def _worse(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        if setting.model.startswith("bernoulli"):
            yield _compare(setting, RELAX, REBAR, {"train_elbo": -1})


def _variance(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        others = [REBAR, RELAX, RELAXED, *([CONCRETE] if setting.model.startswith("categorical") else [])]
        for other in others if setting.model in VARIANCE_CLAIMED else []:
            yield _sized(setting, EXACT, other, ADAM, -VARIANCE_CLAIMED[setting.model], FRESH)


def _less_variance(findings: Sequence[Finding]) -> str:
    """Say how many times less variance the discrete rule has, by Adam's moments."""
    smallest, largest = (
        f"{math.exp(-end(finding.differences[LABELS[ADAM]] for finding in findings)):.3g}" for end in (max, min)
    )
    nats = sorted(-finding.differences[LABELS[ADAM]] for finding in findings)
    rebar = [f.differences[LABELS[ADAM]] for f in findings if f.comparison.endswith(" against REBAR")]
    against = f", {math.exp(-max(rebar)):.3g} to {math.exp(-min(rebar)):.3g} times less than REBAR" if rebar else ""
    return (
        f"its variance is {smallest} to {largest} times smaller{against} "
        f"({nats[0]:.1f} to {nats[-1]:.1f} nats of log-variance)"
    )


def _samples_bound(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        for samples in _several(setting):
            finding = _compare(setting, EXACT, (EXACT[0], samples), {"test_bound": 1})
            hurt = finding.state == "does not hold"
            state: State = finding.state if hurt or finding.state == "not run" else "holds"  # a tie does not hurt
            yield Finding(setting.title, finding.comparison, state, finding.text, finding.one_seed, finding.differences)


def _lost(findings: Sequence[Finding]) -> str:
    values = sorted(finding.differences[LABELS["test_bound"]] for finding in findings)
    return f"the test bound with one sample minus that with several is {values[0]:+.2f} to {values[-1]:+.2f} nats"


def _samples_variance(rows: Sequence[Row]) -> Iterator[Finding]:
    for setting in settings_of(rows):
        for samples in _several(setting):
            several = (EXACT[0], samples)
            change, comparison = setting.difference(several, EXACT, FRESH), f"{name_of(several)} against S = 1"
            if change is None:
                yield Finding(setting.title, comparison, "not run", setting.absent(several, EXACT))
                continue
            off = abs(change.value + math.log(samples))
            fits = off <= max(0.25, 2 * (change.error or 0.0))
            state: State = "tie" if not math.isfinite(off) else "holds" if fits else "does not hold"
            text = f"{LABELS[FRESH]} {change}, expected {-math.log(samples):+.2f}"
            yield Finding(setting.title, comparison, state, text, change.error is None, {LABELS[FRESH]: change.value})


def _several(setting: Setting) -> list[int]:
    return [samples for name, samples in setting.entries if name == EXACT[0] and samples > 1]


def _test_likelihood(rows: Sequence[Row]) -> Iterator[Finding]:
    """Compare with Tables 1 and 2 of Echraibi et al. (2020): the exact rule against each of its rivals there."""
    for setting in settings_of(rows):
        paper = published(setting.data, setting.model, "test_bound")
        for other in [entry for entry in paper if entry[0] != EXACT[0]]:
            claimed = paper[EXACT].value - paper[other].value
            # The published Grathwohl et al. (2018) calls relaxed REBAR "RELAX": the paper may mean either.
            for ours in [other, RELAXED] if other == RELAX else [other]:
                yield _sized(setting, EXACT, ours, "test_bound", claimed)


def _learning_rate(rows: Sequence[Row]) -> Iterator[Finding]:
    """Compare runs of equal epochs at the paper's learning rate, 1e-4, with those at 1e-3."""

    def place(setting: Setting) -> tuple[str, str, int]:
        return setting.data, setting.model, setting.epochs

    for (data, model, epochs), group in groupby(sorted(settings_of(rows), key=place), key=place):
        by_lr = {setting.lr: setting for setting in group}
        for entry in (REBAR, RELAX, RELAXED) if by_lr.keys() >= {1e-4, 1e-3} else ():
            where = f"{data}, {model}, {epochs} epochs"
            low, high = (by_lr[lr].seeds(entry, "test_bound") for lr in (1e-4, 1e-3))
            if low is None or high is None:
                missing = [f"lr {lr:g}" for lr, found in ((1e-4, low), (1e-3, high)) if found is None]
                yield Finding(where, name_of(entry), "not run", ", ".join(missing))
                continue
            change = Difference(high, low)
            ahead = [
                f"{name_of(EXACT)} is ahead by {gap} at {lr:g}"
                for lr, setting in sorted(by_lr.items())
                if (gap := setting.difference(EXACT, entry, "test_bound"))
            ]
            text = "; ".join([f"test bound {change}", *ahead])
            found = {LABELS["test_bound"]: change.value}
            yield Finding(where, name_of(entry), _state([change.sign]), text, change.error is None, found)


def _compare(setting: Setting, one: Entry, other: Entry, wanted: dict[str, int]) -> Finding:
    """Judge whether one estimator is higher (1) or lower (-1) than another in each of some metrics."""
    comparison = f"{name_of(one)} against {name_of(other)}"
    found = {metric: setting.difference(one, other, metric) for metric in wanted}
    known = {metric: difference for metric, difference in found.items() if difference is not None}
    if len(known) < len(wanted):
        return Finding(setting.title, comparison, "not run", setting.absent(one, other))
    signs = [wanted[metric] * difference.sign for metric, difference in known.items()]
    text = ", ".join(f"{LABELS[metric]} {difference}" for metric, difference in known.items())
    one_seed = any(difference.error is None for difference in known.values())
    differences = {LABELS[metric]: difference.value for metric, difference in known.items()}
    return Finding(setting.title, comparison, _state(signs), text, one_seed, differences)


def _sized(setting: Setting, one: Entry, other: Entry, metric: str, claimed: float, also: str | None = None) -> Finding:
    """Judge a difference of which the paper claims the size: three quarters of it are enough."""
    difference, comparison = setting.difference(one, other, metric), f"{name_of(one)} against {name_of(other)}"
    if difference is None:
        return Finding(setting.title, comparison, "not run", setting.absent(one, other))
    share = difference.value / claimed
    state: State = "holds" if share >= 0.75 else "smaller than claimed" if share >= 0 else "does not hold"
    beside = None if also is None else setting.difference(one, other, also)
    fresh = "" if beside is None else f"; fresh {beside}"
    text = f"{LABELS[metric]} {difference}, claimed {claimed:+.2f}{fresh}"
    differences = {LABELS[metric]: difference.value}
    one_seed = difference.error is None
    return Finding(setting.title, comparison, state if difference.sign else "tie", text, one_seed, differences)


def _state(signs: Sequence[int]) -> State:
    return "does not hold" if min(signs) < 0 else "holds" if min(signs) > 0 else "tie"


CLAIMS = (
    Claim(
        "Does relaxed REBAR beat REBAR on images?",
        "It has a higher training bound and less variance, everywhere.",
        "Grathwohl et al. (2018), section 5.2",
        _relaxed,
    ),
    Claim(
        "Is RELAX worse than REBAR on images?",
        "RELAX performs worse than REBAR, because the loss is complicated.",
        "draft of Grathwohl et al. (2018), section 5.2",
        _worse,
    ),
    Claim(
        "Does the exact discrete rule have much less variance?",
        "The log-variance of its gradient is about 2 nats below that of REBAR and RELAX for sigmoid belief networks, "
        "and 1 nat below that of all others for the categorical VAE.",
        "Echraibi et al. (2020), appendix B, Figures 5 and 6",
        _variance,
        _less_variance,
    ),
    Claim(
        "Does it hurt the discrete rule to use one sample per image?",
        "A single sample does not hurt performance.",
        "Echraibi et al. (2020), appendix B",
        _samples_bound,
        _lost,
        denied=True,
    ),
    Claim(
        "Does the discrete rule reach a higher test likelihood?",
        "It is ahead of REBAR, RELAX and Gumbel-softmax by the differences in Tables 1 and 2.",
        "Echraibi et al. (2020), appendix B, Tables 1 and 2",
        _test_likelihood,
    ),
    Claim(
        "Does the mean of S samples have 1/S of the variance?",
        "The log-variance falls by log S.",
        None,
        _samples_variance,
    ),
    Claim(
        "Does the learning rate of Echraibi et al. (2020) hold the control variates back?",
        "At equal epochs, REBAR and RELAX are better at a learning rate of 0.001 than at 0.0001.",
        None,
        _learning_rate,
    ),
)
"""In the order of the report."""
