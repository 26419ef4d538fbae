"""Costs that were observed at given samples: the returns of actions that were taken, the ratings of answers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_estimators.distributions import as_one_hot, distribution_parameters
from lightning_estimators.objectives.base import Objective

__all__ = ["Observed", "observed_actions"]


class Observed(Objective):
    r"""A cost that is known at samples which were drawn before, and nowhere else.

    `estimator(q, Observed(actions, costs), context=states)` estimates as if the estimator had drawn the actions itself
    and f had answered the costs. It is as unbiased as ever if the actions were drawn from q, by whatever sampler, and
    the costs depend on the parameters of q through the actions only. That is what reinforcement learning needs, where
    an action is drawn while acting and its return is known later, and what bandits and rated answers need.

    Requirements: an estimator that evaluates f at its sample only (`GradientEstimator.takes_observed_costs`); others
    refuse. For REINFORCE the action is the sample. RELAX draws its two relaxed samples z and $\tilde z$ given the
    action b. Since $p(z)\,\delta(b = H(z))\,p(\tilde z|b) = p(b)\,p(z|b)\,p(\tilde z|b)$, all three then have the same
    joint distribution as if RELAX had drawn z first. LAX computes the noise that leads to the action, and
    differentiates the path from there. The noise that an estimator draws must be independent of the noise with which
    the action was drawn: never use the same seed for both.

    Args:
        actions: The samples, shape `batch_shape + event_shape` of q; where the estimator takes several samples,
            `(num_samples,) + batch_shape + event_shape` (several answers to each question, say).
        costs: What each of them cost, shape of the actions without their event axes. To maximise rewards, give minus
            the rewards. Gradients flow into them.
        log_prob: The log-probability (or log-density) of the actions under the distribution from which they were drawn,
            of the shape of the costs. If given, it is compared with that under q, and a batch that was drawn from
            another distribution, such as that of an older policy, is refused. Rounding is allowed for: the two may
            differ by 1 + the absolute value, times the square root of the machine epsilon of the coarser dtype.

    Raises:
        ValueError: The shapes do not fit one another; or, when an estimator is called, they do not fit q, or `log_prob`
            is that of another distribution.

    Source: Grathwohl et al. (2018), *Backpropagation through the void*, section 3.3,
    https://arxiv.org/abs/1711.00123.

    Example:
        >>> import torch
        >>> from torch.distributions import OneHotCategorical
        >>> from lightning_estimators.estimators import RELAX
        >>> _ = torch.manual_seed(0)
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> actions = OneHotCategorical(logits=logits).sample()  # the first class is the best
        >>> loss = RELAX()(OneHotCategorical(logits=logits), Observed(actions, costs=actions[:, 1] + actions[:, 2]))
        >>> loss.mean().backward()
        >>> loss.shape, logits.grad.shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, actions: Tensor, costs: Tensor, log_prob: Tensor | None = None) -> None:
        self.actions, self.costs = actions.detach(), costs
        self.log_prob = None if log_prob is None else log_prob.detach()
        self.event_dim = actions.ndim - costs.ndim
        if self.event_dim < 0 or actions.shape[: costs.ndim] != costs.shape:
            raise ValueError(
                "Observed expects one cost for each action, so costs of the shape of the actions without their event "
                f"axes; got actions of shape {tuple(actions.shape)} and costs of shape {tuple(costs.shape)}."
            )
        if log_prob is not None and log_prob.shape != costs.shape:
            raise ValueError(
                f"Observed expects log_prob of the shape of the costs, {tuple(costs.shape)}, got "
                f"{tuple(log_prob.shape)}."
            )

    def value(self, z: Tensor) -> Tensor:
        """Return the costs; z must be the actions.

        Raises:
            ValueError: z is anything else.
        """
        if z.requires_grad or z.shape != self.actions.shape or not torch.equal(z, self.actions):
            raise ValueError(
                "these costs were observed at actions that were drawn before, and are unknown anywhere else; f was "
                f"asked for them at other points, of shape {tuple(z.shape)}. Use REINFORCE, RELAX or LAX."
            )
        return self.costs

    def laid_out_for(self, q: Distribution, sample_shape: tuple[int, ...]) -> Observed:
        """Return the same costs in the form that estimators work with.

        An axis of samples is added in front if it is missing. Indices of classes become one-hot vectors. Actions and
        costs are converted to the precision of q, and to float32 where that is coarser.

        Args:
            q: The distribution with which an estimator was called.
            sample_shape: The shape of the axes of samples; an axis of one sample may be missing in the actions.

        Raises:
            ValueError: The shape of the actions does not fit q, or `log_prob` is not that of q.
        """
        expected = (*sample_shape, *q.batch_shape, *q.event_shape)
        actions, costs, log_prob = self.actions, self.costs, self.log_prob
        if sample_shape == (1,) and actions.shape == expected[1:]:
            actions, costs = actions.unsqueeze(0), costs.unsqueeze(0)
            log_prob = None if log_prob is None else log_prob.unsqueeze(0)
        if actions.shape != expected or costs.ndim != len(sample_shape) + len(q.batch_shape):
            alone = f", or {expected[1:]}" if sample_shape == (1,) else ""
            raise ValueError(
                f"expected observed actions of shape sample_shape + batch_shape + event_shape = {expected}{alone}, and "
                f"one cost for each; got actions of shape {tuple(self.actions.shape)} and costs of shape "
                f"{tuple(self.costs.shape)}."
            )
        given = next(iter(distribution_parameters(q).values())).dtype
        precise = torch.promote_types(given, torch.float32)
        if log_prob is not None:
            _check_log_prob(q, actions.to(given), log_prob)
        one_hot = as_one_hot(q)
        if one_hot is not q:
            actions = torch.nn.functional.one_hot(actions.long(), one_hot.event_shape[-1])
        return Observed(actions.to(precise), costs.to(precise), log_prob)


def observed_actions(f: Objective) -> Tensor | None:
    """Return the samples at which the costs of f were observed; None if f is not `Observed`.

    Args:
        f: The cost that an estimator's `estimate` is given. The samples have shape
            `(num_samples,) + batch_shape + event_shape`.
    """
    return f.actions if isinstance(f, Observed) else None


def _check_log_prob(q: Distribution, actions: Tensor, log_prob: Tensor) -> None:
    with torch.no_grad():
        now = q.log_prob(actions)
        rounding = max(torch.finfo(now.dtype).eps, torch.finfo(log_prob.dtype).eps) ** 0.5
        difference = (now.double() - log_prob.double()).abs()
        # Where both are minus infinity the difference is NaN. It counts as different, since such an action cannot have
        # been drawn.
        scale = 1 + torch.minimum(now.abs(), log_prob.abs())
        differs = (difference <= rounding * scale).logical_not()
        if differs.any():
            raise ValueError(
                f"this batch was acted by another policy: the log-probabilities of {int(differs.sum())} of "
                f"{differs.numel()} actions differ from those that were observed, by up to "
                f"{difference[differs].max().item():.3g}. The actions must be drawn from the very q that is learned: "
                "collect a batch after the update before it, and not ahead; let the policy not be random itself, as "
                "with dropout, and not depend on the rest of the batch, as with BatchNorm in training mode."
            )
