"""One self-contained HTML page per run: what ran, what came out, and why it ended.

The page is text, classes and inline SVG, a few hundred kilobytes. It asks nothing of any network, and what a model
wrote reaches it as text only, because the templates escape everything that is not markup of our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import BaseModel

from pipeline_lib.config import PipelineConfig
from pipeline_lib.report.figures import figures_of, gate_chart
from pipeline_lib.report.material import Material, ShownTree
from pipeline_lib.report.page.page_rows import duration_rows, environment_rows, gate_rows, kind_rows
from pipeline_lib.report.page.tree_pictures import Cell, cells_of, depth_of, height_rem
from pipeline_lib.report.sanity import CANNOT_TELL, single_iteration_checks
from pipeline_lib.report.signatures import failure_signatures
from pipeline_lib.report.tables import (
    average_name,
    headline,
    key_figures,
    records_table,
    sampled_rows,
    samples_in_words,
    tested_datasets,
    tested_reports,
    transfer_sentence,
)
from pipeline_lib.report.tree_choice import rewards_in_words
from pipeline_lib.types import GateTrial, Outcome, RunResult

SHOWN_GAINS = (0.0, 0.02, 0.05)  # levels of the gate's chart, beside the gate's own; the table has them all


@dataclass(frozen=True, slots=True)
class TreeView:
    """A tree with all that the template needs to draw it.

    Args:
        tree: its texts and numbers.
        cells: where its steps lie.
        tips: what each node shows when it is pointed at.
        rewards: how its rollouts did, in words.
        hidden: nodes of the whole tree that are not drawn.
        height_rem: height of the picture, in rem.
        columns: steps on the longest drawn path.
    """

    tree: ShownTree
    cells: Sequence[Cell]
    tips: Sequence[str]
    rewards: str
    hidden: int
    height_rem: float
    columns: int


def render_page(
    config: PipelineConfig, result: RunResult, material: Material | None = None, trials: Sequence[GateTrial] = ()
) -> str:
    """The report of a whole run as one HTML text.

    Args:
        config: the run's.
        result: the run's records and the gate's decision.
        material: curves, trees, flips, surroundings; what it lacks the page leaves out.
        trials: the records judged by other gates, see `gate.replay`.
    """
    material, records = material or Material(), result.records
    dataset = config.problems.dataset
    figures = figures_of(records, material.histories, dataset=dataset)
    views = [tree_view(tree) for tree in material.trees]
    trees = [(index, list(group)) for index, group in groupby(views, lambda view: view.tree.iteration)]
    sampled_names, sampled = sampled_rows(records)
    stages, durations = duration_rows(records)
    kind_names, kinds = kind_rows(material.kinds)
    return _template("report.html.jinja").render(
        title=f"Coppice: {config.preset}, {dataset}, seed {config.seed}",
        headline=headline(config, result),
        config=config,
        result=result,
        material=material,
        key_figures=key_figures(config, result),
        audits_passed=all(record.audit.passed for record in records if record.audit),
        signatures=failure_signatures(result, config),
        checks=single_iteration_checks(result, config),
        cannot_tell=CANNOT_TELL,
        datasets=tested_datasets(records),
        rows=records_table(records, result.decision),
        average=average_name(tested_reports(records)),
        sampled_names=sampled_names,
        samples=samples_in_words(config.evaluation),
        sampled=sampled,
        transfer=transfer_sentence(config, result),
        paired=[(record.index, test) for record in records for test in record.paired],
        figures=figures,
        trees=trees,
        trials=gate_rows(trials, config.gate),
        gate_figure=gate_chart(records, dataset, _shown_trials(trials, config)) if trials else "",
        stages=stages,
        durations=durations,
        environment=environment_rows(material.environment),
        finished=material.finished_at,
        changed=changed_settings(config),
        kind_names=kind_names,
        kinds=kinds,
        sections=_sections(figures, material, trials),
    )


def render_plain(title: str, *, figures: Iterable[Markup] = (), trees: Iterable[ShownTree] = ()) -> str:
    """A bare page of charts and trees, for an artifact viewer."""
    views = [tree_view(tree) for tree in trees]
    return _template("plain.html.jinja").render(title=title, figures=list(figures), trees=views)


def tree_view(tree: ShownTree) -> TreeView:
    """A shown tree, laid out, with what each step says when it is pointed at."""
    return TreeView(
        tree=tree,
        cells=cells_of(tree),
        tips=[_tip(tree, node) for node in range(len(tree.parents))],
        rewards=rewards_in_words(tree.values[0] * tree.visits[0], tree.visits[0]),
        hidden=tree.num_nodes - len(tree.parents),
        height_rem=height_rem(tree),
        columns=depth_of(tree),
    )


def changed_settings(config: PipelineConfig) -> list[tuple[str, str, str]]:
    """(name, value, default) of every setting that is not at its default."""
    return _changes(config, type(config)(), "")


def _changes(group: BaseModel, default: BaseModel, prefix: str) -> list[tuple[str, str, str]]:
    changes: list[tuple[str, str, str]] = []
    for name in type(group).model_fields:
        value, usual = getattr(group, name), getattr(default, name)
        if isinstance(value, BaseModel):
            changes += _changes(value, usual, f"{prefix}{name}.")
        elif value != usual:
            changes.append((prefix + name, str(value), str(usual)))
    return changes


def _tip(tree: ShownTree, node: int) -> str:
    """Two lines: visits and value; score and how rollouts ended here."""
    score = f"score {tree.scores[node]:+.2f}" if tree.scores else "no score at hand"
    outcome = Outcome(tree.outcomes[node])
    end = "" if outcome is Outcome.OPEN else f", ends {outcome.name.lower()}"
    return f"{tree.visits[node]} of {tree.visits[0]} rollouts, value {tree.values[node]:.2f}\n{score}{end}"


def _shown_trials(trials: Sequence[GateTrial], config: PipelineConfig) -> list[GateTrial]:
    """Those of the gate's own minimum gain and of `SHOWN_GAINS`: more levels would not be told apart in the chart."""
    shown = {*SHOWN_GAINS, config.gate.min_gain}
    return [trial for trial in trials if trial.min_gain in shown]


def _sections(figures: dict[str, Markup], material: Material, trials: Sequence[GateTrial]) -> list[tuple[str, str]]:
    """(id, name) of the page's sections that are there."""
    sections = [("results", "Results"), ("accuracy", "Accuracy")]
    sections += [("transfer", "Transfer")] if "transfer" in figures else []
    sections += [("training", "Training"), ("audit", "Audit")]
    sections += [("trees", "Search trees")] if material.trees else []
    sections += [("flips", "Answers that flipped")] if material.flips else []
    sections += [("gate", "Early stopping")] if trials else []
    return [*sections, ("run", "What ran")]


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("pipeline_lib.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
