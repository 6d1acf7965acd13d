from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_fixtures import OTHER, TRAINED, make_audit, make_record, make_result, with_samples
from tree_fixtures import make_tree

from pipeline_lib.config import GateConfig, PipelineConfig
from pipeline_lib.evaluation.statistics import wilson_interval
from pipeline_lib.gate import calibration_grid, replay
from pipeline_lib.report import Material, figures_of, findings_markdown, render_page, render_plain
from pipeline_lib.report.answers.by_kind import MAX_KINDS, accuracy_by_kind
from pipeline_lib.report.answers.flips import EXAMPLES_PER_KIND, summarise_flips
from pipeline_lib.report.material import MAX_ANSWER_CHARS, MAX_UPDATES, ShownTree, bounded_history
from pipeline_lib.report.metrics import is_headline, record_metrics, update_points, version_scores
from pipeline_lib.report.notes import results_markdown
from pipeline_lib.report.page.page_rows import gate_rows
from pipeline_lib.report.page.render import changed_settings
from pipeline_lib.report.page.tree_pictures import show_tree
from pipeline_lib.report.tables import DASH, format_seconds, records_table, sampled_rows
from pipeline_lib.types import NO_PARENT, Grade, IterationRecord, Outcome, Problem

CONFIG = PipelineConfig()
HOSTILE = "<script>alert('model')</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}\n"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page as a browser reads it: what it would load, its scripts, its tree nodes; unclosed tags raise."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.tags: dict[str, int] = {}
        self.nodes: list[dict[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags[tag] = self.tags.get(tag, 0) + 1
        urls = [values.get(key) or "" for key in ("src", "href", "action", "data", "poster", "srcset")]
        self.loaded += [url for url in urls if url and not url.startswith(("data:,", "#"))]
        self.handlers += [name for name in values if name.startswith("on")]
        if "node" in (values.get("class") or "").split():
            self.nodes.append(values)
        if tag not in VOID and not (self._open and self._open[-1] == "svg" and tag in ("line", "circle")):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data


class Prediction:
    def __init__(self, problem_id: str, right: bool, text: str = "so 4") -> None:
        self.problem_id, self.text, self.answer = problem_id, text, "4"
        self.grade = Grade.CORRECT if right else Grade.WRONG


def make_problem(problem_id: str, question: str = "2 + 2?") -> Problem:
    return Problem(problem_id=problem_id, question=question, answer="4", dataset=TRAINED)


def make_shown(step: str = "2 + 2 = 4\n", *, iteration: int = 1, problem_id: str = "w/train/1") -> ShownTree:
    rows = [(NO_PARENT, 4, 2.0), (0, 3, 2.0), (0, 1, 0.0, Outcome.WRONG), (1, 2, 2.0, Outcome.CORRECT)]
    tree = make_tree(*rows, problem_id=problem_id)
    object.__setattr__(tree, "steps", ("", step, "b\n", "c\n"))
    scores = tree.value_sums - 1
    return show_tree(tree, scores, make_problem(problem_id, step), iteration=iteration, kind="evenly split")


def make_material(text: str = "so 4") -> Material:
    problems = {name: make_problem(name, text) for name in ("a", "b")}
    answers = {i: [Prediction(name, right, text) for name in problems] for i, right in ((0, False), (1, True))}
    return Material(
        environment={"version/torch": "2.13.0", "mlflow.source.git.commit": "abc", "hardware/cores": "2"},
        finished_at="2026-11-05 10:00 UTC",
        histories={1: ({"loss": 0.5, "kl": 0.0}, {"loss": 0.25, "kl": 0.01})},
        trees=(make_shown(text),),
        flips=(summarise_flips(TRAINED, problems, answers),),
    )


def render(*records: IterationRecord, champion: int = 1, material: Material | None = None) -> str:
    result = make_result(records, champion=champion)
    return render_page(CONFIG, result, material, replay(records, calibration_grid(CONFIG.gate), dataset=TRAINED))


def test_rows_hold_the_numbers_of_the_records_and_a_dash_where_there_is_none() -> None:
    base, first = records_table([make_record(0), make_record(1)], make_result([make_record(0)]).decision)
    assert base.name == "base"
    assert base.accuracies == {"tiny-word": "50.0 ±10.0", "tiny-algebra": "50.0 ±10.0"}
    assert (base.informative_share, base.variance, base.kl, base.tokens) == (DASH,) * 4
    assert (first.informative_share, first.variance, first.kl, first.tokens) == ("40 %", "0.125", "0.062", "12,345")
    assert (first.seconds, base.decision, first.decision) == ("5", "", "champion")


def test_an_iteration_that_the_audit_stopped_is_marked() -> None:
    result = make_result([make_record(0), make_record(1, passed=False)], champion=0)
    rows = records_table(result.records, result.decision)
    assert [row.decision for row in rows] == ["champion", "not trained"]
    assert rows[1].accuracies == {"tiny-word": DASH, "tiny-algebra": DASH}


def test_the_mean_of_samples_stands_beside_greedy_with_its_interval() -> None:
    records = [with_samples(make_record(0)), with_samples(make_record(1), 0.6)]
    names, rows = sampled_rows(records)
    assert names == ["greedy", "avg@4", "maj@4", "pass@4"]
    assert rows[2] == ["1", TRAINED, "51.0 ±10.0", "60.0 ±5.0", "70.0", "90.0"]
    page = Page(render(*records))
    assert page.text.count("avg@4, %") == 3  # one column for each test set, and the table of sampled answers
    assert "60.0 ±5.0" in page.text
    head, _, base, _ = results_markdown(records, None)
    assert f"| {TRAINED} | {TRAINED} avg@4 | {OTHER} | {OTHER} avg@4 |" in head
    assert "| 50.0 ±10.0 | 40.0 ±5.0 |" in base
    assert "avg@4" not in results_markdown([make_record(0)], None)[0]


def test_the_mean_of_samples_is_a_metric_of_every_iteration_and_a_score_of_its_version() -> None:
    metrics = record_metrics(with_samples(make_record(1), 0.6))
    expected = {"": 0.6, "_low": 0.55, "_high": 0.65}
    name = f"eval/{TRAINED}/avg_at_4"
    assert {end: metrics[name + end] for end in expected} == pytest.approx(expected)
    assert metrics[f"eval/{TRAINED}/mean"] == 0.6  # the name that older runs have
    assert is_headline(name)
    assert version_scores(metrics)[f"{name}_low"] == pytest.approx(0.55)


def test_samples_of_older_runs_are_shown_as_they_were_named() -> None:
    record = make_record(1)
    sampled = {"mean": 0.6, "maj@4": 0.7}
    old = [report.model_copy(update={"sampled": sampled}) for report in record.evaluations]
    names, rows = sampled_rows([record.model_copy(update={"evaluations": tuple(old)})])
    assert (names, rows[0][3:]) == (["greedy", "mean", "maj@4"], ["60.0", "70.0"])


def test_charts_for_each_dataset_transfer_training_and_every_audit() -> None:
    history = [{"loss": 0.5, "kl": 0.0}, {"loss": 0.25}]
    figures = figures_of([make_record(0), make_record(1), make_record(2)], {1: history})
    expected = {f"accuracy-{TRAINED}", f"accuracy-{OTHER}", "transfer", "loss", "kl", "informative", "variance"}
    assert set(figures) == expected | {"scores-1", "scores-2"}
    assert "validation, read by the gate" in figures[f"accuracy-{TRAINED}"]
    assert "validation" not in figures[f"accuracy-{OTHER}"]
    assert "iteration 2, test\n52.0 % of 100, 95 % interval 42.0 to 62.0" in figures[f"accuracy-{TRAINED}"]
    assert "tiny-algebra, never trained on" in figures["transfer"]
    assert "-1 to 0\n5 steps" in figures["scores-1"]
    assert update_points(history)[-1] == ("train/update/loss", 2, 0.25)
    assert set(figures_of([make_record(0)])) == {f"accuracy-{TRAINED}", f"accuracy-{OTHER}"}
    assert figures_of([make_record(1, passed=False)]).keys() == {"scores-1"}


def test_the_page_is_one_small_file_that_loads_nothing_and_says_what_ran() -> None:
    text = render(make_record(0), make_record(1, direct=0.2), make_record(2), material=make_material())
    page = Page(text)
    assert (page.loaded, page.handlers) == ([], [])
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|//[a-z]+\.[a-z]", text)
    assert len(text.encode()) <= 200_000
    shown = ("tiny-word: 50.0 to 70.0 % in 1 iteration", "Champion: iteration 1.", "70.0 ±10.0", "all iterations done")
    shown += ("4 of 10 problems are informative", "2.13.0", "2026-11-05", "+20.0 points", "wrong, then right")
    for part in shown:
        assert part in page.text, part


def test_what_a_model_wrote_reaches_the_page_as_text() -> None:
    record = make_record(1, audit=make_audit(reason=HOSTILE))
    harmless = Page(render(make_record(0), make_record(1), material=make_material()))
    page = Page(render(make_record(0), record, material=make_material(HOSTILE)))
    assert page.tags == harmless.tags
    assert (page.handlers, page.loaded) == ([], [])
    assert page.text.count(HOSTILE.strip()) >= 5  # step, question, answers, audit: whole and unexpanded
    plain = Page(render_plain(HOSTILE, trees=[make_shown(HOSTILE)]))
    assert (plain.handlers, plain.tags["script"], plain.tags.get("img")) == ([], 1, None)


def test_tree_nodes_can_be_found_and_say_their_numbers() -> None:
    [first, second, third] = Page(render_plain("Trees", trees=[make_shown()])).nodes
    assert (first["data-node"], first["data-parent"], first["data-visits"], first["tabindex"]) == ("1", "0", "3", "0")
    assert first["data-tip"] == "3 of 4 rollouts, value 0.67\nscore +1.00"
    assert third["data-tip"] == "2 of 4 rollouts, value 1.00\nscore +1.00, ends correct"
    assert (second["class"] or "").split() == ["node", "wrong", "room-one"]
    assert "height:75.0%" in (first["style"] or "")


def test_a_stopped_run_says_why_and_what_to_change_and_escapes_it() -> None:
    text = render(make_record(0), make_record(1, passed=False), champion=0)
    assert "Nothing is &lt;informative&gt;" in text
    assert "take easier problems" in text
    assert "Champion: the base." in text
    assert "tiny-word: the base stays best" in text


def test_one_iteration_says_what_it_can_and_cannot_tell() -> None:
    page = Page(render(make_record(0), make_record(1, direct=0.2)))
    assert "What one iteration can tell" in page.text
    assert "One iteration cannot tell whether a second iteration gains again or declines" in page.text
    longer = Page(render(make_record(0), make_record(1), make_record(2)))
    assert "What one iteration can tell" not in longer.text


def test_failure_signatures_stand_on_the_page_with_meaning_and_advice() -> None:
    text = render(*(make_record(i, accuracy) for i, accuracy in enumerate((0.5, 0.7, 0.6))))
    assert 'data-signature="rise-then-decline"' in text
    assert "-10.0 since" in text
    assert "fresh_each_iteration" in text
    assert "No known failure signature" in render(make_record(0), make_record(1), make_record(2))


def test_the_gate_table_tells_where_each_gate_stops_and_marks_the_runs_own() -> None:
    records = [make_record(i, accuracy) for i, accuracy in enumerate((0.5, 0.6, 0.61, 0.6))]
    own = GateConfig(min_gain=0.02, patience=1)
    rows = gate_rows(replay(records, calibration_grid(own), dataset=TRAINED), own)
    assert [row.name for row in rows] == ["0 points", "0.5 points", "1 point", "2 points", "5 points"]
    cells = {
        (row.name, patience): cell for row in rows for patience, cell in zip(row.patiences, row.cells, strict=True)
    }
    assert (cells["2 points", 1].stop, cells["2 points", 1].champion) == ("stops after 2", "2")
    assert (cells["0 points", 2].stop, cells["0 points", 2].champion) == ("goes on", "2")
    assert [key for key, cell in cells.items() if cell.is_own] == [("2 points", 1)]


def test_what_is_missing_is_said() -> None:
    missing = Material(missing=("search trees of iteration 1: <gone>",))
    page = Page(render(make_record(0), make_record(1), material=missing))
    assert "search trees of iteration 1: <gone>" in page.text
    assert "its curves are not at hand" in page.text


def test_each_kind_of_problem_has_its_own_accuracy() -> None:
    metadata = [{"level": "1"}, {"level": "1"}, {"level": "Level 3", "subject": "Algebra"}, {}]
    problems = {str(i): replace(make_problem(str(i)), metadata=each) for i, each in enumerate(metadata)}
    given = {0: ("0", "1", "2", "3"), 1: ("0", "1", "2", "gone")}
    answers = {index: [Prediction(name, name == "0" or index == 1) for name in names] for index, names in given.items()}
    kinds = accuracy_by_kind(TRAINED, problems, answers, interval=wilson_interval)
    assert [(kind.kind, kind.num_problems, kind.num_correct) for kind in kinds] == [
        ("Level 3", 1, {0: 0, 1: 1}),
        ("level 1", 2, {0: 1, 1: 2}),
    ]
    page = Page(render(make_record(0), make_record(1), material=Material(kinds=kinds)))
    assert "level 1" in page.text
    assert "50.0 ±40.5" in page.text


def test_a_column_that_names_problems_is_no_kind() -> None:
    metadata = [{"id": str(i), "steps": str(i % MAX_KINDS), "source": "x"} for i in range(MAX_KINDS + 1)]
    problems = {str(i): replace(make_problem(str(i)), metadata=each) for i, each in enumerate(metadata)}
    kinds = accuracy_by_kind(
        TRAINED, problems, {0: [Prediction(name, True) for name in problems]}, interval=wilson_interval
    )
    assert [kind.kind for kind in kinds] == [f"steps {i}" for i in range(MAX_KINDS)]
    assert sum(kind.num_problems for kind in kinds) == len(problems)
    assert accuracy_by_kind(TRAINED, problems, {}, interval=wilson_interval) == ()


def test_a_large_run_stays_small_and_quick() -> None:
    long = "word " * 4000
    problems = {str(i): make_problem(str(i), long) for i in range(2000)}
    answers = {k: [Prediction(name, (hash(name) >> k) % 2 == 0, long) for name in problems] for k in range(5)}
    history = [{"loss": 1 / (i + 1), "kl": i / 1e4} for i in range(20_000)]
    started = time.perf_counter()
    material = Material(
        histories={i: bounded_history(history) for i in range(1, 5)},
        trees=tuple(make_shown(long, iteration=1 + i // 4, problem_id=str(i)) for i in range(16)),
        flips=tuple(summarise_flips(name, problems, answers) for name in (TRAINED, OTHER)),
    )
    text = render(*(make_record(i) for i in range(5)), material=material)
    assert time.perf_counter() - started < 5
    assert len(text.encode()) < 1_500_000
    assert len(material.model_dump_json()) < 2_000_000
    assert all(len(rows) == MAX_UPDATES for rows in material.histories.values())
    assert all(len(flips.examples) <= 3 * EXAMPLES_PER_KIND for flips in material.flips)
    assert max(len(a.text) for f in material.flips for e in f.examples for a in e.answers) < MAX_ANSWER_CHARS + 50


def test_material_survives_its_file() -> None:
    material = make_material(HOSTILE)
    assert Material.model_validate_json(material.model_dump_json()) == material
    assert "NaN" not in json.dumps(bounded_history([{"loss": float("nan"), "kl": 0.1}]))


def test_a_page_of_charts_stands_alone() -> None:
    text = render_plain("Iteration <1>", figures=figures_of([make_record(0), make_record(1)]).values())
    page = Page(text)
    assert page.loaded == []
    assert "Iteration <1>" in page.text
    assert page.tags["svg"] == 4


def test_the_findings_hold_headline_key_figures_and_signatures() -> None:
    result = make_result([make_record(i, accuracy) for i, accuracy in enumerate((0.5, 0.7, 0.6))])
    text = findings_markdown(CONFIG, result)
    assert text.startswith("## tiny-word: 50.0 to 51.0 % in 1 iteration\n")
    assert "- Transfer gain: **+1.0 points** (on tiny-algebra, 95 % interval -2.0 to +4.0)" in text
    assert "**Rapid rise, then decline** (+20.0 points up to iteration 1, -10.0 since)." in text


def test_only_settings_off_their_default_are_listed() -> None:
    config = PipelineConfig.model_validate({"train": {"kl_beta": 0.5}})
    assert changed_settings(config) == [("train.kl_beta", "0.5", "None")]


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9 s"), (208, "3 min 28 s"), (7300, "2 h 1 min")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
