"""A study's tables, made from its results alone: as JSON for programs, as Markdown for people.

Accuracies are in %, differences in points; brackets hold 95 % intervals over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from pipeline_lib.study.cell_result import SEARCHED, CellResult, Measured
from pipeline_lib.study.comparison import Estimate, estimate, paired_differences
from pipeline_lib.study.grid import StudyConfig

Row = dict[str, Any]
PERCENT = 100.0


def study_json(study: StudyConfig, trials: Sequence[CellResult], results: Sequence[CellResult]) -> dict[str, Any]:
    """All that a study found.

    Args:
        study: what was asked.
        trials: one for each try of a method that had several, on each family.
        results: one for each method, family and seed.
    """
    return {
        "study": study.name,
        "preset": study.base.preset,
        "seeds": list(study.seeds),
        "reference": study.reference,
        "question": study.question,
        "base": study.base.model_dump(mode="json"),
        "iterations": accuracy_rows(study, results),
        "transfer": transfer_rows(study, results),
        "diagnostics": diagnostic_rows(study, results),
        "tries": [_trial_row(trial) for trial in trials],
        "results": [result.model_dump(mode="json") for result in results],
    }


def accuracy_rows(study: StudyConfig, results: Sequence[CellResult]) -> list[Row]:
    """Table 1: a row for each family and method, measured on the family that was trained on."""
    return [
        _accuracy_row(study, results, family, method.name)
        for family in study.families
        for method in study.methods
        if _runs(results, method.name, family)
    ]


def transfer_rows(study: StudyConfig, results: Sequence[CellResult]) -> list[Row]:
    """Table 2: a row for each family, method and test set of another family."""
    return [
        _transfer_row(study, results, family, method.name, dataset)
        for family in study.families
        for method in study.methods
        for dataset in sorted({name for run in _runs(results, method.name, family) for name in run.best.accuracy})
        if dataset != family
    ]


def _accuracy_row(study: StudyConfig, results: Sequence[CellResult], family: str, method: str) -> Row:
    runs = _runs(results, method, family)
    best, last = [run.best for run in runs], [run.last for run in runs]

    def accuracy(policies: Sequence[Measured]) -> Row | None:
        return _figures([policy.accuracy.get(family) for policy in policies])

    return {
        "family": family,
        "method": method,
        "seeds": len(runs),
        "accuracy": [accuracy(policies) for policies in _by_iteration(runs)],
        "best": accuracy(best),
        "rises_for": _figures([float(run.rises_for) for run in runs]),
        "sampled": _figures([policy.sampled.get(family) for policy in best]),
        "difference": _difference(study, results, method, family, family),
        "generated_tokens": _mean([policy.generated_tokens for policy in last]),
        "trained_tokens": _mean([policy.trained_tokens for policy in last]),
        "updates": _mean([policy.updates for policy in last]),
        "seconds": _mean([policy.seconds for policy in last]),
    }


def _transfer_row(study: StudyConfig, results: Sequence[CellResult], family: str, method: str, dataset: str) -> Row:
    runs = _runs(results, method, family)
    return {
        "family": family,
        "method": method,
        "dataset": dataset,
        "seeds": len(runs),
        "base": _figures([run.policies[0].accuracy.get(dataset) for run in runs]),
        "best": _figures([run.best.accuracy.get(dataset) for run in runs]),
        "difference": _difference(study, results, method, family, dataset),
    }


def diagnostic_rows(study: StudyConfig, results: Sequence[CellResult]) -> list[Row]:
    """A row for each family, method and iteration: what its search found, and what its training did."""
    return [
        _diagnostic_row(policies, family, method.name, iteration)
        for family in study.families
        for method in study.methods
        for iteration, policies in enumerate(_by_iteration(_runs(results, method.name, family)))
        if any(policy.search for policy in policies)
    ]


def _diagnostic_row(policies: Sequence[Measured], family: str, method: str, iteration: int) -> Row:
    searched = {name: _figures([policy.search.get(name) for policy in policies]) for name in SEARCHED}
    return {
        "family": family,
        "method": method,
        "iteration": iteration,
        **searched,
        "kl": _figures([policy.kl for policy in policies]),
        "negatives_pushed": _figures([policy.negatives_pushed for policy in policies]),
        "accuracy": _figures([policy.accuracy.get(family) for policy in policies]),
    }


class Table(NamedTuple):
    """A table as people read it.

    Args:
        title: what it shows.
        header: names of the columns.
        rows: texts, a row as long as the header.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def study_markdown(found: Mapping[str, Any]) -> str:
    """What `study_json` found, for people.

    Args:
        found: what `study_json` made, also after it was read from a file.
    """
    parts = [how_to_read(found)]
    for table in tables_of(found):
        parts += [f"### {table.title}", markdown_table(table.header, table.rows)]
    return "\n\n".join(parts) + "\n"


def headline_markdown(found: Mapping[str, Any]) -> str:
    """The outcome alone: a row for the base and each method, the best first, with two columns for each family.

    Transfer is the difference on families that were not trained on, over all pairs of one family and seed. Tokens and
    seconds are means over the families, of methods that were run on all.

    Args:
        found: what `study_json` made.
    """
    rows, above = found["iterations"], f"above {found['reference']}"
    families, methods = (list(dict.fromkeys(row[name] for row in rows)) for name in ("family", "method"))
    header = ["method", *(title for family in families for title in (family, above)), f"transfer, {above}"]
    base = {row["family"]: _cell(row["accuracy"][0]) for row in rows}
    body = []
    for method in sorted(methods, key=lambda method: -max(r["best"]["mean"] for r in rows if r["method"] == method)):
        own = {row["family"]: row for row in rows if row["method"] == method}
        cells = [
            (_cell(own[family]["best"]), _difference_cell(own[family]["difference"])) if family in own else ("–", "–")
            for family in families
        ]
        transfer = _difference_cell(_over_families(found["transfer"], method))
        costs = [
            f"{_mean([row[name] for row in own.values()]):,.0f}" if len(own) == len(families) else "–"
            for name in ("generated_tokens", "seconds")
        ]
        body.append([method, *chain(*cells), transfer, *costs])
    first = ["base", *chain(*((base[family], "") for family in families)), "", "", ""]
    return markdown_table([*header, "tokens sampled", "seconds"], [first, *body])


def _over_families(rows: Sequence[Row], method: str) -> Row | None:
    """A method's difference to the reference over all rows, each family and seed a pair."""
    differences = [row["difference"] for row in rows if row["method"] == method and row["difference"] is not None]
    return _figures([value for difference in differences for value in difference["by_seed"]])


def how_to_read(found: Mapping[str, Any]) -> str:
    """What was asked, and what the numbers of the tables are."""
    asked = f"{found['question']} " if found["question"] else ""
    return (
        f"{asked}Preset {found['preset']}, seeds {', '.join(map(str, found['seeds']))}. Greedy accuracy in %, ± half "
        "the 95 % interval over seeds (Student). best: the policy that validation chose. difference: best less that of "
        f"{found['reference']}, in points, seed by seed. rises for: iterations until validation accuracy first falls, "
        "mean. Tokens, updates and seconds: of searching and training, all iterations together. Tries were made with "
        "the seeds that their table names, and validation chose: by the mean over these."
    )


def tables_of(found: Mapping[str, Any]) -> list[Table]:
    """Accuracy on each family, transfer, what searches and trainings did, and the tries.

    Args:
        found: what `study_json` made.
    """
    reference = found["reference"]
    families = list(dict.fromkeys(row["family"] for row in found["iterations"]))
    tables = [
        _accuracy_table(family, [row for row in found["iterations"] if row["family"] == family], reference)
        for family in families
    ]
    if found["transfer"]:
        tables.append(_transfer_table(found["transfer"], reference))
    if len(families) > 1:
        tables.append(_families_table(found))
    if found["diagnostics"]:
        tables.append(_diagnostics_table(found["diagnostics"]))
    if found["tries"]:
        tables.append(_tries_table(found["tries"]))
    return tables


def _accuracy_table(family: str, rows: Sequence[Row], reference: str) -> Table:
    longest = max(len(row["accuracy"]) for row in rows)
    header = ["method", "base", *map(str, range(1, longest)), "best", "sampled", f"difference to {reference}"]
    header += ["rises for"]
    header += ["tokens sampled", "tokens trained", "updates", "seconds"]
    body = [
        [
            row["method"],
            *(_cell(figures) for figures in row["accuracy"]),
            *([""] * (longest - len(row["accuracy"]))),
            _cell(row["best"]),
            _cell(row["sampled"]),
            _difference_cell(row["difference"]),
            f"{row['rises_for']['mean']:.1f}",
            *(f"{row[name]:,.0f}" for name in ("generated_tokens", "trained_tokens", "updates", "seconds")),
        ]
        for row in rows
    ]
    return Table(f"Trained and tested on {family}", header, body)


def _transfer_table(rows: Sequence[Row], reference: str) -> Table:
    header = ["trained on", "tested on", "method", "base", "best", f"difference to {reference}"]
    names = ("family", "dataset", "method")
    body = [
        [*(row[name] for name in names), _cell(row["base"]), _cell(row["best"]), _difference_cell(row["difference"])]
        for row in rows
    ]
    return Table("Transfer", header, body)


def _families_table(found: Mapping[str, Any]) -> Table:
    reference = found["reference"]
    methods = dict.fromkeys(row["method"] for row in found["iterations"] if row["method"] != reference)
    body = []
    for method in methods:
        own, other = (_over_families(found[name], method) for name in ("iterations", "transfer"))
        if own is not None:
            body.append([method, str(own["seeds"]), _difference_cell(own), _difference_cell(other)])
    title = f"Difference to {reference} over families, each family and seed a pair"
    return Table(title, ["method", "pairs", "on what it was trained on", "on the others"], body)


def _diagnostics_table(rows: Sequence[Row]) -> Table:
    header = ["trained on", "method", "iteration", "rollouts right", "solved", "all right", "steps a problem"]
    header += ["tokens a rollout", "KL", "negatives pushed", "accuracy after"]
    body = [
        [
            *(str(row[name]) for name in ("family", "method", "iteration")),
            *(_cell(row[name]) for name in ("right", "solved", "all_right")),
            *(_number(row[name], 1) for name in ("distinct_steps", "tokens_per_rollout")),
            *(_number(row[name], 3) for name in ("kl", "negatives_pushed")),
            _cell(row["accuracy"]),
        ]
        for row in rows
    ]
    return Table("What each iteration's search found and its training did", header, body)


def _tries_table(rows: Sequence[Row]) -> Table:
    header = ["method", "family", "try", "seed", "validation", "iteration", "settings"]
    body = [
        [
            row["method"],
            row["family"],
            str(row["try"]),
            str(row["seed"]),
            "–" if row["validation"] is None else f"{PERCENT * row['validation']:.1f}",
            str(row["iteration"]),
            ", ".join(f"`{setting}`" for setting in row["settings"]),
        ]
        for row in rows
    ]
    return Table("Tries", header, body)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; a bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _runs(results: Iterable[CellResult], method: str, family: str) -> list[CellResult]:
    return [result for result in results if (result.method, result.family) == (method, family)]


def _by_iteration(runs: Sequence[CellResult]) -> list[list[Measured]]:
    """The policies of all runs after each iteration; a run that ended earlier stays where it was."""
    longest = max((len(run.policies) for run in runs), default=0)
    return [[run.policies[min(index, len(run.policies) - 1)] for run in runs] for index in range(longest)]


def _figures(values: Sequence[float | None]) -> Row | None:
    """Mean and interval of the values that are there; None where none is."""
    there = [value for value in values if value is not None]
    return _as_json(estimate(there)) if there else None


def _difference(
    study: StudyConfig, results: Sequence[CellResult], method: str, family: str, dataset: str
) -> Row | None:
    values = paired_differences(results, method, study.reference, family, dataset)
    return _as_json(estimate(values)) | {"by_seed": values} if values and method != study.reference else None


def _as_json(value: Estimate) -> Row:
    """JSON has no nan: what has no interval has null for it."""
    interval = None if math.isnan(value.half) else list(value.interval)
    return {"mean": value.mean, "interval": interval, "seeds": value.num_seeds}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _trial_row(trial: CellResult) -> Row:
    return {
        "method": trial.method,
        "family": trial.family,
        "try": trial.attempt + 1,
        "seed": trial.seed,
        "validation": trial.best.validation,
        "iteration": trial.champion,
        "settings": list(trial.overrides),
    }


def _number(figures: Mapping[str, Any] | None, digits: int) -> str:
    return "–" if figures is None else f"{figures['mean']:.{digits}f}"


def _cell(figures: Mapping[str, Any] | None) -> str:
    """``74.0 ±9.9``."""
    if figures is None:
        return "–"
    mean, interval = PERCENT * figures["mean"], figures["interval"]
    return f"{mean:.1f}" if interval is None else f"{mean:.1f} ±{PERCENT * (interval[1] - interval[0]) / 2:.1f}"


def _difference_cell(figures: Mapping[str, Any] | None) -> str:
    """``+2.0 [0.5, 3.5]``."""
    if figures is None:
        return "–"
    mean, interval = PERCENT * figures["mean"], figures["interval"]
    ends = "" if interval is None else f" [{PERCENT * interval[0]:+.1f}, {PERCENT * interval[1]:+.1f}]"
    return f"{mean:+.1f}{ends}"
