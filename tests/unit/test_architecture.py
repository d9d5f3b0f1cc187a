"""The map in docs/ says what the code is held to."""

from __future__ import annotations

import re
import tomllib

import medseg
from tests.conftest import PROJECT


def test_the_floors_of_the_map_are_those_that_are_enforced() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    enforced = [
        set(layer.split(" | "))
        for contract in settings["tool"]["importlinter"]["contracts"]
        for layer in contract.get("layers", ())
    ]
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [set(rooms.split()) for rooms in re.findall(r"^[1-9]  +(.*)$", text, re.MULTILINE)]
    outside = {"components", "pipelines", "images"}  # folders beside medseg/
    assert [floor - outside for floor in drawn] == enforced


def test_the_map_names_every_room() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (PROJECT / "medseg").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == rooms
    assert rooms <= set(re.findall(r"``(\w+)``", medseg.__doc__ or ""))
