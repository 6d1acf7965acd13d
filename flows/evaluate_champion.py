"""Evaluation of the champion: the model that the registry recommends, on every test set, as often as one likes."""

from __future__ import annotations

from prefect import State, flow

from pipeline_lib.config import PipelineConfig
from pipeline_lib.types import EvalReport
from tasks.champion import champion_policy, find_champion, no_champion, record_champion
from tasks.evaluate import evaluate_policy
from tasks.problems import evaluation_sets
from tasks.runtime.prompts import check_prompts


@flow(name="evaluate-champion", flow_run_name="{config.preset}-champion", validate_parameters=True)
def evaluate_champion(config: PipelineConfig) -> list[EvalReport] | State[list[EvalReport]]:
    """Measures the champion of a preset.

    1. Ask the registry which version of the preset's model is champion; without one, say so and end.
    2. Answer every problem of each test set greedily; what was measured before is not computed again.
    3. Record the reports beside the champion's version.
    """
    champion = find_champion(config)
    if champion is None:
        return no_champion(config)
    check_prompts(config, ["test"])
    policy = champion_policy(config, champion)
    evaluations = [
        evaluate_policy(config=config, problems=problems, policy=policy, split=split, name=name)
        for name, split, problems in evaluation_sets(config, ["test"])
    ]
    return record_champion(config=config, champion=champion, evaluations=evaluations)
