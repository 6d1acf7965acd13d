"""The `coppice` command.

One idea: it starts at once. Everything but typer is imported by the subcommand that needs it, so
that ``--help`` and every refusal of a bad setting take a fraction of a second.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments import champion, operate

if TYPE_CHECKING:
    from pipeline_lib.config import PipelineConfig, Settings

OUR_PACKAGES = ("deployments", "flows", "pipeline_lib", "tasks")
ROOT = Path(__file__).resolve().parents[1]
USER_ERROR, OTHER_ERROR = 2, 1

app = typer.Typer(
    help="A language model improves its own step-by-step reasoning: search, score, audit, train, evaluate, repeat.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

PresetOption = Annotated[str, typer.Option(help="Named configuration to start from.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="Change one setting, as search.c_uct=0.5; repeatable.")
]
ModelOption = Annotated[str | None, typer.Option(help="Model folder or hub name; short for --set policy.model=….")]


@app.command()
def run(
    preset: PresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    summary: Annotated[Path | None, typer.Option(help="Write the results to this file as JSON.")] = None,
) -> None:
    """Run the whole loop and print what every iteration changed."""
    config = build_config(preset, overrides, model)
    settings = _prepare(summary)
    from deployments import terminal
    from flows.self_training import self_training
    from pipeline_lib.tracking import tracking_uri
    from tasks.runner import check_runner
    from tasks.train import check_training

    check_runner(config)
    check_training(config)

    with terminal.show_progress():
        result = self_training(config)
    if summary is not None:
        _write_json(summary, terminal.summary_json(result, config))
    terminal.print_result(result, config, tracking_uri=tracking_uri(settings))


@app.command()
def evaluate(
    preset: PresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder; without it the model alone.")] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    summary: Annotated[Path | None, typer.Option(help="Write the reports to this file as JSON.")] = None,
) -> None:
    """Measure one policy on every dataset of the configuration."""
    from pipeline_lib.config import ConfigError

    config = build_config(preset, overrides, model)
    if split not in ("validation", "test"):
        raise ConfigError(f"--split {split}: expected validation or test")
    if adapter is not None and not adapter.is_dir():
        raise ConfigError(f"--adapter {adapter}: no such folder")
    _prepare(summary)
    from deployments import terminal
    from flows.evaluate_policy import evaluate_policy

    with terminal.show_progress():
        reports = evaluate_policy(config, adapter_dir=adapter and str(adapter.resolve()), split=split)
    if summary is not None:
        _write_json(summary, [report.model_dump(mode="json") for report in reports])
    terminal.print_reports(reports)


@app.command()
def grade(
    input_file: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="JSONL with the texts `gold` and `prediction` in every row.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Gets the same rows with `grade` and `answer`, replaced if present.")
    ],
    grader: Annotated[str, typer.Option(help="math, or your own my_package.my_module:verify.")] = "math",
    dataset: Annotated[str, typer.Option(help="Whose conventions hold: gsm8k, math, file, ...")] = "math",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; half of the cores if left out.")] = None,
) -> None:
    """Grade a file of answers: each is correct, wrong, unparsed or timeout."""
    from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
    from tasks.grading import conventions_of

    for override in overrides:
        if not override.startswith("grading."):
            raise ConfigError(f"--set {override}: only grading.* changes anything here, as grading.percent=unit")
    conventions = conventions_of(apply_overrides(PipelineConfig(), overrides), dataset)
    _prepare(output)
    from deployments import terminal
    from deployments.grade import grade_file, print_counts

    with terminal.show_progress():
        counts = grade_file(input_file, output, conventions=conventions, grader=grader, num_workers=workers)
    print_counts(counts)


@app.command()
def report(
    run_id: Annotated[
        str | None, typer.Option("--run", help="MLflow run id; the latest finished run if left out.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about a finished run."""
    settings = _prepare(output)
    from pipeline_lib.tracking import load_run
    from tasks.report import load_material, render_report

    config, result = load_run(settings, run_id)
    output.write_text(render_report(config, result, load_material(settings, result)), encoding="utf-8")
    typer.echo(f"wrote {output}")


@app.command()
def bench(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the ratios to this file.")] = None,
    only: Annotated[str | None, typer.Option(help="One part: search, grading, flow, cluster, vllm or gpu.")] = None,
) -> None:
    """Measure throughput against simpler schedules, as ratios on this machine."""
    from pipeline_lib.config import ConfigError

    folder = ROOT / "tests" / "benchmarks"
    if not (folder / "__main__.py").is_file():
        raise ConfigError(f"bench: {folder} has no benchmarks; run it from a checkout installed with pip install -e .")
    _prepare(json_file)
    arguments = [] if json_file is None else ["--json", str(json_file.resolve())]
    arguments += [] if only is None else ["--only", only]
    raise typer.Exit(subprocess.run([sys.executable, str(folder), *arguments], cwd=ROOT, check=False).returncode)


@app.command()
def build_base(
    output: Annotated[Path, typer.Option(help="Becomes the model folder.")] = Path("tiny-base"),
    scale: Annotated[int, typer.Option(min=1, help="Size of model and numbers; 1 is the base that comes along.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and corpus.")] = 0,
    num_threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
) -> None:
    """Pretrain a tiny base: the policy that the tiny world starts from."""
    _prepare(None)
    from deployments import terminal
    from flows.build_base import build_base as flow
    from pipeline_lib.config import ConfigError

    if any(path.exists() and not path.is_dir() for path in (output, *output.resolve().parents)):
        raise ConfigError(f"{output}: cannot be written; name a folder, or one that can be made")

    with terminal.show_progress():
        accuracies = flow(output.resolve(), scale=scale, seed=seed, num_threads=num_threads)
    for dataset, accuracy in accuracies.items():
        typer.echo(f"{dataset} {accuracy:.1%} greedy on validation")


def build_config(preset: str, overrides: list[str], model: str | None = None) -> PipelineConfig:
    """The preset with every ``--set`` applied, the model last.

    Raises:
        ConfigError: an unknown preset or setting (the nearest one is named), or a value out of bounds.
    """
    from deployments import presets
    from pipeline_lib.config import ConfigError, apply_overrides
    from pipeline_lib.policy.models import model_path
    from pipeline_lib.problems.formats import format_of

    names = list(presets.preset_names())
    if preset not in names:
        nearest = difflib.get_close_matches(preset, names, n=1, cutoff=0.0)[0]
        raise ConfigError(f"--preset {preset}: there is none of that name; the nearest is {nearest!r}")
    chosen = [] if model is None else [f"policy.model={json.dumps(model)}"]
    config = apply_overrides(presets.preset(preset), [*overrides, *chosen])
    for dataset in (config.problems.dataset, *(name.partition("=")[0] for name in config.evaluation.datasets)):
        format_of(dataset)
    model_path(config.policy.model)
    return config


champion.add_to(app)
operate.add_to(app)


def describe_error(error: Exception) -> tuple[str, int]:
    """One line about `error`, and the exit code: 2 when the user can put it right, else 1.

    An error class of our own promises a message that says what to do; any other one names itself.
    """
    text = " ".join(str(error).split())
    if type(error).__module__.partition(".")[0] in OUR_PACKAGES:
        return f"coppice: {text}", USER_ERROR
    return f"coppice: {type(error).__name__}: {text or 'no message'} (COPPICE_DEBUG=1 shows where)", OTHER_ERROR


def main() -> None:
    """Entry point: errors become one line on stderr; COPPICE_DEBUG=1 shows the traceback instead."""
    try:
        app()
    except Exception as error:
        if _debug():
            raise
        line, code = describe_error(error)
        typer.echo(line, err=True)
        sys.exit(code)


def _prepare(output: Path | None) -> Settings:
    from deployments.environment import prepare_environment
    from pipeline_lib.config import ConfigError, Settings

    # A run takes minutes: what it shall be written to is checked before, not after.
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise ConfigError(f"{output}: cannot be written; name a file in an existing folder")
    settings = Settings()
    prepare_environment(settings, debug=_debug())
    return settings


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _debug() -> bool:
    return os.environ.get("COPPICE_DEBUG", "") not in ("", "0")


if __name__ == "__main__":
    main()
