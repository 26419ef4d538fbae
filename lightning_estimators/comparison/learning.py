"""Giving candidates that learn their time to learn, at frozen weights."""

from __future__ import annotations

import math
import time

import torch

from lightning_estimators.comparison.candidates import Candidate
from lightning_estimators.comparison.subject import Subject
from lightning_estimators.moment_errors import MomentsWithErrors

__all__ = ["LEARNING_RATE", "learn"]

LEARNING_RATE = 0.01
"""Of the Adam that trains what candidates learn."""

_POINTS = 10  # of a learning curve


def learn(subject: Subject, candidate: Candidate, index: int, steps: int, deadline: float) -> None:
    """Train what a candidate learns, and let its running statistics settle; keep its learning curve.

    Args:
        subject: At the weights at which it learns.
        candidate: Whose copies learn.
        index: Of the candidate, for its noise.
        steps: How many.
        deadline: When to stop before that, on the clock of `time.monotonic`.
    """
    parameters = candidate.parameters()
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE) if parameters else None
    restore, totals = subject.session(), {"total": subject.totals()}
    window, moments = math.ceil(steps / _POINTS), MomentsWithErrors(totals)
    for step in range(steps):
        if time.monotonic() > deadline:
            break
        drawn = subject.draw(candidate.estimators, (index, 1, step), restore, parameters)
        if optimizer is not None:
            for parameter, gradient in zip(parameters, drawn.own, strict=True):
                parameter.grad = gradient
            optimizer.step()
        moments.add(drawn.gradients)
        candidate.learning_steps = step + 1
        if (step + 1) % window == 0:
            candidate.learning_curve.append((step + 1, moments.total_variance("total")))
            moments = MomentsWithErrors(totals)
    for parameter in parameters:
        parameter.grad = None
