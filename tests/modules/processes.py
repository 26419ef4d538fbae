"""Two processes on this machine that find each other, as a launcher would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch


def start_two(script, folder):
    """Run a script of this folder in two processes, and return what each left in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), str(folder)],
            env=os.environ | shared | {"LOCAL_RANK": str(rank), "NODE_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=180)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all((folder / f"rank{rank}.pt").exists() for rank in range(2)), "\n".join(outputs)[-5000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
