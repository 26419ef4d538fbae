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

__all__ = ["ORDER", "run_lines", "write_report"]

ORDER = ("discrete", "divergence", "toy", "gamma", "regression", "policies")
"""The first experiments of the report; all others that have claims and rows follow."""

HEAD = """\
# Results: the experiments of two papers, repeated

The estimators of this package were run on the experiments of

- Grathwohl et al. (2018), *Backpropagation through the Void*, <https://arxiv.org/abs/1711.00123>, and its draft \
*Backpropagate through anything*: REBAR, RELAX and relaxed REBAR (which the published version calls RELAX);
- Echraibi et al. (2020), *Generalized Stochastic Backpropagation*, <https://hal.science/hal-02968975>: here \
`StochasticBackprop`, whose rule for Bernoulli and categorical variables is called the *exact discrete rule* below.

REBAR is by Tucker et al. (2017), <https://arxiv.org/abs/1703.07370>. Budgets for images are shorter than the papers':
see [what was not run](#what-was-not-run). All estimators of the package are compared on MNIST in
[docs/record.md](docs/record.md), and what a step of each costs is in [docs/speed.md](docs/speed.md).

`python -m benchmarks report` computes this page, its answers included, from the rows in `benchmarks/results`.
`python -m benchmarks runs` prints the command, the commit and the seconds of each run.

## Questions and answers

Each question is about a claim of one of the papers, or an expectation of ours, which the last column states; the answer
is that of our runs. The single comparisons behind the answers are in [{findings}]({findings}).
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

Judged = Sequence[tuple[Claim, Sequence[Finding]]]


def write_report(
    experiments: Mapping[str, Experiment], rows: Rows, path: Path, plans: Mapping[str, Plan] | None = None
) -> None:
    """Write the report, its figures, and beside the rows a page of the single findings, setting by setting.

    Args:
        experiments: By name.
        rows: Finished runs.
        path: File to write.
        plans: What was to be run, by line of the plan's file; None to leave out what is missing.
    """
    folder, findings = rows.folder / "figures", rows.folder / "findings.md"
    folder.mkdir(parents=True, exist_ok=True)
    others = (name for name, one in experiments.items() if name not in ORDER and one.claims and rows.of(name))
    names = (*ORDER, *others)
    finished = {name: rows.of(name) for name in names}
    judged = {
        name: [(claim, list(claim.judge(of))) for claim in experiments[name].claims] for name, of in finished.items()
    }
    titles = {name: experiments[name].title or name.capitalize().replace("_", " ") for name in names}
    head = HEAD.replace("{findings}", os.path.relpath(findings, path.parent))
    lines = [head, *_answers(judged, titles), "\n## What was not run\n"]
    lines += [*_never_run(experiments, finished), *(_missing(plans) if plans is not None else []), READING]
    for name in names:
        lines += [f"\n## {titles[name]}\n", f"{experiments[name].summary} {_runs_of(finished[name])}"]
        lines += [f"\n{NOTES.rstrip()}"] if name == "discrete" else []
        lines += experiments[name].report(finished[name])
        lines += [f"- failed: `{row['command']}`: {row['failed']}" for row in finished[name] if "failed" in row]
        lines.append("")
        drawn = experiments[name].figures(finished[name], folder) if finished[name] else []
        lines.append(" ".join(f"![{figure.stem}]({os.path.relpath(figure, path.parent)})" for figure in drawn))
    _write(path, lines)
    _write(findings, _findings(judged, titles))


def run_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what each run was done with: seconds, commit, date, threads, torch, processor, and the command."""
    for row in rows:
        at = row["environment"]
        cells = (row["seconds"], row["commit"], at["date"], at["threads"], at["torch"], at["processor"], row["command"])
        yield "\t".join(map(str, cells))


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n")


def _answers(judged: Mapping[str, Judged], titles: Mapping[str, str]) -> list[str]:
    """Return the table of all questions, with a line for the title of each experiment."""
    body = []
    for name, claims in judged.items():
        anchor = "".join(c for c in titles[name].lower().replace(" ", "-") if c.isalnum() or c == "-")
        body += [(f"[**{titles[name]}**](#{anchor})", "", "", "")] if claims else []
        for claim, findings in claims:
            short, evidence = answer(claim, findings)
            source = f"{claim.source}: {claim.statement}" if claim.source else f"Our expectation: {claim.statement}"
            body.append((claim.question, f"**{short}**", evidence, source))
    return [line.replace("---:", "---") for line in table(("question", "answer", "evidence", "claim"), body)]


def _findings(judged: Mapping[str, Judged], titles: Mapping[str, str]) -> list[str]:
    """Return a table for each claim, with a row for each setting and a column for each comparison."""
    lines = ["# Findings, setting by setting\n\nThe findings from which the answers in RESULTS.md are counted."]
    for name, claims in judged.items():
        lines += [f"\n## {titles[name]}"] if any(findings for _, findings in claims) else []
        for claim, findings in claims:
            cells: dict[str, dict[str, str]] = {}
            for finding in findings:
                told = f"**{finding.state}**" + (f": {finding.text}" if finding.text else "")
                cells.setdefault(finding.setting, {})[finding.comparison] = told
            columns = list(dict.fromkeys(finding.comparison for finding in findings))
            body = [[setting, *(by.get(column, "") for column in columns)] for setting, by in cells.items()]
            lines += table([f"*{claim.question}*", *columns], body)
    return lines


def _runs_of(rows: Sequence[Row]) -> str:
    failed = sum("failed" in row for row in rows)
    told = f", of which {failed} failed" if failed else ""
    return f"{len(rows)} runs{told}." if rows else "Nothing has been run yet."


def _never_run(experiments: Mapping[str, Experiment], finished: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yield which experiments of the papers have no row, and which budgets are shorter."""
    acted = {row["settings"]["env"] for row in finished["policies"]}
    left = [str(env) for env in experiments["policies"].axes["env"].choices or () if env not in acted]
    if left:
        yield f"- Reinforcement learning (Grathwohl et al., 2018, section 5.3): {', '.join(left)}."
    rows = finished["discrete"]
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
    everything: dict[str, Run] = {}
    entries, known = [], next(iter(plans.values()), None)
    for line, plan in plans.items():
        left = [run for run in plan.missing() if run.key not in everything]
        everything |= {run.key: run for run in left}
        if left:
            seconds = plan.expected_seconds(*left)
            time = "no similar run has been timed" if seconds is None else f"expected {duration(seconds)}"
            entries.append(f"- `{line}`: {len(left)} of {len(plan.runs)} runs, {time}{_named(left, plan.runs)}")
    if not entries or known is None:
        yield "- Of the plan, `benchmarks/plan.txt`: everything is done."
        return
    total = known.expected_seconds(*everything.values())
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
