"""Time a training step of every estimator, beside plain PyTorch and Storchastic; measure memory; write docs/speed.md.

    python -m benchmarks.speed                             # steps of all models: about two minutes
    python -m benchmarks.speed --parts growth fit          # growth with D, S, K and the batch; what `fit` adds
    python -m benchmarks.speed --quick                     # everything with tiny sizes, to see that it runs
    python -m benchmarks.speed --output RESULTS --write docs/speed.md  # run nothing, write tables and figures

Programs that are compared take turns, so that their ratios are right on a machine that does other things too. Figures
are medians with quartiles; ratios are taken within rounds. A part that is run replaces the same part in the file of
results, with its command, versions, hardware and load.

A step is the loss, one backward and the steps of all optimizers. The columns: `ours` is the package without
`torch.compile`, `ours compiled` with it, where it has something to compile. `plain` is the estimator written by hand
for one model (`benchmarks/speed/plain.py`); for `StochasticBackprop` it evaluates the decoder at every changed latent,
in chunks. `Storchastic` is that library in a process of its own (`benchmarks/speed/storchastic.py`); `--storchastic`
says which interpreter runs it.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import package
from benchmarks.speed.measure import environment
from benchmarks.speed.parts import PARTS, Setup
from benchmarks.speed.plain import PROBLEMS
from benchmarks.speed.report import sections, write
from benchmarks.speed.storchastic import Storchastic

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the command and return the results."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    torch.set_num_threads(options.threads)
    results = _read(options.output)
    shown = [Path(a).name if Path(a).is_absolute() else a for a in given]  # on another machine it is elsewhere
    command = " ".join(["python -m benchmarks.speed", *(f'"{a}"' if " " in a else a for a in shown)])
    parts = options.parts or (list(PARTS) if options.quick else [] if options.write else ["models"])
    with Storchastic(options.storchastic, options.threads) if options.storchastic else nullcontext() as peer:
        setup = Setup(
            0.0 if options.quick else options.seconds,
            options.threads,
            options.quick,
            options.estimators,
            options.models,
            peer,
        )
        for part in (part for part in PARTS if part in parts):
            conditions = environment()
            print(f"{part}: {json.dumps(conditions)}", file=sys.stderr)
            tables = PARTS[part](setup)
            after = environment()["load_average"]
            results[part] = {
                "command": command,
                "environment": conditions,
                "load_average_after": after,
                "tables": tables,
            }
            if options.output is not None:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(results, indent=1) + "\n")
    if options.write is not None:
        write(options.write, results)
    else:
        for name, text in sections(results).items():
            print(f"\n## {name}\n\n{text}")
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what to run (default: models; --quick: all)")
    parser.add_argument("--models", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="default: all")
    parser.add_argument(
        "--estimators",
        nargs="+",
        choices=package.ESTIMATORS,
        default=list(package.ESTIMATORS),
        help="default: all",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each table of programs (default: 20)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, few rounds, nothing compiled: seconds")
    parser.add_argument("--storchastic", type=Path, help="Python of an environment with storchastic==0.3.7")
    parser.add_argument("--output", type=Path, help="file of results, JSON; by default none is written")
    parser.add_argument("--write", type=Path, help="document whose tables and figures are written")
    return parser


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    results: dict[str, Any] = json.loads(path.read_text())
    return results


if __name__ == "__main__":
    main()
