"""The variance of the policy gradient with and without a control variate, at the same policies."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import torch

from benchmarks.comparison import Claim, Finding, State, grouped, table
from benchmarks.experiment import Axis, Experiment, Outcome, Row, Value
from benchmarks.fit_experiment import quiet
from benchmarks.policies import CONTINUOUS, NUM_ENVS, NUM_STEPS, TARGETS, estimator_of
from lightning_estimators import compare
from lightning_estimators.datamodules import Gymnasium
from lightning_estimators.modules import PolicyGradient

__all__ = ["PolicyVariance"]

LR, CRITIC_LR = 0.003, 0.03


def _control(env: str) -> str:
    return "LAX" if env in CONTINUOUS else "RELAX"


def _learning_steps(settings: Mapping[str, Value]) -> int:
    """Of the control variate, at the policy that is measured."""
    return 3 if settings.get("quick") else 300


def _lowers(rows: Sequence[Row]) -> Iterator[Finding]:
    for (env, steps), group in grouped(rows, "env", "steps").items():
        for row in group:
            m = row["metrics"]
            low, error = m["log_ratio"], m["log_ratio_error"]
            state: State = "tie" if abs(low) < 2 * error else "holds" if low < 0 else "does not hold"
            text = (
                f"log variance {m['log_variance_control']:.2f}, {m['log_variance_a2c']:.2f} by A2C, difference "
                f"{low:+.2f} ± {error:.2f}"
            )
            where = f"{env} after {steps} steps, seed {row['settings']['seed']}"
            yield Finding(where, f"{_control(str(env))} and A2C", state, text)


class PolicyVariance(Experiment):
    """Variance over rollouts, not over the entries of one gradient: figure 4 of Grathwohl et al. (2018), held still."""

    name = "policy_variance"
    summary = "The variance of the policy gradient by A2C, and with a control variate, at the same policies."
    claims = (
        Claim(
            "Does a control variate lower the variance of the policy gradient, beside a critic?",
            "It does.",
            "Grathwohl et al. (2018), section 5.3",
            _lowers,
        ),
    )
    axes: ClassVar[dict[str, Axis]] = {
        "env": Axis(
            ("CartPole-v1", "Acrobot-v1", "InvertedPendulum-v5"), ("CartPole-v1",), "environment", tuple(TARGETS)
        ),
        "steps": Axis((2_048, 30_720), (512,), "environment steps by which A2C has trained the policy"),
        "rollouts": Axis((256,), (16,), "rollouts; the variance is that over three quarters of them"),
        "seed": Axis((0,), (0,), "seed of networks, noise and environments"),
    }

    def run(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Outcome:
        """Train a policy, stop, and draw gradients on rollouts that it acts."""
        env, seed = str(settings["env"]), int(settings["seed"])
        batches = int(settings["steps"]) // (NUM_ENVS * NUM_STEPS)
        data = Gymnasium(env, num_envs=NUM_ENVS, num_steps=NUM_STEPS, steps_per_epoch=batches, seed=seed)
        pl.seed_everything(seed)
        model = PolicyGradient(
            estimator_of("A2C"),
            data.observation_size,
            data.action_kind,
            data.action_sizes,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=LR),
            critic_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=CRITIC_LR),
        )
        begin = time.monotonic()
        with quiet():
            pl.Trainer(
                accelerator="cpu",
                max_epochs=1,
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(model, datamodule=data)
        rollouts = list(itertools.islice(data.rollouts(model), int(settings["rollouts"])))
        result = compare(
            model,
            rollouts,
            [estimator_of(_control(env))],
            budget=3600.0,
            learning_steps=_learning_steps(settings),
            seed=seed,
            progress=False,
        )
        own, control = result.rows
        errors = [row.variance_error / row.variance for row in (own, control)]
        metrics = {
            "log_variance_a2c": math.log(own.variance),
            "log_variance_control": math.log(control.variance),
            "log_ratio": math.log(control.variance / own.variance),
            # Both are on the same rollouts, so that this is an upper bound.
            "log_ratio_error": math.hypot(*errors),
            "draws": float(own.draws),
        }
        return Outcome(metrics, {}, time.monotonic() - begin)

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "policy": f"trained by A2C, Adam, lr {LR} (policy) and {CRITIC_LR} (critic), as in `policies`",
            "rollout": f"{NUM_STEPS} steps in each of {NUM_ENVS} environments, acted by the policy as it is then",
            "variance": "total over the policy's parameters, over rollouts that were not learned from",
            "control variate": f"64 hidden units, tanh, {_learning_steps(settings)} steps of Adam(0.01) at the policy, "
            "beside the critic",
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return one table."""
        if not rows:
            return []
        body = [
            [
                str(row["settings"]["env"]),
                str(row["settings"]["steps"]),
                f"{row['metrics']['log_variance_a2c']:.2f}",
                f"{row['metrics']['log_variance_control']:.2f}",
                f"{row['metrics']['log_ratio']:+.2f} ± {row['metrics']['log_ratio_error']:.2f}",
            ]
            for row in rows
        ]
        return table(["environment", "after steps", "A2C", "with RELAX or LAX", "difference"], body)
