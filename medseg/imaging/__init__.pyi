from .nifti import read_nifti as read_nifti
from .nifti import write_nifti as write_nifti
from .volume import Volume as Volume
