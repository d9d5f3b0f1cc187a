"""The two stages of the pipeline ``check``, and what they share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg.check import machine, servers
from medseg.check.cluster import pod_rows
from medseg.check.meeting import Meeting
from medseg.check.registry import registry_rows
from medseg.check.rows import Look, Row, looked, refused
from medseg.check.table import lines, page, verdict
from medseg.check.volume import open_root, volume_rows
from medseg.project import (
    DataRoot,
    UserError,
    own_authorities,
    progress,
    read_json,
    result,
    safe_name,
    write_json,
    write_text,
)
from medseg.project.events import announce, telling
from medseg.project.variables import RUN_ID

WAIT_S = 300.0
"""seconds that two pods of a check wait for each other: an image may have to be pulled."""
SITE, BESIDE = "check", "check_beside"
ROWS = "rows.json"


@dataclass(frozen=True)
class Asked:
    """What a person wants to be looked at.

    Attributes:
        studies: The PACS; empty: none.
        store: Whether to store an instance there.
        tracking_uri: The MLflow server; empty: the environment's, else the volume's store.
        claim: The claim of the project volume.
        gpus: GPUs that the stage asked for.
        compiled_by: The version that compiled the pipeline.
    """

    studies: str = ""
    store: bool = False
    tracking_uri: str = ""
    claim: str = ""
    gpus: str = ""
    compiled_by: str = ""


def check_site(run: str, asked: Asked, table: Path) -> None:
    """The stage ``check``: everything that one pod can see, as one table.

    Rows of the stage beside it (:func:`check_beside`) are waited for on a cluster, where the two
    run at the same time, and taken where they are already there in a local run.

    Args:
        run: The run's name; its table lies in ``reports/<run>`` too.
        asked: What to look at.
        table: Where the HTML page goes.
    """
    with telling(SITE, run), _told() as rows:
        root = _root(rows)
        meeting = Meeting(root, RUN_ID.value or run, SITE, BESIDE) if root else None
        with _present(meeting) as there:
            rows += _all(_looks(root, asked))
            if there is not None:
                rows += _beside(there)
                with suppress(OSError, UserError):  # the volume's own row says that it is full
                    there.leave(rows)
        table.write_text(page("Is this site ready?", rows), encoding="utf-8")
        _publish(root, run, rows)


def check_beside(run: str, registry: str, *, push: bool = False, insecure: bool = False) -> None:
    """The stage ``check_beside``: the registry, from the image that pushes; and a second pod.

    Args:
        run: The run's name.
        registry: Registry and path, such as ``registry.example.org/imaging``; empty: not asked.
        push: Whether to push an empty image.
        insecure: The registry speaks plain HTTP, or has a certificate of its own.
    """
    with telling(BESIDE, run), _told() as untold:  # what is wrong with both the other one tells
        root = _root(untold)
        meeting = Meeting(root, RUN_ID.value or run, BESIDE, SITE) if root else None
        look = partial(registry_rows, registry, push=push, insecure=insecure)
        earlier = None
        with _present(meeting) as there:
            rows = _all([("registry", look)])
            if there is not None:
                with suppress(OSError, UserError):
                    there.leave(rows)
                # which it leaves when it has seen that this pod is there
                earlier = there.rows(WAIT_S if RUN_ID.value else 0)
        if earlier is not None and not RUN_ID.value:  # in a local run the other one came first
            _publish(root, run, [*earlier, *rows])


def read_rows(folder: Path) -> list[Row]:
    """The rows that a run's check left in its folder of ``reports``.

    Args:
        folder: The folder.

    Raises:
        UserError: They cannot be read.
    """
    content = read_json(folder / ROWS, [])
    return [row for row in map(Row.from_json, content) if row is not None]


def _looks(root: DataRoot | None, asked: Asked) -> list[tuple[str, Look]]:
    looks: list[tuple[str, Look]] = [("image", partial(machine.image_rows, asked.compiled_by))]
    if root is not None:
        looks.append(("volume", partial(volume_rows, root)))
    if RUN_ID.value:
        looks.append(("cluster", partial(pod_rows, asked.claim)))
    return [
        *looks,
        (machine.SHM, machine.shared_memory_rows),
        ("GPU", partial(machine.gpu_rows, asked.gpus)),
        ("PACS", partial(servers.pacs_rows, root, asked.studies, store=asked.store)),
        ("MLflow", partial(servers.mlflow_rows, asked.tracking_uri)),
        ("webhook", servers.webhook_rows),
        ("clock", partial(servers.clock_rows, root, [asked.studies, asked.tracking_uri])),
    ]


def _all(looks: Sequence[tuple[str, Look]]) -> list[Row]:
    """The rows of all looks, each told as it comes."""
    rows = []
    for name, look in looks:
        for row in looked(name, look):
            rows.append(row)
            progress(f"{row.state}: {row.name}: {row.found}")
    return rows


def _beside(there: Meeting) -> list[Row]:
    if not RUN_ID.value:
        return there.rows() or []
    row = there.row(WAIT_S)
    rows = there.rows(WAIT_S) if row.state != "failed" else None
    return [row, *(rows or [])]


def _root(rows: list[Row]) -> DataRoot | None:
    """The data root; None, and a row, where it is not there."""
    try:
        return open_root()
    except UserError as error:
        rows.append(refused("volume", error))
        return None


@contextmanager
def _present(meeting: Meeting | None) -> Iterator[Meeting | None]:
    """Shows that this stage is there; without a volume that can be written it does without."""
    with ExitStack() as stack:
        try:
            if meeting is not None:
                stack.enter_context(meeting.present())
        except (OSError, UserError):
            meeting = None
        yield meeting


@contextmanager
def _told() -> Iterator[list[Row]]:
    """Start, end and errors, as of any stage; no lock, which a bad volume would refuse.

    Yields:
        The first rows: what is wrong with the site's own certificates.
    """
    started = time.monotonic()
    announce("start", "")
    rows = []
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(own_authorities())
            except UserError as error:
                rows.append(refused("certificates", error))
            yield rows
    except BaseException as error:
        announce("error", f"{type(error).__name__}: {error}", error=type(error).__name__)
        raise
    announce("end", f"{time.monotonic() - started:.1f} s")


def _publish(root: DataRoot | None, run: str, rows: Sequence[Row]) -> None:
    """The table on the log, and on the volume where that can be written."""
    print("", *lines(rows), "", verdict(rows), sep="\n", flush=True)
    if root is None:
        return
    folder = root.path / "reports" / (safe_name(run) or "check")
    with suppress(OSError, UserError):
        write_json(folder / ROWS, [row.to_json() for row in rows])
        write_text(folder / "check.html", page("Is this site ready?", rows))
        result("check", folder / "check.html")
