"""``medseg explore``: the table in D-Tale, in a real browser, directly and behind a proxy."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from click.testing import CliRunner

from medseg.cli import main
from medseg.config import TaskConfig
from medseg.evaluation import explore, metrics_table
from medseg.project import UserError
from tests.browser import Page, browsing
from tests.services.http import Answer, Request, serve
from tests.unit.evaluation.conftest import NAME

HEADER = (
    "[...document.querySelectorAll('.headerCell > .text-nowrap')]"
    ".find(e => e.textContent.replace(/^[▲▼]/, '') == '{}')"
)

MENU = "[...document.querySelectorAll('#column-menu-div button')].find(e => e.textContent == '{}')"

CELLS = (
    "[...document.querySelectorAll('.cell')].filter(e => e.style.left == ({}).parentElement.style"
    ".left).map(e => e.innerText)"
)
"""The texts below a header, of any column but the first."""


@contextmanager
def explored(config: TaskConfig, **variables: str) -> Iterator[str]:
    """The command, running; gives the address that it says."""
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("medseg"), "explore", f"configs/{NAME}_config.yaml",
            "--data-root", config.root.path, "--port", "0",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables},
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"Open (\S+) \(Ctrl-C ends it\)\n", line)
        assert found, line + process.stderr.read()
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in said


def press(page: Page, element: str) -> None:
    """A click on what a script finds, as soon as it is there."""
    page.wait_for(f"!!({element})")
    page.run(f"({element}).setAttribute('data-pressed', 'next')")
    page.click("[data-pressed=next]")
    page.run("document.querySelector('[data-pressed=next]')?.removeAttribute('data-pressed')")


def open_menu(page: Page, column: str) -> None:
    """The menu of a column, complete; where that of another is open, a press only closes it."""
    menu = "!!document.querySelector('#column-menu-div')?.innerText.includes('{}')"
    for _ in range(4):
        press(page, HEADER.format(column))
        time.sleep(0.5)
        if page.run(menu.format(f'Column "{column}"')):
            break
    if column == "value":
        page.wait_for(menu.format("Kurtosis"))  # what comes last, and moves the rest


def choose(page: Page, column: str, button: str) -> None:
    open_menu(page, column)
    press(page, MENU.format(button))


def wait_for(page: Page, values: list[float]) -> None:
    """Waits until the column of values shows these, from top to bottom."""
    texts = json.dumps([f"{value:.4f}" for value in values])
    page.wait_for(
        f"JSON.stringify({CELLS.format(HEADER.format('value'))}) == JSON.stringify({texts})"
    )


def drive(page: Page, address: str, table: pd.DataFrame) -> None:
    """Filters to one metric, sorts by value, and filters by value."""
    page.open(address)
    open_menu(page, "metric")
    page.wait_for("!!document.querySelector('.string-filter-inputs input')")
    page.type(".string-filter-inputs input", "HD95")
    page.wait_for("!!document.querySelector('.Select__option--is-focused')")
    page.key("Enter", 13)
    page.wait_for("document.body.innerText.includes(\"metric == 'HD95'\")")
    expected = table[table["metric"] == "HD95"]["value"].tolist()
    wait_for(page, expected)
    choose(page, "value", "Desc")
    expected.sort(reverse=True)
    assert len(set(expected)) > 2
    wait_for(page, expected)
    choose(page, "value", "<")
    page.type("input.numeric-filter", "8.5")
    fewer = [value for value in expected if value < 8.5]
    assert 0 < len(fewer) < len(expected)
    wait_for(page, fewer)
    assert not page.errors


def test_sort_and_filter(complete: TaskConfig) -> None:
    table = metrics_table(complete)
    with explored(complete) as address, browsing(1400, 900) as page:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/dtale/main/1", address)
        drive(page, address, table)
        own = address.removesuffix("dtale/main/1")
        assert all(url.startswith((own, "data:")) for url in page.requests)
        # no other machine's name leads here, and no page of another site does
        other = requests.get(address, headers={"Host": "attacker.example"}, timeout=30)
        assert other.status_code == 400


def test_behind_a_notebooks_proxy(complete: TaskConfig) -> None:
    prefix = "/notebook/team/anna"
    with explored(complete, NB_PREFIX=f"{prefix}/") as path:
        found = re.fullmatch(rf"{prefix}/proxy/(\d+)/dtale/main/1", path)
        assert found
        port = found[1]
        lost: list[str] = []

        def answer(request: Request) -> Answer:
            """As jupyter-server-proxy: what is below the prefix, without it."""
            own = f"{prefix}/proxy/{port}"
            if not request.path.startswith(own + "/"):
                lost.append(request.path)
                return Answer(204)
            reply = requests.request(
                request.method, f"http://127.0.0.1:{port}{request.path.removeprefix(own)}",
                params=request.query, data=request.body, timeout=60,
                headers={"Host": "kubeflow.example"},
            )  # fmt: skip
            return Answer(reply.status_code, reply.content, reply.headers["Content-Type"])

        with serve(answer) as server, browsing(1400, 900) as page:
            drive(page, f"{server}{path}", metrics_table(complete))
        assert set(lost) <= {"/favicon.ico"}


def test_a_port_that_is_taken() -> None:
    def never(address: str) -> None:
        raise AssertionError(address)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken: give another one with --port"):
            explore(pd.DataFrame({"value": np.ones(2)}), port, never)


def test_without_dtale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dtale.app", None)
    with pytest.raises(UserError, match=r"pip install 'kfp-medseg\[runtime,explore\]'"):
        explore(pd.DataFrame(), 0, print)


def test_without_results(finished: TaskConfig) -> None:
    shutil.rmtree(finished.results_folder)
    arguments = [f"configs/{NAME}_config.yaml", "--data-root", str(finished.root.path)]
    done = CliRunner().invoke(main, ["explore", *arguments])
    assert done.exit_code == 1
    assert done.output.startswith("error: no fold has results in nnUNet/")
    assert "run validate or test_model first" in done.output
