"""Refusals of settings with which a policy gradient cannot work."""

from __future__ import annotations

import math

from lightning_estimators.estimators import GradientEstimator

__all__ = ["check_estimator_of_policy", "check_settings"]


def check_settings(
    *,
    gamma: float,
    gae_lambda: float,
    critic_coef: float,
    entropy_coef: float,
    max_gradient_norm: float | None,
    normalize_advantages: str | None,
) -> None:
    """Raise ValueError for a setting of `PolicyGradient` that is out of range."""
    for name, share in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be a number in [0, 1], got {share!r}.")
    for name, number in (("critic_coef", critic_coef), ("entropy_coef", entropy_coef)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {number!r}.")
    if max_gradient_norm is not None and not max_gradient_norm > 0:
        raise ValueError(f"max_gradient_norm must be positive, or None for no bound; got {max_gradient_norm!r}.")
    if normalize_advantages not in ("batch", "running", None):
        raise ValueError(f'normalize_advantages must be "batch", "running" or None, got {normalize_advantages!r}.')


def check_estimator_of_policy(estimator: GradientEstimator) -> None:
    """Raise unless an estimator works with the one action that was taken.

    Raises:
        TypeError: It needs the cost elsewhere.
        ValueError: It takes several samples.
    """
    name = type(estimator).__name__
    if not estimator.takes_observed_costs:
        raise TypeError(
            f"{name} needs the cost at other actions than the one that was taken, and a return is known for that "
            "one only. Use REINFORCE, RELAX (discrete actions) or LAX (real-valued actions)."
        )
    if estimator.num_samples != 1:
        raise ValueError(
            f"PolicyGradient takes one action in a state, so {name} must have num_samples=1, got "
            f"{estimator.num_samples}. More environments give more samples."
        )
