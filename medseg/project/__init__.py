"""The project data root: where files may lie, and how a stage works on them without losing any.

* :class:`DataRoot` resolves a parameter's path and keeps it inside the root.
* :func:`atomic_file`, :func:`atomic_folder` write beside the target and rename;
  :func:`scratch_folder` is for work whose result goes elsewhere.
* :class:`Manifest` remembers what a stage has finished, so that a second run repeats nothing.
* :func:`lock` and :func:`stage` frame a stage: one writer at a time, one sentence for an error.
"""

from medseg.project.errors import CasesFailedError, UserError
from medseg.project.files import (
    atomic_file,
    atomic_folder,
    scratch_folder,
    write_json,
    write_text,
)
from medseg.project.locks import lock
from medseg.project.manifest import Manifest, file_hash, fingerprint
from medseg.project.roots import MOUNT_PATH, DataRoot
from medseg.project.stages import Failures, progress, result, stage

__all__ = [
    "MOUNT_PATH",
    "CasesFailedError",
    "DataRoot",
    "Failures",
    "Manifest",
    "UserError",
    "atomic_file",
    "atomic_folder",
    "file_hash",
    "fingerprint",
    "lock",
    "progress",
    "result",
    "scratch_folder",
    "stage",
    "write_json",
    "write_text",
]
