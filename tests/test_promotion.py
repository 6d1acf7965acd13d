from __future__ import annotations

import pytest

from pipeline_lib.registry.lineage import score_from_tags, version_tags
from pipeline_lib.registry.promotion import (
    MAX_MOVES,
    PROMOTED,
    ROLLED_BACK,
    ChampionMove,
    ValidationScore,
    champions_before,
    decide_promotion,
    read_moves,
    write_moves,
)
from pipeline_lib.types import EvalReport, IterationRecord, PolicyRef


def score(version: str, accuracy: float, yardstick: str = "y") -> ValidationScore:
    return ValidationScore(version, "gsm8k", accuracy, 200, yardstick)


def move(action: str, version: str, previous: str | None) -> ChampionMove:
    return ChampionMove(
        at="2026-11-05T12:00:00+00:00", action=action, version=version, previous=previous, reason="because"
    )


def test_the_first_one_is_promoted() -> None:
    promotion = decide_promotion(score("1", 0.1), None)
    assert promotion.promoted
    assert promotion.reason == "the first champion: 10.0% of 200 validation problems of gsm8k"


@pytest.mark.parametrize(
    ("challenger", "champion", "promoted"),
    [
        (score("2", 0.79), score("1", 0.75), True),
        (score("2", 0.75), score("1", 0.75), False),
        (score("2", 0.70), score("1", 0.75), False),
        (score("2", 0.79, "x"), score("1", 0.75, "y"), False),
        (score("2", 0.79, ""), score("1", 0.75, ""), False),  # neither says by what it was measured
        (score("1", 0.79), score("1", 0.75), False),
        (score("2", 0.79), score("1", float("nan"), ""), False),
    ],
)
def test_a_better_one_by_the_same_yardstick_is_promoted(
    challenger: ValidationScore, champion: ValidationScore, promoted: bool
) -> None:
    promotion = decide_promotion(challenger, champion)
    assert promotion.promoted is promoted
    assert (promotion.version, promotion.previous) == (challenger.version, champion.version)


def test_who_is_cut_off_on_hard_problems_is_not_promoted_for_it() -> None:
    def validation(num_correct: int, num_ignored: int) -> EvalReport:
        return EvalReport(
            dataset="gsm8k", split="validation", policy_id="p", num_problems=200, num_correct=num_correct,
            num_unparsed=0, num_truncated=num_ignored, num_ignored=num_ignored, yardstick="y",
            accuracy=num_correct / (200 - num_ignored), interval=(0, 1),
        )  # fmt: skip

    whole, cut = validation(120, 0), validation(90, 100)  # 60 %, and 90 % of the half that it finished
    assert not decide_promotion(ValidationScore.of("2", cut), ValidationScore.of("1", whole)).promoted
    policy = PolicyRef(policy_id="p", base_model="m", iteration=1)
    tags = version_tags(IterationRecord(index=1, policy=policy, evaluations=(cut,)), policy, None, {})
    assert score_from_tags("2", tags) == ValidationScore.of("2", cut)
    promotion = decide_promotion(ValidationScore.of("1", whole), score_from_tags("2", tags))
    assert promotion.reason == "60.0% of 200 validation problems of gsm8k, against 45.0% for version 2"


def test_champions_before_are_a_stack_that_rollbacks_take_from() -> None:
    moves = [move(PROMOTED, "1", None), move(PROMOTED, "2", "1"), move(PROMOTED, "5", "2")]
    assert champions_before([], None) == []
    assert champions_before(moves[:1], "1") == []
    assert champions_before(moves, "5") == ["1", "2"]
    moves.append(move(ROLLED_BACK, "2", "5"))
    assert champions_before(moves, "2") == ["1"]
    moves.append(move(PROMOTED, "7", "2"))
    assert champions_before(moves, "7") == ["1", "2"]


def test_an_alias_that_was_moved_elsewhere_is_rolled_back_to_what_we_left() -> None:
    moves = [move(PROMOTED, "1", None), move(PROMOTED, "2", "1")]
    assert champions_before(moves, "9") == ["1", "2"]


def test_moves_are_written_to_a_tag_and_the_oldest_go() -> None:
    moves = [move(PROMOTED, str(number), None) for number in range(MAX_MOVES + 3)]
    assert read_moves({"h": write_moves(moves)}, "h") == moves[3:]
    assert read_moves({}, "h") == []
    assert len(write_moves(moves)) < 100_000
