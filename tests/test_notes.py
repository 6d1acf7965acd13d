from __future__ import annotations

from record_fixtures import make_record

from pipeline_lib.registry.model_note import load_lines, model_note
from pipeline_lib.registry.promotion import ChampionMove
from pipeline_lib.report.notes import (
    MAX_CHARS,
    iteration_note,
    promotion_line,
    run_note,
    version_note,
)
from pipeline_lib.types import GateDecision, Promotion, RunResult

RECORDS = (make_record(0, 0.5), make_record(1, 0.7))
DECISION = GateDecision(proceed=True, champion=1, reason="validation accuracy 70.0%, the best so far")
HEAD = "| iteration | tiny-word (validation) | tiny-word | informative | variance | KL | tokens | seconds |  |"
ROW = "| 1 | 70.0 ±10.0 | 70.0 ±10.0 | – | – | 0.100 | – | 2 | champion |"


def test_a_running_run_shows_its_table_and_what_is_best_so_far() -> None:
    note = run_note(RECORDS, DECISION, origin="Prefect flow run `f`")
    lines = note.splitlines()
    assert lines[0] == "**Best so far: iteration 1** (validation accuracy 70.0%, the best so far)"
    assert HEAD in lines
    assert ROW in lines
    assert "The run goes on." in lines
    assert lines[-1] == "Prefect flow run `f`"


def test_a_finished_run_says_why_and_what_became_of_its_champion() -> None:
    promotion = Promotion(promoted=True, version="4", previous="2", reason="70.0%, against 60.0% for version 2")
    result = RunResult(records=RECORDS, decision=DECISION, stopped_because="no gain", wall_s=1.0, promotion=promotion)
    note = run_note(RECORDS, DECISION, result=result, model="coppice-tiny")
    assert note.startswith("**Champion: iteration 1**")
    assert "**Stopped because:** no gain" in note
    assert "coppice-tiny@champion moved to version 4, instead of 2: 70.0%, against 60.0% for version 2" in note


def test_an_iteration_names_its_version_and_its_parent() -> None:
    note = iteration_note(RECORDS[1], parent="[Pipeline run](#/x)", version="4", model="coppice-tiny")
    assert ROW.replace("champion", "") in note
    assert "[coppice-tiny version 4](#/models/coppice-tiny/versions/4)" in note
    assert note.endswith("[Pipeline run](#/x)")
    assert "Registered" not in iteration_note(RECORDS[0], parent="")


def test_a_version_says_what_it_was_trained_from_and_where() -> None:
    assert version_note(RECORDS[1], None, {}).startswith("Iteration 1, trained from the base on `tiny`.")
    note = version_note(RECORDS[1], "3", {"prefect.flow_run_id": "abc"})
    assert "trained from version 3" in note
    assert "Prefect flow run `abc`" in note


def test_a_champion_that_stays_is_named_with_the_candidate() -> None:
    kept = Promotion(promoted=False, version="5", previous="2", reason="worse")
    assert promotion_line(kept, "m") == "m@champion stays at version 2 (version 5 is candidate): worse"
    none = Promotion(promoted=False, reason="the base stayed best")
    assert promotion_line(none, "m") == "m@champion points nowhere: the base stayed best"


def test_a_model_shows_how_to_load_it_and_its_latest_moves_first() -> None:
    moves = [
        ChampionMove(at=f"2026-11-0{day}", action="promoted", version=str(day), previous=None, reason="a | b")
        for day in (1, 2)
    ]
    note = model_note("coppice-tiny", moves)
    assert all(line in note for line in load_lines("coppice-tiny"))
    assert note.splitlines()[-2:] == [
        "| 2026-11-02 | promoted | 2 | – | a / b |",
        "| 2026-11-01 | promoted | 1 | – | a / b |",
    ]


def test_no_note_is_longer_than_a_tag_may_be() -> None:
    records = [make_record(index) for index in range(200)]
    assert len(run_note(records, DECISION)) == MAX_CHARS
