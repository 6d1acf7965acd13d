"""One of several processes that train together, started with a folder and its parent's process id.

Its stdout is for messages to the parent only, lines of JSON: each update (from rank 0), at last the
history, or an error that the caller is promised. Whatever else is printed goes to stderr. It exits at once when the
parent is gone, and without cleaning up when it fails, so that the others hear of it first.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pipeline_lib.training.processes.team import Team

RENDEZVOUS = "rendezvous"
WATCH_EVERY_S = 0.5
TIMEOUT = timedelta(days=1)  # the parent sees deaths; one process may long write a checkpoint while the others wait
FAILED = 1


def main() -> None:
    """Trains as one of the team."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_exit_with_parent, args=(parent, folder), daemon=True).start()
    send = _sender()
    try:
        _train(folder, send)
    except (ValueError, FloatingPointError) as error:
        traceback.print_exc()
        send({"error": str(error), "kind": type(error).__name__})
        _exit(FAILED)
    except BaseException:  # also a message that nobody reads any more
        traceback.print_exc()
        _exit(FAILED, folder if os.getppid() != parent else None)
    _exit(0)


def _train(folder: Path, send: Callable[[dict[str, Any]], None]) -> None:
    from pipeline_lib.training.processes.job import read_job

    job, trees = read_job(folder)
    from pipeline_lib.training.trainer import take_updates

    team, device = _join(folder, job.policy.device)
    job = replace(job, policy=job.policy.model_copy(update={"device": device}))
    on_update = (lambda update: send({"update": update})) if team.writes else None
    send({"history": take_updates(job, trees, on_update, team)})


def _join(folder: Path, device: str) -> tuple[Team, str]:
    """The team, once all of it are there, and this process's own device."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import check_cuda_p2p_ib_support

    from pipeline_lib.policy.devices import resolve_device
    from pipeline_lib.training.processes.team import Team

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    is_cpu = resolve_device(device).type == "cpu"
    if not is_cpu:
        torch.cuda.set_device(rank)
        if not check_cuda_p2p_ib_support():  # Accelerate refuses such cards otherwise
            os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    torch.distributed.init_process_group(
        "gloo" if is_cpu else "nccl",
        init_method=f"file://{folder / RENDEZVOUS}",
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    accelerator = Accelerator(cpu=is_cpu, mixed_precision="no")
    return Team(rank, size, accelerator), "cpu" if is_cpu else f"cuda:{rank}"


def _sender() -> Callable[[dict[str, Any]], None]:
    """Writes to what was stdout; prints go to stderr from now on."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    return send


def _exit_with_parent(parent: int, folder: Path) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_EVERY_S)
    _exit(FAILED, folder)


def _exit(code: int, orphaned: Path | None = None) -> NoReturn:
    """Ends the process; removes the folder that a parent which was killed could not."""
    if orphaned is not None:
        shutil.rmtree(orphaned, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
