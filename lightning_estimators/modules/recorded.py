"""A LightningModule whose checkpoints can build it again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import AttributeDict

from lightning_estimators.checkpoints import check_classes, hyper_parameters, imported_class, read_checkpoint
from lightning_estimators.configurable import Configurable, Unrecorded, encode, import_path, unrecorded
from lightning_estimators.modules.seeded import attached_trainer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CHECKPOINT_KEY", "RecordedModule"]

CHECKPOINT_KEY = "lightning_estimators"
"""Where a checkpoint keeps the configuration of the "data" for the command line, and what is "unrecorded"."""

_SPECIAL = ("_class_path", "_instantiator")  # Lightning's, among the hyper-parameters
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # of the few that Lightning trusts in a checkpoint


class RecordedModule(Configurable, pl.LightningModule):
    """Keeps its constructor call, estimators and optimizers included, as hyper-parameters that are plain data.

    `save_hyperparameters()` would keep the objects themselves, which `torch.load(weights_only=True)` refuses, so that
    resuming and testing from a checkpoint would fail. Here they are kept as class paths and arguments, the form in
    which Lightning's command line keeps them, so that `load_from_checkpoint(path)` needs no arguments either way.
    Subclasses need not call `save_hyperparameters`.

    An argument that cannot be written down (a plain `nn.Module`, a lambda) is left out. Training, resuming and
    `trainer.test(model, ckpt_path=...)` do not need it; `load_from_checkpoint` asks for it by name. Inherit
    `lightning_estimators.configurable.Configurable` in a network to have it written down too.
    """

    def __init__(self) -> None:
        super().__init__()
        # Under a LightningCLI the parsed command line is the better record: it still knows how callables were made.
        self._parsed = _is_built_by_command_line()
        if self._parsed:
            self.save_hyperparameters()
        else:
            path = import_path(type(self))
            special = {"_instantiator": _INSTANTIATOR} | ({"_class_path": path} if path else {})
            self.save_hyperparameters(_plain(self._given()) | special)

    @property
    def hparams_initial(self) -> Any:
        """What loggers are told of model and data, as one flat table of plain values.

        The class of an argument stands under its name, the arguments of that class behind a dot:
        `{"model": "Coins", "estimator": "REBAR", "estimator.eta": 1.0, "num_latents": "[4, 3]"}`. Where the data have
        an argument of the same name and another value, that of the model is called `model.name`.
        """
        table: dict[str, Any] = {"model": type(self).__name__}
        table |= _flat(self._written()) if self._parsed or self._given() else super().hparams_initial
        datamodule = getattr(attached_trainer(self), "datamodule", None)
        if datamodule is not None:
            table.setdefault("data", type(datamodule).__name__)
            told = datamodule.hparams_initial
            table = {f"model.{n}" if n in told and told[n] != v else n: v for n, v in table.items()}
        return AttributeDict(table)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep plain data only, and what the command line needs to build the data from this checkpoint.

        Args:
            checkpoint: What is about to be saved.
        """
        super().on_save_checkpoint(checkpoint)
        # A subclass that called `save_hyperparameters()` itself has put its arguments there as they are.
        given = self._written()
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = _plain(given)
        kept = checkpoint.setdefault(CHECKPOINT_KEY, {})
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            data = _plain({name: encode(value) for name, value in datamodule.hparams.items()})
            if datamodule.CHECKPOINT_HYPER_PARAMS_KEY in checkpoint:
                checkpoint[datamodule.CHECKPOINT_HYPER_PARAMS_KEY] = data
            if path := import_path(type(datamodule)):
                init_args = {name: value for name, value in data.items() if name not in _SPECIAL}
                # The command line has written a fuller record before this hook runs.
                kept.setdefault("data", {"class_path": path, "init_args": init_args})
        kept["unrecorded"] = {
            name: [(path, found.what) for path, found in unrecorded({name: value})]
            for name, value in given.items()
            if any(unrecorded(value))
        }

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[Any],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,  # noqa: FBT001  the signature is Lightning's
        weights_only: bool | None = None,  # noqa: FBT001
        *,
        trust_checkpoint: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Build the module that the checkpoint was made of, as Lightning does, and load its weights.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: As in `torch.load`.
            hparams_file: A file with hyper-parameters to use instead of those in the checkpoint.
            strict: Whether the keys of the weights must match.
            weights_only: As in `torch.load`; True unless it is given, also for a URL.
            trust_checkpoint: Whether to import whatever the checkpoint names. Without it only torch, Lightning, this
                package, and what has been imported already can be built from a checkpoint.
            **kwargs: Arguments of the constructor that replace those of the checkpoint.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no checkpoint; or it names something that must not be built or imported on its
                word; or it could not keep an argument, and that is not given.
        """
        weights_only = weights_only is not False
        checkpoint = read_checkpoint(checkpoint_path, weights_only=weights_only)
        named = hyper_parameters(cls, checkpoint, hparams_file)
        if "_class_path" in named and not issubclass(imported_class(named["_class_path"]) or object, cls):
            if inspect.isabstract(cls):
                raise ValueError(
                    f"the checkpoint is of {named['_class_path']}, which is not imported. Import it first, or call "
                    "load_from_checkpoint of the class that took its place."
                )
            kwargs["_class_path"] = import_path(cls)  # it was moved or renamed
        built = {name: value for name, value in named.items() if name not in kwargs}
        check_classes(built, {"*"} if trust_checkpoint else {cls.__module__.partition(".")[0]})
        could_not: dict[str, list[tuple[str, str]]] = checkpoint.get(CHECKPOINT_KEY, {}).get("unrecorded", {})
        missing = {name: found for name, found in could_not.items() if name not in kwargs}
        if missing and hparams_file is None:
            what = "; ".join(f"{path} was a {kind}" for found in missing.values() for path, kind in found)
            given = ", ".join(f"{name}=..." for name in missing)
            raise ValueError(
                f"the checkpoint could not keep {' and '.join(missing)} of {cls.__name__} ({what}, which does not "
                f"record how it was built). Give it: {cls.__name__}.load_from_checkpoint(path, {given}). Inheriting "
                "lightning_estimators.configurable.Configurable in that class makes later checkpoints keep it."
            )
        module: Self = super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
        )
        return module

    def _given(self) -> dict[str, Any]:
        recorded: dict[str, Any] = self.configuration()["init_args"]
        return recorded

    def _written(self) -> dict[str, Any]:
        """The hyper-parameters, with `Unrecorded` for whatever is no plain data."""
        given = self._given()
        written = {name: encode(value) for name, value in self.hparams.items()}
        if not self._parsed:
            return written | given
        # A LightningCLI also notes what it would tell other modules.
        return {name: value for name, value in written.items() if name in given or name in _SPECIAL}


def _is_built_by_command_line() -> bool:
    """Whether a LightningCLI is building a module and hands the options that it parsed to `save_hyperparameters`."""
    return bool(_Probe().hparams)


class _Probe(HyperparametersMixin):
    """Without arguments, so that any hyper-parameters it saves are a command line's."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if not any(unrecorded(value))}


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Arguments as a table of names and plain values, classes by their names."""
    table: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in _SPECIAL:
            continue
        if isinstance(value, Mapping):
            if "class_path" in value:
                table[f"{prefix}{name}"] = str(value["class_path"]).rpartition(".")[2]
                value = value.get("init_args") or {}
            table |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Unrecorded):
            table[f"{prefix}{name}"] = value.what
        else:
            table[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return table
