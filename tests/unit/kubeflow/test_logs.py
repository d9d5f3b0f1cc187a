"""What a log says: the stage's own lines, and why it failed."""

from __future__ import annotations

import pytest

from medseg.kubeflow.logs import last_words, own_lines

LAUNCHER = "I1125 08:22:03.519500      15 main.go:67] Setting log level to: '1'"
FATAL = "F1125 08:22:04.731181      15 main.go:59] failed to execute component: "


def test_the_stages_own_lines() -> None:
    log = [
        'time="2026-11-25T08:22:03 UTC" level=info msg="capturing logs" argo=true',
        LAUNCHER,
        "[KFP Executor 2026-11-25 08:22:03,750 INFO]: Got executor_input:",
        "{",
        '    "inputs": {}',
        "}",
        "reading 3 cases",
        '{"a": 1}',
        "[KFP Executor 2026-11-25 08:22:03,887 WARNING]: the disk is slow",
        "{",
        "}",
        "I1125 08:22:33.318675      13 launcher_v2.go:1230] ExecutorOutput: {",
        '  "artifacts": {',
        "  }",
        "}",
        "",
        "done",
    ]
    shown = ["reading 3 cases", '{"a": 1}', "the disk is slow", "{", "}", "", "done"]
    assert list(own_lines(log)) == shown


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("error: first\nerror: no such folder\n", "no such folder"),
        (
            'Traceback (most recent call last):\n  File "a"\n    f()\nValueError: no\n',
            "ValueError: no",
        ),
        ("Traceback (most recent call last):\n  x\nKeyError: 1\nerror: mended\n", "mended"),
        ("all is well\n", ""),
        ("Traceback (most recent call last):\n  cut off", ""),
    ],
)
def test_the_reason(tail: str, reason: str) -> None:
    words = last_words("", f"{tail}\n{FATAL}exit status 1\n")
    assert words.reason == reason
    assert words.kubeflow == "failed to execute component: exit status 1"
    assert not words.killed


def test_killed() -> None:
    words = last_words('"memory_limit": "4Gi",', f"epoch 3\n{FATAL}signal: killed\n")
    assert (words.killed, words.memory, words.reason) == (True, "4Gi", "")
    placeholder = '"memory_limit": "{{$.inputs.parameters[\'memory\']}}"'
    assert last_words(placeholder, "").memory == ""
