"""Rows that only the page has: what other gates would have done, how long each stage took, what ran where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline_lib.config import GateConfig
from pipeline_lib.report.material import KindAccuracy
from pipeline_lib.report.tables import counted, format_kind, format_number
from pipeline_lib.types import GateTrial, IterationRecord


@dataclass(frozen=True, slots=True)
class GateCell:
    """What one gate would have done.

    Args:
        stop: ``goes on`` or ``stops after`` an iteration.
        champion: ``the base`` or the iteration that it would have taken.
        is_own: whether it is the gate of the run.
    """

    stop: str
    champion: str
    is_own: bool


@dataclass(frozen=True, slots=True)
class GateRow:
    """Gates of one minimum gain, by rising patience.

    Args:
        name: the minimum gain, in points.
        patiences: one per cell.
        cells: what each of the gates would have done.
    """

    name: str
    patiences: tuple[int, ...]
    cells: tuple[GateCell, ...]


def duration_rows(records: Sequence[IterationRecord]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The stages, and for every iteration its name and the seconds of each stage and of all."""
    stages = list(dict.fromkeys(stage for record in records for stage in record.seconds))
    rows = [
        (
            "base" if record.index == 0 else str(record.index),
            [
                *(format_number(record.seconds.get(stage), ".1f") for stage in stages),
                f"{sum(record.seconds.values()):.0f}",
            ],
        )
        for record in records
    ]
    return stages, rows


def kind_rows(kinds: Sequence[KindAccuracy]) -> tuple[list[str], list[list[str]]]:
    """The iterations, and for every kind its test set, name, size, and accuracy ± half its 95 % interval of each."""
    indices = sorted({index for kind in kinds for index in kind.num_correct})
    rows = [
        [kind.dataset, kind.kind, str(kind.num_problems), *(format_kind(kind, index) for index in indices)]
        for kind in kinds
    ]
    return ["base" if index == 0 else str(index) for index in indices], rows


def gate_rows(trials: Sequence[GateTrial], own: GateConfig) -> list[GateRow]:
    """One row per minimum gain, one cell per patience."""
    patiences = tuple(sorted({trial.patience for trial in trials}))
    rows = []
    for min_gain in sorted({trial.min_gain for trial in trials}):
        mine = sorted((t for t in trials if t.min_gain == min_gain), key=lambda trial: trial.patience)
        cells = tuple(_gate_cell(t, (t.min_gain, t.patience) == (own.min_gain, own.patience)) for t in mine)
        rows.append(GateRow(counted(100 * min_gain, "point"), patiences, cells))
    return rows


def environment_rows(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and value of hardware, code and versions."""
    names = {"mlflow.source.git.commit": "commit", "hardware/cpu": "CPU", "hardware/gpu": "GPU"}
    names |= {"hardware/memory_gib": "memory, GiB", "version/python": "Python"}
    values = dict(environment)
    if values.pop("git/dirty", "") == "true" and "mlflow.source.git.commit" in values:
        values["mlflow.source.git.commit"] = f"{values['mlflow.source.git.commit'][:12]} and uncommitted changes"
    return [(names.get(name, name.rpartition("/")[2]), value) for name, value in sorted(values.items())]


def _gate_cell(trial: GateTrial, is_own: bool) -> GateCell:
    stop = "goes on" if trial.stopped_after is None else f"stops after {trial.stopped_after}"
    champion = "the base" if trial.champion == 0 else str(trial.champion)
    return GateCell(stop, champion, is_own)
