"""RESULTS.md: questions and answers, what was not run, and the tables, all made from the rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.comparison import Claim, Finding, answer, grouped, table
from benchmarks.discrete_report import MODELS, PUBLISHED
from benchmarks.experiment import Experiment, Row, Run
from benchmarks.plan import Plan, Rows, duration

__all__ = ["run_lines", "write_report"]

HEAD = """\
# Results: the experiments of two papers, repeated

The estimators of this package were run on the experiments of

- Grathwohl et al. (2018), *Backpropagation through the Void*, <https://arxiv.org/abs/1711.00123>, and its draft \
*Backpropagate through anything*: REBAR, RELAX and relaxed REBAR (which the published version calls RELAX);
- Echraibi et al. (2020), *Generalized Stochastic Backpropagation*, <https://hal.science/hal-02968975>: here \
`StochasticBackprop`, whose rule for Bernoulli and categorical variables is called the *exact discrete rule* below.

REBAR is by Tucker et al. (2017), <https://arxiv.org/abs/1703.07370>. `python -m benchmarks report` computes this page,
its answers included, from the rows in `benchmarks/results`; `python -m benchmarks runs` prints the command, the commit
and the seconds of each run. Budgets for images are shorter than the papers': see [what was not run](#what-was-not-run).

## Questions and answers
"""

READING = """\

## How to read the tables

- `±` is the standard deviation over seeds; in differences, the standard error. `*` marks a difference that rests on \
one seed. Two figures tie within two standard errors; where one has a single seed, also within 0.25.
- ELBOs and bounds are in nats per image; higher is better. The test bound is by importance sampling. *Log-variance* \
is the natural logarithm of the variance of an entry of the gradient (of the encoder, for images): *fresh* from \
repeated estimates on one batch, *Adam* from Adam's moments as in Echraibi et al. (2020), which vary with the batch too.
- A claim of a size holds from three quarters of it upwards. S is the number of samples per image.
"""

NOTES = """\
Omniglot is made here from the original drawings; the papers read a 28×28 file made in another way. MNIST is binarized
here, not read from the usual binarized file. A training ELBO and a test likelihood cannot be compared. The RELAX of
Echraibi et al. (2020) may be relaxed REBAR, which the published Grathwohl et al. (2018) calls RELAX.
"""

TITLES = {
    "discrete": "Images: sigmoid belief networks and discrete VAEs",
    "divergence": "Divergence of the series",
    "toy": "One Bernoulli variable",
    "gamma": "Gamma variables",
    "regression": "Bayesian logistic regression",
    "policies": "Policies",
}


def write_report(
    experiments: Mapping[str, Experiment], rows: Rows, path: Path, plans: Mapping[str, Plan] | None = None
) -> None:
    """Write the report, and its figures beside the rows.

    Args:
        experiments: By name.
        rows: Finished runs.
        path: File to write.
        plans: What was to be run, by line of the plan's file; None to leave out what is missing.
    """
    folder = rows.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    finished = {name: rows.of(name) for name in TITLES}
    judged = {
        name: [(claim, list(claim.judge(of))) for claim in experiments[name].claims] for name, of in finished.items()
    }
    lines = [HEAD, *_answers(judged), "\n## What was not run\n", *_never_run(finished["discrete"])]
    lines += [*(_missing(plans) if plans is not None else []), READING]
    for name, title in TITLES.items():
        lines += [f"\n## {title}\n", f"{experiments[name].summary} {_runs_of(finished[name])}"]
        lines += [f"\n{NOTES.rstrip()}"] if name == "discrete" else []
        lines += experiments[name].report(finished[name])
        lines += [f"- failed: `{row['command']}`: {row['failed']}" for row in finished[name] if "failed" in row]
        lines.append("")
        drawn = experiments[name].figures(finished[name], folder) if finished[name] else []
        lines.append(" ".join(f"![{figure.stem}]({os.path.relpath(figure, path.parent)})" for figure in drawn))
        lines += _evidence(judged[name]) if name == "discrete" and finished[name] else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n")


def run_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what each run was done with: seconds, commit, date, threads, torch, processor, and the command."""
    for row in rows:
        at = row["environment"]
        cells = (row["seconds"], row["commit"], at["date"], at["threads"], at["torch"], at["processor"], row["command"])
        yield "\t".join(map(str, cells))


def _answers(judged: Mapping[str, Sequence[tuple[Claim, Sequence[Finding]]]]) -> Iterator[str]:
    number = 0
    for name, claims in judged.items():
        yield f"\n**[{TITLES[name]}](#{_anchor(TITLES[name])})**\n"
        for claim, findings in claims:
            number += 1
            source = f"Claimed by: {claim.source}" if claim.source else "Our expectation"
            yield f"{number}. **{claim.question}** {answer(claim, findings)} *{source}: {claim.statement}*"


def _anchor(title: str) -> str:
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


def _evidence(judged: Sequence[tuple[Claim, Sequence[Finding]]]) -> Iterator[str]:
    """Yield a table for each claim of the papers, with a row for each setting and a column for each comparison."""
    yield "\n### Findings, setting by setting"
    for claim, findings in judged:
        if claim.source is None:
            continue
        columns = list(dict.fromkeys(finding.comparison for finding in findings))
        cells: dict[str, dict[str, str]] = {}
        for finding in findings:
            cells.setdefault(finding.setting, {})[finding.comparison] = f"**{finding.state}**: {finding.text}"
        body = [[setting, *(by.get(column, "") for column in columns)] for setting, by in cells.items()]
        yield from table([f"*{claim.question}*", *columns], body)


def _runs_of(rows: Sequence[Row]) -> str:
    failed = sum("failed" in row for row in rows)
    return (
        f"{len(rows)} runs" + (f", of which {failed} failed." if failed else ".")
        if rows
        else "Nothing has been run yet."
    )


def _never_run(rows: Sequence[Row]) -> Iterator[str]:
    """Yield which experiments of the papers have no row, and which budgets are shorter."""
    yield "- Reinforcement learning (Grathwohl et al., 2018): not attempted."
    done = {(row["settings"]["model"], row["settings"]["data"]) for row in rows}
    absent: dict[str, list[str]] = {}
    for model, data in dict.fromkeys((one.model, one.data) for one in PUBLISHED):
        if (model, data) not in done:
            absent.setdefault(data, []).append(MODELS[model])
    yield from (f"- {data}: {'; '.join(models)}." for data, models in absent.items())
    if rows:
        names = [name for name in rows[0]["settings"] if name != "seed"]
        yield (
            "- The papers' budgets for images: 500 epochs on MNIST and 100 on Omniglot in Echraibi et al. (2020), "
            "about 960 and 1972 in Grathwohl et al. (2018). Here: "
            f"{_range([row['settings']['epochs'] for row in rows])} epochs."
        )
        yield (
            "- Five seeds for each figure on images, as in Echraibi et al. (2020). Here: "
            f"{_range([len(group) for group in grouped(rows, *names).values()])}."
        )


def _range(values: Sequence[int]) -> str:
    return " to ".join(map(str, sorted({min(values), max(values)})))


def _missing(plans: Mapping[str, Plan]) -> Iterator[str]:
    """Yield the lines of the plan that are not finished, with what is left of them and how long that should take."""
    counted: set[str] = set()
    everything: list[Run] = []
    entries, known = [], next(iter(plans.values()), None)
    for line, plan in plans.items():
        left = [run for run in plan.missing() if run.key not in counted]
        counted |= {run.key for run in left}
        everything += left
        if left:
            seconds = plan.expected_seconds(*left)
            time = "no similar run has been timed" if seconds is None else f"expected {duration(seconds)}"
            entries.append(f"- `{line}`: {len(left)} of {len(plan.runs)} runs, {time}{_named(left, plan.runs)}")
    if not entries or known is None:
        yield "- Of the plan, `benchmarks/plan.txt`: everything is done."
        return
    total = known.expected_seconds(*everything)
    yield (
        f"\nOf the plan, `benchmarks/plan.txt`, {len(everything)} runs are left "
        f"({'of unknown time' if total is None else f'{duration(total)}, judged by similar runs'}):\n"
    )
    yield from entries


def _named(left: Sequence[Run], of: Sequence[Run]) -> str:
    """Name runs by the settings in which those of a line differ, if only some are left."""
    if len(left) == len(of):
        return ""
    varying = [name for name in of[0].settings if len({run.settings[name] for run in of}) > 1]
    return ": " + "; ".join(" ".join(f"{name}={run.settings[name]}" for name in varying) for run in left)
