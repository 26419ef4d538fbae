"""Policies: the package's advantage actor-critic beside a plain one, and control variates beside both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch

from benchmarks.comparison import Claim, Difference, Finding, Seeds, State, grouped, seeds, table
from benchmarks.experiment import Axis, Experiment, Outcome, Row, Value
from benchmarks.fit_experiment import quiet, thinned
from benchmarks.plain_a2c import EpisodeLog, train_plain_a2c
from lightning_estimators.baselines import NoBaseline
from lightning_estimators.datamodules import Gymnasium
from lightning_estimators.estimators import LAX, REINFORCE, RELAX, GradientEstimator
from lightning_estimators.modules import PolicyGradient
from lightning_estimators.networks import Surrogate

__all__ = ["CONTINUOUS", "NUM_ENVS", "NUM_STEPS", "TARGETS", "Policies", "estimator_of"]

TARGETS = {"CartPole-v1": 195.0, "Acrobot-v1": -100.0, "LunarLander-v3": 200.0, "InvertedPendulum-v5": 950.0}
"""Mean return of 100 episodes from which an environment counts as solved."""

NUM_ENVS, NUM_STEPS = 8, 16
CONTINUOUS = ("InvertedPendulum-v5",)
NO_SURROGATE = 0.0003
"""The value of `surrogate_lr` under which methods without a surrogate are run, once."""


def estimator_of(method: str) -> GradientEstimator:
    """Return the estimator by which a method learns."""
    surrogate = Surrogate([64], "tanh")
    return {"A2C": REINFORCE(NoBaseline()), "RELAX": RELAX(surrogate), "LAX": LAX(surrogate)}[method]


class _Log(pl.Callback):
    """Tells an `EpisodeLog` of the episodes in each batch."""

    def __init__(self, episodes: EpisodeLog) -> None:
        super().__init__()
        self.episodes, self.steps = episodes, 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        self.steps += batch.rewards.numel()
        self.episodes.add(batch.episode_returns[batch.terminated | batch.truncated].tolist(), self.steps)


def _mean(group: Sequence[Row], method: str, metric: str) -> Seeds | None:
    return seeds([row for row in group if row["settings"]["method"] == method], metric)


def _by_environment(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield what was run alike but for method and seed, with a name for it."""
    for (env, steps, lr, critic_lr), group in grouped(rows, "env", "steps", "lr", "critic_lr").items():
        yield f"{env}, {steps} steps, rates {lr} and {critic_lr}", group


def _learns_alike(rows: Sequence[Row]) -> Iterator[Finding]:
    for env, group in _by_environment(rows):
        plain, ours = (_mean(group, method, "mean_return") for method in ("plain-A2C", "A2C"))
        if plain is None or ours is None:
            yield Finding(env, "A2C and plain PyTorch", "not run")
            continue
        difference = Difference(ours, plain)
        text = f"mean return over training {ours} and {plain}, difference {difference}"
        yield Finding(env, "A2C and plain PyTorch", "holds" if difference.sign == 0 else "does not hold", text)


def _as_fast(rows: Sequence[Row]) -> Iterator[Finding]:
    for env, group in _by_environment(rows):
        plain, ours = (_mean(group, method, "steps_per_cpu_second") for method in ("plain-A2C", "A2C"))
        if plain is not None and ours is not None:
            ratio = ours.mean / plain.mean
            text = f"{ours.mean:.0f} steps per CPU second, {ratio:.2f} of {plain.mean:.0f}"
            yield Finding(env, "A2C and plain PyTorch", "holds" if ratio >= 0.9 else "does not hold", text)


def _speeds_up(rows: Sequence[Row]) -> Iterator[Finding]:
    for env, group in _by_environment(rows):
        name = "LAX" if str(group[0]["settings"]["env"]) in CONTINUOUS else "RELAX"
        actor = _mean(group, "A2C", "steps_to_solve")
        for (rate,), part in grouped(group, "surrogate_lr").items():
            control = _mean(part, name, "steps_to_solve")
            if control is None or actor is None:
                continue
            difference = Difference(control, actor)
            states: tuple[State, State, State] = ("tie", "does not hold", "holds")
            text = f"{control.mean:.0f} steps to solve, {actor.mean:.0f} by A2C, difference {difference}"
            yield Finding(f"{env}, surrogate at {rate}", f"{name} and A2C", states[difference.sign], text)


def _stated(figure: Seeds | None) -> str:
    if figure is None:
        return "–"
    return f"{figure.mean:.0f}" + ("" if figure.std is None else f" ± {figure.std:.0f}")


class Policies(Experiment):
    """Actor-critics in environments of gymnasium: section 5.3 of Grathwohl et al. (2018), with a recipe of our own."""

    name = "policies"
    summary = "Policies in gymnasium's environments: A2C against RELAX and LAX, and against plain PyTorch."
    claims = (
        Claim("Does A2C learn as plain PyTorch does?", "It does, within seeds.", None, _learns_alike),
        Claim("Is it as fast?", "At least .9 of the environment steps in the same time.", None, _as_fast),
        Claim(
            "Do control variates solve an environment sooner than A2C?",
            "RELAX and LAX need fewer episodes than A2C.",
            "Grathwohl et al. (2018), section 5.3",
            _speeds_up,
        ),
    )
    axes: ClassVar[dict[str, Axis]] = {
        "env": Axis(("CartPole-v1",), ("CartPole-v1",), "environment", tuple(TARGETS)),
        "steps": Axis((60_000,), (2_000,), "environment steps"),
        "lr": Axis((0.003,), (0.003,), "learning rate of the policy"),
        "critic_lr": Axis((0.03,), (0.03,), "learning rate of the critic"),
        "surrogate_lr": Axis((0.0003, 0.03), (0.0003,), "learning rate of the surrogate, where there is one"),
        "seed": Axis((0, 1, 2, 3, 4), (0,), "seed of networks, noise and environments"),
        "method": Axis(
            ("plain-A2C", "A2C", "RELAX", "LAX"),
            ("plain-A2C", "A2C", "RELAX"),
            "what learns",
            ("plain-A2C", "A2C", "RELAX", "LAX"),
        ),
    }

    def is_possible(self, settings: Mapping[str, Value]) -> bool:
        """Leave out relaxations of real-valued actions, paths through discrete ones, and rates of no surrogate."""
        if settings["method"] not in ("RELAX", "LAX") and settings["surrogate_lr"] != NO_SURROGATE:
            return False
        return settings["method"] != ("RELAX" if settings["env"] in CONTINUOUS else "LAX")

    def run(self, settings: Mapping[str, Value], folder: Path, data_root: str) -> Outcome:
        """Train from the beginning: a run takes minutes."""
        env, seed, method = str(settings["env"]), int(settings["seed"]), str(settings["method"])
        batches = int(settings["steps"]) // (NUM_ENVS * NUM_STEPS)
        log = EpisodeLog(TARGETS[env])
        data = Gymnasium(env, num_envs=NUM_ENVS, num_steps=NUM_STEPS, steps_per_epoch=batches, seed=seed)
        lr, critic_lr, surrogate_lr = (float(settings[name]) for name in ("lr", "critic_lr", "surrogate_lr"))
        pl.seed_everything(seed)
        if method == "plain-A2C":
            environments = data.maker.vector(NUM_ENVS)
            clock, begin = time.process_time(), time.monotonic()
            train_plain_a2c(environments, NUM_STEPS, batches, lr, critic_lr, log, seed)
        else:
            model = PolicyGradient(
                estimator_of(method),
                data.observation_size,
                data.action_kind,
                data.action_sizes,
                optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
                critic_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=critic_lr),
                surrogate_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=surrogate_lr),
            )
            with quiet():
                trainer = pl.Trainer(
                    accelerator="cpu",
                    max_epochs=1,
                    limit_val_batches=0,
                    callbacks=[_Log(log)],
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                clock, begin = time.process_time(), time.monotonic()
                trainer.fit(model, datamodule=data)
        cpu, seconds = time.process_time() - clock, time.monotonic() - begin
        steps = batches * NUM_ENVS * NUM_STEPS
        solved = log.solved_at or (steps, log.episodes)
        metrics = {
            "solved": float(log.solved_at is not None),
            "steps_to_solve": float(solved[0]),
            "episodes_to_solve": float(solved[1]),
            "final_return": log.mean(),
            "mean_return": sum(log.curve["value"]) / max(len(log.curve["value"]), 1),
            "steps_per_cpu_second": steps / cpu,
        }
        return Outcome(metrics, {"return": thinned(log.curve, 100)}, seconds)

    def protocol(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """Return what the figures depend on besides the settings."""
        return {
            "batch": f"{NUM_STEPS} steps in each of {NUM_ENVS} environments",
            "networks": "policy and critic 64-64, surrogate 64 hidden units, all tanh",
            "optimizer": "Adam",
            "advantages": "GAE, gamma .99, lambda .95, not normalized",
            "gradients": "norm at most .5 for each network",
            "entropy": 0.01,
            "observations": "scaled by running mean and deviation",
            "solved": f"mean return of the last 100 training episodes at least {TARGETS[str(settings['env'])]:g}; "
            "a run that was not solved counts with all of its steps",
            "seconds": "CPU time of training, the start of the Trainer included; there is no evaluation",
        }

    def report(self, rows: Sequence[Row]) -> list[str]:
        """Return a table of all environments."""
        names = ("steps_to_solve", "episodes_to_solve", "final_return", "mean_return", "steps_per_cpu_second")
        body = []
        for settings, part in grouped(rows, "env", "steps", "method", "lr", "critic_lr", "surrogate_lr").items():
            env, steps, method, lr, critic_lr, surrogate_lr = settings
            rates = f"{lr}, {critic_lr}" + (f", {surrogate_lr}" if method in ("RELAX", "LAX") else "")
            solved = sum(row["metrics"]["solved"] for row in part)
            figures = [_stated(seeds(part, name)) for name in names]
            body.append([f"{env}, {int(steps):,} steps", str(method), rates, f"{solved:.0f} of {len(part)}", *figures])
        head = ["environment", "", "rates of policy, critic, surrogate", "solved", "steps to solve"]
        head += ["episodes to solve", "return at the end", "mean return over training", "steps per CPU second"]
        return table(head, body)
