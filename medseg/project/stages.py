"""The frame of a stage: its lock, its start and end, and one sentence for an error."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from medseg.project.certificates import own_authorities
from medseg.project.errors import (
    CasesFailedError,
    UserError,
    explain_os_error,
    explained_os_errors,
    print_unquoted,
    type_and_place,
)
from medseg.project.events import announce, current_stage, progress, telling
from medseg.project.files import safe_name
from medseg.project.locks import lock
from medseg.project.roots import DataRoot
from medseg.project.variables import RUN_PID


@contextmanager
def stage(name: str, *, target: str = "", private: bool = False) -> Iterator[DataRoot]:
    """Frames the body of a component.

    Holds the stage's lock, trusts the site's own authorities, announces start and end, ends cleanly
    on SIGTERM, and turns an error that the user can mend into one line and exit status 1. That
    clean end is for local runs, also in containers: on a cluster less than a second is left, so
    what must not be lost is on the volume before.

    Args:
        name: The component.
        target: What it works on (a config, a folder, a fold), so that different targets may
            run at once.
        private: Whether the texts of unforeseen errors are left out, as they may quote what stands
            in a DICOM header; their types and the places in the code are named instead.

    Yields:
        The data root.

    Raises:
        SystemExit: With status 1, after a :class:`UserError` or an error of the volume, or any
            error of a private stage; with status 143 after SIGTERM.
    """
    started = time.monotonic()
    with telling(name, target), _ends_on_sigterm():
        _end_with_run()
        announce("start", target)
        try:
            with explained_os_errors(), own_authorities():
                root = DataRoot.from_environment()
                with lock(root, _lock_name(root, name, target)):
                    yield root
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            announce("error", str(error), error=type(error).__name__)
            raise SystemExit(1) from None
        except Exception as error:
            announced = type_and_place(error) if private else f"{type(error).__name__}: {error}"
            announce("error", announced, error=type(error).__name__)
            if not private:
                raise
            print_unquoted(error)
            raise SystemExit(1) from None
        except BaseException as error:  # told to end
            announce("error", f"{type(error).__name__}: {error}", error=type(error).__name__)
            raise
        announce("end", f"{time.monotonic() - started:.1f} s")


def _lock_name(root: DataRoot, name: str, target: str) -> str:
    with suppress(UserError):  # no path, or one that the stage itself will refuse
        target = root.relative(root.resolve(target))  # which may be spelt in several ways
    return "-".join(filter(None, ("stage", name, safe_name(target))))


class Failures:
    """Collects failed cases, so that one of them never loses the others.

    Args:
        private: Whether the texts of unforeseen errors are left out, as in :func:`stage`.

    Attributes:
        reasons: Case to the reason for its failure.
    """

    def __init__(self, *, private: bool = False) -> None:
        self.private = private
        self.reasons: dict[str, str] = {}

    @contextmanager
    def case(self, case: str) -> Iterator[None]:
        """Records the error of one case and goes on; errors of the volume still stop the stage."""
        try:
            yield
        except OSError as error:
            if explain_os_error(error) is not None:
                raise
            self._record(case, error)
        except Exception as error:  # noqa: BLE001 - whatever a case does, the others go on
            self._record(case, error)

    def _record(self, case: str, error: Exception) -> None:
        if isinstance(error, UserError):
            text = str(error)
        elif self.private:
            text = type_and_place(error)
        else:
            text = f"{type(error).__name__}: {error}"
        self.reasons[case] = text
        progress(f"{case} failed: {text}")

    def check(self, total: int, allowed: int = 0) -> None:
        """Fails the stage where more cases failed than are allowed.

        Args:
            total: How many cases there are in all.
            allowed: How many may fail.

        Raises:
            CasesFailedError: With every failed case and its reason; of a lone case the reason
                alone.
        """
        if len(self.reasons) > allowed:
            raise CasesFailedError(current_stage(), self.reasons, total, allowed)


# --- how a stage ends ---


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    # the clean end has begun: being told once more must not cut it short
    signal.signal(signum, signal.SIG_IGN)
    raise SystemExit(128 + signum)


def _in_forked_child() -> None:
    """A forked worker dies of SIGTERM at once; the stage's clean end is not its business."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_forked_child)


def this_run() -> str:
    """This process, as :data:`~medseg.project.variables.RUN_PID` names it to its stages."""
    return f"{os.getpid()}@{socket.gethostname()}"


def _end_with_run() -> None:
    pid, _, host = RUN_PID.value.partition("@")
    if host != socket.gethostname():  # no run, or one that looks on from another machine
        return

    def watch() -> None:  # a killed run cannot tell its stages, so they look
        while Path(f"/proc/{pid}").exists():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
