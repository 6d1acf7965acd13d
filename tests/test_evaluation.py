import pytest

from pipeline_lib.config import EvaluationConfig
from pipeline_lib.evaluation import (
    clustered_interval,
    evaluate,
    read_predictions,
    wilson_interval,
    write_predictions,
)
from pipeline_lib.grading import GradingPool, extract_answer
from pipeline_lib.policy.scripted import CharCodec, ScriptedPolicy
from pipeline_lib.types import EvalReport, Grade, Problem


class LateGrader:
    """Compares what follows ``####``; each answer comes back a poll later and newest first, to try the caller."""

    def __init__(self):
        self._waiting, self._ready = {}, []

    @property
    def num_in_flight(self):
        return len(self._waiting) + len(self._ready)

    def submit(self, key, prediction, gold):
        assert key not in self._waiting
        answer = extract(prediction)
        grade = Grade.UNPARSED if answer is None else Grade.CORRECT if answer == gold else Grade.WRONG
        self._waiting[key] = Grade.TIMEOUT if answer == "hang" else grade

    def poll(self, *, block):
        ready, self._ready = self._ready, list(self._waiting.items())[::-1]
        self._waiting = {}
        if block and not ready:
            ready, self._ready = self._ready, []
        return ready


def extract(text):
    _, mark, answer = text.partition("#### ")
    return answer if mark else None


def problems(*questions):
    return [Problem(f"d/test/{i}", question, gold, "d") for i, (question, gold) in enumerate(questions)]


def run(script, asked, config=None, *, seed=0, order=0):
    policy = ScriptedPolicy(script, CharCodec(), capacity=3, seed=order)
    config = config or EvaluationConfig(max_new_tokens=20)
    return evaluate(asked, policy, LateGrader(), split="test", config=config, seed=seed, extract=extract)


SCRIPT = {"right": "1+1\n#### 2", "wrong": "#### 3", "mute": "hm", "long": "x" * 30, "slow": "#### hang"}


def test_every_count_of_a_report_and_predictions_in_the_order_of_problems():
    asked = problems(*((question, "2") for question in SCRIPT))
    report, predictions = run(lambda prompt, prefix, seed: SCRIPT[prompt], asked)
    assert [p.problem_id for p in predictions] == [p.problem_id for p in asked]
    assert [p.grade.value for p in predictions] == ["correct", "wrong", "unparsed", "unparsed", "timeout"]
    assert [p.answer for p in predictions] == ["2", "3", None, None, "hang"]
    assert [p.truncated for p in predictions] == [False, False, False, True, False]
    assert predictions[3].text == "x" * 20
    assert (report.num_problems, report.num_correct, report.num_unparsed) == (5, 1, 2)
    assert (report.num_truncated, report.num_timeouts) == (1, 1)
    assert report.accuracy == pytest.approx(1 / 5)
    assert report.interval == wilson_interval(1, 5)
    assert (report.dataset, report.split, report.policy_id, report.sampled) == ("d", "test", "scripted", {})


def test_a_report_is_called_as_the_set_is_not_as_its_format():
    asked = [Problem("aime/test/00000", "right", "2", "math")]
    report, _ = run(lambda prompt, prefix, seed: SCRIPT[prompt], asked)
    assert (report.dataset, report.num_correct) == ("aime", 1)


def test_samples_give_mean_majority_and_pass():
    # Each problem's samples are numbered as they come; "most" is right twice of three, "once" once, "never" never.
    plan = {"most": "223", "once": "332", "never": "334"}
    seen = {}

    def script(prompt, prefix, seed):
        place = len(seen.setdefault(prompt, []))
        seen[prompt].append(seed)
        return f"#### {plan[prompt][place - 1] if place else '9'}"  # the greedy answer comes first and is wrong

    config = EvaluationConfig(max_new_tokens=20, num_samples=3, sampled_problems=3)
    report, predictions = run(script, problems(*((question, "2") for question in plan)), config)
    assert report.accuracy == 0
    assert len(predictions) == 3
    assert report.sampled == pytest.approx({"mean": 3 / 9, "avg@3": 3 / 9, "maj@3": 1 / 3, "pass@3": 2 / 3})
    assert report.sampled_interval == clustered_interval([2 / 3, 1 / 3, 0], 3)
    sampled = [seed for seeds in seen.values() for seed in seeds[1:]]
    assert len(set(sampled)) == 9


def test_samples_are_drawn_as_the_settings_say_and_accuracy_is_greedy():
    class Recording(ScriptedPolicy):
        def submit(self, requests):
            asked.append({(r.params.temperature, r.params.top_p) for r in requests})
            super().submit(requests)

    asked = []
    policy = Recording(lambda *_: "#### 2", CharCodec())
    config = EvaluationConfig(max_new_tokens=20, num_samples=2, temperature=0.6, top_p=0.9)
    evaluate(problems(("q", "2")), policy, LateGrader(), split="test", config=config, seed=0, extract=extract)
    assert asked == [{(0.0, 1.0)}, {(0.6, 0.9)}]


def numbered(plan):
    """A script that answers a problem's greedy question with 9, then with its samples in order."""
    seen = {}

    def script(prompt, prefix, seed):
        seen[prompt] = seen.get(prompt, -1) + 1
        return f"#### {plan[prompt][seen[prompt] - 1] if seen[prompt] else '9'}"

    return script


def test_a_majority_written_in_several_ways_wins():
    """0.5, 1/2 and 0.50 are right and were outvoted by two equal strings."""
    plan = {"half": ["3", "0.5", "1/2", "3", "0.50"], "three": ["3", "3", "0.5", "1", "2"]}
    asked = problems(("half", "1/2"), ("three", "1/2"))
    policy = ScriptedPolicy(numbered(plan), CharCodec(), capacity=3)
    config = EvaluationConfig(max_new_tokens=20, num_samples=5, pass_k=(1, 2, 5))
    with GradingPool(1) as grader:
        report, _ = evaluate(asked, policy, grader, split="test", config=config, seed=0, extract=extract_answer)
    assert report.sampled == pytest.approx(
        {
            "mean": 0.4,
            "avg@5": 0.4,
            "maj@5": 0.5,
            "pass@1": 0.4,
            "pass@2": ((1 - 1 / 10) + (1 - 6 / 10)) / 2,
            "pass@5": 1,
        }
    )


def test_a_vote_that_cannot_be_counted_is_left_out_and_not_zero():
    """A user's verifier may find answers where Coppice's extractor finds none."""

    class Lenient(LateGrader):
        def submit(self, key, prediction, gold):
            super().submit(key, f"#### {prediction}", gold)

    policy = ScriptedPolicy(lambda *_: "2", CharCodec(), capacity=3)
    config = EvaluationConfig(max_new_tokens=20, num_samples=3)
    report, _ = evaluate(problems(("q", "2")), policy, Lenient(), split="test", config=config, seed=0, extract=extract)
    assert report.sampled == {"mean": 1, "avg@3": 1, "pass@3": 1}


@pytest.mark.parametrize("pass_k", [(5,), (0,), (2, 2)])
def test_pass_at_k_needs_as_many_samples(pass_k):
    with pytest.raises(ValueError, match="pass_k"):
        EvaluationConfig(num_samples=4, pass_k=pass_k)


def test_one_k_needs_no_list_and_old_reports_are_read():
    assert EvaluationConfig(num_samples=4, pass_k=2).pass_k == (2,)
    report, _ = run(lambda *_: "#### 2", problems(("q", "2")))
    old = report.model_dump(mode="json")
    del old["sampled_interval"]
    assert EvalReport.model_validate(old) == report


def test_only_the_first_problems_are_sampled_and_the_seed_reaches_the_samples():
    def script(prompt, prefix, seed):
        return f"#### {seed % 2}"

    asked = problems(*((f"q{i}", "1") for i in range(8)))
    config = EvaluationConfig(max_new_tokens=20, num_samples=8, sampled_problems=4)
    first, again, other = (run(script, asked, config, seed=seed, order=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first.accuracy == other.accuracy  # greedy answers have no seed
    assert first.sampled != other.sampled
    assert first.sampled["mean"] * 32 == pytest.approx(round(first.sampled["mean"] * 32))


def test_the_order_in_which_an_engine_finishes_changes_nothing():
    asked = problems(*((question, "2") for question in SCRIPT))
    runs = [run(lambda prompt, prefix, seed: SCRIPT[prompt], asked, order=order) for order in range(3)]
    assert runs[0] == runs[1] == runs[2]


def test_no_problem_is_refused():
    with pytest.raises(ValueError, match="evaluation of test: no problem to ask"):
        run(lambda *_: "", [])


def test_predictions_round_trip_through_parquet(tmp_path):
    _, predictions = run(lambda prompt, prefix, seed: SCRIPT[prompt], problems(*((q, "2") for q in SCRIPT)))
    write_predictions(predictions, tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet") == predictions
    write_predictions([], tmp_path / "none.parquet")
    assert read_predictions(tmp_path / "none.parquet") == []
    before = (tmp_path / "p.parquet").read_bytes()
    write_predictions(predictions, tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").read_bytes() == before
