"""A home that version 0.1.0 left: what its store holds is found again under the names that stages look for today."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from deployments.presets import preset
from pipeline_lib.config import apply_overrides
from pipeline_lib.store import Store

pytestmark = pytest.mark.slow
ARCHIVE = Path(__file__).parent / "golden" / "home-0.1.0.tar.xz"
SETTINGS = (  # of the run that is in the archive
    "search.num_shards=2",
    "num_iterations=2",
    "problems.num_problems=24",
    "problems.num_validation=16",
    "search.num_simulations=8",
    "evaluation.num_problems=16",
    "evaluation.sampled_problems=4",
    "evaluation.datasets=tiny-word",
    "train.lora_rank=4",
)


@pytest.fixture
def old_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path / "coppice-0.1.0"))
    return tmp_path / "coppice-0.1.0"


def test_what_version_0_1_0_made_of_an_iteration_is_not_made_again(old_home: Path) -> None:
    from tasks.audit import audit_iteration
    from tasks.evaluate import evaluate_policy
    from tasks.problems import draw_problems
    from tasks.runtime.policies import base_policy, trained_policy
    from tasks.score import score_steps
    from tasks.search import load_trees, search_shard
    from tasks.train import train_policy

    config = apply_overrides(preset("tiny"), list(SETTINGS))
    run = {"config": config, "iteration": 1}
    base = base_policy(config)
    problems = draw_problems.entry(**run).ref()
    shards = [search_shard.entry(**run, problems=problems, policy=base, shard=i, earlier=()).ref() for i in range(2)]
    scores = score_steps.entry(**run, trees=tuple(shards)).ref()
    audit_iteration.entry(**run, trees=tuple(shards), scores=scores, remedied=False).ref()
    trained = train_policy.entry(**run, trees=tuple(shards), scores=scores, policy=base).ref()
    validation = draw_problems.entry(config=config, iteration=0).ref()
    as_then = apply_overrides(config, ["truncated=grade"])  # 0.1.0 graded what was cut off, in evaluations alone
    measured = {"config": as_then, "problems": validation, "split": "validation", "name": "tiny-word validation"}
    for policy in (base, trained_policy(config, trained, iteration=1)):
        evaluate_policy.entry(**measured, policy=policy).ref()  # each `ref` raises where the store lacks the entry
    assert sum(tree.num_rollouts for tree in load_trees(tuple(shards))) == 24 * 8
    assert Store(old_home / "store").open(trained).joinpath("policy", "adapter_model.safetensors").is_file()
