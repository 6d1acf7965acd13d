"""An adapter's files as they leave the store, and back: where PEFT finds the base, and what training wrote.

One idea: training names the base in the adapter's configuration so that the same training writes the same bytes
everywhere (`tiny`, or a folder's last name); PEFT looks for the base under that name, from wherever it is called. So
what leaves the store names it as it is found from here, and training's own file lies beside it, in `AS_TRAINED`: the
digest that a policy is known by is over that one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline_lib.config import ConfigError
from pipeline_lib.policy.model_folders import model_path

CONFIG_FILE = "adapter_config.json"
AS_TRAINED = "as_trained"


def base_location(name: str) -> str:
    """The base's name as every process of this machine finds it: a folder's absolute path, or the hub name.

    Args:
        name: see `model_path`; a folder that is gone keeps it.
    """
    try:
        path = model_path(name)
    except ConfigError:
        return name
    return str(path.resolve()) if isinstance(path, Path) else path


def name_base(config_file: Path, base: str, revision: str | None) -> str:
    """The text of an adapter's configuration with another name of its base.

    Args:
        config_file: as training wrote it.
        base: folder or hub name.
        revision: of a hub model; None is its main branch.
    """
    values = json.loads(config_file.read_text(encoding="utf-8"))
    values |= {"base_model_name_or_path": base, "revision": revision}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


@contextmanager
def with_base_named(folder: Path, base: str, revision: str | None) -> Iterator[Path]:
    """A folder of links to a policy's files, for as long as somebody copies it, in which an adapter names its base.

    Args:
        folder: adapter or full weights; the latter, which have no base, are handed on as they are.
        base: the adapter's, see `base_location`.
        revision: of a hub model.
    """
    if not (folder / CONFIG_FILE).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        links = Path(made)
        for file in folder.iterdir():
            (links / file.name).symlink_to(file.resolve())
        (links / CONFIG_FILE).unlink()
        (links / CONFIG_FILE).write_text(name_base(folder / CONFIG_FILE, base, revision), encoding="utf-8")
        (links / AS_TRAINED).mkdir()
        shutil.copyfile(folder / CONFIG_FILE, links / AS_TRAINED / CONFIG_FILE)
        yield links


def put_back(folder: Path) -> Path:
    """Gives a copy of what `with_base_named` made the configuration that training wrote; returns the folder."""
    kept = folder / AS_TRAINED / CONFIG_FILE
    if kept.is_file():  # not in versions of 0.1.0
        kept.replace(folder / CONFIG_FILE)
        kept.parent.rmdir()
    return folder
