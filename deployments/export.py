"""A registered policy written to a folder of its own: `coppice export`.

One idea: nobody meets half an export. It is written beside its place and renamed when it is whole, and everything that
can be asked before (the place, the hub's token, whether others could load it) is asked before.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.config.one_line import first_line
from pipeline_lib.distribution import installed_version
from pipeline_lib.policy.export.exported_model import (
    BASE_FOLDER,
    base_licence,
    is_adapter,
    served_rank,
    write_adapter,
    write_merged,
    write_tokenizer,
)
from pipeline_lib.policy.model_folders import chat_template, fingerprint, model_folder, model_path
from pipeline_lib.registry.model_card import ExportedFiles, Kind, model_card
from pipeline_lib.tracking import (
    Champion,
    TrackingError,
    TrackingOutage,
    download_champion,
    load_run,
    model_name,
    open_registry,
    registered_champion,
    registered_version,
)
from tasks.runtime.prompts import instruction_for

HUB_TIMEOUT_S = 10.0


def champion_of(settings: Settings, preset: str) -> Champion:
    """The version that is champion of a preset.

    Raises:
        ConfigError: there is none.
    """
    champion = registered_champion(settings, preset)
    if champion is None:
        name = model_name(preset)
        raise ConfigError(
            f"{name} has no champion: no run has ended with an iteration better than its base; "
            "`coppice promote` names one by hand, --run ID takes what a run chose"
        )
    return champion


def choice_of_run(settings: Settings, run_id: str) -> Champion:
    """The version that a run's gate chose.

    Raises:
        ConfigError: the base stayed best, or the version is gone.
        TrackingError: there is no such run, or it has not finished.
    """
    config, result = load_run(settings, run_id)
    chosen = result.records[result.decision.champion]
    if not chosen.train:
        raise ConfigError(
            f"--run {run_id}: the base stayed best ({result.decision.reason}); there is nothing to export"
        )
    number = open_registry(settings, config.preset).version_of(chosen.policy.policy_id)
    if number is None:
        raise ConfigError(
            f"--run {run_id}: {model_name(config.preset)} has lost the version of its iteration {chosen.index}"
        )
    return registered_version(settings, f"models:/{model_name(config.preset)}/{number}")


def config_of(settings: Settings, champion: Champion, preset: PipelineConfig) -> PipelineConfig:
    """The configuration of the run that made a version; the preset's where that run is gone."""
    try:
        return load_run(settings, champion.tags.get("coppice.run_id", ""))[0]
    except TrackingOutage:
        raise
    except TrackingError:
        return preset


def export_version(
    settings: Settings, champion: Champion, config: PipelineConfig, output: Path, *, merge: bool = False
) -> Kind:
    """Writes a version as files that transformers, PEFT and vLLM load; returns what they are.

    An adapter's base is named by hub name and commit, or copied along to ``base/``, so that the folder is whole
    wherever it is taken; merged weights and full fine-tuning need no base.

    Args:
        settings: where the registry is.
        champion: the version.
        config: of the run that made it; number type and instruction are read.
        output: a folder that is not there yet, or is empty.
        merge: writes the base with the adapter in its weights.

    Raises:
        ConfigError: the place is taken, or the base is not to be had.
    """
    with written_whole(output) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as fetched:
        trained = download_champion(settings, champion, Path(fetched))
        if fingerprint(trained) != champion.policy_id:
            raise ConfigError(f"registry: the files of {champion.model} version {champion.version} have been changed")
        kind: Kind = ("merged" if merge else "adapter") if is_adapter(trained) else "full"
        base = model_folder(champion.base_model, champion.revision, weights=kind == "merged")
        is_folder = isinstance(model_path(champion.base_model), Path)
        policy = config.policy.model_copy(update={"revision": champion.revision})
        if kind == "full":
            shutil.copytree(trained, folder, dirs_exist_ok=True)
        elif kind == "merged":
            write_merged(folder, trained, base, policy)
        else:
            named = str(output.resolve() / BASE_FOLDER) if is_folder else champion.base_model
            write_adapter(folder, trained, named, base if is_folder else None, champion.revision)
        write_tokenizer(folder, base, policy)
        files = ExportedFiles(
            kind=kind,
            base=Path(champion.base_model).name if is_folder else champion.base_model,
            revision=None if is_folder else champion.revision,
            licence=base_licence(base) or (None if is_folder else _licence_on_hub(champion)),
            has_base=kind == "adapter" and is_folder,
            dtype=config.policy.dtype,
            lora_rank=served_rank(trained) if is_adapter(trained) else 0,
            instruction=instruction_for(config, config.problems.dataset),
            told=_told(config, base),
            coppice=installed_version() or "from its source",
        )
        card = model_card(champion.model, champion.version, champion.tags, files)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return kind


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends; after an error nothing is left.

    Raises:
        ConfigError: there is something at `output`, or no folder can be made there.
    """
    require_new(output)
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.resolve().parent))
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror}); name a folder elsewhere") from None
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # it was made for its owner alone
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_new(output: Path) -> None:
    """Raises ConfigError where an export would cover something."""
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise ConfigError(f"--output {output}: there is something already; name a new folder")


def require_hub(name: str) -> None:
    """Raises ConfigError where the hub would not take an upload: before the work, not after it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ConfigError(f"--push-to-hub {name}: {first_line(error)}") from None
    if constants.is_offline_mode():
        raise ConfigError(f"--push-to-hub {name}: HF_HUB_OFFLINE is set; unset it where there is a network")
    if get_token() is None:
        raise ConfigError(f"--push-to-hub {name}: no token of the hub is here; `hf auth login`, or set HF_TOKEN")


def push_to_hub(folder: Path, name: str) -> str:
    """Uploads an export to a repository of the hub, a private one where it has to be made; returns its address.

    Raises:
        ConfigError: the hub does not answer, or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by Coppice")
    except Exception as error:  # its own, OSError, or one of whatever library it asks with
        raise ConfigError(
            f"--push-to-hub {name}: the hub did not take it ({first_line(error).rstrip('.')}); the export is whole, "
            f"`hf upload {name} {folder}` sends it again"
        ) from None
    return str(address)


def _licence_on_hub(champion: Champion) -> str | None:
    """What the hub's own page says; None where nobody answers."""
    from huggingface_hub import model_info

    with suppress(Exception):  # as in `push_to_hub`
        card = model_info(champion.base_model, revision=champion.revision, timeout=HUB_TIMEOUT_S).card_data
        return None if card is None or card.license is None else str(card.license)
    return None


def _told(config: PipelineConfig, base: Path) -> tuple[str, ...]:
    """What the policy was asked with besides question and instruction, for whoever asks it elsewhere."""
    policy = config.policy
    told = {
        "the system prompt": policy.system_prompt,
        "the chat template's options": policy.chat_template_kwargs or None,
        "texts that ended its answers": list(policy.stop) or None,
    }
    lines = [f"{name} `{json.dumps(value, ensure_ascii=False)}`" for name, value in told.items() if value is not None]
    shots = [f"{policy.num_shots} worked examples of the train split"] if policy.num_shots else []
    if chat_template(base).is_empty:
        shots.append("`Question: …`, then `Answer:` on a line of its own, since its tokenizer has no chat template")
    return (*lines, *shots, *(["an end at the line with the answer"] if policy.stop_after_answer else []))
