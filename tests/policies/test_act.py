"""The short way to an action draws from the distribution that the policy is trained as."""

import pytest
import torch

from lightning_estimators.policies import action_distribution
from lightning_estimators.policies.actions import ActionDistribution

CASES = {
    "discrete": ("discrete", [4], None),
    "masked": ("discrete", [4], [True, False, True, True]),
    "choices of unequal sizes": ("multi_discrete", [3, 2], None),
    "masked choices": ("multi_discrete", [3, 2], [True, False, True, False, True]),
    "switches": ("multi_binary", [2], None),
    "real": ("box", [2], None),
}


def build(case, count):
    kind, sizes, mask = CASES[case]
    actions = action_distribution(kind, sizes)
    outputs = torch.randn(actions.num_outputs).expand(count, -1)
    return actions, outputs, None if mask is None else torch.tensor(mask).expand(count, -1)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_the_distribution(case, greedy):
    actions, outputs, mask = build(case, 50)
    acted, log_prob = actions.act(outputs, mask, greedy=greedy)
    q = actions(outputs, mask)
    torch.testing.assert_close(log_prob, q.log_prob(actions.from_environment(acted)), rtol=1e-5, atol=1e-5)
    if greedy:
        torch.testing.assert_close(acted, actions.to_environment(actions.greedy(q)))


@pytest.mark.parametrize("case", CASES)
def test_actions_are_drawn_as_by_the_distribution(case):
    """By means and variances, within 4.5 standard errors; in the long way as in the short one."""
    actions, outputs, mask = build(case, 40_000)
    q = actions(outputs, mask)
    mean, variance = q.mean[0].double(), q.variance[0].double()
    for act in (actions.act, lambda *given: ActionDistribution.act(actions, *given)):
        acted = actions.from_environment(act(outputs, mask)[0]).double()
        error = (variance / len(acted)).sqrt() + 1e-12
        assert ((acted.mean(0) - mean).abs() / error).max() < 4.5
        spread = (acted - mean).square()
        error = spread.std(0) / len(acted) ** 0.5 + 1e-12
        assert ((spread.mean(0) - variance).abs() / error).max() < 4.5
    if mask is not None:
        assert acted.flatten(1).sum(0)[q.mean[0].flatten() == 0].abs().sum() == 0


def test_what_is_impossible_is_never_drawn_at_the_edge_of_the_noise(monkeypatch):
    """Also where the noise is as close to 1, or to 0, as it can be."""
    actions = action_distribution("discrete", [4])
    mask = torch.tensor([[False, True, True, False]])
    for extreme in (torch.finfo(torch.float32).tiny, 1 - 2**-24):
        monkeypatch.setattr(
            "lightning_estimators.policies.discrete.uniform",
            lambda batch, event, extreme=extreme, **_: torch.full((*batch, *event), extreme),
        )
        acted, _ = actions.act(torch.randn(1, 4), mask)
        assert acted.item() in (1, 2)
