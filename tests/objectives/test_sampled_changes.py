"""Sampled changes: at a fixed sample the mean over all shifts is the exact rule, whatever was guessed."""

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Dirichlet,
    Exponential,
    Gamma,
    Independent,
    Laplace,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)

from lightning_estimators.distributions import distribution_parameters, probabilities, rebuild, sample
from lightning_estimators.noise import CommonNoise
from lightning_estimators.objectives import CallableObjective, FirstLayerLinear, Scaled, Separable, Sum
from lightning_estimators.objectives import sampled_changes as module
from lightning_estimators.objectives.sampled_changes import ChangeModel, SampledChanges
from lightning_estimators.objectives.systematic import systematic_draws
from lightning_estimators.rules import dirichlet, rule_for

F64 = torch.float64
SHAPE = (1, 2, 3)  # one sample, a batch of two, three coordinates


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


FAMILIES = {
    "Bernoulli": Bernoulli(logits=draw(*SHAPE)),
    "certain Bernoulli": Bernoulli(
        logits=torch.tensor([[[torch.inf, 0.3, -50.0], [-0.2, 0.9, -torch.inf]]], dtype=F64)
    ),
    "Bernoulli by probs": Bernoulli(probs=torch.tensor([[[0.0, 0.3, 1.0], [0.2, 0.9, 0.5]]], dtype=F64)),
    "OneHotCategorical": OneHotCategorical(logits=draw(1, 2, 2, 3)),
    "Laplace": Laplace(draw(*SHAPE), draw(*SHAPE).exp()),
    "Gamma": Gamma(draw(*SHAPE).exp(), draw(*SHAPE, seed=1).exp()),
    "Exponential": Exponential(draw(*SHAPE).exp()),
    "Poisson": Poisson(draw(*SHAPE).exp()),
    "NegativeBinomial": NegativeBinomial(draw(*SHAPE).exp(), logits=draw(*SHAPE, seed=1)),
    "Beta": Beta(draw(*SHAPE).exp(), draw(*SHAPE, seed=1).exp()),
    "Dirichlet": Dirichlet(draw(1, 2, 2, 3).exp()),
}


def masked():
    logits = draw(1, 2, 2, 3)
    logits[0, 0, 0, 1] = logits[0, 1, 1, 0] = -torch.inf
    return OneHotCategorical(logits=logits)


FAMILIES["masked OneHotCategorical"] = masked()


def cost(event_dim):
    """Every coordinate interacts with every other, differently in every example."""
    weight = draw(2, 6)

    def f(z):
        flat = z.flatten(-event_dim)
        entries = flat.shape[-1]
        return (
            (flat * weight[:, :entries]).sum(-1).sin()
            + 0.3 * (flat[..., 0] * flat[..., -1])
            + flat.square().sum(-1).sqrt()
        )

    return CallableObjective(f, event_dim=event_dim)


def any_model(entries, *, slopes=False):
    """Coefficients and errors that have nothing to do with the cost."""
    pairs = draw(entries, entries, seed=4) if slopes else None
    return ChangeModel(1 + draw(entries, 3, seed=2), draw(entries, seed=3).exp(), pairs)


def mean_over_shifts(monkeypatch, q, z, f, num_changes, model, mean=None):
    """The mean over the one shift that all draws of a question share, to rounding: it is constant between breaks."""
    sizes = []

    def recording(size, shifts):
        sizes.append(size)
        return systematic_draws(size, shifts)

    def gradients(shifts):
        monkeypatch.setattr(SampledChanges, "_shifts", lambda self, lead, like: shifts.expand(len(like), num_changes))
        copies = {name: p.expand(len(shifts) // 2, *p.shape) for name, p in distribution_parameters(q).items()}
        with noise.replay(new_axis=2):
            changes = SampledChanges(f, z.expand(len(shifts) // 2, *z.shape), num_changes, model, mean=mean)
            return rule_for(q, f_gradient=False)(rebuild(q, copies), changes._given, changes)

    noise = CommonNoise(z.device)
    monkeypatch.setattr(module, "systematic_draws", recording)
    gradients(torch.full((2, 1), 0.5, dtype=F64))
    ends = [num_changes * size.cumsum(-1) / size.sum(-1, keepdim=True) % 1 for size in sizes]
    breaks = torch.cat([torch.tensor([0.0, 1.0], dtype=F64), *(end[end.isfinite()] for end in ends)]).unique()
    middle, width = (breaks[1:] + breaks[:-1]) / 2, breaks.diff()
    found = gradients(middle.repeat_interleave(2).unsqueeze(-1))
    return {name: (g * width.reshape(-1, *(1,) * (g.ndim - 1))).sum(0) for name, g in found.items()}


@pytest.mark.parametrize("num_changes", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_over_all_shifts_is_the_exact_rule(name, num_changes, monkeypatch):
    base = FAMILIES[name]
    q = Independent(base, len(base.batch_shape) - 2)
    event_dim, entries = len(q.event_shape), q.event_shape.numel()
    f, z = cost(event_dim), sample(q)
    # The sum of gammas, which no noise can be shared for, may be anything here: it is given, not averaged over.
    monkeypatch.setattr(dirichlet, "log_gamma_sample", lambda shape, u: u.log())
    noise = CommonNoise(z.device)
    exact = rule_for(q, f_gradient=False)(q, z, f)
    torch.set_rng_state(noise.state)
    found = mean_over_shifts(monkeypatch, q, z, f, num_changes, any_model(entries))
    assert found.keys() == exact.keys()
    for parameter, gradient in exact.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-6, atol=1e-6)


def every_sample(q):
    """All values of q, along a new first axis of samples, and their probabilities."""
    states = 2 if isinstance(q.base_dist, Bernoulli) else q.event_shape[-1]
    variables = q.event_shape.numel() if states == 2 else q.event_shape[0]
    points = torch.cartesian_prod(*[torch.arange(states)] * variables)
    if states > 2:
        points = nn.functional.one_hot(points, states)
    z = points.to(F64).reshape(-1, *(1,) * len(q.batch_shape[1:]), *q.event_shape)
    z = z.expand(-1, *q.batch_shape[1:], *q.event_shape)
    p = probabilities(q)
    factors = torch.where(z > 0, p, 1 - p) if states == 2 else (p * z).sum(-1)
    return z, factors.prod(-1)


@pytest.mark.parametrize("name", ["Bernoulli", "certain Bernoulli", "OneHotCategorical", "masked OneHotCategorical"])
def test_what_the_gradient_owes_to_other_coordinates_is_zero_in_the_mean(name):
    """By enumeration; and not zero at a sample. All changes of a question are evaluated, but one."""
    q = Independent(FAMILIES[name], 1)
    entries, width = q.event_shape.numel(), q.event_shape[-1] if "Cat" in name else 1
    z, p = every_sample(q)
    f = cost(len(q.event_shape))
    many = rebuild(q, {"logits": FAMILIES[name].logits.expand(len(z), *q.batch_shape[1:], *q.event_shape)})
    variable = torch.arange(entries) // width
    slopes = draw(entries, entries, seed=4).masked_fill(variable[:, None] == variable, 0.0)
    estimates = []
    for model in (any_model(entries), ChangeModel(*vars(any_model(entries)).values())):
        model = ChangeModel(model.coefficients, model.error, slopes if estimates else None)
        torch.manual_seed(0)
        changes = SampledChanges(f, z, 1, model, mean=probabilities(many))
        estimates.append(rule_for(q, f_gradient=False)(many, z, changes)["logits"])
    difference = estimates[1] - estimates[0]
    assert difference.abs().max() > 0.1
    mean = (p.reshape(*p.shape, *(1,) * len(q.event_shape)) * difference).sum(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)


@pytest.mark.parametrize("event", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("one_hot", [False, True])
def test_chosen_changes_are_those_of_all(event, one_hot):
    torch.manual_seed(0)
    weight, second = draw(7, torch.Size(event).numel()), draw(4, 7)
    layered = FirstLayerLinear(
        weight, draw(7)[0] * torch.ones(7, dtype=F64), lambda h: (h.tanh() @ second.T).sin().sum(-1), len(event)
    )
    plain = CallableObjective(layered.value, len(event))
    parts = [layered, Separable(torch.exp, len(event))]
    costs = [
        layered,
        plain,
        Scaled(layered, -0.3),
        Scaled(plain, 0.0),
        Sum(parts),
        CallableObjective(layered, len(event), F64),
    ]
    lead = (2, 5)
    z = draw(*lead, *event)
    z_new = draw(3, *lead, *event, seed=1) if one_hot else draw(*lead, *event, seed=1)
    coordinates = torch.Size(event[:-1]).numel() if one_hot else torch.Size(event).numel()
    which = torch.randint(0, 3 if one_hot else 1, (6, 10)), torch.randint(0, coordinates, (6, 10))
    for f in costs:
        every = f.coordinate_change(z, z_new).reshape(-1, 10, coordinates)
        expected = every[which[0], torch.arange(10), which[1]]
        for here in (None, f(z)):
            for f.chunk_bytes in (None, 1):
                torch.testing.assert_close(f.chosen_changes(z, z_new, which, here), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("draws", [1, 3, 7])
def test_entries_are_drawn_as_often_as_their_sizes_say(draws):
    sizes = torch.tensor([[0.0, 1.0, 0.0, 1e-9, 4.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]], dtype=F64)
    ends = (draws * sizes.cumsum(-1) / sizes.sum(-1, keepdim=True)) % 1
    breaks = torch.cat([torch.tensor([0.0, 1.0], dtype=F64), ends.flatten()]).unique()
    counts = torch.zeros_like(sizes)
    for middle, width in zip((breaks[1:] + breaks[:-1]) / 2, breaks.diff(), strict=True):
        index, expected = systematic_draws(sizes, middle.expand(2, draws))
        counts.scatter_add_(1, index, width.expand(2, draws))
        torch.testing.assert_close(expected, (draws * sizes / sizes.sum(-1, keepdim=True)).gather(1, index))
    torch.testing.assert_close(counts, draws * sizes / sizes.sum(-1, keepdim=True), rtol=0, atol=1e-9)


def test_nothing_is_drawn_of_nothing():
    index, expected = systematic_draws(torch.zeros(2, 3), torch.full((2, 2), 0.99))
    assert index.max() < 3
    assert (expected == 0).all()
    index, expected = systematic_draws(torch.zeros(0, 3), torch.full((0, 2), 0.5))
    assert index.shape == expected.shape == (0, 2)


def test_points_that_are_impossible_are_not_evaluated():
    """Where p is 0 or 1 the other value has no weight; the cost may not even be defined there."""
    z = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]], dtype=F64)
    q = Independent(Bernoulli(logits=torch.where(z > 0, torch.inf, -torch.inf)), 1)

    def f(b):
        assert (b == z).all()
        return b.sum(-1)

    changes = SampledChanges(CallableObjective(f), z, 2, any_model(3))
    assert (rule_for(q, f_gradient=False)(q, z, changes)["logits"] == 0).all()


def test_terms_of_a_sum_with_closed_changes_are_exact():
    asked = []

    def f(b):
        asked.append(len(b.reshape(-1, 4)))
        return b.prod(-1)

    z, q = torch.ones(1, 5, 4, dtype=F64), Independent(Bernoulli(logits=draw(1, 5, 4)), 1)
    closed = Separable(lambda b: b * torch.arange(4.0, dtype=F64))
    changes = SampledChanges(
        Sum([closed, f]), z, 1, ChangeModel(torch.zeros(4, 3, dtype=F64), torch.ones(4, dtype=F64))
    )
    torch.testing.assert_close(changes.at_point, Sum([closed, f])(z))
    asked.clear()
    found = changes.weighted_change(z, 1 - z, q.base_dist.variance)
    assert asked == [5]
    drawn = (found != closed.coordinate_change(z, 1 - z)).sum(-1)
    assert (drawn <= 1).all()
    both = SampledChanges(Sum([closed]), z, 1, any_model(4))
    assert torch.equal(both.weighted_change(z, 1 - z, z), closed.coordinate_change(z, 1 - z))


def test_as_many_changes_as_there_are_make_the_rule_exact():
    q = Independent(FAMILIES["Bernoulli"], 1)
    z, f = sample(q), cost(1)
    changes = SampledChanges(f, z, 3, any_model(3))
    assert torch.equal(changes.coordinate_change(z, 1 - z), f.coordinate_change(z, 1 - z))
