"""Accuracy of a policy on a problem set: greedy, and sampled where asked.

All problems are submitted at once and their answers graded as they come; the engine refills itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.config import EvaluationConfig
from pipeline_lib.evaluation.statistics import clustered_interval, pass_at_k, wilson_interval
from pipeline_lib.evaluation.votes import winning_samples
from pipeline_lib.policy.protocol import FinishReason, Policy, SampleRequest, SampleResult, SamplingParams
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import write_parquet
from pipeline_lib.types import EvalReport, Grade, Grader, Problem

Extract = Callable[[str], str | None]
SAMPLING_TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One graded answer.

    Args:
        problem_id: id of the problem that was asked.
        text: the policy's whole answer.
        grade: the verdict on its final answer.
        answer: the extracted final answer, None when there is none.
        truncated: whether the answer ran into a limit of tokens, or the engine gave up on it.
    """

    problem_id: str
    text: str
    grade: Grade
    answer: str | None
    truncated: bool

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
) -> tuple[EvalReport, list[Prediction]]:
    """Greedy pass@1 over all problems; avg@k, maj@k and pass@k over the first ``sampled_problems``.

    Args:
        problems: what is asked, at least one; all of one set, whose name the report gets.
        policy: answers; nothing else may be in flight on it.
        grader: grades the answers; nothing else may be in flight on it.
        split: the split's name, for the report; the gate reads ``validation``.
        config: `max_new_tokens`, `num_samples`, `sampled_problems` and `pass_k` are used.
        seed: from which the samples' seeds are derived; the greedy answers need none.
        extract: from raw text to the final answer, for majority votes.

    Returns:
        The report, and one greedy prediction per problem in their order.

    Raises:
        ValueError: no problem.
    """
    if not problems:
        raise ValueError(f"evaluation of {split}: no problem to ask")
    predictions = _answer(problems, policy, grader, SamplingParams(config.max_new_tokens, 0.0), [0], extract)
    num_correct = sum(prediction.is_correct for prediction in predictions)
    sampled, sampled_interval = _sampled(problems[: config.sampled_problems], policy, grader, config, seed, extract)
    report = EvalReport(
        dataset=problems[0].set_name,
        split=split,
        policy_id=policy.policy_id,
        num_problems=len(problems),
        num_correct=num_correct,
        num_unparsed=sum(p.grade is Grade.UNPARSED for p in predictions),
        num_truncated=sum(p.truncated for p in predictions),
        num_timeouts=sum(p.grade is Grade.TIMEOUT for p in predictions),
        accuracy=num_correct / len(problems),
        interval=wilson_interval(num_correct, len(problems)),
        sampled=sampled,
        sampled_interval=sampled_interval,
    )
    return report, predictions


def _sampled(
    problems: Sequence[Problem],
    policy: Policy,
    grader: Grader,
    config: EvaluationConfig,
    seed: int,
    extract: Extract,
) -> tuple[dict[str, float], tuple[float, float] | None]:
    """The figures of `EvalReport.sampled`, and the interval of their mean; nothing where no sample is asked for."""
    n = config.num_samples
    if not n:
        return {}, None
    params = SamplingParams(config.max_new_tokens, SAMPLING_TEMPERATURE)
    seeds = [derive_seed(seed, "sample", i) for i in range(n)]
    predictions = _answer(problems, policy, grader, params, seeds, extract)
    groups = [predictions[start : start + n] for start in range(0, len(predictions), n)]
    right = [sum(p.is_correct for p in group) for group in groups]
    mean = float(np.mean(right)) / n
    figures = {"mean": mean, f"avg@{n}": mean, **_majority(groups, grader, n)}
    for k in config.pass_k or (n,):
        figures[f"pass@{k}"] = float(np.mean([pass_at_k(n, count, k) for count in right]))
    return figures, clustered_interval([count / n for count in right], n)


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
    policy: Policy,
    grader: Grader,
    params: SamplingParams,
    seeds: Sequence[int],
    extract: Extract,
) -> list[Prediction]:
    """Every problem once per seed, in the problems' order, then the seeds'."""
    requests, golds = [], {}
    for place, problem in enumerate(problems):
        prompt = policy.codec.encode_prompt(problem.question)
        for number, seed in enumerate(seeds):
            request_id = f"{place}/{number}"
            requests.append(SampleRequest(request_id, prompt, params, derive_seed(seed, problem.problem_id)))
            golds[request_id] = problem
    results: dict[str, SampleResult] = {}
    texts: dict[str, str] = {}
    grades: dict[str, Grade] = {}
    policy.submit(requests)
    while policy.num_in_flight or grader.num_in_flight:
        for result in policy.poll() if policy.num_in_flight else ():
            results[result.request_id] = result
            texts[result.request_id] = policy.codec.decode(result.token_ids)
            grader.submit(result.request_id, texts[result.request_id], golds[result.request_id].answer)
        grades.update(grader.poll(block=not policy.num_in_flight))
    return [
        Prediction(
            problem_id=golds[r.request_id].problem_id,
            text=texts[r.request_id],
            grade=grades[r.request_id],
            answer=extract(texts[r.request_id]),
            truncated=results[r.request_id].finish_reason is not FinishReason.STOP,
        )
        for r in requests
    ]


SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("text", pa.string()),
        ("grade", pa.string()),
        ("answer", pa.string()),
        ("truncated", pa.bool_()),
    ]
)


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """One Parquet row per prediction, in order."""
    rows = [asdict(prediction) for prediction in predictions]
    write_parquet(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote."""
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [Prediction(**{**row, "grade": Grade(row["grade"])}) for row in rows]
