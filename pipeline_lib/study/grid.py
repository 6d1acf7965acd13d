"""What a study runs: every method on every family with every seed, each cell a whole run.

One idea: a cell is an ordinary configuration. Whatever two cells share, such as the base's evaluation or the first
search, has the same key in the store, so it is computed once; and whoever doubts a number repeats one command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from pipeline_lib.config import PipelineConfig, apply_overrides
from pipeline_lib.config.group import ConfigGroup

UNTESTED = ("evaluation.datasets=[]", "evaluation.num_samples=0")
Choice = Mapping[tuple[str, str], int]  # (method, family) to the number of the try that validation chose


class Method(ConfigGroup):
    """One way to make the next policy."""

    name: str = Field(pattern=r"^[\w.+-]+$", description="What the tables call it.")
    kind: Literal["run", "grpo"] = Field(
        "run",
        description="run: this pipeline with other settings; grpo: TRL's GRPO on the same base, problems and grader.",
    )
    settings: tuple[str, ...] = Field((), description="NAME=VALUE each, over the study's own settings.")
    tries: tuple[tuple[str, ...], ...] = Field(
        ((),),
        min_length=1,
        description="Settings that are tried on top of these, NAME=VALUE each; validation chooses one per family.",
    )


class Cell(ConfigGroup):
    """One run of a study.

    Args:
        method: name of the method.
        kind: see `Method`.
        family: dataset that is trained on.
        seed: of the run.
        attempt: which of the method's tries, from 0.
        overrides: all that differs from the study's base, NAME=VALUE each.
        config: the whole configuration that they make.
        options: NAME=VALUE each, of a method that has settings of its own.
        tokens: to be sampled in each iteration, by a method whose budget is set from outside.
    """

    method: str
    kind: Literal["run", "grpo"]
    family: str
    seed: int
    attempt: int
    overrides: tuple[str, ...]
    options: tuple[str, ...] = ()
    tokens: int | None = None
    config: PipelineConfig

    @property
    def label(self) -> str:
        """What people read: ``rft tiny-word seed 0``, with the number of the try after the first."""
        return f"{self.method} {self.family} seed {self.seed}" + (f" try {self.attempt + 1}" if self.attempt else "")

    @property
    def key(self) -> str:
        """Name of the cell's files: of its method, family, seed and all settings that are not their defaults.

        So a setting that is new, and off, leaves results of before what they are.
        """
        settings = self.config.model_dump_json(exclude_defaults=True)
        text = f"{self.kind} {settings} {self.options} {self.tokens}"
        return "-".join((*self.label.split(), hashlib.sha256(text.encode()).hexdigest()[:8]))


class StudyConfig(ConfigGroup):
    """Methods × families × seeds, and what they have in common."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Names the study's folder.")
    question: str = Field("", description="What it is to answer, one sentence.")
    base: PipelineConfig = Field(description="What every cell starts from.")
    families: tuple[str, ...] = Field(
        min_length=1, description="Datasets that are trained on, each in runs of its own."
    )
    seeds: tuple[int, ...] = Field(min_length=1, description="Seeds that each method gets on each family.")
    num_trial_seeds: int = Field(
        1, ge=1, description="How many of them, from the first on, a method's tries are chosen by."
    )
    methods: tuple[Method, ...] = Field(min_length=1, description="What is compared.")
    reference: str = Field(description="Method that the others are compared with, seed by seed.")
    num_parallel: int = Field(1, ge=1, description="Cells that run at once, each in processes of its own.")

    @model_validator(mode="after")
    def _fits_together(self) -> StudyConfig:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError("two methods have one name; the tables could not tell them apart")
        if self.reference not in names:
            raise ValueError(f"reference {self.reference!r} is none of the methods {', '.join(names)}")
        if any(method.kind != "run" for method in self.methods if method.name == self.reference):
            raise ValueError(f"reference {self.reference!r} comes from outside; its budget would be its own result")
        return self

    def trials(self, kind: str) -> Iterator[Cell]:
        """A cell for every try of methods of a kind that have several, with the first seeds: validation chooses.

        No test set is asked.
        """
        for method in self._of(kind):
            for family in self.families:
                for attempt in range(len(method.tries) if len(method.tries) > 1 else 0):
                    for seed in self.seeds[: self.num_trial_seeds]:
                        yield self.cell(method, family, seed, attempt, UNTESTED)

    def cells(self, kind: str, choice: Choice) -> Iterator[Cell]:
        """A cell for every method of a kind, family and seed, with the chosen try: the first where none was chosen."""
        for method in self._of(kind):
            for family in self.families:
                for seed in self.seeds:
                    yield self.cell(method, family, seed, choice.get((method.name, family), 0))

    def _of(self, kind: str) -> list[Method]:
        return [method for method in self.methods if method.kind == kind]

    def cell(self, method: Method, family: str, seed: int, attempt: int, changes: Sequence[str] = ()) -> Cell:
        """The run of one try of a method.

        Args:
            method: one of the study's.
            family: dataset that is trained on.
            seed: of the run.
            attempt: number of the try, from 0.
            changes: to the study's own settings, NAME=VALUE each.
        """
        own = (*method.settings, *method.tries[attempt])
        settings, options = (own, ()) if method.kind == "run" else ((), own)
        overrides = (f"problems.dataset={family}", f"seed={seed}", *settings)
        config = apply_overrides(self.base, [*changes, *overrides])
        cell = Cell(
            method=method.name,
            kind=method.kind,
            family=family,
            seed=seed,
            attempt=attempt,
            overrides=overrides,
            options=options,
            config=config,
        )
        return cell.model_copy(update={"config": config.model_copy(update={"name": f"{self.name}: {cell.label}"})})
