"""DICOM in and out: sources, series to volume, DICOM SEG to label map and back.

Two stages of the pipelines, and what other rooms share with them:

* :func:`nifti_to_dicom` writes a NIfTI dataset as one study per case (image series and DICOM SEG),
  to a folder, a DICOMweb server (STOW-RS) or a DICOM node (C-STORE).
* :func:`list_studies` and :func:`convert_studies` turn the studies of a DICOMweb server or a folder
  into a NIfTI dataset, in shards that may run at once.
* :func:`read_image` reads a NIfTI file or a DICOM series as a :class:`medseg.imaging.Volume`;
  :func:`write_segmentation` writes a label map for a series as DICOM SEG.

Where studies come from and go to stands behind protocols: :class:`Source`, :class:`Target` and
:class:`Sender`, opened by the URL or folder that a parameter names.

Conventions: arrays are indexed ``[i, j, k]`` as in NIfTI (column, row, slice of a DICOM series);
affines map such an index to millimetres in **RAS**. DICOM's own coordinates are LPS; they stay
inside this room. Slices ascend along the normal that the row and column directions span
(PS3.3 C.7.6.2), whatever their instance numbers say, so that co-registered series agree.

Patients stay private: messages quote of a header only descriptions of series, labels of segments
and numbers of instances, and what must be remembered of patients lies in ``<root>/.medseg/dicom``,
readable by its owner only. Importing this room silences the libraries of DICOM, whose logs and
warnings quote headers.
pydicom's warnings quote the values that break the standard, a patient's name among them. Reading
DICOM through this room therefore sets pydicom's ``reading_validation_mode`` to ``IGNORE``, for the
whole process and for good: pydicom checks a value when it is first asked for, which may be long
after the file was read and in another library.

What a predictor does with it::

    volume = read_image("DICOM/patient_1")              # or a .nii.gz
    network_input = to_zyx([volume])                    # nnU-Net's [channel, z, y, x]
    spacing = volume.spacing[::-1]                      # mm, in the same order
    ...
    mask = from_zyx(prediction)                         # back to [i, j, k]
    if volume.instances:
        write_segmentation(mask, volume, "out.dcm", {"background": 0, "Spleen": 1})
    else:
        write_nifti(mask, volume.affine, "out.nii.gz")
"""

import logging
import warnings

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

for _library in ("pydicom", "highdicom", "pynetdicom", "dicomweb_client"):
    _logger = logging.getLogger(_library)
    _logger.addHandler(logging.NullHandler())
    _logger.propagate = False
warnings.filterwarnings(
    "ignore", module=r"(pydicom|highdicom|pynetdicom|dicomweb_client|medseg\.dicom)\b"
)
