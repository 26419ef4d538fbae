"""Learning-rate schedules that torch has, in a form that a configuration file can describe."""

from __future__ import annotations

from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, SequentialLR

__all__ = ["ChainedSchedule", "SequentialSchedule"]


class SequentialSchedule(SequentialLR):
    """One schedule after another, such as a warm-up followed by a decay.

    torch's `SequentialLR` takes schedulers that hang on an optimizer already, which a configuration file cannot have.
    This one takes what makes them.

    Args:
        optimizer: Whose learning rate is scheduled.
        schedulers: Make the schedulers from the optimizer, in order: classes, or `functools.partial(class, ...)`.
        milestones: Epochs (or steps) at which the next one takes over, one fewer than schedulers.

    Example:
        >>> import functools, torch
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> warm_up = functools.partial(LinearLR, start_factor=0.5, total_iters=1)
        >>> decay = functools.partial(CosineAnnealingLR, T_max=2)
        >>> schedule = SequentialSchedule(optimizer, [warm_up, decay], milestones=[1])
        >>> schedule.get_last_lr()
        [0.5]
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[LRSchedulerCallable], milestones: list[int]) -> None:
        super().__init__(optimizer, [make(optimizer) for make in schedulers], milestones)


class ChainedSchedule(ChainedScheduler):
    """Several schedules at once, such as a warm-up on top of a decay: each multiplies the learning rate.

    torch's `ChainedScheduler` takes schedulers that hang on an optimizer already, which a configuration file cannot
    have. This one takes what makes them.

    Args:
        optimizer: Whose learning rate is scheduled.
        schedulers: Make the schedulers from the optimizer: classes, or `functools.partial(class, ...)`.

    Example:
        >>> import functools, torch
        >>> from torch.optim.lr_scheduler import ExponentialLR, LinearLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> warm_up = functools.partial(LinearLR, start_factor=0.5, total_iters=1)
        >>> schedule = ChainedSchedule(optimizer, [warm_up, functools.partial(ExponentialLR, gamma=0.25)])
        >>> schedule.get_last_lr()
        [0.5]
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[LRSchedulerCallable]) -> None:
        super().__init__([make(optimizer) for make in schedulers], optimizer)
