"""Entry of the application package: segments the input folder; or ``show``, ``export``, ``stage``.

show       prints both manifests
export     copies application, manifests, models and docs to /var/run/holoscan/export
stage I O  segments folder I of the project volume into folder O (the pipeline ``inference``)
"""

import contextlib
import importlib.util
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

STACK = 32 * 1024 * 1024
"""Bytes of stack that Holoscan's threads need."""

EXPORT = Path("/var/run/holoscan/export")


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit status."""
    from medseg.project import DataRoot, UserError, stage

    # the first process of a container ignores signals that it does not handle
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
    if arguments[:1] == ["show"]:
        for name in ("app.json", "pkg.json"):
            print(f"--- {name}", Path("/etc/holoscan", name).read_text(encoding="utf-8"), sep="\n")
        return 0
    if arguments[:1] == ["export"]:
        return export()
    try:
        if arguments[:1] == ["stage"]:
            with stage("inference", target=arguments[2]) as root:
                segment(
                    root.resolve(arguments[1], field="input_folder_path"),
                    root.resolve(arguments[2], field="output_folder_path"),
                )
        else:
            root = DataRoot(Path(os.environ["HOLOSCAN_WORKDIR"]))
            segment(
                root.path / os.environ["HOLOSCAN_INPUT_PATH"],
                root.path / os.environ["HOLOSCAN_OUTPUT_PATH"],
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def segment(input_folder: Path, output_folder: Path) -> None:
    """Runs the application on one folder.

    Raises:
        UserError: The input or the output cannot be used, or a case failed.
    """
    for name in ("monai", "monai.deploy.operators"):
        add_bare_package(name)
    from application import SegmentationApplication

    from medseg.project import UserError, progress, result
    from medseg.project.errors import explain_os_error

    if not input_folder.is_dir():
        raise UserError(f"the input folder {input_folder} does not exist: mount it there.")
    try:
        output_folder.mkdir(parents=True, exist_ok=True)
        application = SegmentationApplication(input_folder, output_folder)
        progress("starting inference")
        application.run()
        if application.error is not None:
            raise application.error
    except OSError as error:
        raise explain_os_error(error) or error from error
    result("segmentations", output_folder)


def add_bare_package(name: str) -> None:
    """Makes a package importable without running its ``__init__``.

    MONAI's imports all of MONAI, seven seconds of which nothing is used here; MONAI Deploy is a
    part of that package and needs none of it.
    """
    spec = importlib.util.find_spec(name)
    sys.modules[name] = importlib.util.module_from_spec(spec)


def export() -> int:
    """Copies the package's content, as the package specification describes."""
    content = {
        "app": "/opt/holoscan/app",
        "config": "/etc/holoscan",
        "models": "/opt/holoscan/models",
        "docs": "/opt/holoscan/docs",
    }
    wanted = [name for name in content if (EXPORT / name).is_dir()] or list(content)
    for name in wanted:
        if Path(content[name]).is_dir():
            shutil.copytree(content[name], EXPORT / name, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    enough = soft == resource.RLIM_INFINITY or soft >= STACK
    if not enough and (hard == resource.RLIM_INFINITY or hard >= STACK):
        # threads take their stack's size from the limit at the start of the process
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_STACK, (STACK, hard))
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    sys.exit(main(sys.argv[1:]))
