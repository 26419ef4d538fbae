"""Names of torch and Lightning in signatures become links to their own documentation. mkdocs calls `on_env`.

The addresses are written down here, so that no list of them has to be fetched when the site is built.
"""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

TORCH = "https://docs.pytorch.org/docs/stable/"
LIGHTNING = "https://lightning.ai/docs/pytorch/stable/api/"
PYTHON = "https://docs.python.org/3/library/"
GYMNASIUM = "https://gymnasium.farama.org/api/"

ADDRESSES = {
    "torch.Tensor": f"{TORCH}tensors.html#torch.Tensor",
    "torch.nn.Module": f"{TORCH}generated/torch.nn.Module.html",
    "torch.nn.Linear": f"{TORCH}generated/torch.nn.Linear.html",
    "torch.nn.Tanh": f"{TORCH}generated/torch.nn.Tanh.html",
    "torch.nn.Parameter": f"{TORCH}generated/torch.nn.parameter.Parameter.html",
    "torch.optim.Adam": f"{TORCH}generated/torch.optim.Adam.html",
    "torch.optim.lr_scheduler.LRScheduler": f"{TORCH}generated/torch.optim.lr_scheduler.LRScheduler.html",
    "torch.optim.lr_scheduler.SequentialLR": f"{TORCH}generated/torch.optim.lr_scheduler.SequentialLR.html",
    "torch.optim.Optimizer": f"{TORCH}optim.html#torch.optim.Optimizer",
    "torch.distributions.Distribution": f"{TORCH}distributions.html#torch.distributions.distribution.Distribution",
    "torch.device": f"{TORCH}tensor_attributes.html#torch.device",
    "torch.dtype": f"{TORCH}tensor_attributes.html#torch.dtype",
    "lightning.pytorch.LightningModule": f"{LIGHTNING}lightning.pytorch.core.LightningModule.html",
    "lightning.pytorch.LightningDataModule": f"{LIGHTNING}lightning.pytorch.core.LightningDataModule.html",
    "lightning.pytorch.Trainer": f"{LIGHTNING}lightning.pytorch.trainer.trainer.Trainer.html",
    "lightning.pytorch.cli.OptimizerCallable": "https://lightning.ai/docs/pytorch/stable/cli/lightning_cli_advanced_3.html",
    "lightning.pytorch.cli.LRSchedulerCallable": "https://lightning.ai/docs/pytorch/stable/cli/lightning_cli_advanced_3.html",
    "lightning.pytorch.Callback": f"{LIGHTNING}lightning.pytorch.callbacks.Callback.html",
    "gymnasium.Space": f"{GYMNASIUM}spaces/#gymnasium.spaces.Space",
    "gymnasium.vector.VectorEnv": f"{GYMNASIUM}vector/#gymnasium.vector.VectorEnv",
    "collections.abc.Callable": f"{PYTHON}collections.abc.html#collections.abc.Callable",
    "collections.abc.Mapping": f"{PYTHON}collections.abc.html#collections.abc.Mapping",
    "collections.abc.Sequence": f"{PYTHON}collections.abc.html#collections.abc.Sequence",
    "pathlib.Path": f"{PYTHON}pathlib.html#pathlib.Path",
}


@event_priority(50)  # before the plugin that resolves names
def on_env(env: object, config: MkDocsConfig, files: object) -> None:
    """Tell the plugin that resolves names where those of other libraries are explained."""
    for name, address in ADDRESSES.items():
        config.plugins["autorefs"].register_url(name, address)
