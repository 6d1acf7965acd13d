from __future__ import annotations

import numpy as np
from hypothesis import given
from tree_fixtures import flat_tree, make_tree, trees

from pipeline_lib.tracking.tree_traces import MAX_CHARS, MAX_NAME_CHARS, MAX_SPANS, most_informative_trees, trace_tree
from pipeline_lib.types import NO_PARENT, Outcome, Problem, SearchTree

PROBLEM = Problem(problem_id="d/train/0", question="How many?", answer="4", dataset="d")
CORRECT, WRONG = Outcome.CORRECT, Outcome.WRONG
TREE = make_tree(
    (NO_PARENT, 8, 4.0),
    (0, 5, 4.0),
    (0, 3, 0.0),
    (1, 3, 3.0, CORRECT),
    (1, 1, 0.0, Outcome.UNPARSED),
    (2, 3, 0.0, WRONG),
)


def test_trees_that_are_half_right_come_first_and_those_without_signal_last() -> None:
    chosen = [
        flat_tree(CORRECT, CORRECT, CORRECT, CORRECT, problem_id="d/train/0"),
        flat_tree(CORRECT, WRONG, WRONG, WRONG, problem_id="d/train/1"),
        flat_tree(CORRECT, WRONG, problem_id="d/train/3"),
        flat_tree(CORRECT, CORRECT, WRONG, WRONG, problem_id="d/train/2"),
        flat_tree(CORRECT, WRONG, problem_id="d/train/4"),
    ]
    assert most_informative_trees(chosen) == [3, 2, 4, 1, 0]
    assert most_informative_trees(chosen, 2) == [3, 2]
    assert most_informative_trees([]) == []


def test_a_tree_becomes_spans_as_wide_as_its_visits() -> None:
    trace = trace_tree(TREE, PROBLEM, np.array([0.0, 2.0, -2.0, 0.5, -0.5, 0.0]))
    assert (trace.title, trace.verdict) == ("How many?", "4 of 8 rollouts right")
    assert [(span.parent, span.start, span.length, span.is_right) for span in trace.spans] == [
        (None, 0, 8, None),
        (0, 0, 5, None),
        (0, 5, 3, None),
        (1, 0, 3, True),
        (1, 3, 1, False),
        (2, 5, 3, False),
    ]
    root, first, *_, last = trace.spans
    assert root.inputs == {"question": "How many?", "answer": "4"}
    assert root.outputs == {"visits": 8, "value": 0.5, "outcome": "open"}
    assert (first.name, first.inputs) == ("step 1", {"step": "step 1"})
    assert first.outputs == {"visits": 5, "value": 0.8, "outcome": "open", "score": 2.0}
    assert (last.name, last.outputs["outcome"]) == ("✗ step 5", "wrong")


def test_long_texts_are_cut() -> None:
    tree = make_tree((NO_PARENT, 1, 1.0), (0, 1, 1.0, CORRECT))
    step = "a b\n" * MAX_CHARS
    long = SearchTree(**{name: getattr(tree, name) for name in tree.__slots__} | {"steps": ("", step)})
    span = trace_tree(long, PROBLEM).spans[1]
    assert len(span.name) == len("✓ ") + MAX_NAME_CHARS
    assert span.name.startswith("✓ a b a b")
    assert len(span.inputs["step"]) == MAX_CHARS
    assert "score" not in span.outputs


@given(trees())
def test_every_span_lies_within_its_parent(tree: SearchTree) -> None:
    spans = {span.node: span for span in trace_tree(tree, PROBLEM).spans}
    assert len(spans) == tree.num_nodes
    for span in spans.values():
        if span.parent is not None:
            parent = spans[span.parent]
            assert parent.start <= span.start
            assert span.start + span.length <= parent.start + parent.length


def test_the_most_visited_nodes_are_kept_each_with_its_parent() -> None:
    rows = [(NO_PARENT, 400, 0.0), *((0, 4, 0.0) for _ in range(100)), *((i + 1, 4, 0.0) for i in range(100))]
    trace = trace_tree(make_tree(*rows), PROBLEM)
    nodes = [span.node for span in trace.spans]
    assert len(nodes) == MAX_SPANS
    assert {span.parent for span in trace.spans} <= {None, *nodes}
    assert trace.verdict == f"0 of 400 rollouts right, the {MAX_SPANS} most visited of 201 nodes"
