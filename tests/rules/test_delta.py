"""A network of Dirac layers is the plain network (appendix A of the second paper)."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Independent

from lightning_estimators.distributions import Delta
from lightning_estimators.estimators import REINFORCE, Pathwise, StochasticBackprop


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def cost(self, output, y):
        return nn.functional.cross_entropy(output, y, reduction="none")

    def forward(self, x, y):
        h = torch.tanh(self.first(x))
        return self.cost(self.last(torch.relu(self.second(h))), y)


class Dirac(Plain):
    """Every activation a point mass, of which the next layer's estimator is the cost."""

    def __init__(self, estimator):
        super().__init__()
        self.estimator = estimator

    def forward(self, x, y):
        def after_first(h):
            q = Independent(Delta(torch.relu(self.second(h))), 1)
            return self.estimator(q, lambda g: self.at(g, y))

        return self.estimator(Independent(Delta(torch.tanh(self.first(x))), 1), after_first)

    def at(self, g, y):
        output = self.last(g)
        return self.cost(output.flatten(0, -2), y.expand(output.shape[:-1]).flatten()).reshape(output.shape[:-1])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_the_same_steps_bit_for_bit(optimizer):
    torch.manual_seed(0)
    plain = Plain()
    dirac = Dirac(StochasticBackprop())
    dirac.load_state_dict(copy.deepcopy(plain.state_dict()))
    start = plain.first.weight.detach().clone()
    optimizers = [optimizer(net.parameters(), lr=0.1) for net in (plain, dirac)]
    for _ in range(10):
        x, y = torch.randn(16, 5), torch.randint(0, 3, (16,))
        losses = [net(x, y) for net in (plain, dirac)]
        assert torch.equal(*losses)
        for loss, step in zip(losses, optimizers, strict=True):
            step.zero_grad()
            loss.mean().backward()
            step.step()
        for a, b in zip(plain.parameters(), dirac.parameters(), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(plain.first.weight, start)


@pytest.mark.parametrize(
    "estimator", [StochasticBackprop("series", 3), StochasticBackprop(f_gradient=True), Pathwise()]
)
def test_every_form_is_backpropagation(estimator):
    value = torch.randn(4, 3, requires_grad=True)
    estimator(Independent(Delta(value), 1), lambda z: z.sin().sum(-1)).sum().backward()
    torch.testing.assert_close(value.grad, value.detach().cos())


def test_several_samples_of_a_point_are_the_point():
    value = torch.randn(4, requires_grad=True)
    loss = StochasticBackprop(num_samples=3)(Delta(value), torch.sin)
    torch.testing.assert_close(loss, value.sin())
    (gradient,) = torch.autograd.grad(loss.sum(), value)
    torch.testing.assert_close(gradient, value.detach().cos())


def test_a_black_box_is_refused():
    value = torch.randn(4, requires_grad=True)
    with pytest.raises(ValueError, match="rule of Delta is backpropagation"):
        StochasticBackprop()(Delta(value), lambda z: (z.detach() > 0).float())


def test_it_is_a_distribution():
    value = torch.tensor([1.0, 2.0])
    q = Delta(value)
    assert torch.equal(q.mean, value)
    assert torch.equal(q.variance, torch.zeros(2))
    assert torch.equal(q.entropy(), torch.zeros(2))
    assert torch.equal(q.sample((3,)), value.expand(3, 2))
    assert torch.equal(q.log_prob(torch.tensor([1.0, 1.0])), torch.tensor([0.0, -torch.inf]))
    assert q.expand((4, 2)).batch_shape == (4, 2)
    assert Independent(Delta(value), 1).event_shape == (2,)


def test_it_has_no_score():
    """The density does not depend smoothly on the point, so the score function has nothing to say."""
    value = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError):
        REINFORCE()(Delta(value), torch.sin).sum().backward()
