"""The application: MONAI Deploy's operators for loading and choosing series, ours for the rest."""

import json
import os
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, ConditionType, Operator
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator

from medseg.deploy.application import Package, segment_files, segment_studies, selection_rules


class SegmentationApplication(Application):
    """Segments a folder of DICOM studies or of NIfTI files (``MEDSEG_INPUT_FORMAT``).

    Attributes:
        error: What went wrong in an operator, after ``run``.
    """

    def __init__(self, input_folder: Path, output_folder: Path):
        self.input_folder, self.output_folder = input_folder, output_folder
        self.package = Package.from_environment()
        self.error = None
        super().__init__()

    def compose(self):
        """Builds the graph of operators (the SDK's hook)."""
        if os.environ.get("MEDSEG_INPUT_FORMAT") == "nifti":
            self.add_operator(
                NiftiSegmentationOperator(self, CountCondition(self, 1), name="segmentation")
            )
            return
        loader = DICOMDataLoaderOperator(
            self,
            CountCondition(self, 1),  # an operator that waits for nothing would run for ever
            name="loader",
            input_folder=self.input_folder,
            must_load=False,
        )
        selector = DICOMSeriesSelectorOperator(
            self,
            name="selector",
            rules=json.dumps(selection_rules(self.package.task)),
            all_matched=True,  # two that fit are an error, which the first alone would hide
        )
        segmentation = DicomSegmentationOperator(self, name="segmentation")
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(
            selector,
            segmentation,
            {("study_selected_series_list", "study_selected_series_list")},
        )


class DicomSegmentationOperator(Operator):
    """Segments the chosen series of every study; writes DICOM SEG.

    Named input:
        study_selected_series_list: What the series selector chose.
    """

    def setup(self, spec):
        """Declares the input (the SDK's hook)."""
        spec.input("study_selected_series_list").condition(ConditionType.MESSAGE_AVAILABLE)

    def compute(self, op_input, op_output, context):  # noqa: ARG002 - the SDK's signature
        """Segments (the SDK's hook)."""
        application = self.fragment
        try:
            chosen: dict[str, dict[str, list[str]]] = {}
            for study in op_input.receive("study_selected_series_list"):
                modalities = chosen.setdefault(str(study.study.StudyInstanceUID), {})
                for item in study.selected_series:
                    fitting = modalities.setdefault(item.selection_name, [])
                    fitting.append(str(item.series.SeriesInstanceUID))
            segment_studies(
                application.package,
                chosen,
                application.input_folder,
                application.output_folder,
            )
        except Exception as error:  # noqa: BLE001 - Holoscan would only log it
            application.error = error


class NiftiSegmentationOperator(Operator):
    """Segments every case of a folder of NIfTI files."""

    def compute(self, op_input, op_output, context):  # noqa: ARG002 - the SDK's signature
        """Segments (the SDK's hook)."""
        application = self.fragment
        try:
            segment_files(application.package, application.input_folder, application.output_folder)
        except Exception as error:  # noqa: BLE001 - Holoscan would only log it
            application.error = error
