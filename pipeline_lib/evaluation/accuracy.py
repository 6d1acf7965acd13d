"""Accuracy of a policy on a problem set: greedy, and sampled where asked.

All problems are submitted at once and their answers graded as they come; the engine refills itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.config import ConfigError, Cutoff, EvaluationConfig, Truncated
from pipeline_lib.config.truncation import CUTOFF_NAMES, EVALUATION_DIALS, count_cutoffs, dial_to_raise
from pipeline_lib.evaluation.statistics import clustered_interval, pass_at_k, wilson_interval
from pipeline_lib.evaluation.votes import winning_samples
from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.protocol import Policy, SampleRequest, SamplingParams, cutoff_of, text_of
from pipeline_lib.policy.redraw import MAX_FAILED_SHARE, Redraws
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import write_parquet
from pipeline_lib.types import EvalReport, Grade, Problem

Extract = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One graded answer.

    Args:
        problem_id: id of the problem that was asked.
        text: the policy's whole answer.
        grade: the verdict on its final answer.
        answer: the extracted final answer, None when there is none.
        truncated: whether a limit cut the answer off.
        cutoff: which limit, a name of `Cutoff`; None where there was none, or version 0.1.0 did not keep it.
        is_ignored: whether the answer is in no count but those of ignored and truncated ones.
    """

    problem_id: str
    text: str
    grade: Grade
    answer: str | None
    truncated: bool
    cutoff: str | None = None
    is_ignored: bool = False

    @property
    def is_correct(self) -> bool:
        return self.grade is Grade.CORRECT


def evaluate(
    problems: Sequence[Problem],
    policy: Policy,
    grader: Grader,
    *,
    split: str,
    config: EvaluationConfig,
    seed: int,
    extract: Extract,
    truncated: Truncated = "wrong",
    max_failed_share: float = MAX_FAILED_SHARE,
    on_answers: Callable[[int], None] | None = None,
) -> tuple[EvalReport, list[Prediction]]:
    """Greedy pass@1 over all problems; avg@k, maj@k and pass@k over the first ``sampled_problems``.

    Args:
        problems: what is asked, at least one; all of one set, whose name the report gets.
        policy: answers; nothing else may be in flight on it.
        grader: grades the answers; nothing else may be in flight on it.
        split: the split's name, for the report; the gate reads ``validation``.
        config: all but `datasets` and `num_problems` is used.
        seed: from which the samples' seeds are derived; the greedy answers need none.
        extract: from raw text to the final answer, for majority votes.
        truncated: what an answer that a limit cut off counts as.
        max_failed_share: share of the answers that the engine may fail to give, in [0, 1]; see `policy.redraw`.
        on_answers: called with the number of answers that have just come, greedy and sampled ones alike.

    Returns:
        The report, and one greedy prediction per problem in their order.

    Raises:
        ValueError: no problem.
        ConfigError: every greedy answer was cut off, and those are ignored.
        EngineError: the engine failed too often.
    """
    if not problems:
        raise ValueError(f"evaluation of {split}: no problem to ask")
    ask = partial(
        _answer,
        policy=policy,
        grader=grader,
        extract=extract,
        truncated=truncated,
        share=max_failed_share,
        on_answers=on_answers or (lambda count: None),
    )
    predictions = ask(problems, SamplingParams(config.max_new_tokens, 0.0), [0])
    counted = [prediction for prediction in predictions if not prediction.is_ignored]
    cutoffs = count_cutoffs([sum(p.cutoff == name for p in predictions) for name in CUTOFF_NAMES])
    if not counted:
        raise ConfigError(
            f"{problems[0].set_name} {split}: all {len(predictions)} answers were cut off, and truncated=ignore leaves "
            f"none to count; raise {dial_to_raise(cutoffs, EVALUATION_DIALS)}"
        )
    num_correct = sum(prediction.is_correct for prediction in counted)
    sampled, sampled_interval = _sampled(problems[: config.sampled_problems], ask, grader, config, seed)
    report = EvalReport(
        dataset=problems[0].set_name,
        split=split,
        policy_id=policy.policy_id,
        num_problems=len(problems),
        num_correct=num_correct,
        num_unparsed=sum(p.grade is Grade.UNPARSED for p in counted),
        num_truncated=sum(p.truncated for p in predictions),
        num_timeouts=sum(p.grade is Grade.TIMEOUT for p in counted),
        num_ignored=len(predictions) - len(counted),
        cutoffs=cutoffs,
        accuracy=num_correct / len(counted),
        interval=wilson_interval(num_correct, len(counted)),
        sampled=sampled,
        sampled_interval=sampled_interval,
    )
    return report, predictions


def _sampled(
    problems: Sequence[Problem],
    ask: Callable[..., list[Prediction]],
    grader: Grader,
    config: EvaluationConfig,
    seed: int,
) -> tuple[dict[str, float], tuple[float, float] | None]:
    """The figures of `EvalReport.sampled`, and the interval of their mean; nothing where no sample is asked for.

    Ignored samples are left out; a problem without any other is too, and from pass@k one with fewer than k.
    """
    n = config.num_samples
    if not n:
        return {}, None
    seeds = [derive_seed(seed, "sample", i) for i in range(n)]
    predictions = ask(problems, SamplingParams(config.max_new_tokens, config.temperature, config.top_p), seeds)
    asked = [predictions[start : start + n] for start in range(0, len(predictions), n)]
    groups = [counted for group in asked if (counted := [p for p in group if not p.is_ignored])]
    if not groups:
        return {}, None
    right = [(len(group), sum(p.is_correct for p in group)) for group in groups]
    shares = [count / size for size, count in right]
    mean = float(np.mean(shares))
    figures = {"mean": mean, f"avg@{n}": mean, **_majority(groups, grader, n)}
    for k in config.pass_k or (n,):
        passed = [pass_at_k(size, count, k) for size, count in right if size >= k]
        figures |= {f"pass@{k}": float(np.mean(passed))} if passed else {}
    return figures, clustered_interval(shares, min(size for size, _ in right))


def _majority(groups: Sequence[Sequence[Prediction]], grader: Grader, n: int) -> dict[str, float]:
    """maj@n; nothing where a right answer cannot vote: a user's verifier finds it, Coppice's extractor does not."""
    if any(p.is_correct and p.answer is None for group in groups for p in group):
        return {}
    texts, answers = ([[getattr(p, name) for p in group] for group in groups] for name in ("text", "answer"))
    winners = winning_samples(texts, answers, grader)
    won = [winner is not None and group[winner].is_correct for winner, group in zip(winners, groups, strict=True)]
    return {f"maj@{n}": float(np.mean(won))}


def _answer(
    problems: Sequence[Problem],
    params: SamplingParams,
    seeds: Sequence[int],
    *,
    policy: Policy,
    grader: Grader,
    extract: Extract,
    truncated: Truncated,
    share: float,
    on_answers: Callable[[int], None],
) -> list[Prediction]:
    """Every problem once per seed, in the problems' order, then the seeds'."""
    requests, asked = [], {}
    for problem in problems:
        prompt = policy.codec.encode_prompt(problem.question)
        for number, seed in enumerate(seeds):
            request_id = f"{problem.problem_id}#{number}"
            requests.append(SampleRequest(request_id, prompt, params, derive_seed(seed, problem.problem_id)))
            asked[request_id] = problem
    draws = Redraws(policy, num_expected=len(requests), max_failed_share=share)
    draws.submit(requests)
    texts: dict[str, str] = {}
    cutoffs: dict[str, Cutoff] = {}
    grades: dict[str, Grade] = {}
    while draws.num_in_flight or grader.num_in_flight:
        answers = draws.poll() if draws.num_in_flight else []
        on_answers(len(answers))
        for result in answers:
            cutoffs[result.request_id] = cutoff_of(result, params.max_new_tokens)
            texts[result.request_id] = text_of(result, policy.codec)
            grader.submit(result.request_id, texts[result.request_id], asked[result.request_id].answer)
        grades.update(grader.poll(block=not draws.num_in_flight))
    return [
        _prediction(asked[key].problem_id, texts[key], grades[key], cutoffs[key], extract, truncated)
        for key in (request.request_id for request in requests)
    ]


def _prediction(
    problem_id: str, text: str, grade: Grade, cutoff: Cutoff, extract: Extract, truncated: Truncated
) -> Prediction:
    """One answer under the rule for truncated ones; where they are wrong, they are so whatever they hold so far."""
    if cutoff is Cutoff.NONE:
        return Prediction(problem_id, text, grade, extract(text), truncated=False)
    given = None if truncated == "wrong" else extract(text)  # no vote from what has not been answered
    if truncated == "wrong" and grade is Grade.CORRECT:
        grade = Grade.WRONG
    is_ignored = truncated == "ignore"
    return Prediction(problem_id, text, grade, given, True, cutoff=cutoff.name.lower(), is_ignored=is_ignored)


SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("text", pa.string()),
        ("grade", pa.string()),
        ("answer", pa.string()),
        ("truncated", pa.bool_()),
        ("cutoff", pa.string()),
        ("is_ignored", pa.bool_()),
    ]
)


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """One Parquet row per prediction, in order."""
    rows = [asdict(prediction) for prediction in predictions]
    write_parquet(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote; files of version 0.1.0 lack the last two columns."""
    rows = pq.read_table(path).to_pylist()
    return [Prediction(**{**row, "grade": Grade(row["grade"])}) for row in rows]
