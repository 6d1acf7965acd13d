"""Searches and evaluations of answers that a limit cuts off."""

from __future__ import annotations

from collections.abc import Sequence

from search_fixtures import LateGrader, UnorderedPolicy, babble, make_problems, search

from pipeline_lib.config import (
    AuditConfig,
    EvaluationConfig,
    ScoreConfig,
)
from pipeline_lib.evaluation import Prediction, evaluate
from pipeline_lib.policy import FinishReason, SampleRequest, SampleResult
from pipeline_lib.score import score_tree
from pipeline_lib.score.score_audit import audit_scores
from pipeline_lib.types import AuditReport, EvalReport, PolicyRef, Ref, SearchTree

RULES = ("wrong", "grade", "ignore")
REF = Ref(uri="any/1", sha256="0" * 64, num_rows=1, schema_version=1)
POLICY = PolicyRef(policy_id="p", base_model="tiny", iteration=0)


class FullContext(UnorderedPolicy):
    """Its context holds `room` tokens beside the prompt."""

    def __init__(self, text: str, room: int) -> None:
        super().__init__(lambda prefix, seed: text)
        self._room = room

    def _answer(self, request: SampleRequest) -> SampleResult:
        result = super()._answer(request)
        if len(result.token_ids) <= self._room:
            return result
        return SampleResult(request.request_id, result.token_ids[: self._room], FinishReason.LENGTH)


def searched_one(text: str, truncated: str = "wrong", room: int = 99, **limits: object) -> SearchTree:
    trees, _, _ = search(
        babble, make_problems(1), truncated=truncated, policy=FullContext(text, room), num_simulations=1, **limits
    )
    return trees["letters/train/00000"]


def audit(trees: Sequence[SearchTree]) -> AuditReport:
    return audit_scores(trees, [score_tree(tree, ScoreConfig()) for tree in trees], AuditConfig())


RIGHT_AND_ON = "#1" + " " * 9  # the right answer, and then more than there is room for


def evaluated(
    truncated: str, *answers: str, max_new_tokens: int = 6, **config: object
) -> tuple[EvalReport, list[Prediction]]:
    texts = {f"q{i}": text for i, text in enumerate(answers)}
    policy = UnorderedPolicy(lambda prompt, seed: texts[prompt.partition("?")[0]])
    return evaluate(
        make_problems(len(answers)),
        policy,
        LateGrader(),
        split="test",
        config=EvaluationConfig.model_validate({"max_new_tokens": max_new_tokens, **config}),
        seed=0,
        extract=lambda text: text.rpartition("#")[2].strip() or None,
        truncated=truncated,
    )
