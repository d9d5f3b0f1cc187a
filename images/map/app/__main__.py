"""Entry of the application package: segments the input folder; or ``show``, ``export``, ``stage``.

show       prints both manifests
export     copies application, manifests, models and docs to /var/run/holoscan/export
stage I O  segments folder I of the project volume into folder O (the pipeline ``inference``)
"""

import contextlib
import importlib.util
import logging
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from medseg.deploy.output import reason_left
from medseg.deploy.package import ENVIRONMENT, STACK, TASK_FILE
from medseg.project import (
    DataRoot,
    UserError,
    explained_os_errors,
    result,
    stage,
    type_and_place,
    unquoted_errors,
)
from medseg.project.variables import EVENTS

EXPORT = Path("/var/run/holoscan/export")


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit status."""
    logging.disable()  # MONAI Deploy's operators log what stands in the headers
    # the first process of a container ignores signals that it does not handle
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
    try:
        with explained_os_errors():
            if arguments[:1] == ["show"]:
                show()
            elif arguments[:1] == ["export"]:
                export()
            elif arguments[:1] == ["stage"]:
                with stage("inference", target=arguments[2], private=True) as root:
                    segment(
                        root.resolve(arguments[1], field="input_folder_path"),
                        root.resolve(arguments[2], field="output_folder_path"),
                    )
            else:
                if os.access(path_of("HOLOSCAN_LOGS_PATH"), os.W_OK):
                    os.environ[EVENTS.name] = str(path_of("HOLOSCAN_LOGS_PATH") / "events.jsonl")
                root = DataRoot(path_of("HOLOSCAN_WORKDIR"))
                with unquoted_errors():
                    segment(
                        root.path / path_of("HOLOSCAN_INPUT_PATH"),
                        root.path / path_of("HOLOSCAN_OUTPUT_PATH"),
                    )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def path_of(variable: str) -> Path:
    """The path that a variable of the package specification names."""
    return Path(os.environ.get(variable) or ENVIRONMENT[variable])


def segment(input_folder: Path, output_folder: Path) -> None:
    """Runs the application on one folder, then segments what it chose.

    Raises:
        UserError: The input or the output cannot be used, or a case failed.
    """
    for name in ("monai", "monai.deploy.operators"):
        add_bare_package(name)
    from application import SegmentationApplication

    if not input_folder.is_dir():
        raise UserError(f"the input folder {input_folder} does not exist: mount it there.")
    output_folder.mkdir(parents=True, exist_ok=True)
    with reason_left(output_folder):
        application = SegmentationApplication(input_folder, output_folder)
        with ended_at_once(), failures_in_words():
            application.run()
    # in this thread, where SIGTERM ends it: Holoscan's operators take no notice of that
    application.segment()
    result("segmentations", output_folder)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Lets SIGTERM kill this process: while Holoscan runs, nothing is written yet."""
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def failures_in_words() -> Iterator[None]:
    """Turns what MONAI Deploy's operators raise into a sentence, without values of the headers."""
    try:
        with explained_os_errors():
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the series cannot be chosen ({type_and_place(error)}): check the Rules_Text in the "
            "segmentation task file, and that the input holds whole DICOM files."
        ) from error


def add_bare_package(name: str) -> None:
    """Makes a package importable without running its ``__init__``.

    MONAI's imports all of MONAI, seven seconds of which nothing is used here; MONAI Deploy is a
    part of that package and needs none of it.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(name)
    sys.modules[name] = importlib.util.module_from_spec(spec)


def show() -> None:
    """Prints both manifests."""
    for name in ("app", "pkg"):
        text = path_of(f"HOLOSCAN_{name.upper()}_MANIFEST_PATH").read_text(encoding="utf-8")
        print(f"--- {name}.json", text, sep="\n")


def export() -> None:
    """Copies the package's content, as the package specification describes.

    Raises:
        UserError: Nothing is mounted where it belongs.
    """
    if not EXPORT.is_dir():
        raise UserError(
            f'there is no {EXPORT} to export to: mount a folder there (-v "$PWD/export:{EXPORT}").'
        )
    content = {
        "app": [path_of("HOLOSCAN_APPLICATION")],
        "config": [
            path_of("HOLOSCAN_APP_MANIFEST_PATH"),
            path_of("HOLOSCAN_PKG_MANIFEST_PATH"),
            path_of("HOLOSCAN_CONFIG_PATH"),
            Path(os.environ.get("SEGMENTATION_TASK_CONFIG_FILE") or TASK_FILE),
        ],
        "models": [path_of("HOLOSCAN_MODEL_PATH")],
        "docs": [path_of("HOLOSCAN_DOCS_PATH")],
    }
    wanted = [name for name in content if (EXPORT / name).is_dir()] or list(content)
    for name in wanted:
        for source in content[name]:
            if source.is_dir():
                shutil.copytree(source, EXPORT / name, dirs_exist_ok=True)
            elif source.is_file():
                (EXPORT / name).mkdir(exist_ok=True)
                shutil.copy(source, EXPORT / name)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    enough = soft == resource.RLIM_INFINITY or soft >= STACK
    if not enough and (hard == resource.RLIM_INFINITY or hard >= STACK):
        # threads take their stack's size from the limit at the start of the process
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_STACK, (STACK, hard))
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    sys.exit(main(sys.argv[1:]))
