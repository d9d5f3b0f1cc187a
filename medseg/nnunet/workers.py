"""Worker processes that end with the stage, however it ends."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from medseg.project import Failures, UserError

_PR_SET_PDEATHSIG = 1  # prctl(2)


def for_each_case(
    function: Callable[..., Any],
    arguments: Mapping[str, Iterable[Any]],
    failures: Failures,
    processes: int,
) -> Iterator[tuple[str, Any]]:
    """Calls ``function`` for every case in worker processes.

    Args:
        function: A function of a module's top level.
        arguments: Case identifier to the function's arguments.
        failures: Takes the cases for which the function raised an error.
        processes: Worker processes, at most one per case.

    Yields:
        Case identifier and result, as the cases finish; cases that failed are left out.

    Raises:
        UserError: A worker was killed from outside, as a rule for lack of memory.
    """
    if not arguments:
        return
    pool = ProcessPoolExecutor(
        min(processes, len(arguments)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(),),
    )
    try:
        futures: dict[Future[Any], str] = {
            pool.submit(function, *given): case for case, given in arguments.items()
        }
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                raise UserError(
                    "a worker process was killed, most likely for lack of memory: set "
                    "num_processes lower or give the stage more memory, then run the same command "
                    "again; finished cases are kept."
                )
            with failures.case(futures[future]):
                yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(parent: int) -> None:
    die_with_parent(parent)
    # A worker has nothing left to do when it ends; taking torch apart costs most of a second.
    atexit.register(os._exit, 0)


def die_with_parent(parent: int) -> None:
    """Asks the kernel (Linux) to end this process when ``parent`` ends, even by SIGKILL."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)


_watched = False
_registered = False


@contextmanager
def forked_workers_end_with_us() -> Iterator[None]:
    """Lets processes that a library forks inside the block end with this one.

    nnU-Net forks its augmentation workers; after a SIGKILL of the training they would go on.
    """
    global _watched, _registered
    parent = os.getpid()

    def in_child() -> None:
        if _watched and os.getppid() == parent:
            die_with_parent(parent)

    if not _registered:
        os.register_at_fork(after_in_child=in_child)
        _registered = True
    _watched = True
    try:
        yield
    finally:
        _watched = False
