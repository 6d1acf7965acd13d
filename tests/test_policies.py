from __future__ import annotations

from pathlib import Path

from pipeline_lib.config import PipelineConfig, PolicyConfig
from tasks.runtime.policies import folder_policy


def test_one_adapter_on_two_bases_is_two_policies(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"name": "{name}"}}', encoding="utf-8")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    one, other = (
        folder_policy(PipelineConfig(policy=PolicyConfig(model=str(tmp_path / name))), str(adapter))
        for name in ("one", "other")
    )
    assert one.policy_id != other.policy_id
