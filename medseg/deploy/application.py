"""What runs inside an inference image: the model on what lies in the input folder.

The application in ``images/map/app`` joins this with MONAI Deploy's operators; here is all of it
that needs none of them. ``dicom_input`` and ``nifti_input`` find what to segment, ``output`` looks
after the output folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medseg.bundle.inference import build_predictor
from medseg.bundle.torchscript import PackagedModel, load_packaged
from medseg.deploy.package import ENVIRONMENT, TASK_FILE
from medseg.deploy.task_file import SegmentationTask, load_segmentation_task
from medseg.imaging import Volume, resampled_onto
from medseg.nnunet.prediction import Predictor
from medseg.project import UserError, fingerprint, progress


@dataclass(frozen=True)
class Package:
    """The content of an application package.

    Attributes:
        model_file: The model.
        task: What to segment.
    """

    model_file: Path
    task: SegmentationTask

    @classmethod
    def from_environment(cls) -> Package:
        """What ``HOLOSCAN_MODEL_PATH`` and ``SEGMENTATION_TASK_…`` name.

        Raises:
            UserError: There is not exactly one model, or no task.
        """
        folder = Path(os.environ.get("HOLOSCAN_MODEL_PATH") or ENVIRONMENT["HOLOSCAN_MODEL_PATH"])
        models = sorted(folder.rglob("*.ts")) if folder.is_dir() else [folder]
        if len(models) != 1:
            raise UserError(
                f"{folder} must hold exactly one model.ts, found {len(models)}: build the image "
                "with docker_build, or mount the model's folder there."
            )
        task_file = Path(os.environ.get("SEGMENTATION_TASK_CONFIG_FILE") or TASK_FILE)
        task = load_segmentation_task(task_file, os.environ.get("SEGMENTATION_TASK_NAME", ""))
        return cls(models[0], task)

    @cached_property
    def model(self) -> PackagedModel:
        """The model, opened."""
        return load_packaged(self.model_file)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """The modalities in the order of the model's channels."""
        return self.task.check_model(
            self.model.segments, self.model.channels, "the segmentation task file"
        )

    @cached_property
    def predictor(self) -> Predictor:
        """The network with nnU-Net's steps around it."""
        predictor = build_predictor(self.model)
        progress("starting inference")
        return predictor

    @cached_property
    def identity(self) -> str:
        """Changes with all that decides a result but the images."""
        order = list(self.task.modalities)  # which a fingerprint takes no notice of by itself
        return fingerprint({"task": self.task.model_dump(), "order": order}, [self.model_file])

    def segment(self, volumes: Mapping[str, Volume]) -> NDArray[Any]:
        """Segments one case.

        Args:
            volumes: Modality to volume. What is on another grid than the reference is resampled
                onto that.

        Returns:
            Label values ``[i, j, k]`` on the reference's grid.

        Raises:
            UserError: The volumes have no common frame of reference or do not overlap, or hold
                more than one channel each.
        """
        reference = volumes[self.task.reference]
        channels = []
        for name in self.channels:
            if volumes[name].array.ndim != 3:
                raise UserError(f"{volumes[name].name} is 4D: give one 3D file a modality.")
            channels.append(resampled_onto(volumes[name], reference))
        return self.predictor.segment_volumes(channels)
