"""Prefect's engine in a process that has imported everything already: a fork of one that did.

One idea: a flow run of a deployment spends most of its seconds on imports. Tests that start many let the worker run
this file's client instead of `python -m prefect.engine`: what runs then is the same engine in a process of its own, and
the client ends as it ends, by the same code or the same signal. Whoever kills the client kills it too.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

IMPORTED_ONCE = (
    "prefect.flow_engine",
    "flows.self_training",
    "mlflow",
    "peft",
    "transformers.models.qwen2.modeling_qwen2",
    "pipeline_lib.training.loop",
)
SIZE, CODE = struct.Struct("!I"), struct.Struct("!i")


def command(path: Path) -> str:
    """What a worker runs instead of the engine; `path` is the socket of `serve`."""
    return f"{sys.executable} -S {__file__} run {path}"


def serve(path: str) -> NoReturn:
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(supervise(connection))
            connection.close()


def supervise(connection: socket.socket) -> int:
    """Runs one engine, and tells the client how it ended."""
    head, descriptors, _, _ = socket.recv_fds(connection, SIZE.size, 2)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(SIZE.unpack(head)[0]))
    engine = os.fork()
    if engine == 0:
        become_engine(request, descriptors)
    while True:
        done, status = os.waitpid(engine, os.WNOHANG)
        if done:
            connection.sendall(CODE.pack(os.waitstatus_to_exitcode(status)))
            return 0
        if select.select([connection], [], [], 0.05)[0]:  # the client is gone
            os.kill(engine, signal.SIGKILL)
            os.waitpid(engine, 0)
            return 0


def become_engine(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    os.setsid()
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["prefect.engine"]
    runpy.run_module("prefect.engine", run_name="__main__")
    sys.exit()


def run(path: str) -> NoReturn:
    """The client."""
    request = json.dumps({"environment": dict(os.environ), "folder": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [SIZE.pack(len(request))], [1, 2])
        connection.sendall(request)
        answer = connection.recv(CODE.size)
    (code,) = CODE.unpack(answer)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    {"serve": serve, "run": run}[sys.argv[1]](sys.argv[2])
