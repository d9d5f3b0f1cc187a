"""The contract of each stage: one typed KFP component a module."""

from medseg.components.collect_dataset import collect_dataset
from medseg.components.convert_pt_to_ts import convert_pt_to_ts
from medseg.components.convert_studies import convert_studies
from medseg.components.list_studies import list_studies
from medseg.components.nifti_to_dicom import nifti_to_dicom
from medseg.components.plan_and_preprocess import plan_and_preprocess
from medseg.components.prepare_bundle import prepare_bundle
from medseg.components.prepare_dataset import prepare_dataset
from medseg.components.report import report
from medseg.components.segment import segment
from medseg.components.test_model import test_model
from medseg.components.train import train
from medseg.components.validate import validate

__all__ = [
    "collect_dataset",
    "convert_pt_to_ts",
    "convert_studies",
    "list_studies",
    "nifti_to_dicom",
    "plan_and_preprocess",
    "prepare_bundle",
    "prepare_dataset",
    "report",
    "segment",
    "test_model",
    "train",
    "validate",
]
