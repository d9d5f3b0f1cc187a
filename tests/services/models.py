"""Checking JSON against the models of a published OpenAPI client library."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any


class Refused(Exception):  # noqa: N818 - what the server answers
    """The server does not take a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def check_model(kind: str, value: Any, where: str, library: Any) -> None:
    """Fails where ``value`` (parsed JSON) does not follow the model ``kind`` of the library."""
    if value is None or kind == "object":
        return
    if match := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            raise Refused(400, f"{where} is no list")
        for item in value:
            check_model(match[1], item, where, library)
    elif match := re.fullmatch(r"dict\(str, (.+)\)", kind):
        if not isinstance(value, dict):
            raise Refused(400, f"{where} is no object")
        for key, item in value.items():
            check_model(match[1], item, f"{where}.{key}", library)
    elif hasattr(library, kind):
        model = getattr(library, kind)
        if hasattr(model, "allowable_values"):
            if value not in model.allowable_values:
                raise Refused(400, f"{where}: {value!r} is not one of {model.allowable_values}")
            return
        if not isinstance(value, dict):
            raise Refused(400, f"{where} is no {kind}")
        names = {json_name: name for name, json_name in model.attribute_map.items()}
        for key, item in value.items():
            if key not in names:
                raise Refused(400, f"{where}: {kind} has no field {key!r}")
            check_model(model.openapi_types[names[key]], item, f"{where}.{key}", library)
        try:  # the model's own checks: required fields, lengths
            library.ApiClient().deserialize(SimpleNamespace(data=json.dumps(value)), kind)
        except (ValueError, TypeError) as error:
            raise Refused(400, f"{where}: {error}") from None
    else:
        types = {"str": str, "int": int, "bool": bool, "datetime": str, "float": (int, float)}
        if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise Refused(400, f"{where}: {value!r} is no {kind}")
