"""MONAI Deploy chooses series, we segment.

It chooses, because ``Rules_Text`` in a segmentation task file is its selector's language: users
have such rules, and only its own code reads them as it does. We segment, after ``run`` and in the
main thread, because Holoscan keeps an operator's exceptions and signals to itself: no failed case
could be named, and no container be stopped.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, ConditionType, Operator
from monai.deploy.operators import dicom_data_loader_operator
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from medseg.deploy.application import Package
from medseg.deploy.dicom_input import segment_studies, selection_rules
from medseg.deploy.nifti_input import find_cases, segment_files
from medseg.project.variables import INPUT_FORMAT


class SegmentationApplication(Application):
    """Chooses series of DICOM studies, or NIfTI files (``MEDSEG_INPUT_FORMAT``), and segments them.

    Attributes:
        chosen: After ``run``: StudyInstanceUID to modality to SeriesInstanceUIDs.
    """

    def __init__(self, input_folder: Path, output_folder: Path) -> None:
        self.input_folder, self.output_folder = input_folder, output_folder
        self.package = Package.from_environment()
        self.is_nifti = INPUT_FORMAT.value == "nifti"
        self.chosen: dict[str, dict[str, list[str]]] = {}
        super().__init__()

    def compose(self) -> None:
        """Builds the graph of operators (the SDK's hook)."""
        once = CountCondition(self, 1)  # an operator that waits for nothing would run for ever
        if self.is_nifti:
            self.add_operator(FileSelector(self, once, name="selector"))
            return
        loader = DICOMDataLoaderOperator(
            self, once, name="loader", input_folder=self.input_folder, must_load=False
        )
        selector = SeriesSelector(
            self,
            name="selector",
            rules=json.dumps(selection_rules(self.package.task)),
            all_matched=True,  # two that fit are an error, which the first alone would hide
        )
        choice = SeriesChoice(self, name="choice")
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(
            selector, choice, {("study_selected_series_list", "study_selected_series_list")}
        )

    def segment(self) -> None:
        """Segments what ``run`` has chosen."""
        if self.is_nifti:
            segment_files(self.package, self.input_folder, self.output_folder)
        else:
            segment_studies(self.package, self.chosen, self.input_folder, self.output_folder)


def read_header(path: str) -> Dataset:
    """Reads a DICOM file without its pixels: choosing a series needs none.

    Raises:
        InvalidDicomError: The file is no DICOM, or a damaged one; the SDK's loader then ignores it,
            as ``FolderSource`` does.
    """
    try:
        header = dcmread(path, stop_before_pixels=True, force=True)  # some have no preamble
    except (ValueError, EOFError, AttributeError, KeyError) as error:
        raise InvalidDicomError(type(error).__name__) from error
    if "SOPInstanceUID" not in header:
        raise InvalidDicomError("no instance")
    return header


dicom_data_loader_operator.dcmread = read_header  # the loader has no option for it


class SeriesSelector(DICOMSeriesSelectorOperator):
    """The SDK's selector, for which an attribute that is missing is an empty text.

    Without this "(.*?)" would refuse a study that has no description.
    """

    def _select_series(
        self, attributes: dict[str, Any], study: Any, *args: Any, **kwargs: Any
    ) -> list[Any]:
        selected: list[Any] = []
        for series in study.get_all_series():
            header = series.get_sop_instances()[0].get_native_sop_instance()
            alone = copy.copy(study)
            alone._series_dict = {series.get_series_instance_uid(): series}
            conditions = {
                keyword: rule
                for keyword, rule in attributes.items()
                if header.get(keyword) or not (isinstance(rule, str) and re.search(rule, ""))
            }
            selected += super()._select_series(conditions, alone, *args, **kwargs)
        return selected


class SeriesChoice(Operator):
    """Remembers what the series selector chose.

    Named input:
        study_selected_series_list: The selector's output.
    """

    def setup(self, spec: Any) -> None:
        """Declares the input (the SDK's hook)."""
        spec.input("study_selected_series_list").condition(ConditionType.MESSAGE_AVAILABLE)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002 - the SDK's
        """Remembers it (the SDK's hook)."""
        for study in op_input.receive("study_selected_series_list"):
            modalities = self.fragment.chosen.setdefault(str(study.study.StudyInstanceUID), {})
            for item in study.selected_series:
                fitting = modalities.setdefault(item.selection_name, [])
                fitting.append(str(item.series.SeriesInstanceUID))


class FileSelector(Operator):
    """Checks that the input folder holds files of the task's modalities."""

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002 - the SDK's
        """Checks it (the SDK's hook)."""
        application = self.fragment
        find_cases(application.package.task, application.input_folder, application.output_folder)
