"""Leaves out, where gymnasium is not installed, the one example that needs it."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("gymnasium") else ["lightning_estimators/datamodules/gymnasium.py"]
