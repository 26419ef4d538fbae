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
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    program = [sys.executable, str(Path(__file__).with_name(script)), str(folder)]
    return _collect(folder, [(program, shared | {"LOCAL_RANK": str(rank)}) for rank in range(2)])


def start_two_nodes(script, mode, folder):
    """Run a script of this folder by two agents of torchrun, as two machines would, and return what each left."""
    port = str(free_port())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    meeting = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    program = [str(Path(__file__).with_name(script)), mode, str(folder)]
    agents = [[*launcher, *meeting, f"--node-rank={rank}", *program] for rank in range(2)]
    return _collect(folder, [(agent, {}) for agent in agents])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _collect(folder, programs):
    processes = [
        subprocess.Popen(
            program,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for program, environment in programs
    ]
    try:
        outputs = [process.communicate(timeout=180)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all((folder / f"rank{rank}.pt").exists() for rank in range(2)), "\n".join(outputs)[-5000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
