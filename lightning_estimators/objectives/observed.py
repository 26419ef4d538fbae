"""Costs that were observed: of an action that was taken, of an answer that was rated."""

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

    Requirements: an estimator that needs f at one sample only (`GradientEstimator.takes_observed_costs`). REINFORCE
    needs nothing else. RELAX draws both of its relaxed samples given the action: $p(z)\,\delta(b = H(z))\,p(\tilde z|b)
    = p(b)\,p(z|b)\,p(\tilde z|b)$, so the three have the joint distribution that they would have had. LAX finds the
    path that led to the action. The noise that the estimator then draws must be independent of the noise with which the
    action was drawn: never seed both alike. All others evaluate f elsewhere and refuse.

    Args:
        actions: The samples, shape `batch_shape + event_shape` of q; where the estimator takes several samples,
            `(num_samples,) + batch_shape + event_shape` (several answers to each question, say).
        costs: What each of them cost, shape of the actions without their event axes. To maximise rewards, give minus
            the rewards. Gradients flow into them.
        log_prob: The log-probability, or log-density, of the actions under the distribution that they were drawn from,
            of the shape of the costs. If given, it is compared with that under q, and a batch that was drawn from
            another distribution, as that of an older policy, is refused. It may differ by rounding: by the root of the
            machine epsilon of its dtype or that of q, whichever is coarser, times 1 + its absolute value.

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
        """Return the costs, if z is the actions.

        Raises:
            ValueError: It is not.
        """
        if z.requires_grad or z.shape != self.actions.shape or not torch.equal(z, self.actions):
            raise ValueError(
                "these costs were observed at actions that were drawn before, and are unknown anywhere else; f was "
                f"asked for them at other points, of shape {tuple(z.shape)}. Use REINFORCE, RELAX or LAX."
            )
        return self.costs

    def laid_out_for(self, q: Distribution, sample_shape: tuple[int, ...]) -> Observed:
        """Return the same costs as a plug-in needs them: with an axis of samples in front, and no indices.

        Actions are converted to the precision of q, at least float32, and indices of classes to one-hot vectors.

        Args:
            q: The distribution that an estimator was called with.
            sample_shape: The axes of samples; an axis of one sample may be missing in what was given.

        Raises:
            ValueError: The actions are of another shape, or `log_prob` is not that of q.
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
    """Return the samples at which the costs of f were observed, or None if an estimator may draw its own.

    Args:
        f: The cost as a plug-in gets it: samples first, shape `(num_samples,) + batch_shape + event_shape`.
    """
    return f.actions if isinstance(f, Observed) else None


def _check_log_prob(q: Distribution, actions: Tensor, log_prob: Tensor) -> None:
    with torch.no_grad():
        now = q.log_prob(actions)
        rounding = max(torch.finfo(now.dtype).eps, torch.finfo(log_prob.dtype).eps) ** 0.5
        difference = (now.double() - log_prob.double()).abs()
        # Where both are minus infinity the difference is not a number, and the action could not have been drawn.
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
