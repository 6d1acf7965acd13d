"""One process of a team that trains one job after the other: a process takes longer to start than to train.

Usage: ``python training_team.py FOLDER JOBS…``, in the environment that `processes` gives a worker; rank 0 leaves
``history.json`` beside each job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline_lib.training.processes.job import read_job
from pipeline_lib.training.processes.training_process import _join
from pipeline_lib.training.trainer import take_updates

if __name__ == "__main__":
    team, _ = _join(Path(sys.argv[1]), "cpu")
    for folder in map(Path, sys.argv[2:]):
        history = take_updates(*read_job(folder), None, team)
        if team.writes:
            (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")
