"""Sentences made of what others raise."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseg.project import findings, hint, type_and_place


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    memory: int = 1


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tag: str = Field("", alias="Tag")
    limit: int
    stages: dict[str, _Stage] = {}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"limit": "x"}, "'limit': input should be a valid integer, unable to parse string as an "),
        ({}, "'limit' is missing"),
        ({"limit": 1, "tags": "x"}, "unknown key 'tags' (did you mean 'Tag'?)"),
        (
            {"limit": 1, "stages": {"train": {"memry": 1}}},
            "unknown key 'stages.train.memry' (did you mean 'memory'?)",
        ),
        ({"limit": "x" * 99}, "an integer"),
    ],
)
def test_what_pydantic_finds_is_a_sentence(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _Settings(**content)
    found = findings(caught.value, _Settings)
    assert sentence in found
    assert "xxx" not in found  # a long value would hide the rest


def test_a_misspelt_word_is_named_and_no_other() -> None:
    assert hint("trian", ["segment", "train"]) == " (did you mean 'train'?)"
    assert hint("s3_secret", ["notify_secret", "mlflow_secret"]) == ""
    assert hint("train", []) == ""


def test_an_error_without_its_text() -> None:
    with pytest.raises(ValueError) as caught:
        raise ValueError("Doe^Jane")
    assert type_and_place(caught.value).startswith("ValueError in test_errors.py, line ")
