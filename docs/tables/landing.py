"""Draw the figure on the first page of the site from the table of record: `python docs/tables/landing.py`.

One bar for each estimator: the processor time that it takes to estimate a gradient of a given variance. That is its
variance times the time of a step, over the same product of the best unbiased estimator.
"""

import json
import math
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
PLACE = {"model": "bernoulli_nonlinear", "data": "MNIST", "seed": 0, "stage": 50_000}
MODEL = "VAE with 200 Bernoulli latents, MNIST, frozen after 50,000 steps"


def products() -> dict[str, tuple[float, bool, float]]:
    """Return variance × time of each estimator, whether it is unbiased, and its bias relative to the gradient."""
    rows = [json.loads(line) for line in (ROOT / "benchmarks/results/record.jsonl").read_text().splitlines()]
    rows = [row for row in rows if PLACE.items() <= row["settings"].items()]
    unbiased = [row["metrics"] for row in rows if row["metrics"].get("unbiased") == 1]
    best = min(unbiased, key=lambda metrics: metrics["variance_encoder"])  # it knows the gradient best
    square = best["square_encoder"]
    found = {}
    for row in rows:
        metrics = row["metrics"]
        if "time" in metrics:
            bias = math.sqrt(max(metrics.get("bias_encoder", 0.0), 0.0) / square)
            found[row["settings"]["estimator"]] = (
                metrics["variance_encoder"] * metrics["time"],
                metrics["unbiased"] == 1,
                bias,
            )
    return found


def draw(path: Path) -> None:
    """Write the figure."""
    of = sorted(products().items(), key=lambda item: -item[1][0])
    unit = min(product for _, (product, unbiased, _) in of if unbiased)
    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    axes = figure.subplots()
    for place, (_, (product, unbiased, bias)) in enumerate(of):
        axes.barh(place, product / unit, color="C0" if unbiased else "none", edgecolor="C0" if unbiased else "0.6")
        times = product / unit
        text = f"{times:.0f} ×" if times >= 9.5 else f"{times:.1f} ×"
        note = "" if unbiased else f"   biased by {bias:.0%} of the gradient"
        axes.annotate(text + note, (times, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(of)), [name for name, _ in of], fontsize=8)
    axes.set(xscale="log", xlim=(0.7, 3000), ylim=(-0.6, len(of) - 0.4))
    axes.set_xlabel("processor time for a gradient of the same variance (least unbiased = 1)")
    axes.set_title(f"The same gradient, estimated in {len(of)} ways: one line of the model differs", fontsize=11)
    legend = f"{MODEL}\nfilled: unbiased; hollow: biased"
    axes.text(0.99, 0.98, legend, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(ROOT / "docs/figures/landing.png")
