from .images import read_image as read_image
from .seg import build_segmentation as build_segmentation
from .seg import write_segmentation as write_segmentation
from .to_dicom import nifti_to_dicom as nifti_to_dicom
from .to_nifti import convert_studies as convert_studies
from .to_nifti import list_studies as list_studies
