"""`coppice study`: methods against each other, over families and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.command.options import SetOption, load_settings, the_only_one, write_json
from deployments.interrupts import says_how_to_go_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline_lib.study.grid import StudyConfig


def study(
    preset: Annotated[str, typer.Option(metavar="NAME", help="Preset whose study is run: tiny.")] = "tiny",
    question: Annotated[
        str, typer.Option(metavar="NAME", help="What is asked: objectives, verifiers, degradation, endurance or ranks.")
    ] = "objectives",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer problems, seeds and iterations: minutes.")] = False,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    methods: Annotated[
        list[str], typer.Option("--method", metavar="NAME", help="Only this method, beside the reference; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    families: Annotated[
        list[str], typer.Option("--family", metavar="NAME", help="Only what is trained on this dataset; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    seeds: Annotated[
        list[int], typer.Option("--seed", metavar="N", help="These seeds instead of the study's; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    file: Annotated[
        Path | None,
        typer.Option(
            "--methods", metavar="FILE", help="YAML list of methods of your own: name, settings, tries, kind."
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs at once; each takes a core and its memory.")
    ] = 2,
    so_far: Annotated[
        bool, typer.Option("--so-far", help="Run nothing: the tables of the results that are there.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for tables and every run's result, of which none is made twice; in the home if left out.",
        ),
    ] = None,
) -> None:
    """Run a study: methods against each other at equal budgets, over families and seeds; the same command goes on."""
    from deployments.studies import study_of
    from pipeline_lib.config import ConfigError, apply_overrides
    from pipeline_lib.problems.run_sets import check_datasets

    asked = study_of(preset, question, quick=quick)
    asked = asked if file is None else with_methods(asked, file)
    asked = narrowed(asked, methods, families, seeds)
    asked = asked.model_copy(update={"base": apply_overrides(asked.base, overrides), "num_parallel": parallel})
    for kind in ("run", "grpo"):  # a setting that is refused is refused before anything starts
        for cell in (*asked.trials(kind), *asked.cells(kind, {})):
            check_datasets(cell.config)
    settings = load_settings()
    from deployments.service.terminal_server import prefect_of_run

    with says_how_to_go_on(), prefect_of_run(settings) as prefect:
        from prefect.task_runners import ThreadPoolTaskRunner

        from flows.study import run_study
        from pipeline_lib.study.study_page import study_page
        from pipeline_lib.study.study_tables import study_markdown
        from tasks.study.cells import study_folder

        prefect.wait()
        folder = study_folder(asked.name) if output is None else output.resolve()
        with the_only_one(settings, f"study-{asked.name}"):
            runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=parallel)
            flow = run_study.with_options(task_runner=runner)  # type: ignore[arg-type]  # its futures are
            found = flow(asked, folder, so_far)
    if not found["results"]:
        raise ConfigError(f"{folder / 'cells'}: no result of this study is there; without --so-far they are made")
    write_json(folder / f"{asked.name}.json", found)
    text = study_markdown(found)
    (folder / f"{asked.name}.md").write_text(text, encoding="utf-8")
    (folder / f"{asked.name}.html").write_text(study_page(found), encoding="utf-8")
    typer.echo(text)
    typer.echo(f"written to {folder / asked.name}.json, .md and .html")


def narrowed(study: StudyConfig, methods: Sequence[str], families: Sequence[str], seeds: Sequence[int]) -> StudyConfig:
    """A part of a study: what is named, all where nothing is; the reference stays.

    Raises:
        ConfigError: the study has no such method or family.
    """
    from pipeline_lib.config import ConfigError

    for option, named, known in (
        ("--method", methods, [method.name for method in study.methods]),
        ("--family", families, study.families),
    ):
        if unknown := [name for name in named if name not in known]:
            raise ConfigError(f"{option} {unknown[0]}: the study has {', '.join(known)}")
    kept = [method for method in study.methods if not methods or method.name in (*methods, study.reference)]
    return study.model_copy(
        update={
            "methods": tuple(kept),
            "families": tuple(families) or study.families,
            "seeds": tuple(seeds) or study.seeds,
        }
    )


def with_methods(study: StudyConfig, file: Path) -> StudyConfig:
    """A study of the methods in a YAML file in place of its own, beside the reference where the file has none.

    Raises:
        ConfigError: the file is not there or says something else.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from pipeline_lib.config import ConfigError
    from pipeline_lib.study.grid import Method, StudyConfig

    try:
        listed = yaml.safe_load(file.read_text(encoding="utf-8"))
        methods = TypeAdapter(tuple[Method, ...]).validate_python(listed)
        own = {method.name for method in methods}
        reference = [method for method in study.methods if method.name == study.reference and method.name not in own]
        return StudyConfig(**(dict(study) | {"methods": (*methods, *reference)}))
    except OSError as error:
        raise ConfigError(f"--methods {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--methods {file}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"--methods {file}: {place}{': ' if place else ''}{first['msg']}") from None
