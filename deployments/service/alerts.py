"""`coppice alerts`: puts the automations of automations.yaml on a Prefect server, with a block of the user's.

An automation is found by its name: installed again with another block, all of them notify through that one.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline_lib.config import ConfigError

AUTOMATIONS_FILE = Path(__file__).parents[1] / "automations.yaml"


def install_alerts(block: str) -> list[str]:
    """Creates or updates every automation so that it notifies through `block`; returns their names.

    Args:
        block: ``type/name`` of a notification block on the server.

    Raises:
        ConfigError: no such block.
    """
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore
    from prefect.exceptions import ObjectNotFound

    kind, _, name = block.partition("/")
    templates = yaml.safe_load(AUTOMATIONS_FILE.read_text(encoding="utf-8"))["automations"]
    with get_client(sync_client=True) as client:
        try:
            block_id = client.read_block_document_by_name(name, kind).id
        except ObjectNotFound:
            raise ConfigError(
                f"alerts: the server has no block {block!r}; make one in its UI under Blocks, as custom-webhook/team"
            ) from None
        for template in templates:
            for action in template["actions"]:
                action["block_document_id"] = str(block_id)
            automation = AutomationCore.model_validate(template)
            existing = client.read_automations_by_name(automation.name)
            if existing:
                client.update_automation(existing[0].id, automation)
            else:
                client.create_automation(automation)
    return [template["name"] for template in templates]
