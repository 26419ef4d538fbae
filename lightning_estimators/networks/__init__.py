"""Plain networks: conditionals of latent-variable models, and surrogates."""

from lightning_estimators.networks.latent_mlp import LatentMLP
from lightning_estimators.networks.mlp import MLP
from lightning_estimators.networks.surrogate import Surrogate

__all__ = ["MLP", "LatentMLP", "Surrogate"]
