"""docs/speed.md: the results of the speed benchmark as tables; what stands around them is written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import draw_growth, draw_steps
from benchmarks.speed.targets import targets

__all__ = ["fill", "sections", "table_3", "write"]

FIGURES = {"models": ("speed_steps.png", draw_steps), "growth": ("speed_growth.png", draw_growth)}
"""The figure that shows a part."""

TABLE_3 = {
    "one linear layer": {"GS": 4.11, 1: 6.32, 5: 10.93, 10: 16.83},
    "categorical VAE": {"GS": 4.13, 1: 7.32, 5: 13.29, 10: 21.94},
}
"""Table 3 of Echraibi et al. (2020), quoted: seconds of an epoch on MNIST, on an NVIDIA GeForce RTX 2080 Ti, of
Gumbel-softmax (GS) and of categorical stochastic backpropagation by its number of samples."""

_GROWTH = {"one linear layer": "S, categorical", "categorical VAE": "S, categorical nonlinear"}

Results = Mapping[str, Mapping[str, Any]]
"""`command`, `environment`, `load_average_after` and `tables` of each part."""

RATIOS = ("ours / plain", "ours / Storchastic", "ours / plain Concrete", "ours compiled / plain Concrete")


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write the tables of a document, and its figures into `figures/` beside it.

    Args:
        path: The document.
        results: What was measured, by part.

    Raises:
        ValueError: There is nothing to write, or the document has no place for a section.
    """
    if not results:
        raise ValueError("there are no results to write: run parts first, or name their file with --output.")
    path.write_text(fill(path.read_text(), sections(results)))
    for part, (name, draw) in FIGURES.items():
        if part in results:
            draw(results[part], path.parent / "figures" / name)


def fill(text: str, made: Mapping[str, str]) -> str:
    """Replace what is between `<!-- name -->` and `<!-- end -->` by the section of that name.

    Raises:
        ValueError: The text has no such place for a section.
    """
    for name, section in made.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"expected `<!-- {name} -->` and `<!-- end -->` around the {name} of the document.")
        text = f"{before}{begin}\n{section}\n\n{end}{after}"
    return text


def sections(results: Results) -> dict[str, str]:
    """Return the sections of the parts that were run, as Markdown by name."""
    tables = {part: found["tables"] for part, found in results.items()}
    made = {"environment": _environment(results)}
    if "models" in tables:
        made["steps"] = "\n\n".join(
            f"**{name}**\n\n{_model(model['rows'])}" for name, model in tables["models"].items()
        )
    if "growth" in tables:
        made["growth"] = "\n\n".join(
            f"**{name}** ({table['model']})\n\n{_growth(table)}" for name, table in tables["growth"].items()
        )
        made["table 3"] = "\n".join(table_3(tables["growth"]))
    if "memory" in tables:
        made["memory"] = _memory(tables["memory"])
    if tables.get("storchastic"):
        made["storchastic"] = _storchastic(tables["storchastic"])
    if "fit" in tables:
        made["fit"] = _fit(tables["fit"])
    made["targets"] = targets(tables)
    return made


def _environment(results: Results) -> str:
    commands = dict.fromkeys(found["command"] for found in results.values())
    rows = []
    for part, found in results.items():
        conditions, after = found["environment"], found["load_average_after"]
        hardware = f"{conditions['processor']} ({conditions['capability']}), {conditions['cores']} cores"
        versions = f"torch {conditions['torch']}, Lightning {conditions['lightning']}, Python {conditions['python']}"
        load = f"{conditions['load_average'][0]:.1f} to {after[0]:.1f}"
        rows.append([part, conditions["date"], hardware, versions, str(conditions["threads"]), load])
    ran = "\n".join(f"    {command}" for command in commands)
    return f"{ran}\n\n" + _table(["part", "date", "processor", "versions", "threads", "load average"], rows)


def _model(rows: Mapping[str, Any]) -> str:
    columns = [c for c in ("ours", "ours compiled", "plain", "Storchastic") if any(c in row for row in rows.values())]
    ratios = [r for r in RATIOS if any(r in row for row in rows.values())]
    return _table(
        ["step", *(f"{column}, ms" for column in columns), *ratios],
        [
            [name, *(_spread(row.get(c)) for c in columns), *(_median(row.get(r)) for r in ratios)]
            for name, row in rows.items()
        ],
    )


def _growth(table: Mapping[str, Any]) -> str:
    values = table["values"]
    steps = list(next(iter(values.values())))
    rows = [[f"{step}, ms", *(f"{row[step]['median_ms']:.2f}" for row in values.values())] for step in steps]
    return _table([table["size"], *values], rows)


def _memory(tables: Mapping[str, Any]) -> str:
    parts = []
    for name, model in tables["models"].items():
        columns = [
            c for c in ("ours", "ours compiled", "plain", "Storchastic") if any(c in r for r in model["rows"].values())
        ]
        rows = [[e, *(_mib(row.get(c), "program_mib") for c in columns)] for e, row in model["rows"].items()]
        parts.append(f"**{name}**\n\n" + _table(["step", *(f"{c}, MiB" for c in columns)], rows))
    values = tables["D"]["values"]
    rows = [
        [f"StochasticBackprop, {column}, {what}, MiB", *(_mib(row.get(column), key) for row in values.values())]
        for column in ("ours", "ours compiled")
        for what, key in (("program", "program_mib"), ("whole process", "process_mib"))
        if any(row.get(column) for row in values.values())
    ]
    pixels = tables["D"]["problem"]["pixels"]
    return "\n\n".join([*parts, f"**D**, {pixels} pixels (bernoulli linear)\n\n" + _table(["D", *values], rows)])


def _storchastic(tables: Mapping[str, Any]) -> str:
    rows = [
        [name, column, *(_error(found, part) for part in ("encoder", "decoder"))]
        for name, row in tables["bias"].items()
        for column, found in row.items()
    ]
    bias = _table(["estimator", "of", "encoder: error, largest z", "decoder: error, largest z"], rows)
    grown = [
        [name, f"{row['mib_per_step']:.2f}", f"{row['mib_per_step_collected']:.2f}", str(row["steps"])]
        for name, row in tables["growth"].items()
    ]
    leak = _table(["Storchastic", "MiB per step", "after garbage collection", "steps"], grown)
    return ", ".join(f"{k} {v}" for k, v in tables["versions"].items()) + f".\n\n{bias}\n\n{leak}"


def _error(found: Mapping[str, float], part: str) -> str:
    error, standard_error = 100 * found[f"{part}_bias"], 100 * found[f"{part}_standard_error"]
    return f"{error:.1f}% ± {standard_error:.1f}%, {found[f'{part}_largest_z']:.1f}"


def _fit(tables: Mapping[str, Any]) -> str:
    rows = [
        [f"{estimator}: {name}", _spread(row), _median(row["/ leanest"]), _median(row["/ loop"])]
        for estimator, table in tables.items()
        for name, row in table["rows"].items()
    ]
    return _table(["step", "ms", "over the leanest module", "over the plain loop"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(times: Mapping[str, float] | None) -> str:
    if times is None:
        return ""
    return f"{times['median_ms']:.2f} ({times['quartile1_ms']:.2f} to {times['quartile3_ms']:.2f})"


def _median(given: Mapping[str, float] | None) -> str:
    return "" if given is None else f"{given['median']:.2f}"


def _mib(given: Mapping[str, float] | None, key: str) -> str:
    return "" if given is None else f"{given[key]:.0f}"


def table_3(growth: Mapping[str, Any]) -> list[str]:
    """Return the ratios to Gumbel-softmax in `TABLE_3`, with ours beside them, as lines of Markdown.

    Args:
        growth: The tables of the part "growth" in the results.
    """
    lines = [
        "| model | S | the paper, GPU | ours, eager | ours, compiled | ours, eager, same S | ours, compiled, same S |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, seconds in TABLE_3.items():
        values = growth[_GROWTH[model]]["values"]
        for samples in (1, 5, 10):
            if str(samples) not in values:
                continue
            rows = [values[str(samples)].get(f"StochasticBackprop, {column}") for column in ("ours", "ours compiled")]
            cells = [
                "" if row is None else f"{row[against]['median']:.2f}"
                for against in ("/ first plain Concrete", "/ plain Concrete")
                for row in rows
            ]
            published = seconds[samples] / seconds["GS"]
            lines.append(f"| {model} | {samples} | {published:.2f} | {' | '.join(cells)} |")
    return lines
