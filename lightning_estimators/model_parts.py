"""Which gradient estimators a module holds, and which of its parameters are theirs."""

from __future__ import annotations

from torch import nn

from lightning_estimators.estimators import GradientEstimator

__all__ = ["gradient_estimators", "parameter_groups", "surrogate_parameters"]


def gradient_estimators(module: nn.Module) -> dict[str, GradientEstimator]:
    """Return the estimators inside a module by their path in it, outermost first; none from inside another estimator.

    Args:
        module: Any module, such as a LightningModule.

    Example:
        >>> from lightning_estimators.estimators import REBAR
        >>> list(gradient_estimators(nn.ModuleDict({"encoder": nn.Linear(2, 2), "estimator": REBAR()})))
        ['estimator']
    """
    found: dict[str, GradientEstimator] = {}
    for path, part in module.named_modules():
        if isinstance(part, GradientEstimator) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = part
    return found


def surrogate_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return what the estimators inside a module learn (their parameters that require a gradient), each once.

    A parameter that an estimator shares with the rest of the model counts as the estimator's.

    Args:
        module: Any module.
    """
    found = (p for estimator in gradient_estimators(module).values() for p in estimator.parameters() if p.requires_grad)
    return list(dict.fromkeys(found))


def parameter_groups(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the model's trainable parameters by top-level attribute, those of estimators excluded.

    Args:
        module: Any module.
    """
    surrogate = set(surrogate_parameters(module))
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter not in surrogate:
            groups.setdefault(name.partition(".")[0], []).append(parameter)
    return groups
