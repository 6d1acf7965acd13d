from __future__ import annotations

import pytest

from pipeline_lib.registry.promotion import (
    MAX_EVENTS,
    PROMOTED,
    ROLLED_BACK,
    Event,
    Standing,
    champions_before,
    decide_promotion,
    read_events,
    write_events,
)


def standing(version: str, accuracy: float, yardstick: str = "y") -> Standing:
    return Standing(version, "gsm8k", accuracy, 200, yardstick)


def event(action: str, version: str, previous: str | None) -> Event:
    return Event(at="2026-11-05T12:00:00+00:00", action=action, version=version, previous=previous, reason="because")


def test_the_first_one_is_promoted() -> None:
    promotion = decide_promotion(standing("1", 0.1), None)
    assert promotion.promoted
    assert promotion.reason == "the first champion: 10.0% of 200 validation problems of gsm8k"


@pytest.mark.parametrize(
    ("challenger", "champion", "promoted"),
    [
        (standing("2", 0.79), standing("1", 0.75), True),
        (standing("2", 0.75), standing("1", 0.75), False),
        (standing("2", 0.70), standing("1", 0.75), False),
        (standing("2", 0.79, "x"), standing("1", 0.75, "y"), False),
        (standing("2", 0.79, ""), standing("1", 0.75, ""), False),  # neither says by what it was measured
        (standing("1", 0.79), standing("1", 0.75), False),
        (standing("2", 0.79), standing("1", float("nan"), ""), False),
    ],
)
def test_a_better_one_by_the_same_yardstick_is_promoted(
    challenger: Standing, champion: Standing, promoted: bool
) -> None:
    promotion = decide_promotion(challenger, champion)
    assert promotion.promoted is promoted
    assert (promotion.version, promotion.previous) == (challenger.version, champion.version)


def test_champions_before_are_a_pile_that_rollbacks_take_from() -> None:
    events = [event(PROMOTED, "1", None), event(PROMOTED, "2", "1"), event(PROMOTED, "5", "2")]
    assert champions_before([], None) == []
    assert champions_before(events[:1], "1") == []
    assert champions_before(events, "5") == ["1", "2"]
    events.append(event(ROLLED_BACK, "2", "5"))
    assert champions_before(events, "2") == ["1"]
    events.append(event(PROMOTED, "7", "2"))
    assert champions_before(events, "7") == ["1", "2"]


def test_an_alias_that_was_moved_elsewhere_is_rolled_back_to_what_we_left() -> None:
    events = [event(PROMOTED, "1", None), event(PROMOTED, "2", "1")]
    assert champions_before(events, "9") == ["1", "2"]


def test_events_are_written_to_a_tag_and_the_oldest_go() -> None:
    events = [event(PROMOTED, str(number), None) for number in range(MAX_EVENTS + 3)]
    assert read_events({"h": write_events(events)}, "h") == events[3:]
    assert read_events({}, "h") == []
    assert len(write_events(events)) < 100_000
