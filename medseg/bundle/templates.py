"""The bundle's files as templates: the ``.j2`` files beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2


def render(template: str, /, **values: Any) -> str:
    """Fills a template.

    Args:
        template: Its file, such as ``README.md.j2``.
        values: What it names; JSON is written with its filter ``tojson``.

    Raises:
        jinja2.UndefinedError: It names something that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(values)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}: {value}" for key, value in values.items()]


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("medseg.bundle", ""),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701 - Markdown, YAML and JSON, no HTML
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"sort_keys": False}
_ENVIRONMENT.filters["pairs"] = _pairs
