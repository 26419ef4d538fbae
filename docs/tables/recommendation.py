"""Does training bear out the order in which `compare` puts estimators?

`python docs/tables/recommendation.py` writes the tables into docs/comparison.md, from the rows that
`python -m benchmarks recommendation` has left in benchmarks/results.
"""

import itertools
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from document import write_table
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.experiment import Row  # noqa: E402  of the checkout
from benchmarks.plan import Rows  # noqa: E402
from benchmarks.recommendation import TABLE  # noqa: E402
from benchmarks.recommendation_jobs import JOBS  # noqa: E402
from lightning_estimators.comparison.candidates import describe  # noqa: E402


class Trained:
    """What one estimator came to in a job, and what `compare` said of it."""

    def __init__(self, name: str, runs: Sequence[Row], table: Row) -> None:
        self.name = name
        self.costs = {int(row["settings"]["seed"]): float(row["metrics"]["cost"]) for row in runs}
        self.cost = statistics.fmean(self.costs.values())
        self.steps = statistics.fmean(row["metrics"]["steps"] for row in runs)
        self.processor_seconds = float(runs[0]["settings"]["seconds"]) / self.steps
        self.variance, self.work = {}, {}
        for stage in ("initial", "trained"):
            figures = {what: table["metrics"][f"{stage}/{name}/{what}"] for what in ("variance", "step_seconds")}
            self.variance[stage] = figures["variance"]
            self.work[stage] = figures["variance"] * figures["step_seconds"]


def agreement(works: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's correlation, and the share of all orders of the costs that agree as well or better."""
    found = float(spearmanr(works, costs).statistic)
    others = [float(spearmanr(works, order).statistic) for order in itertools.permutations(costs)]
    return found, sum(other >= found - 1e-9 for other in others) / len(others)


def told(trained: Sequence[Trained], work: dict[str, float]) -> str:
    """Return the correlation of works with costs, of means and of each seed, and the place in costs of the first."""
    kept = [one for one in trained if math.isfinite(work[one.name])]
    works = [work[one.name] for one in kept]
    rho, p = agreement(works, [one.cost for one in kept])
    seeds = sorted(set.intersection(*(set(one.costs) for one in kept)))
    single = [agreement(works, [one.costs[seed] for one in kept])[0] for seed in seeds]
    by_seed = f"; {', '.join(f'{one:.2f}' for one in single)}" if len(single) > 1 else ""
    first = min(kept, key=lambda one: work[one.name])
    place = 1 + sum(one.cost < first.cost for one in kept)
    return f"{rho:.2f} (p = {p:.2g}{by_seed}); {place} of {len(kept)}"


def of_jobs(rows: Sequence[Row]) -> Iterator[tuple[str, list[Trained]]]:
    """Yield the jobs that have a table and were trained with each estimator, with what came of the seeds all have."""
    for job in JOBS:
        of_job = [row for row in rows if row["settings"]["job"] == job]
        runs = {describe(one): [] for one in JOBS[job].candidates} | {TABLE: []}
        for row in of_job:
            runs[row["settings"]["estimator"]].append(row)
        (*_, table) = runs.pop(TABLE) or [None]
        seeds = set.intersection(*({row["settings"]["seed"] for row in of_one} for of_one in runs.values()))
        if table is not None and seeds:
            yield (
                job,
                [
                    Trained(name, [row for row in of_one if row["settings"]["seed"] in seeds], table)
                    for name, of_one in runs.items()
                ],
            )


def lines() -> Iterator[str]:
    """Yield a table of correlations, and one of the estimators in each job."""
    found = dict(of_jobs(Rows(ROOT / "benchmarks" / "results").of("recommendation")))
    yield "| job | initial weights | after a quarter of training | the same, with processor time of a training step |"
    yield "|---|---|---|---|"
    for job, trained in found.items():
        works = [{one.name: one.work[stage] for one in trained} for stage in ("initial", "trained")]
        works.append({one.name: one.variance["trained"] * one.processor_seconds for one in trained})
        yield f"| {JOBS[job].title} | {' | '.join(told(trained, work) for work in works)} |"
    yield ""
    yield "| job | estimator | seeds | cost, nats | steps | variance | variance × ms |"
    yield "|---|---|---|---|---|---|---|"
    for job, trained in found.items():
        for one in sorted(trained, key=lambda one: one.cost):
            spread = f" ± {statistics.stdev(one.costs.values()):.2g}" if len(one.costs) > 1 else ""
            variance = one.variance["trained"]
            cells = (JOBS[job].title, f"`{one.name}`", len(one.costs), f"{one.cost:.4g}{spread}", f"{one.steps:.0f}")
            work = f"{1e3 * variance * one.processor_seconds:.3g}"
            yield f"| {' | '.join(map(str, cells))} | {variance:.3g} | {work} |"


if __name__ == "__main__":
    write_table("comparison.md", __file__, lines())
