"""The papers' figures for discrete latents under images, and the protocols they were made by.

Figures are quoted, never measured here. A field of a protocol that the paper does not state is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

__all__ = ["PUBLISHED", "Protocol", "Published", "differences"]


@dataclass(frozen=True)
class Protocol:
    """What a likelihood depends on besides model and estimator.

    Attributes:
        epochs: Passes over the training images.
        lr: Adam's learning rate.
        batch: Images per step.
        beta2: Adam's second decay.
        binarization: "static" or "dynamic".
        prior: "learned" or "fixed".
        images: Where they come from, if there are several versions of the data.
        bound_samples: Of the bound on test images.
    """

    epochs: float | None = None
    lr: float | None = None
    batch: int | None = None
    beta2: float | None = None
    binarization: str | None = None
    prior: str | None = None
    images: str | None = None
    bound_samples: int | None = None


@dataclass(frozen=True)
class Published:
    """One figure of a paper.

    Attributes:
        source: Paper and table.
        named: The estimator as that table names it.
        estimator: The class here that does the same.
        samples: Samples per image.
        model: The model here.
        data: Data set.
        metric: "train_elbo", "test_bound" or "validation".
        value: Mean, in nats.
        std: Standard deviation over seeds, where given.
        protocol: How it was made.
        seeds: How many, where given.
    """

    source: str
    named: str
    estimator: str
    samples: int
    model: str
    data: str
    metric: str
    value: float
    std: float | None
    protocol: Protocol
    seeds: int | None = None


LABELS = {
    "epochs": "epochs",
    "lr": "learning rate",
    "batch": "batch",
    "beta2": "Adam's β₂",
    "binarization": "binarization",
    "prior": "prior",
    "images": "images",
    "bound_samples": "samples of the bound",
}


def differences(theirs: Protocol, ours: Protocol, metric: str) -> tuple[list[str], list[str]]:
    """Return what differs between two protocols, and what cannot be compared because theirs does not state it.

    Args:
        theirs: Of a paper.
        ours: Of rows.
        metric: What was measured: samples of the test bound do not matter to an ELBO.
    """
    different, unstated = [], []
    for field in fields(Protocol):
        one, other, label = getattr(theirs, field.name), getattr(ours, field.name), LABELS[field.name]
        if field.name == "bound_samples" and metric == "train_elbo":
            continue
        if one is None:
            unstated += [label] if other is not None else []
        elif one != other:
            different.append(f"{label} {_text(one)} (here {_text(other)})")
    return different, unstated


def _text(value: float | str | None) -> str:
    return "unknown" if value is None else value if isinstance(value, str) else f"{value:.5g}"


# The first paper's epochs: 2 million steps of 24 images, of the usual 50,000 or 24,345. Its text at hand is a draft
# that leaves the protocol out; the later version has it. Its Omniglot is the 28×28 file that several papers share.
_FILE = "the shared 28×28 file"
_FIRST = {
    data: Protocol(
        epochs=round(2_000_000 * 24 / images),
        batch=24,
        beta2=0.99999,
        binarization="static",
        prior="learned",
        images=_FILE if data == "Omniglot" else None,
        bound_samples=100,
    )
    for data, images in (("MNIST", 50_000), ("Omniglot", 24_345))
}
_TUCKER = {"MNIST": Protocol(), "Omniglot": Protocol(images=_FILE)}
_SECOND = {
    "MNIST": Protocol(epochs=500, lr=1e-4, batch=100, bound_samples=200),
    "Omniglot": Protocol(epochs=100, lr=1e-4, batch=100, images=_FILE, bound_samples=200),
}

# Train ELBO by REBAR of Tucker et al., REBAR and relaxed REBAR of the draft, REBAR and RELAX of the later version.
_TRAIN = {
    ("MNIST", "bernoulli_linear"): (-111.6, -111.66, -111.22, -111.6, -111.20),
    ("MNIST", "bernoulli_two_layer"): (-98.8, -98.23, -98.04, -98.22, -98.00),
    ("MNIST", "bernoulli_nonlinear"): (-101.1, -83.02, -79.49, -81.01, -78.13),
    ("Omniglot", "bernoulli_linear"): (-116.83, -116.75, -116.62, -116.63, -116.57),
    ("Omniglot", "bernoulli_two_layer"): (-108.99, -108.74, -108.63, -108.71, -108.54),
    ("Omniglot", "bernoulli_nonlinear"): (-108.72, -62.28, -60.32, -56.76, -56.12),
}
_DRAFT, _LATER = "first paper, Figure 3", "first paper, later version (2018)"
_TRAIN_COLUMNS = (
    (_DRAFT, "REBAR (Tucker et al., 2017)", "REBAR", _TUCKER),
    (_DRAFT, "REBAR-ours", "REBAR", _FIRST),
    (_DRAFT, "relaxed-REBAR", "RelaxedREBAR", _FIRST),
    (_LATER, "REBAR", "REBAR", _FIRST),
    (_LATER, "RELAX (relaxed REBAR)", "RelaxedREBAR", _FIRST),
)

# Best validation objective of the later version, where it shows that the nonlinear model overfits.
_VALIDATION = {("MNIST", "bernoulli_nonlinear"): (-111.12, -119.19)}

# Test likelihood, mean and standard deviation over 5 seeds.
_TEST_BERNOULLI = {
    ("MNIST", "bernoulli_linear"): ((-114.14, 0.44), (-114.55, 0.48), (-110.87, 0.2), (-110.70, 0.11), (-110.59, 0.08)),
    ("MNIST", "bernoulli_two_layer"): (
        (-101.33, 0.04), (-101.09, 0.07), (-99.74, 0.3), (-100.44, 0.28), (-100.66, 0.21),
    ),
    ("MNIST", "bernoulli_nonlinear"): (
        (-127.76, 0.84), (-128.06, 2.66), (-107.4, 1.47), (-108.46, 0.37), (-109.19, 1.31),
    ),
    ("Omniglot", "bernoulli_linear"): (
        (-123.66, 0.05), (-123.82, 0.17), (-113.53, 0.21), (-114.34, 0.16), (-114.37, 0.19),
    ),
    ("Omniglot", "bernoulli_two_layer"): (
        (-117.81, 0.17), (-117.89, 0.04), (-102.05, 0.19), (-102.16, 0.09), (-102.29, 0.14),
    ),
    ("Omniglot", "bernoulli_nonlinear"): (
        (-136.83, 0.31), (-136.53, 0.32), (-126.94, 0.81), (-128.69, 0.34), (-129.48, 0.38),
    ),
}  # fmt: skip
_TEST_CATEGORICAL = {
    ("MNIST", "categorical_linear"): ((-113.46, 0.59), (-107.48, 0.37), (-107.24, 0.31), (-107.33, 0.13)),
    ("MNIST", "categorical_nonlinear"): ((-122.97, 5.68), (-103.49, 0.73), (-102.68, 0.63), (-101.78, 0.88)),
    ("Omniglot", "categorical_linear"): ((-125.76, 0.24), (-122.49, 0.80), (-122.98, 0.30), (-122.98, 0.21)),
    ("Omniglot", "categorical_nonlinear"): ((-140.25, 1.99), (-130.20, 0.74), (-131.66, 0.84), (-131.63, 1.05)),
}
_Columns = tuple[tuple[str, str, int], ...]
_TABLE_1: _Columns = (
    ("REBAR", "REBAR", 1),
    ("RELAX", "RELAX", 1),
    ("BSB (S = 1)", "StochasticBackprop", 1),
    ("BSB (S = 5)", "StochasticBackprop", 5),
    ("BSB (S = 10)", "StochasticBackprop", 10),
)
_TABLE_2: _Columns = (
    ("Gumbel-softmax", "Concrete", 1),
    ("CSB (S = 1)", "StochasticBackprop", 1),
    ("CSB (S = 5)", "StochasticBackprop", 5),
    ("CSB (S = 10)", "StochasticBackprop", 10),
)


def _train() -> Iterator[Published]:
    for (data, model), values in _TRAIN.items():
        for (source, named, estimator, protocols), value in zip(_TRAIN_COLUMNS, values, strict=True):
            yield Published(source, named, estimator, 1, model, data, "train_elbo", value, None, protocols[data])
    for (data, model), best in _VALIDATION.items():
        for (source, named, estimator, protocols), value in zip(_TRAIN_COLUMNS[3:], best, strict=True):
            yield Published(source, named, estimator, 1, model, data, "validation", value, None, protocols[data])


def _test(
    source: str, columns: _Columns, figures: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
) -> Iterator[Published]:
    for (data, model), row in figures.items():
        for (named, estimator, samples), (value, std) in zip(columns, row, strict=True):
            yield Published(source, named, estimator, samples, model, data, "test_bound", value, std, _SECOND[data], 5)


PUBLISHED = (
    *_train(),
    *_test("second paper, Table 1", _TABLE_1, _TEST_BERNOULLI),
    *_test("second paper, Table 2", _TABLE_2, _TEST_CATEGORICAL),
)
"""Every figure, in the order of the papers."""
