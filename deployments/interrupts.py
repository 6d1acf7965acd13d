"""What becomes of Ctrl-C, and of the SIGTERM of Slurm, Docker and Kubernetes: one line says how to go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

SIGNALLED = 128  # plus the signal's number: the exit code that shells and schedulers know


class Terminated(BaseException):
    """SIGTERM, raised where it arrived, as Python raises KeyboardInterrupt for SIGINT."""


@contextmanager
def says_how_to_go_on() -> Iterator[None]:
    """Ends the command with 130 after Ctrl-C, with 143 after SIGTERM; everything inside has been left in order by then.

    Raises:
        typer.Exit: one of the two arrived.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except (KeyboardInterrupt, Terminated) as interrupt:
        number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
        typer.echo("coppice: interrupted; finished stages are kept, the same command goes on from there", err=True)
        raise typer.Exit(SIGNALLED + number) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
