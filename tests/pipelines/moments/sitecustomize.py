"""Stops a stage at a moment that no watcher from outside would hit; see ``harness.running_until``.

Python imports a module of this name when it starts, from a folder on its path.
"""

import os
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path


def _stop_at(stage: str, verb: str, pattern: str, mark: Path) -> None:
    """Watches what Python tells its auditors, in the stage's process and in its workers."""

    def name_of(event, arguments):
        if verb == "reading" and event == "open":
            return arguments[0]
        if verb == "writing" and event == "os.rename" and ".partial-" in os.fspath(arguments[0]):
            return arguments[1]
        return None

    def look(event, arguments):
        name = name_of(event, arguments)
        if not isinstance(name, str | os.PathLike) or not fnmatch(Path(name).name, pattern):
            return
        if f"--function_to_execute {stage} " not in " ".join(sys.argv) + " " or mark.exists():
            return
        mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(look)


if "MEDSEG_TEST_STOP" in os.environ:
    _stage, _verb, _pattern, _mark = os.environ["MEDSEG_TEST_STOP"].split(":", 3)
    _stop_at(_stage, _verb, _pattern, Path(_mark))
