"""Build contexts: all that makes a base image an inference image, in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from medseg.bundle.formats import Format
from medseg.deploy.package import MANIFESTS, MODELS, TASK_FILE, manifests, write_manifests
from medseg.deploy.registry import ImageName
from medseg.deploy.task_file import SegmentationTask, load_segmentation_task
from medseg.project import DataRoot, UserError, atomic_folder, file_hash, progress, write_json

PROJECT = "kfp-medseg"
"""Where the project's images are without a registry: on the machine that built them."""

DESCRIPTION = "image.json"
"""What a context says beside its files: base, labels and environment of the image."""

LABEL = "io.github.kfp-medseg"
"""Prefix of the project's own labels."""


def create_docker_context(
    root: DataRoot,
    context: str,
    model_file: str,
    segmentation_task_file: str,
    *,
    base_dicom: str,
    base_nifti: str,
    task_name: str = "",
    destinations: Mapping[str, str] | None = None,
) -> None:
    """Writes the build contexts of the two inference images of a model, to be built and pushed.

    Args:
        root: The data root.
        context: Folder for the contexts; its sub-folders ``dicom`` and ``nifti`` are replaced.
        model_file: The packaged model (``model.ts``).
        segmentation_task_file: The segmentation task file.
        base_dicom: Base image of the DICOM variant, ``map-dicom`` of images/map.
        base_nifti: Base image of the NIfTI variant.
        task_name: Task in the file; may be empty where it holds one.
        destinations: Parameter to the name of an image that will be made of the contexts; what is
            wrong with these names is said before any work.

    Raises:
        UserError: As from :func:`write_context`, a path leaves the data root, a base has no
            registry, or a destination is no image name or given twice.
    """
    names: dict[ImageName, str] = {}
    for field, text in (destinations or {}).items():
        if not text:
            continue  # nothing will be pushed by this name
        name = ImageName.parse(text, field)
        if name in names:
            raise UserError(
                f"{field}: {name} is {names[name]} too: the second image would replace the first; "
                "give each its own tag."
            )
        names[name] = field
    for field, base in (("base_dicom", base_dicom), ("base_nifti", base_nifti)):
        if base.strip().startswith(f"{PROJECT}/"):
            raise UserError(
                f"{field}: {base} is in no registry: set registry in the platform settings and "
                "push the bases there (./build.sh images --registry … --push), or name one."
            )
        ImageName.parse(base, field)
    folder = root.resolve(context, field="context")
    write_context(
        folder,
        root.resolve(model_file, field="model_file"),
        root.resolve(segmentation_task_file, field="segmentation_task_file"),
        bases={"dicom": base_dicom, "nifti": base_nifti},
        task_name=task_name,
    )


def write_context(
    folder: Path,
    model_file: Path,
    task_file: Path,
    *,
    bases: dict[Format, str],
    task_name: str = "",
) -> None:
    """Writes one build context for each base.

    A context holds ``rootfs`` (what is added to the base, at its place), a ``Dockerfile`` for
    ``docker build``, and ``image.json``, the same for :func:`medseg.deploy.docker_build`.

    Args:
        folder: The contexts become its sub-folders ``dicom`` and ``nifti``.
        model_file: The packaged model.
        task_file: The segmentation task file.
        bases: Input format to base image.
        task_name: Task in the file; may be empty where it holds one.

    Raises:
        UserError: The model does not load, the task file has errors, or does not fit the model.
    """
    from medseg.bundle.torchscript import load_packaged  # not in an image without torch

    task = load_segmentation_task(task_file, task_name)
    packaged = load_packaged(model_file)
    task.check_model(packaged.segments, packaged.channels, task_file.name)
    name = task.file_name
    labels = _labels(packaged.metadata, task, model_file)
    for variant, base in bases.items():
        with atomic_folder(folder / variant) as context:
            rootfs = context / "rootfs"
            model = rootfs / MODELS.lstrip("/") / name / "model.ts"
            model.parent.mkdir(parents=True)
            shutil.copyfile(model_file, model)
            write_manifests(
                rootfs / MANIFESTS.lstrip("/"),
                manifests(variant, version=labels["org.opencontainers.image.version"], model=name),
            )
            text = yaml.safe_load(task_file.read_text(encoding="utf-8"))
            (rootfs / TASK_FILE.lstrip("/")).write_text(
                yaml.safe_dump({"tasks": {task.name: text["tasks"][task.name]}}, sort_keys=False),
                encoding="utf-8",
            )
            environment = {"SEGMENTATION_TASK_NAME": task.name}
            write_json(
                context / DESCRIPTION,
                {"base": base, "labels": labels, "environment": environment},
            )
            (context / "Dockerfile").write_text(
                _dockerfile(base, labels, environment), encoding="utf-8"
            )
        progress(f"build context {folder.name}/{variant} written")


def read_context(folder: Path) -> dict[str, Any]:
    """The description of a build context: ``base``, ``labels``, ``environment``.

    Raises:
        UserError: The folder is no context of :func:`write_context`.
    """
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if not (folder / "rootfs").is_dir() or not content["base"]:
            raise KeyError("rootfs")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is no build context: make it with create_docker_context "
            "(medseg deploy context)."
        ) from None
    return dict(content)


def _labels(metadata: dict[str, Any], task: SegmentationTask, model: Path) -> dict[str, str]:
    provenance = metadata.get("provenance") or {}
    version = str(metadata.get("version") or "0.0.0")
    values = {
        "org.opencontainers.image.title": task.name,
        "org.opencontainers.image.description": str(metadata.get("task") or task.name),
        "org.opencontainers.image.version": version,
        f"{LABEL}.model-version": version,
        f"{LABEL}.model-sha256": file_hash(model),
        f"{LABEL}.data-hash": str(provenance.get("dataset_hash") or ""),
        f"{LABEL}.mlflow-run": str(provenance.get("mlflow_run_id") or ""),
        f"{LABEL}.task": task.name,
    }
    return {key: value for key, value in values.items() if value}


def _dockerfile(base: str, labels: dict[str, str], environment: dict[str, str]) -> str:
    def pairs(values: dict[str, str]) -> str:
        # JSON's quoting is Dockerfile's, but for its variables
        quoted = [json.dumps(value).replace("$", "\\$") for value in values.values()]
        return " \\\n      ".join(map("=".join, zip(values, quoted, strict=True)))

    return (
        f"FROM {base}\n"
        "COPY --chown=0:0 rootfs/ /\n"
        f"ENV {pairs(environment)}\n"
        f"LABEL {pairs(labels)}\n"
    )
