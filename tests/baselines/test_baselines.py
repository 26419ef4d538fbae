"""What is subtracted from the cost: from the past, the context, or other samples, and never from the cost itself."""

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent
from torch.utils.checkpoint import checkpoint

from lightning_estimators import running_statistics
from lightning_estimators.baselines import Baseline, LearnedBaseline, LeaveOneOut, MovingAverage, NoBaseline
from lightning_estimators.estimators import REBAR, REINFORCE
from lightning_estimators.noise import CommonNoise, is_replaying, replay_scope
from lightning_estimators.testing import ExactExpectation

CONTEXT = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def linear():
    return nn.Linear(2, 1)


FACTORIES = {
    "none": NoBaseline,
    "moving": MovingAverage,
    "learned": lambda: LearnedBaseline(linear()),
    "leave_one_out": LeaveOneOut,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_the_signal_follows_its_own_cost_one_to_one(name):
    """Its derivative in the cost of the same sample is 1, in that of other batch elements 0: so no mean is changed."""
    torch.manual_seed(0)
    baseline, cost = FACTORIES[name](), torch.randn(3, 4)
    for _ in range(2):
        baseline(torch.randn(3, 4), CONTEXT)  # there is a past
    state = {k: v.clone() for k, v in baseline.state_dict().items()}
    signal, _ = baseline(cost, CONTEXT)
    baseline.load_state_dict(state)
    step = torch.zeros(3, 4)
    step[1, 2] = 0.5
    moved, _ = baseline(cost + step, CONTEXT)
    change = moved - signal
    assert change[1, 2] == pytest.approx(0.5, abs=1e-6)
    assert not signal.requires_grad
    change[:, 2] = 0  # other samples of the same element may be used
    assert change.abs().max() < 1e-6


@pytest.mark.parametrize("name", FACTORIES)
def test_eval_mode_freezes_running_statistics(name):
    baseline = FACTORIES[name]()
    baseline(torch.randn(3, 4), CONTEXT)
    before = {k: v.clone() for k, v in baseline.state_dict().items()}
    baseline.eval()
    baseline(torch.randn(3, 4) + 100, CONTEXT)
    assert all(torch.equal(v, before[k]) for k, v in baseline.state_dict().items())


@pytest.mark.parametrize("name", ["moving", "learned"])
def test_running_statistics_are_in_the_state(name):
    baseline, again = FACTORIES[name](), FACTORIES[name]()
    for _ in range(3):
        baseline(torch.randn(3, 4) + 5, CONTEXT)
    again.load_state_dict(baseline.state_dict())
    cost = torch.randn(3, 4)
    assert torch.equal(baseline(cost, CONTEXT)[0], again(cost, CONTEXT)[0])


@pytest.mark.parametrize("name", ["moving", "learned"])
def test_replayed_noise_meets_the_average_from_before_it(name):
    baseline = FACTORIES[name]()
    baseline(torch.randn(1, 4), CONTEXT)
    cost = torch.randn(1, 4)
    noise = CommonNoise(cost.device)
    first, _ = baseline(cost, CONTEXT)
    state = {k: v.clone() for k, v in baseline.state_dict().items()}
    with noise.replay(new_axis=1):
        second, _ = baseline(cost, CONTEXT)
        third, _ = baseline(torch.stack([cost, cost + 1]), CONTEXT)
    assert torch.equal(first, second)
    assert torch.allclose(third[1] - 1, first, atol=1e-6)
    assert all(torch.equal(v, state[k]) for k, v in baseline.state_dict().items())
    assert not torch.equal(baseline(cost, CONTEXT)[0], first)


def test_a_moving_average_inside_a_control_variate_sees_costs_of_hard_samples_only():
    """With the relaxed costs, of the same noise, it would be biased by (1 - decay) / batch."""
    problem = ExactExpectation(Bernoulli, layers=2)
    inner = REINFORCE(MovingAverage()).double()
    estimates = problem.estimates([REBAR().double(), inner], 50)
    assert inner.baseline.average == pytest.approx(estimates["value"].mean().item(), abs=1e-12)


def test_moving_average_by_hand():
    baseline = MovingAverage(decay=0.9)
    costs = torch.tensor([[3.0, 5.0], [1.0, 1.0], [0.0, 4.0]])
    average = 0.0
    for i, cost in enumerate(costs):
        assert torch.allclose(baseline(cost, None)[0], cost - average)
        average = cost.mean() if i == 0 else 0.9 * average + 0.1 * cost.mean()
    assert baseline.diagnostics()["baseline"] == pytest.approx(average.item())


def test_leave_one_out_by_hand():
    cost = torch.randn(4, 5)
    signal, loss = LeaveOneOut()(cost, None)
    for s in range(4):
        others = torch.cat([cost[:s], cost[s + 1 :]]).mean(0)
        assert torch.allclose(signal[s], cost[s] - others, atol=1e-6)
    assert loss is None


def test_no_baseline_is_the_cost():
    cost = torch.randn(2, 3)
    assert torch.equal(NoBaseline()(cost, None)[0], cost)


def test_normalization_divides_by_the_deviation_but_never_multiplies():
    large, small = LearnedBaseline(linear(), normalize=True), LearnedBaseline(linear(), normalize=True)
    plain = LearnedBaseline(linear())
    assert plain.is_unbiased()
    assert not large.is_unbiased()
    for _ in range(50):
        large(100 * torch.randn(1, 4), CONTEXT)
        small(1e-3 * torch.randn(1, 4), CONTEXT)
    cost = torch.randn(1, 4)
    ratio = large(cost, CONTEXT)[0].std() / cost.std()
    assert ratio < 0.1
    network = small.network(CONTEXT).squeeze(-1) + small.average
    assert torch.allclose(small(cost, CONTEXT)[0], (cost - network).detach(), atol=1e-5)


def test_the_learned_baseline_is_sized_by_the_context():
    baseline = LearnedBaseline()
    baseline.prepare(torch.zeros(7, 5))
    assert next(baseline.parameters()).shape == (100, 5)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("baseline", [MovingAverage, LearnedBaseline])
def test_decays_outside_the_range_are_refused(baseline, decay):
    with pytest.raises(ValueError, match=r"decay in \[0, 1\)"):
        baseline(decay=decay)


def test_a_missing_context_is_refused_when_prepared_and_when_called():
    q = Independent(Bernoulli(logits=torch.zeros(4, 3)), 1)
    estimator = REINFORCE(LearnedBaseline())
    for call in (lambda: estimator.prepare(q), lambda: estimator(q, lambda b: b.sum(-1))):
        with pytest.raises(ValueError, match=r"predicts the cost from the context, got none.*MovingAverage"):
            call()


def test_networks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must map \(\.\.\., features\) to \(\.\.\., 1\)"):
        LearnedBaseline(nn.Linear(2, 3))(torch.zeros(1, 4), CONTEXT)
    with pytest.raises(ValueError, match="has the 2 features of the context: make"):
        LearnedBaseline(nn.Linear(3, 1)).prepare(CONTEXT)


def test_a_context_per_sample_of_an_outer_estimator_is_allowed():
    signal, _ = LearnedBaseline(linear())(torch.zeros(3, 5, 4), torch.randn(5, 4, 2))
    assert signal.shape == (3, 5, 4)


def test_baselines_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Baseline()


@pytest.mark.parametrize("name", ["moving", "learned"])
def test_calls_that_are_replayed_together_meet_the_average_from_before_all(name):
    """As of an estimator that a cost uses twice: the first call's costs are in the average that the second found."""
    baseline = FACTORIES[name]()
    baseline(torch.randn(1, 4), CONTEXT)
    costs = torch.randn(2, 1, 4)
    with replay_scope():
        noise = CommonNoise(costs.device)
        first, second = (baseline(cost, CONTEXT)[0] for cost in costs)
        with noise.replay(new_axis=1):
            again = [baseline(cost, CONTEXT)[0] for cost in costs]
    assert torch.equal(again[0], first)
    assert not torch.allclose(again[1], second)
    torch.testing.assert_close(again[1] - costs[1], first - costs[0])


@pytest.mark.parametrize("samples", [1, 2])
def test_an_estimator_that_a_cost_uses_twice_replays_with_the_past_only(samples):
    subtracted = []

    class Watched(MovingAverage):
        def forward(self, cost, context):
            signal, control = super().forward(cost, context)
            subtracted.append((is_replaying(), (cost - signal).mean().item()))
            return signal, control

    estimator, inner = REBAR(num_samples=samples), REINFORCE(Watched(decay=0.5))

    def f(b):
        one, two = (Independent(Bernoulli(logits=s * b), 1) for s in (1.0, -1.0))
        return inner(one, lambda c: c.sum(-1) + 3) + inner(two, lambda c: (c.sum(-1) - 1).square())

    for _ in range(3):
        before = inner.baseline.average.item()
        subtracted.clear()
        estimator(Independent(Bernoulli(logits=torch.zeros(1, 2, requires_grad=True)), 1), f).sum().backward()
        again = [c for replayed, c in subtracted if replayed]
        assert again == pytest.approx([before] * len(again), abs=1e-6)
        assert len(again) >= 2
        assert inner.baseline.average.item() != before


@pytest.mark.parametrize("bad", [[float("nan"), 1.0], [float("inf"), 1.0], [float("-inf"), 1.0], [], [3e38, 3e38]])
@pytest.mark.parametrize("name", ["moving", "learned"])
def test_costs_that_are_not_finite_or_missing_leave_the_statistics_as_they_were(name, bad):
    baseline = FACTORIES[name]()
    baseline(torch.randn(1, 4), CONTEXT)
    before = {k: v.clone() for k, v in baseline.named_buffers()}
    baseline(torch.tensor([bad]) * 10, CONTEXT[: len(bad)])
    after = dict(baseline.named_buffers())
    changed = [k for k in after if k != "previous" and not torch.equal(after[k], before[k])]
    assert changed == []
    assert baseline.diagnostics()["skipped"] == 1
    baseline(torch.ones(1, 4), CONTEXT)
    assert baseline.diagnostics()["skipped"] == 1
    assert not torch.equal(baseline.average, before["average"])


@pytest.mark.parametrize("name", ["moving", "learned"])
def test_a_bad_first_cost_does_not_start_the_averages(name):
    baseline = FACTORIES[name]()
    baseline(torch.full((1, 4), float("nan")), CONTEXT)
    assert baseline.started == 0
    assert torch.isfinite(baseline(torch.randn(1, 4), CONTEXT)[0]).all()


@pytest.mark.parametrize("name", ["moving", "learned"])
def test_all_statistics_are_buffers_so_that_a_step_can_be_taken_back(name):
    baseline, cost = FACTORIES[name](), torch.randn(3, 1, 4)
    baseline(cost[0], CONTEXT)
    kept = {k: v.clone() for k, v in baseline.named_buffers()}
    expected, _ = baseline(cost[1], CONTEXT)
    baseline(cost[2], CONTEXT)
    for k, v in baseline.named_buffers():
        v.copy_(kept[k])
    assert torch.equal(baseline(cost[1], CONTEXT)[0], expected)


def subtracted_by(baseline, calls, *, reentrant):
    """What is subtracted from the costs of a few calls in the first pass, and when backward repeats them."""
    seen = []

    def run(a):
        cost = torch.rand(1, 4) + a.detach()
        signal, _ = baseline(cost, CONTEXT) if torch.is_grad_enabled() else (cost, None)
        seen.append((cost - signal).mean().item())
        return a.square()

    leaves = [torch.ones(1, requires_grad=True) for _ in range(calls)]
    values = [checkpoint(run, a, use_reentrant=reentrant) for a in leaves]
    sum(values).sum().backward()
    return seen[:calls], seen[calls:]


@pytest.mark.parametrize("calls", [1, 3])
def test_activation_checkpointing_meets_the_averages_of_the_first_pass(calls):
    baseline = MovingAverage(decay=0.5)
    for _ in range(3):
        first, again = subtracted_by(baseline, calls, reentrant=False)
        assert sorted(again) == sorted(first)
        assert len(set(first)) == calls
    assert baseline.taken == 3 * calls  # each cost entered once


def test_reentrant_checkpointing_meets_the_averages_from_before_the_backward_pass():
    baseline = MovingAverage(decay=0.5)
    for _ in range(3):
        before = baseline.average.item()
        _, again = subtracted_by(baseline, 3, reentrant=True)
        assert again == pytest.approx([before] * 3, abs=1e-6)
        assert baseline.average.item() != before


def processes(monkeypatch, others, *, inside):
    """Stand in for a second process, whose sums and count are given."""
    asked = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda totals: asked.append(totals.add_(others)))
    monkeypatch.setattr(running_statistics, "inside_data_parallel_forward", lambda: inside)
    return asked


@pytest.mark.parametrize(
    ("option", "inside", "waits"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_processes_wait_for_one_another_only_where_all_call_or_it_is_asked_for(monkeypatch, option, inside, waits):
    asked = processes(monkeypatch, torch.tensor([10.0, 1.0]), inside=inside)
    baseline = MovingAverage(average_over_processes=option)
    baseline(torch.tensor([[1.0, 1.0, 1.0]]), None)
    assert len(asked) == int(waits)
    assert baseline.average == (13 / 4 if waits else 1.0)


def test_an_empty_batch_of_one_process_takes_the_costs_of_the_others(monkeypatch):
    processes(monkeypatch, torch.tensor([10.0, 2.0]), inside=True)
    baseline = MovingAverage()
    baseline(torch.empty(1, 0), None)
    assert baseline.average == 5


def test_a_process_that_does_not_call_is_named(monkeypatch):
    def times_out(totals):
        raise RuntimeError("Timed out waiting 1800000ms for recv operation to complete")

    processes(monkeypatch, 0, inside=True)
    monkeypatch.setattr(torch.distributed, "all_reduce", times_out)
    with pytest.raises(RuntimeError, match=r"all 2 processes, but not all.*average_over_processes=False.*Timed out"):
        MovingAverage()(torch.ones(1, 3), None)


def test_another_width_of_context_is_refused_after_prepare_in_the_same_words():
    baseline = LearnedBaseline()
    baseline.prepare(CONTEXT)
    with pytest.raises(ValueError, match="has the 3 features of the context: make"):
        baseline(torch.ones(1, 4), torch.ones(4, 3))


def test_a_state_of_another_width_before_prepare_is_refused_in_the_same_words():
    loaded, other = LearnedBaseline(), LearnedBaseline()
    other.prepare(torch.ones(4, 3))
    loaded.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="has the 2 features of the context: make"):
        loaded.prepare(CONTEXT)
