"""The checkpoints of earlier runs: where they are, and what job they hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_estimators.checkpoints import check_classes, read_checkpoint
from lightning_estimators.modules.recorded import CHECKPOINT_KEY

__all__ = ["find_checkpoint", "given_class", "saved_job", "wanted_checkpoint"]


def wanted_checkpoint(subcommand: str | None, asked: Namespace) -> str | None:
    """Return the path that `--ckpt_path` means; None if there is none yet, from which `fit` begins anew.

    Args:
        subcommand: "fit", "test", ...
        asked: Its options, but for those inside model and data.
    """
    path = asked.get("ckpt_path")
    if path not in ("last", "best"):
        return str(path) if path else None
    try:
        trainer, options = asked.trainer.as_dict(), asked.checkpoint.as_dict()
        return find_checkpoint(path, trainer, options, elsewhere=subcommand != "fit")
    except FileNotFoundError as error:
        if subcommand != "fit" or path != "last":
            raise
        rank_zero_info(f"{error} Beginning anew.")
        return None


def saved_job(path: str, subcommand: str | None, asked: Namespace) -> dict[str, Any]:
    """Return the model, data and seed of the run that wrote a checkpoint, as in a configuration file.

    Args:
        path: Of the checkpoint.
        subcommand: "fit", "test", ...
        asked: Its options, but for those inside model and data.

    Raises:
        ValueError: It cannot be used, or what it describes must not be built on its word.
    """
    if path == "hpc" or path.startswith("registry"):  # Lightning finds these later
        return {}
    checkpoint = read_checkpoint(path, weights_only=asked.get("weights_only") is not False)
    if subcommand == "fit" and "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds weights only (--checkpoint.save_weights_only true), from which `fit` cannot go on; "
            "validate, test and predict can use it."
        )
    arguments = dict(checkpoint.get("hyper_parameters") or {})
    arguments.pop("_instantiator", None)
    kept = checkpoint.get(CHECKPOINT_KEY, {})
    job = {"model": {"class_path": arguments.pop("_class_path", None), "init_args": arguments}}
    job["data"] = dict(kept.get("data") or {})
    given = {name: given_class(asked.get(name)) for name in job}
    trusted = {"*"} if asked.get("trust_checkpoint") else {str(name).partition(".")[0] for name in given.values()}
    for name, saved in job.items():
        # What is named in its place may be the same class, moved or renamed.
        check_classes(saved.get("init_args") if given[name] else saved, trusted)
    seed = {name: kept[name] for name in ("seed_everything",) if name in kept}
    return {name: saved for name, saved in job.items() if saved.get("class_path")} | seed


def given_class(value: Any) -> str | None:
    """Return the class that an option names, if it does."""
    named = value.get("class_path") if isinstance(value, Mapping | Namespace) else value
    return named if isinstance(named, str) else None


def find_checkpoint(which: str, trainer: Mapping[str, Any], options: Mapping[str, Any], *, elsewhere: bool) -> str:
    """Return the checkpoint that the newest run with this configuration saved last, or its best one.

    The order of runs is that of their beginnings, which checkpoints keep; within a run, that of steps. So a copy of the
    folder is as good as the folder. Files that are damaged are passed over with a warning.

    Args:
        which: "last" or "best".
        trainer: Options of the Trainer.
        options: Of the ModelCheckpoint that the command line adds.
        elsewhere: Whether to look through all of the Trainer's folder if there is none where `fit` would put it.

    Raises:
        FileNotFoundError: There is none, or the best one is gone.
        ValueError: All are damaged, or the newest run did not say what "best" means.
    """
    root = _path(trainer.get("default_root_dir") or ".")
    patterns = [(root, "**")] if elsewhere else []
    for folder, pattern in [(_path(path), "") for path in _folders(trainer, options)] or [_default(root, trainer)]:
        patterns.insert(0, (folder, pattern))
    damaged: list[str] = []
    for folder, pattern in patterns:
        found = [path for path in folder.glob(os.path.join(pattern, "*.ckpt")) if path.is_file()]
        marked = {path.parent for path in found if path.name.startswith("last")}
        last = [path for path in found if path.name.startswith("last") or path.parent not in marked]
        ages = {path: age for path in last if (age := _age(path, damaged)) is not None}
        if ages:
            newest = max(ages, key=ages.__getitem__)
            return str(newest if which == "last" else _best(newest))
    if damaged:
        raise ValueError(f"--ckpt_path {which}: {'; '.join(damaged)}")
    searched = ", ".join(sorted({str(folder) for folder, _ in patterns}))
    raise FileNotFoundError(
        f"--ckpt_path {which}: no last.ckpt of an earlier run under {searched}. Run `fit` in this folder first (with "
        "--checkpoint.save_last true, the default), or give the path of a checkpoint."
    )


def _path(path: Any) -> Path:
    return Path(os.path.expandvars(path)).expanduser().absolute()


def _folders(trainer: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The folders that ModelCheckpoints were given."""
    callbacks = trainer.get("callbacks") or []
    specs = callbacks if isinstance(callbacks, list) else [callbacks]
    given = [spec.get("init_args", {}).get("dirpath") for spec in specs]
    return [path for path in (*given, options.get("dirpath")) if path]


def _default(root: Path, trainer: Mapping[str, Any]) -> tuple[Path, str]:
    """Where a ModelCheckpoint without a folder of its own puts them: what is above, and a pattern below."""
    logger = trainer.get("logger")
    if isinstance(logger, list):
        logger = logger[0] if logger else False
    if logger is False:
        return root / "checkpoints", ""
    arguments: dict[str, Any] = logger.get("init_args", {}) if isinstance(logger, dict) else {"name": "lightning_logs"}
    folder = _path(arguments["save_dir"]) if arguments.get("save_dir") else root
    if "name" not in arguments or not isinstance(arguments["name"], str):
        return folder, os.path.join("**", "checkpoints")
    version = arguments.get("version")
    version = f"version_{version}" if isinstance(version, int) else version or "*"
    return folder / arguments["name"], os.path.join(version, "checkpoints")


def _age(path: Path, damaged: list[str]) -> tuple[int, int, int] | None:
    try:
        checkpoint = read_checkpoint(path)
    except (OSError, ValueError) as error:
        damaged.append(str(error))
        rank_zero_warn(f"Passed over: {error}")
        return None
    modified = path.stat().st_mtime_ns
    started = checkpoint.get(CHECKPOINT_KEY, {}).get("started", modified)
    return started, int(checkpoint.get("global_step", 0)), modified


def _best(last: Path) -> Path:
    states = read_checkpoint(last).get("callbacks", {}).items()
    found = [state for name, state in states if name.startswith("ModelCheckpoint")]
    monitored = [state for state in found if state.get("monitor") and state.get("best_model_path")]
    if not monitored:
        raise ValueError(
            f"--ckpt_path best: the newest run (it wrote {last}) monitored no metric, so none of its checkpoints "
            "is the best. Train with --checkpoint.monitor val/loss, or use --ckpt_path last."
        )
    best, folder = monitored[0]["best_model_path"], monitored[0].get("dirpath") or ""
    beside = last.parent / os.path.relpath(best, folder) if folder else last.with_name(os.path.basename(best))
    for path in (beside, Path(best)):  # the folder may have been moved
        if path.is_file():
            return path
    raise FileNotFoundError(f"--ckpt_path best: {best}, the best checkpoint of the newest run, is gone.")
