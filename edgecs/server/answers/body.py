"""What the bodies of all requests have in common."""

from __future__ import annotations

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

_NULL = {"type": "null"}


class Body(BaseModel):
    """The body of a request, or a part of it.

    Unknown fields are ignored, and so are those that are null and may be left out.
    """

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict) or None not in given.values():
            return given
        needed = {
            field.alias or name
            for name, field in cls.model_fields.items()
            if field.is_required()
        }
        return {
            name: value
            for name, value in given.items()
            if value is not None or name in needed
        }

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The published schema, where fields that may be left out may be null."""
        found = handler(core_schema)
        made = handler.resolve_ref_schema(found)
        needed = made.get("required", ())
        for name, one in made.get("properties", {}).items():
            if name not in needed and _NULL not in one.get("anyOf", ()):
                made["properties"][name] = {"anyOf": [one, _NULL]}
        return found
