"""After the first step nothing is read back from the device: on a GPU every read would wait for all that was queued.

The device here is torch's "meta", whose tensors have shapes but no values, so that every read raises an error.
"""

import contextlib

import pytest
import torch

from lightning_estimators.baselines import LearnedBaseline, LeaveOneOut
from lightning_estimators.estimators import (
    LAX,
    REBAR,
    REINFORCE,
    RELAX,
    Concrete,
    DisARM,
    Enumeration,
    GumbelRao,
    MuProp,
    Pathwise,
    ReinMax,
    RelaxedREBAR,
    StochasticBackprop,
    StraightThrough,
)
from lightning_estimators.modules import ContinuousLatentModel, DiscreteLatentModel

DISCRETE = {
    "REINFORCE": REINFORCE,
    "leave one out": lambda: REINFORCE(LeaveOneOut(), num_samples=2),
    "learned baseline": lambda: REINFORCE(LearnedBaseline(normalize=True)),
    "Concrete": Concrete,
    "Concrete, straight-through": lambda: Concrete(straight_through=True),
    "StraightThrough": StraightThrough,
    "ReinMax": ReinMax,
    "GumbelRao": GumbelRao,
    "REBAR": REBAR,
    "RELAX": RELAX,
    "RelaxedREBAR": RelaxedREBAR,
    "MuProp": MuProp,
    "StochasticBackprop": StochasticBackprop,
    "StochasticBackprop, sampled": lambda: StochasticBackprop(num_changes=2),
    "Enumeration": Enumeration,
}


@pytest.fixture(autouse=True)
def _without_autocast(monkeypatch):
    """Autocast knows no such device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def steps_without_reading(model):
    x = (torch.rand(5, 1, 1, 12) < 0.3).float()
    model.loss(x).mean().backward()  # the first step looks at the images, and for costs that couple the batch
    model.to("meta")
    model.zero_grad()
    model.loss(x.to("meta")).mean().backward()
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("hidden", [[], [6]], ids=["linear", "nonlinear"])
@pytest.mark.parametrize("latent", ["bernoulli", "categorical"])
@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_latents(name, latent, hidden):
    torch.manual_seed(0)
    steps_without_reading(
        DiscreteLatentModel(
            DISCRETE[name](),
            (1, 1, 12),
            latent=latent,
            num_latents=[3],
            num_categories=3,
            hidden=hidden,
            data_mean=0.3,
        )
    )


def test_flips_of_pairs():
    torch.manual_seed(0)
    steps_without_reading(DiscreteLatentModel(DisARM(num_samples=2), (1, 1, 12), num_latents=[3], data_mean=0.3))


@pytest.mark.parametrize("estimator", [Pathwise, REINFORCE, LAX, StochasticBackprop])
def test_continuous_latents(estimator):
    torch.manual_seed(0)
    steps_without_reading(ContinuousLatentModel(estimator(), (1, 1, 12), data_mean=0.3, num_latents=[3], hidden=[]))


def test_such_a_device_refuses_to_be_read():
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.zeros((), device="meta"))
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros((), device="meta").item()
