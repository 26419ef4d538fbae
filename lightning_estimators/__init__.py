"""Gradients of expectations as plug-ins for PyTorch Lightning.

Everything that a program usually needs can be imported from here: the estimators, baselines and modules, and `compare`.
Rooms are imported when something in them is first asked for, so that `from lightning_estimators import RELAX` needs
torch alone.

Example:
    >>> from lightning_estimators import RELAX
    >>> RELAX().num_samples
    1
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_estimators.baselines import *  # noqa: F403
    from lightning_estimators.comparison import *  # noqa: F403
    from lightning_estimators.estimators import *  # noqa: F403
    from lightning_estimators.modules import *  # noqa: F403

__version__ = "0.1.0"

_ROOMS = (
    "estimators",
    "baselines",
    "modules",
    "comparison",
)  # searched in this order; the first two do not import Lightning


def __getattr__(name: str) -> Any:
    """Find a name in the rooms."""
    is_room = importlib.util.find_spec(f"{__name__}.{name}") is not None  # Python imports it itself
    if not (is_room or name.startswith("_")):
        for room in _ROOMS:
            module = importlib.import_module(f"{__name__}.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what can be imported from here."""
    names = {name for room in _ROOMS for name in importlib.import_module(f"{__name__}.{room}").__all__}
    return sorted(names | set(globals()))
