"""How long training steps take, and how much memory: `python -m benchmarks.speed`."""
