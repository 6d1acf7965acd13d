"""The flow as the tests deploy it: the real one, in a process in which chosen stages fail or wait, once.

One idea: a stage ends by committing its entry, so that is where it is caught. The file ``<folder>/<stage>`` says
what happens to the next commit of that stage: ``raise``, or ``wait`` until the file is gone; ``2 raise`` lets two pass.
Every commit that is tried adds the stage's name to ``<folder>/tried``; ``<folder>/process`` holds the process id.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pipeline_lib.store import Entry

FAULTS = Path(os.environ["COPPICE_TEST_FAULTS"])
(FAULTS / "process").write_text(str(os.getpid()))
commit = Entry.commit


def commit_or_fail(self: Entry, *args: Any, **kwargs: Any) -> Any:
    stage = self.path.parent.name
    with (FAULTS / "tried").open("a") as tried:
        tried.write(f"{stage}\n")
    fault = FAULTS / stage
    if fault.exists():
        *passes, action = fault.read_text().split()
        left = int(passes[0]) if passes else 0
        if left:
            fault.write_text(f"{left - 1} {action}")
        elif action == "raise":
            fault.unlink()
            raise RuntimeError(f"{stage} was told to fail")
        else:
            (FAULTS / "waiting").write_text(f"{stage} {os.getpid()}")
            while fault.exists():
                time.sleep(0.05)
            (FAULTS / "waiting").unlink()
    return commit(self, *args, **kwargs)


Entry.commit = commit_or_fail  # type: ignore[method-assign]

from flows.self_training import self_training  # noqa: E402 - after the stages can fail

__all__ = ["self_training"]
