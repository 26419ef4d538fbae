"""Estimators that do what none should, and one that is off by a planted amount."""

import time

import torch

from lightning_estimators.comparison.limits import TooSlowError
from lightning_estimators.estimators import Estimate, StochasticBackprop
from lightning_estimators.norm_layers import norms_kept


class Planted(StochasticBackprop):
    """Says that it is unbiased; every entry of its gradient is off by `shift`."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        return Estimate(estimate.value, {name: g + self.shift for name, g in estimate.gradients.items()})


class Crashes(StochasticBackprop):
    def estimate(self, q, leaves, f, context):
        raise RuntimeError("it broke\nin two lines")


class Refuses(StochasticBackprop):
    def prepare(self, q, context=None):
        raise ValueError("it wants something else")


class NotANumber(StochasticBackprop):
    def estimate(self, q, leaves, f, context):
        estimate = super().estimate(q, leaves, f, context)
        return Estimate(estimate.value, {name: g * torch.nan for name, g in estimate.gradients.items()})


class Exits(StochasticBackprop):
    def estimate(self, q, leaves, f, context):
        raise SystemExit(3)


class ClaimsNothing(StochasticBackprop):
    def is_unbiased(self, q):
        raise NotImplementedError("one day")


class CountsNothing(StochasticBackprop):
    def evaluations(self, q):
        raise KeyError("f")


class ChangesItsInput(StochasticBackprop):
    """Works in place on what it was given."""

    def estimate(self, q, leaves, f, context):
        context.zero_()
        return super().estimate(q, leaves, f, context)


class Slow(StochasticBackprop):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def estimate(self, q, leaves, f, context):
        time.sleep(self.seconds)
        return super().estimate(q, leaves, f, context)


class NeverLeaves(StochasticBackprop):
    """Is stopped in a block that it never leaves, as one does that an alarm interrupts on its way out."""

    def estimate(self, q, leaves, f, context):
        NeverLeaves.block = norms_kept()  # kept, since clearing it up would leave the block
        NeverLeaves.block.__enter__()
        raise TooSlowError


class Interrupted(StochasticBackprop):
    """The user presses ctrl-C in its nth call."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls, self.count = calls, [0]

    def __deepcopy__(self, memo):
        made = Interrupted(self.calls)
        made.count = self.count
        return made

    def estimate(self, q, leaves, f, context):
        Interrupted.total = getattr(Interrupted, "total", 0) + 1
        if Interrupted.total == self.calls:
            raise KeyboardInterrupt
        return super().estimate(q, leaves, f, context)


class Leaks(StochasticBackprop):
    """Changes what it can reach: weights, gradients, buffers, hooks, generators, the default dtype."""

    victim: torch.nn.Module

    def estimate(self, q, leaves, f, context):
        victim = Leaks.victim
        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        with torch.no_grad():
            for p in victim.parameters():
                p.add_(1.0)
                p.grad = torch.ones_like(p)
            for b in victim.buffers():
                b.zero_()
        victim.eval()
        victim.stained = True
        victim.register_forward_hook(lambda *_: None)
        return super().estimate(q, leaves, f, context)
