"""What of a configuration, or of a record, belongs in a store key.

A field that is younger than stores that are filled says in its schema what older versions did without it:
``Field(…, json_schema_extra={"before": VALUE})``. With that value it is in no key, so what such a store holds is found
again; with any other it is. The value to name is the one that changes nothing, which need not be the field's default.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline_lib.types import JsonDict


def key_of(model: BaseModel, *, without: Collection[str] = (), only: Collection[str] | None = None) -> JsonDict:
    """The fields that tell two values of a model apart, as JSON; nested models likewise, also inside of sequences.

    Args:
        model: a group of settings, or a record.
        without: fields of the model itself on which no result depends.
        only: fields of the model itself on which a result depends; None are all.

    Example: a group whose field ``truncated`` came later with ``before="wrong"`` has no ``truncated`` in its key while
    it is "wrong".
    """
    dumped = model.model_dump(mode="json")
    return {
        name: _pruned(getattr(model, name), dumped[name])
        for name, field in type(model).model_fields.items()
        if name not in without and (only is None or name in only) and not _is_as_before(field, dumped[name])
    }


def key_text(model: BaseModel) -> str:
    """`key_of` as one line, for what is named by a digest of texts."""
    return json.dumps(key_of(model), separators=(",", ":"), ensure_ascii=False)


def _is_as_before(field: FieldInfo, value: Any) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and "before" in extra and value == extra["before"]


def _pruned(value: Any, dumped: Any) -> Any:
    if isinstance(value, BaseModel):
        return key_of(value)
    if isinstance(value, (list, tuple)):
        return [_pruned(item, plain) for item, plain in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        return {
            name: _pruned(item, plain) for (_, item), (name, plain) in zip(value.items(), dumped.items(), strict=True)
        }
    return dumped
