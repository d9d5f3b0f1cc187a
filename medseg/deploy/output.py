"""The output folder of an inference image: it may be anyone's, and says why a result is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medseg.bundle.formats import SUFFIXES
from medseg.project import Manifest, UserError, write_text

NO_RESULT = "no-segmentation.txt"
"""What lies in the output folder in place of a result: why there is none."""


class ForeignResultError(UserError):
    """The output folder holds results that are not this run's; nothing is written there."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the output folder already has results of something else ({path.name}): name another "
            "folder, or remove them."
        )


@contextmanager
def reason_left(folder: Path, case: str = "") -> Iterator[None]:
    """Leaves the reason in the output folder where there is no result, and none where there is.

    Args:
        folder: The output folder.
        case: The case, where the folder is that of several.
    """
    path = folder / (f"{case}-{NO_RESULT}" if case else NO_RESULT)
    try:
        yield
        path.unlink(missing_ok=True)
    except ForeignResultError:
        raise
    except UserError as error:
        write_text(path, f"{error}\n")
        raise


@dataclass(frozen=True)
class Result:
    """One result, in a folder where results of something else may lie.

    Attributes:
        target: Its file.
        record: The record of its making.
        inputs: The fingerprint of what it is made of.
    """

    target: Path
    record: Manifest
    inputs: str

    @property
    def begun(self) -> Manifest:
        """Says, after a kill, that a file without a record is ours."""
        return Manifest(self.record.folder, f"{self.record.path.stem}.begun")

    def is_done(self) -> bool:
        """Whether the result is there already.

        Raises:
            ForeignResultError: Something else is in its place, or beside it where it should be
                alone, as a DICOM SEG is.
        """
        if self.record.is_done(self.inputs):
            return True
        own = self.begun.read().get("inputs") == self.inputs
        if self.target.suffix == SUFFIXES["dicom"]:
            refuse_foreign(self.target.parent, [self.target] if own else [])
        elif self.target.exists() and not own:
            raise ForeignResultError(self.target)
        return False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Records the result that the block writes."""
        self.begun.record(self.inputs, [])
        yield
        self.record.record(self.inputs, [self.target])
        self.begun.forget()


def refuse_foreign(folder: Path, own: Sequence[Path]) -> None:
    """Refuses an output folder that holds results of something else.

    Args:
        folder: The output folder.
        own: The results that may lie there.

    Raises:
        ForeignResultError: There is another one.
    """
    for suffix in SUFFIXES.values():
        for path in sorted(folder.glob(f"*{suffix}")):
            if path not in own and not path.name.startswith("."):
                raise ForeignResultError(path)


def is_inside(output: Path, folder: Path) -> bool:
    """Whether the output folder lies in the input folder."""
    return output != folder and output.is_relative_to(folder)
