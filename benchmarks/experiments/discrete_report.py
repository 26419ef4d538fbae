"""The part of RESULTS.md on discrete latents: claims with their verdicts, tables, figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.charts import Panel, draw
from benchmarks.experiment import Row
from benchmarks.experiments.discrete_claims import CLAIMS, Claim, Verdict, answer
from benchmarks.experiments.discrete_tables import Entry, Table, lines_of, name_of, tables_of
from benchmarks.published import PUBLISHED

__all__ = ["figures", "report"]

RULES = """\
Verdicts are computed from the rows. Two figures tie if their means are less than two standard errors apart. Where one
of them is of one seed there is no standard error: they tie if less than 0.25 apart (seeds differ by .04 to .84 in the
second paper's Table 1), or less than two standard errors would be if its seeds spread like the other's, and "one seed"
is said. A stated size holds from three quarters of it upwards. A verdict is on the budgets run here, which each table
compares with the paper's. Bounds are in nats per image; log-variances are natural logarithms, of the encoder's
gradient, fresh or by Adam's moments as in the second paper (these count differences between batches too).
"""

NOTES = """\
What to know before comparing with the papers:

- Relaxed REBAR is called RELAX in the later version of the first paper. The second paper cites that version: its RELAX
  may be either. Here `RELAX` has the network alone and `RelaxedREBAR` has it beside the relaxation.
- Omniglot here is made from the original drawings, scaled to 28×28; the papers read a file made otherwise. Figures on
  it are never equal by right, also where the protocol is.
- Static binarization is drawn here, not read from the file that is usual for MNIST.
- A train ELBO and a test likelihood are not one figure: the first falls short of the likelihood by the gap of q, and is
  of images that were learned.
"""


def report(rows: Sequence[Row]) -> list[str]:
    """Return claims and tables, as lines."""
    tables = tables_of(rows)
    judged = [(claim, list(claim.judge(tables))) for claim in CLAIMS]
    lines = ["### Claims\n", RULES, *_overview(judged)]
    for claim, verdicts in judged:
        lines += _claim(claim, verdicts)
    lines += [*_disagreements(judged), "\n### Tables\n", NOTES]
    if not tables:
        lines.append("Nothing has been run yet.")
    for table in tables:
        lines += lines_of(table)
    return lines


def figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw bound and variance over epochs, a figure for each table, as the second paper's Figures 5 and 6."""
    return [_draw(table, folder) for table in tables_of(rows) if table.entries]


def _draw(table: Table, folder: Path) -> Path:
    panels = [
        Panel(title, "epochs", y, {_legend(entry): table.curves(entry, name) for entry in table.entries})
        for title, y, name in (
            ("training", "ELBO in nats", "train_elbo"),
            ("encoder gradient, fresh", "log-variance", "log_variance_encoder"),
            ("encoder gradient, by Adam", "log-variance", "log_variance_encoder_adam"),
        )
    ]
    name = f"discrete-{table.data}-{table.model}-lr{table.lr:g}-{table.epochs}epochs.png"
    return draw(panels, folder / name, columns=3)


def _legend(entry: Entry) -> str:
    return entry[0] if entry[1] == 1 else name_of(entry)


def _overview(judged: Sequence[tuple[Claim, list[Verdict]]]) -> Iterator[str]:
    yield "| claim | answer |"
    yield "|---|---|"
    for claim, verdicts in judged:
        yield f"| {claim.statement} | {answer(verdicts)} |"


def _claim(claim: Claim, verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield f"\n#### {claim.statement}\n"
    yield f"Source: {claim.source}.\n" if claim.source else "Ours, to explain the papers' figures.\n"
    if not verdicts:
        yield "Not yet run."
    for verdict in verdicts:
        yield verdict.line


def _disagreements(judged: Sequence[tuple[Claim, list[Verdict]]]) -> Iterator[str]:
    """Yield where rows do not show what a paper says, and where the papers' figures do not fit each other."""
    yield "\n#### Where the papers do not fit these rows, or each other\n"
    states = {verdict.state for claim, verdicts in judged for verdict in verdicts if claim.source}
    against = {"less than stated", "does not hold"}
    if not states - {"not yet run"}:
        yield "- No row to judge by has been run yet."
    elif not states & against:
        yield "- No row speaks against a claim of the papers."
    for claim, verdicts in judged:
        places = [one for one in verdicts if claim.source and one.state in against]
        if places:
            yield f'- {claim.source}: "{claim.statement}" Not so for:'
            yield from (f"  - {one.where}: {one.state}{' (one seed)' if one.one_seed else ''}" for one in places)
    yield from _between_papers()


def _between_papers() -> Iterator[str]:
    """Yield where what the papers print does not fit together; no row is needed to see it."""
    for data, said in (("MNIST", 4), ("Omniglot", 10)):
        exact, rebar, relax = (_second(data, name) for name in ("StochasticBackprop", "REBAR", "RELAX"))
        yield (
            f"- The second paper's text says about {said} nats for one layer on {data}; its Table 1 has "
            f"{exact - rebar:.2f} over REBAR and {exact - relax:.2f} over RELAX."
        )
    train = _first("first paper, Figure 3", "REBAR-ours", "bernoulli_linear", "train_elbo")
    yield (
        "- For REBAR with one layer on MNIST the second paper has a test likelihood of "
        f"{_second('MNIST', 'REBAR'):.2f}, the first a train ELBO of {train:.2f}. A likelihood lies above the ELBO of "
        "the same images: overfitting, too little training or other images make up the difference."
    )
    later, nonlinear = "first paper, later version (2018)", "bernoulli_nonlinear"
    (rebar, valid), (relaxed, worse) = (
        [_first(later, named, nonlinear, metric) for metric in ("train_elbo", "validation")]
        for named in ("REBAR", "RELAX (relaxed REBAR)")
    )
    yield (
        "- The first paper's results are of training images. With its nonlinear model on MNIST relaxed REBAR is better "
        f"on these ({relaxed:.2f} against {rebar:.2f}), worse on validation images ({worse:.2f} against {valid:.2f})."
    )


def _first(source: str, named: str, model: str, metric: str) -> float:
    """Return a figure of the first paper on MNIST."""
    wanted = (source, named, model, "MNIST", metric)
    return next(p.value for p in PUBLISHED if (p.source, p.named, p.model, p.data, p.metric) == wanted)


def _second(data: str, estimator: str) -> float:
    """Return the second paper's test likelihood for one layer and one sample."""
    wanted = (data, "bernoulli_linear", estimator, 1, "test_bound")
    return next(p.value for p in PUBLISHED if (p.data, p.model, p.estimator, p.samples, p.metric) == wanted)
