"""Trains in several processes: starts them, hears of each update, and leaves none behind.

One idea: a process tells what happened on a pipe of its own, so the pipe's end without a last word *is* its
death; the others, which wait for it in a sum, are then killed. Every state worth keeping is in the checkpoint. The
other way round each process watches that its parent lives. Processes meet at a file, not at a port that another
program might take, and gloo talks over the loopback.

Accelerate's own launcher is not used: without MPI it starts one process on a CPU, whatever number is asked for, and
a launcher that is killed cannot end what it started.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipeline_lib.config import ConfigError, PolicyConfig, TrainConfig
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.training.batches.packing import PackedTree
from pipeline_lib.training.processes.job import Job, write_job
from pipeline_lib.training.result import UpdateMetrics
from pipeline_lib.training.trainer import OnUpdate

LOGGER = logging.getLogger("coppice.progress")
ROOT = Path(__file__).resolve().parents[3]
GRACE_S = 0.5  # in which one death becomes that of all
LAST_LINES = 20  # of a dead process's stderr that go to the log
EXPECTED_ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ConfigError, FloatingPointError)}


class TrainingProcessError(RuntimeError):
    """A process that trains with others died; the message is one line and says what to do."""


def check_processes(config: TrainConfig, policy: PolicyConfig) -> None:
    """Raises ConfigError where the machine lacks what several processes need."""
    if config.num_processes == 1:
        if config.shard_weights:
            raise ConfigError("train.shard_weights spreads weights over processes: set train.num_processes above 1")
        return
    device = resolve_device(policy.device)
    if device.type == "cpu":
        return
    if device.index is not None:
        raise ConfigError(
            f"policy.device={policy.device} is one GPU and train.num_processes={config.num_processes}: set "
            "policy.device=cuda, process by process they take cuda:0, cuda:1, …"
        )
    if config.num_processes > torch.cuda.device_count():
        raise ConfigError(
            f"train.num_processes={config.num_processes}, but this machine has {torch.cuda.device_count()} GPUs; each "
            "process needs one"
        )


def take_updates_in_processes(job: Job, trees: Sequence[PackedTree], on_update: OnUpdate | None) -> list[UpdateMetrics]:
    """As `trainer.take_updates`, shared by ``train.num_processes`` processes.

    Raises:
        TrainingProcessError: one of them died; called again, training goes on from the last checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="coppice-training-") as name:
        folder = Path(name)
        write_job(folder, job, trees)
        with _processes(folder, job) as processes:
            return _Listener(folder, processes).history(on_update)


@contextmanager
def _processes(folder: Path, job: Job) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The running processes, rank by rank; none runs any more after the block."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(job.config.num_processes):
            with _stderr(folder, rank).open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "pipeline_lib.training.processes.training_process",
                            str(folder),
                            str(os.getpid()),
                        ],
                        env=_environment(rank, job),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=log,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _environment(rank: int, job: Job) -> dict[str, str]:
    """What Accelerate reads; settings of its own that happen to be set are left out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    size = str(job.config.num_processes)
    return {
        "OMP_NUM_THREADS": str(job.policy.num_threads),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        **inherited,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }


def _stderr(folder: Path, rank: int) -> Path:
    return folder / f"stderr-{rank}.txt"


class _Listener:
    """Follows the processes' messages, lines of JSON, to the end of the last one."""

    def __init__(self, folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.folder = folder
        self.processes = processes
        self.messages: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self.num_updates = 0
        for rank, process in enumerate(processes):
            threading.Thread(target=self._read, args=(rank, process), daemon=True).start()

    def history(self, on_update: OnUpdate | None) -> list[UpdateMetrics]:
        """All updates, once every process is done."""
        histories: dict[int, list[UpdateMetrics]] = {}
        while len(histories) < len(self.processes):
            rank, line = self.messages.get()
            message: dict[str, Any] = json.loads(line) if line else {}
            if "update" in message:
                self.num_updates = int(message["update"]["update"]) + 1
                if on_update is not None:
                    on_update(message["update"])
            elif "history" in message:
                histories[rank] = message["history"]
            elif "error" in message:
                raise EXPECTED_ERRORS.get(message["kind"], ValueError)(message["error"])
            elif rank not in histories:
                self._raise_death(rank)
        return histories[0]

    def _first_dead(self, noticed: int) -> int:
        """Whose death the others died of: theirs show as exit codes, and their last words are later."""
        self.processes[noticed].wait()
        time.sleep(GRACE_S)
        codes = {rank: code for rank, process in enumerate(self.processes) if (code := process.poll())}
        order = {rank: (code > 0, _stderr(self.folder, rank).stat().st_mtime) for rank, code in codes.items()}
        return min(order, key=lambda rank: order[rank], default=noticed)

    def _read(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Queues each whole line, and b"" at the end."""
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(b"\n"):
                self.messages.put((rank, line))
        self.messages.put((rank, b""))

    def _raise_death(self, noticed: int) -> NoReturn:
        rank = self._first_dead(noticed)
        code = self.processes[rank].wait()
        lines = _stderr(self.folder, rank).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        who = f"training process {rank + 1} of {len(self.processes)}"
        LOGGER.error("%s: the last lines of its stderr:\n%s", who, "\n".join(lines[-LAST_LINES:]))
        if code < 0:
            name = signal.Signals(-code).name
            why = f"was killed by {name}{', often for lack of memory' if name == 'SIGKILL' else ''}"
        else:
            why = f"ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}"
        when = f"after {self.num_updates} updates" if self.num_updates else "before its first update"
        raise TrainingProcessError(f"{who} {why} ({when}); run again, training goes on from the last checkpoint")
