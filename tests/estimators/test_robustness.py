"""Half precision, memory, noise and misuse: what every estimator must stand."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Gamma, Independent, Normal, OneHotCategorical

from lightning_estimators.baselines import LeaveOneOut
from lightning_estimators.estimators import LAX, REBAR, REINFORCE, RELAX, Concrete, Enumeration, RelaxedREBAR
from lightning_estimators.networks import Surrogate
from lightning_estimators.noise import uniform
from lightning_estimators.private_api import unvalidated_one_hot_categorical
from lightning_estimators.testing import BOUND, Moments, Report
from lightning_estimators.testing.under_test import accepts

from .cases import CASES as ALL_CASES
from .cases import small_surrogate

CASES = {name: make for name, make in ALL_CASES.items() if accepts(make, Bernoulli(logits=torch.zeros(1)))}

OF_EACH_FAMILY = [
    (name, family)
    for family in (Bernoulli, OneHotCategorical)
    for name, make in ALL_CASES.items()
    if accepts(make, family(logits=torch.zeros(1, 2)))
]

CONTEXT = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def make(family, dtype=torch.float32):
    shape = (4, 3) if family is Bernoulli else (4, 2, 3)
    logits = torch.randn(shape, dtype=dtype, requires_grad=True)
    return logits, Independent(family(logits=logits), 1)


def decoder_for(q, dtype=torch.float32):
    return nn.Sequential(nn.Flatten(-len(q.event_shape)), nn.Linear(q.event_shape.numel(), 1)).to(dtype)


@pytest.mark.parametrize(("case", "family"), OF_EACH_FAMILY)
def test_bfloat16_throughout(case, family):
    """As under Lightning's bf16-true: parameters, data and estimator in bfloat16."""
    logits, q = make(family, torch.bfloat16)
    decoder, estimator = decoder_for(q, torch.bfloat16), ALL_CASES[case]().to(torch.bfloat16)
    estimator.prepare(q, CONTEXT.bfloat16())
    loss = estimator(q, lambda z: decoder(z).squeeze(-1).square(), CONTEXT.bfloat16())
    assert loss.shape == (4,)
    loss.mean().backward()
    for p in (logits, *decoder.parameters(), *(p for p in estimator.parameters() if p.requires_grad)):
        assert p.grad.dtype == torch.bfloat16
        assert p.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize(("case", "family"), OF_EACH_FAMILY)
def test_autocast(case, family):
    logits, q = make(family)
    decoder, estimator = decoder_for(q), ALL_CASES[case]()
    estimator.prepare(q, CONTEXT)
    with torch.autocast("cpu", torch.bfloat16):
        loss = estimator(q, lambda z: decoder(z).squeeze(-1).square(), CONTEXT)
    loss.float().mean().backward()
    for p in (logits, *decoder.parameters(), *(p for p in estimator.parameters() if p.requires_grad)):
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_graph_goes_with_the_loss(case, backward):
    """Without help from the garbage collector, whether or not it was differentiated."""
    _, q = make(Bernoulli)
    estimator = CASES[case]()
    estimator.prepare(q, CONTEXT)
    weight, held = torch.ones(3, requires_grad=True), []

    def f(z):
        product = weight * z
        held.append(weakref.ref(product))
        return product.square().sum(-1)

    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            _, q = make(Bernoulli)
            loss = estimator(q, f, CONTEXT)
            if backward:
                loss.sum().backward()
        del loss, q
        assert held
        assert not any(reference() is not None for reference in held)
    finally:
        gc.enable()


@pytest.mark.parametrize("case", CASES)
def test_noise_goes_on_after_noise_inside_the_cost(case):
    """What f drew is never drawn again by what comes next."""
    _, q = make(Bernoulli)
    estimator = CASES[case]()
    estimator.prepare(q, CONTEXT)
    drawn = []

    def f(z):
        u = uniform(z.shape[:-1], (), dtype=torch.float64, device=z.device)
        drawn.append(u)
        return (z.sum(-1) - u).square()

    for _ in range(2):
        estimator(q, f, CONTEXT)
        following = torch.rand(1000, dtype=torch.float64)
        assert not torch.isin(following, torch.cat([u.flatten() for u in drawn])).any()


@pytest.mark.parametrize("case", CASES)
def test_backward_twice_gives_twice_the_gradient(case):
    logits, q = make(Bernoulli)
    estimator = CASES[case]()
    estimator.prepare(q, CONTEXT)
    loss = estimator(q, lambda z: z.square().sum(-1).sin(), CONTEXT).sum()
    loss.backward(retain_graph=True)
    parameters = [logits, *(p for p in estimator.parameters() if p.requires_grad)]
    once = [p.grad.clone() for p in parameters]
    loss.backward()
    for p, g in zip(parameters, once, strict=True):
        assert torch.allclose(p.grad, 2 * g, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_data_gets_no_gradient_and_frozen_logits_are_no_error(case):
    logits, q = make(Bernoulli)
    estimator = CASES[case]()
    estimator.prepare(q, CONTEXT)
    context = CONTEXT.clone().requires_grad_()
    weight = torch.ones((), requires_grad=True)
    estimator(q, lambda z: weight * z.sum(-1).square(), context).sum().backward()
    assert context.grad is None
    frozen = Independent(Bernoulli(logits=logits.detach()), 1)
    weight.grad = None
    estimator(frozen, lambda z: weight * z.sum(-1).square(), CONTEXT).sum().backward()
    assert weight.grad.isfinite()


HOST = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
"""What makes the host wait for the device."""


@pytest.mark.parametrize(
    ("case", "family"), [(case, family) for case, family in OF_EACH_FAMILY if not case.startswith("StochasticBackprop")]
)
def test_nothing_is_read_back_from_the_device(case, family, monkeypatch):
    """Of a step, the objective's own aside: each read would make the host wait for all that was asked of a GPU."""
    logits, q = make(family)
    estimator = ALL_CASES[case]()
    estimator.prepare(q, CONTEXT)
    dims = tuple(range(-len(q.event_shape), 0))

    def step():
        base = (
            Bernoulli(logits=logits, validate_args=False)
            if family is Bernoulli
            else unvalidated_one_hot_categorical(logits)
        )
        q = Independent(base, 1, validate_args=False)
        estimator(q, lambda z: (z - 0.3).square().sum(dims), CONTEXT).mean().backward()

    step()  # sizes what is lazy

    def read(*_):
        raise AssertionError("read back")

    for name in HOST:
        monkeypatch.setattr(torch.Tensor, name, read)
    with pytest.raises(AssertionError, match="read back"):
        bool(logits.sum() > 0)
    step()


@pytest.mark.parametrize("case", ["REINFORCE", "REBAR", "RELAX", "RelaxedREBAR"])
def test_steps_leave_no_tensors_behind(case):
    """As many live after three hundred steps as after three, without help from the garbage collector."""
    logits, _ = make(Bernoulli)
    estimator, products = CASES[case](), []

    def step():
        q = Independent(Bernoulli(logits=logits), 1)

        def f(z):
            product = logits.sum() * z
            products.append(weakref.ref(product))  # what only a graph keeps, is not among the collector's objects
            return product.square().sum(-1)

        estimator(q, f, CONTEXT).mean().backward()

    def live():
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        counts = []
        for index in range(300):
            step()
            if index in (2, 299):
                counts.append(live())
    finally:
        gc.enable()
    assert counts[0] == counts[1]
    assert not any(product() is not None for product in products)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("estimator", [REBAR, RelaxedREBAR])
def test_a_cost_cut_off_from_relaxed_samples_is_refused_though_it_has_parameters(estimator, learned):
    """It would be estimated with bias: the control variate would have a value but no gradient."""
    weight = torch.ones(3, requires_grad=True)
    _, q = make(Bernoulli)
    kwargs = {"learn_temperature": learned, "learn_eta": learned}
    with pytest.raises(ValueError, match=r"no gradient in z.*RELAX, REINFORCE or StochasticBackprop"):
        estimator(**kwargs)(q, lambda z: (z.detach().round() * weight).sum(-1))


def test_score_function_of_continuous_distributions():
    """E[z²] of a normal and a gamma distribution, whose gradients are known."""
    n = 200_000
    cases = {
        "normal": (lambda a, b: Normal(a, b), (0.5, 1.2), lambda m, s: (2 * m, 2 * s)),
        "gamma": (lambda a, b: Gamma(a, b), (2.0, 1.5), lambda k, r: ((2 * k + 1) / r**2, -2 * k * (k + 1) / r**3)),
    }
    report = Report()
    for name, (build, values, exact) in cases.items():
        leaves = [torch.full((n, 1), v, dtype=torch.float64, requires_grad=True) for v in values]
        estimator = REINFORCE(LeaveOneOut(), num_samples=2)
        estimator(Independent(build(*leaves), 1), lambda z: z.square().sum(-1)).sum().backward()
        moments = Moments({f"gradient {i}": torch.tensor([g]).double() for i, g in enumerate(exact(*values))})
        moments.add({f"gradient {i}": leaf.grad for i, leaf in enumerate(leaves)})
        report.unbiased("score function", name, moments)
    assert max(report.largest_z.values()) < BOUND


MISUSE = [
    (lambda: REBAR(temperature=0.0), "positive, finite temperature, got 0.0"),
    (lambda: Concrete(temperature=float("nan")), "positive, finite temperature, got nan"),
    (lambda: RELAX(num_samples=0), "num_samples of at least 1, got 0"),
    (lambda: REBAR(num_samples=2.0), "integer num_samples .* got 2.0"),
    (lambda: REINFORCE(num_samples=True), "integer num_samples .* got True"),
    (lambda: REINFORCE(LeaveOneOut()), "LeaveOneOut needs num_samples of at least 2, got 1"),
    (lambda: Enumeration(limit=0), "at least 1 point, got 0"),
]


@pytest.mark.parametrize(("build", "message"), MISUSE)
def test_misuse_is_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_enumeration_refuses_large_supports_with_their_size_before_any_work():
    q = Independent(Bernoulli(logits=torch.zeros(20)), 1)
    with pytest.raises(ValueError, match=r"2\^20 = 1048576 points, more than the limit of 16384"):
        Enumeration().check(q)
    q = Independent(OneHotCategorical(logits=torch.zeros(3, 10)), 1)
    with pytest.raises(ValueError, match=r"10\^3 = 1000"):
        Enumeration(limit=999)(q, lambda z: z.sum((-1, -2)))
    Enumeration(limit=1000).check(q)


def test_surrogates_of_another_shape_are_refused_when_prepared():
    q = Independent(Bernoulli(logits=torch.zeros(4, 3)), 1)
    with pytest.raises(ValueError, match=r"must map \(\.\.\., 3\) to \(\.\.\., 1\) or \(\.\.\.\).*returned \(4, 2\)"):
        RELAX(nn.Linear(3, 2)).prepare(q)
    for estimator in RELAX(nn.Linear(4, 1)), RelaxedREBAR(nn.Linear(4, 1)):
        with pytest.raises(ValueError, match=r"Linear, cannot be evaluated .* 3 entries of z: make"):
            estimator.prepare(q)
    with pytest.raises(ValueError, match=r"3 entries of z and the 2 of the context behind them"):
        RELAX(nn.Linear(3, 1)).prepare(q, CONTEXT)
    with pytest.raises(ValueError, match=r"Linear, cannot be evaluated .* 3 entries of z: make"):
        LAX(nn.Linear(4, 1)).prepare(Independent(Normal(torch.zeros(4, 3), 1.0), 1))


def test_surrogates_see_the_context():
    q = Independent(Bernoulli(logits=torch.zeros(4, 3)), 1)
    estimator = RELAX(Surrogate(hidden=[3]))
    estimator.prepare(q, CONTEXT)
    assert next(estimator.surrogate.parameters()).shape == (3, 3 + 2)


@pytest.mark.parametrize("make_estimator", [REBAR, lambda: RelaxedREBAR(small_surrogate())])
def test_an_estimator_inside_itself_learns_what_two_of_its_kind_would(make_estimator):
    """The inner one has a part in the control variate of the outer, but is not trained there, nor logged."""

    def run(outer, inner):
        torch.manual_seed(0)
        logits, weights, controls = torch.randn(5, 2, requires_grad=True), torch.randn(2), []

        def f(b):
            q = Independent(Bernoulli(logits=b * weights), 1)
            cost = inner(q, lambda c: (c.sum(-1) - 0.3 * b.sum(-1)).square())
            controls.append(inner.last_surrogate_loss)
            return cost

        outer(Independent(Bernoulli(logits=logits), 1), f).sum().backward()
        return controls

    one = make_estimator()
    one.prepare(Independent(Bernoulli(logits=torch.zeros(5, 2)), 1))
    one.allow_coupled_costs = True  # looking for them evaluates f more often
    outer, inner = copy.deepcopy(one), copy.deepcopy(one)
    controls = run(outer, inner)
    run(one, one)
    for p, a, b in zip(one.parameters(), outer.parameters(), inner.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a.grad + b.grad)
    assert len(controls) == 2  # at hard samples, and at relaxed ones
    assert torch.equal(inner.last_surrogate_loss, controls[0])
