"""Classes that are masked, padded or of probability 0 are never drawn, weigh nothing and disturb nobody."""

import warnings

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical

from lightning_estimators.distributions import sample
from lightning_estimators.estimators import (
    ARMS,
    CARMS,
    REBAR,
    REINFORCE,
    RELAX,
    RODEO,
    UGC,
    Concrete,
    DisARM,
    DoubleCV,
    Enumeration,
    MuProp,
    RelaxedREBAR,
    StochasticBackprop,
    UnorderedSet,
)
from lightning_estimators.networks import Surrogate
from lightning_estimators.testing import BOUND

INF = torch.inf
START = torch.tensor([[0.3, 0.5, -0.2], [0.1, 0.4, 0.0]], dtype=torch.float64)
ALLOWED = torch.tensor([[True, False, True], [True, True, False]])
WEIGHT = torch.tensor([[1.0, 2.0, -3.0], [0.5, 9.0, 1.0]], dtype=torch.float64)
ROWS = 5000


def surrogate():
    return Surrogate(hidden=[4], activation="tanh")


UNBIASED = {
    "REINFORCE": REINFORCE,
    "REINFORCE/3": lambda: REINFORCE(num_samples=3),
    "UnorderedSet": UnorderedSet,
    "MuProp/2": lambda: MuProp(num_samples=2),
    "DoubleCV": lambda: DoubleCV(alpha=-0.5),
    "RODEO": lambda: RODEO(alpha=0.4, beta=0.4),
    "REBAR": REBAR,
    "REBAR/2": lambda: REBAR(num_samples=2),
    "RELAX": lambda: RELAX(surrogate()),
    "RelaxedREBAR": lambda: RelaxedREBAR(surrogate()),
    "RelaxedREBAR/fixed": lambda: RelaxedREBAR(surrogate(), learn_temperature=False, learn_eta=False),
    "StochasticBackprop": StochasticBackprop,
    "Enumeration": Enumeration,
}


BERNOULLI = {"DisARM": DisARM, "ARMS": ARMS, "UGC": UGC, "UGC/bitflip": lambda: UGC(threshold=0.5)}
"""Of Bernoulli variables alone."""

CATEGORICAL = {"CARMS": CARMS, "CARMS/2": lambda: CARMS(num_samples=2)}
"""Of categorical variables alone."""


def exact():
    """The gradient over possible classes alone."""
    logits = START.clone().requires_grad_()
    first, second = (logits[i][ALLOWED[i]].softmax(-1) for i in (0, 1))
    cost = (WEIGHT[0][ALLOWED[0]][:, None] + WEIGHT[1][ALLOWED[1]]).square()
    return torch.autograd.grad(first @ cost @ second, logits)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["-inf", "-1e9", "probs"])
@pytest.mark.parametrize("make", [*UNBIASED.values(), *CATEGORICAL.values()], ids=[*UNBIASED, *CATEGORICAL])
def test_masked_classes(make, way, dtype):
    torch.manual_seed(0)
    logits = START.to(dtype).repeat(ROWS, 1, 1).requires_grad_()
    masked = logits.masked_fill(~ALLOWED, -1e9 if way == "-1e9" else -INF)
    base = OneHotCategorical(probs=masked.softmax(-1)) if way == "probs" else OneHotCategorical(logits=masked)
    estimator = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that samples tell nothing of probabilities that are 0
        estimator(Independent(base, 1), lambda z: (z * WEIGHT.to(dtype)).sum((-1, -2)).square()).sum().backward()
    gradient = logits.grad.double()
    assert (gradient[:, ~ALLOWED] == 0).all()
    error = gradient.std(0) / ROWS**0.5
    assert ((gradient.mean(0) - exact()).abs() <= BOUND * error + 1e-4).all()
    assert all(p.grad.isfinite().all() for p in estimator.parameters() if p.grad is not None)


@pytest.mark.parametrize("value", [INF, 1e9])
@pytest.mark.parametrize(
    "make", [*UNBIASED.values(), *BERNOULLI.values(), Concrete], ids=[*UNBIASED, *BERNOULLI, "Concrete"]
)
def test_decided_bernoullis_get_no_gradient_and_no_number_that_is_none(make, value):
    torch.manual_seed(0)
    logits = torch.tensor([0.3, value, -value]).repeat(50, 1).requires_grad_()
    estimator = make()
    estimator(Independent(Bernoulli(logits=logits), 1), lambda z: z.sum(-1).square()).sum().backward()
    assert (logits.grad[:, 1:] == 0).all()
    assert logits.grad.isfinite().all()
    assert logits.grad[:, 0].abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in estimator.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [UNBIASED["RELAX"], UNBIASED["RelaxedREBAR"], REBAR])
@pytest.mark.parametrize("pad", [-1e9, -INF])
def test_padding_changes_nobody_elses_spread(make, pad):
    spreads = []
    for padded in (False, True):
        torch.manual_seed(0)
        logits = START.repeat(ROWS, 1, 1).requires_grad_()
        forced = torch.tensor([[0.0, pad, pad]], dtype=torch.float64).expand(ROWS, 1, 3)
        q = Independent(OneHotCategorical(logits=torch.cat([logits, forced], 1) if padded else logits), 1)
        make()(q, lambda z: (z[..., :2, :] * WEIGHT).sum((-1, -2)).square()).sum().backward()
        spreads.append(logits.grad.std(0).mean().item())
    assert spreads[1] < 1.5 * spreads[0]


def test_a_masked_last_class_is_not_drawn_where_probabilities_fall_short_of_one(monkeypatch):
    top = 1 - 2.0**-24  # the largest that noise can be
    monkeypatch.setattr(
        "lightning_estimators.distributions.sampling.uniform",
        lambda batch, event, **_: torch.full((*batch, *event), top),
    )
    torch.manual_seed(0)
    logits = 2 * torch.randn(100_000, 6)
    logits[:, -1] = -INF
    q = OneHotCategorical(logits=logits)
    assert (q.logits.exp().sum(-1) < 1 - 1e-7).any()
    assert sample(q)[:, -1].sum() == 0


@pytest.mark.parametrize("make", [Enumeration, StochasticBackprop])
def test_zero_times_an_infinite_cost_is_zero(make):
    price = torch.tensor([1.0, 2.0, INF])
    logits = torch.tensor([0.4, -0.3, 0.0], requires_grad=True)
    q = OneHotCategorical(logits=logits + torch.tensor([0.0, 0.0, -INF]))
    value = make()(q, lambda z: torch.where(z > 0, price, 0.0).sum(-1))
    value.backward()
    p = logits.detach()[:2].softmax(-1)
    assert torch.allclose(logits.grad, torch.tensor([-1.0, 1.0, 0.0]) * p.prod(), atol=1e-6)
    assert value.isfinite()


def test_enumeration_does_not_evaluate_what_cannot_happen():
    seen = []

    def f(z):
        seen.append(z)
        return z[..., 0]

    Enumeration()(OneHotCategorical(logits=torch.tensor([0.1, -INF, 0.2])), f)
    assert seen[0][..., 1].sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [Enumeration, StochasticBackprop, lambda: StochasticBackprop(num_samples=2)])
def test_probabilities_that_are_parameters_have_a_gradient_at_0_and_1(make, dtype):
    p = torch.tensor([0.0, 0.5, 1.0, 1e-20], dtype=dtype, requires_grad=True)
    gain = torch.tensor([-3.0, 2.0, 5.0, 1.0], dtype=dtype)
    make()(Independent(Bernoulli(probs=p), 1), lambda a: (a * gain).sum(-1)).backward()
    assert torch.allclose(p.grad, gain)  # f(1) - f(0)

    q = torch.tensor([0.0, 0.25, 0.75], dtype=dtype, requires_grad=True)
    make()(OneHotCategorical(probs=q), lambda z: (z * gain[:3]).sum(-1)).backward()
    (expected,) = torch.autograd.grad((q / q.sum() * gain[:3]).sum(), q)
    assert torch.allclose(q.grad, expected, atol=1e-5)


def test_samples_say_nothing_of_probabilities_that_are_0_which_is_said():
    p = torch.tensor([0.0, 0.5], requires_grad=True)
    with pytest.warns(UserWarning, match="exactly 0 or 1.*StochasticBackprop or Enumeration"):
        REINFORCE()(Independent(Bernoulli(probs=p), 1), lambda a: a.sum(-1)).backward()
    assert p.grad[0] == 0


TABLE = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.0, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["REINFORCE/3", "RELAX", "StochasticBackprop", "Enumeration"])
def test_an_index_is_the_same_variable_as_its_one_hot_twin(name):
    gradients = []
    for family in (Categorical, OneHotCategorical):
        torch.manual_seed(0)
        logits = START.repeat(7, 1, 1).requires_grad_()
        q = Independent(family(logits=logits), 1)
        index = (lambda z: z) if family is Categorical else (lambda z: z.argmax(-1))
        estimator = UNBIASED[name]()
        estimator.prepare(q)
        value = estimator(q, lambda z, index=index: TABLE[index(z)].sum(-2).square().sum(-1))
        gradients.append(torch.autograd.grad(value.sum(), logits)[0])
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("make", [REBAR, Concrete, lambda: RelaxedREBAR(surrogate())])
def test_estimators_that_differentiate_f_refuse_an_index(make):
    with pytest.raises(TypeError, match=r"is an index.*OneHotCategorical with the same logits"):
        make().prepare(Independent(Categorical(logits=START), 1))


def test_many_classes_are_taken_in_chunks_with_the_same_answer(monkeypatch):
    gradients = []
    for chunk in (2**26, 100):
        monkeypatch.setattr("lightning_estimators.rules.categorical.CHUNK_BYTES", chunk)
        torch.manual_seed(0)
        logits = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(3, 8, dtype=torch.float64)
        loss = StochasticBackprop()(
            Independent(OneHotCategorical(logits=logits), 1), lambda z, w=weight: (z * w).sum((-1, -2)).exp()
        )
        gradients.append(torch.autograd.grad(loss.sum(), logits)[0])
    assert torch.allclose(*gradients, atol=1e-12)


EVERY = {**UNBIASED, **BERNOULLI, **CATEGORICAL, "Concrete": Concrete}


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_empty_batches_and_no_latents(make, shape):
    for logits in (torch.zeros(shape, requires_grad=True), torch.zeros(*shape, 3, requires_grad=True)):
        one_hot = logits.ndim == 3
        # torch's own validation fails on tensors without entries.
        base = Categorical(logits=logits, validate_args=False) if one_hot else Bernoulli(logits=logits)
        if one_hot and make().gradient_of_f != "none":
            continue
        if make().families == ((Bernoulli,) if one_hot else (OneHotCategorical,)):
            continue
        value = make()(Independent(base, 1), lambda z: z.square().sum(-1))
        value.sum().backward()
        assert value.shape == shape[:1]
        assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_million_latents_are_too_many_to_enumerate():
    with pytest.raises(ValueError, match=r"2\^1000000 points, more than the limit"):
        Enumeration()(Independent(Bernoulli(logits=torch.zeros(10**6)), 1), lambda z: z.sum(-1))
