"""Repeat the experiments of Grathwohl et al. (2018) and Echraibi et al. (2020).

    python -m benchmarks toy                    # one experiment, with the paper's settings
    python -m benchmarks discrete --estimator REBAR RELAX --seed 0 1 --epochs 5
    python -m benchmarks plan                   # everything in benchmarks/plan.txt, in turn
    python -m benchmarks report                 # write RESULTS.md and its figures from the rows
    python -m benchmarks runs                   # print the command, the commit and the seconds of every finished run
    python -m benchmarks toy --quick            # tiny, to see that it runs; `all --quick` tries everything

An option takes several values, and every combination of values is a run. Finished runs are rows of JSON in
benchmarks/results and are not repeated; with --repeat they are, and compared with their rows. An interrupted run
continues where it stopped when the same command is started again; several processes may run the same command at once.
TensorBoard shows the curves of runs in progress: tensorboard --logdir runs
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.discrete import Discrete
from benchmarks.divergence import Divergence
from benchmarks.experiment import Experiment, Run
from benchmarks.gamma import Gamma
from benchmarks.plan import Plan, Rows, duration, repeat
from benchmarks.policies import Policies
from benchmarks.policy_variance import PolicyVariance
from benchmarks.recommendation import Recommendation
from benchmarks.record import Record
from benchmarks.record_report import write_page
from benchmarks.regression import Regression
from benchmarks.report import run_lines, write_report
from benchmarks.toy import Toy

RECORD = Record()

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        *(Toy(), Gamma(), Regression(), Divergence(), Discrete(), RECORD),
        *(Policies(), PolicyVariance(), Recommendation()),
    )
}
"""By the name of the command."""

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = _parser()
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    quick = options.quick
    rows = Rows(Path(options.results) if options.results else options.runs / "quick" if quick else HERE / "results")
    report = (
        Path(options.report) if options.report else rows.folder / "RESULTS.md" if quick else HERE.parent / "RESULTS.md"
    )
    try:
        planned = _planned(options.file, parser) if options.name == "report" else {"": _runs(options, parser)}
    except ValueError as error:
        parser.error(str(error))
    folder = options.runs / "quick" if quick else options.runs
    plans = {line: Plan(runs, EXPERIMENTS, rows, folder, options.data_root) for line, runs in planned.items()}
    record_page = report.parent / "record.md" if options.report or quick else HERE.parent / "docs" / "record.md"
    if options.name == "report":
        write_report(EXPERIMENTS, rows, report, plans)
        write_page(rows.of("record"), RECORD.missing(rows.of("record")), record_page)
        return
    if options.name == "runs":
        print("seconds\tcommit\tdate\tthreads\ttorch\tprocessor\tcommand")
        for line in run_lines([row for name in options.experiments or EXPERIMENTS for row in rows.of(name)]):
            print(line)
        return
    (plan,) = plans.values()
    if options.list:
        missing = {run.key for run in plan.missing()}
        for run in plan.runs:
            state = f"expected {duration(plan.expected_seconds(run))}" if run.key in missing else "done"
            print(f"{run.command}  # {state}")
        return
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        if options.repeat:
            for comparison in repeat(plan):
                print(comparison)
            return
        plan.execute()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from the last checkpoint") from None
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}\nHere the folder is given by --data-root.") from None
    if quick:
        write_report(EXPERIMENTS, rows, report)
        write_page(rows.of("record"), [], record_page)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quick", action="store_true", help="tiny sizes; rows and report go to RUNS/quick")
    common.add_argument("--results", help="folder of the rows (default: benchmarks/results)")
    common.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs in progress (default: runs)")
    common.add_argument("--report", help="file that `report` writes (default: RESULTS.md of the checkout)")
    common.add_argument("--data-root", default="data", help="folder of image data (default: data)")
    common.add_argument("--threads", type=int, default=1, help="threads of torch for each process (default: 1)")
    common.add_argument("--repeat", action="store_true", help="run finished runs again, and compare with their rows")
    common.add_argument("--list", action="store_true", help="print the runs and do none")
    for experiment in EXPERIMENTS.values():
        own = names.add_parser(experiment.name, help=experiment.summary, parents=[common], allow_abbrev=False)
        _add_axes(own, experiment)
    names.add_parser("all", help="every experiment with its default values", parents=[common], allow_abbrev=False)
    plan = names.add_parser("plan", help="the lines of a file, in turn", parents=[common], allow_abbrev=False)
    write = names.add_parser(
        "report",
        help="RESULTS.md and figures from the rows, and what the plan lacks",
        parents=[common],
        allow_abbrev=False,
    )
    runs = names.add_parser("runs", help="print what each finished run was done with", parents=[common])
    runs.add_argument("experiments", nargs="*", choices=[[], *EXPERIMENTS], metavar="EXPERIMENT", help="default: all")
    for own in (plan, write):
        own.add_argument("file", nargs="?", type=Path, default=HERE / "plan.txt", help="default: benchmarks/plan.txt")
    return parser


def _add_axes(parser: argparse.ArgumentParser, experiment: Experiment) -> None:
    for name, axis in experiment.axes.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"axis_{name}",
            nargs="+",
            type=type(axis.values[0]),
            choices=axis.choices,
            help=f"{axis.help} (default: {' '.join(map(str, axis.values))})",
        )


def _runs(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Run]:
    if options.name == "all":
        return [run for experiment in EXPERIMENTS.values() for run in experiment.plan({}, quick=options.quick)]
    if options.name == "runs":
        return []
    if options.name == "plan":
        return [run for runs in _planned(options.file, parser).values() for run in runs]
    experiment = EXPERIMENTS[options.name]
    given = {name: getattr(options, f"axis_{name}") for name in experiment.axes}
    return experiment.plan({name: values for name, values in given.items() if values}, quick=options.quick)


def _planned(file: Path, parser: argparse.ArgumentParser) -> dict[str, list[Run]]:
    """Return the runs of a file by line."""
    lines = [line.partition("#")[0].strip() for line in file.read_text().splitlines()]
    return {line: _runs(parser.parse_args(shlex.split(line)), parser) for line in lines if line}


if __name__ == "__main__":
    main()
