"""DICOM in and out: sources, series to volume, DICOM SEG to label map and back.

Two stages of the pipelines, and what other rooms share with them:

* :func:`nifti_to_dicom` writes a NIfTI dataset as one study per case (image series and DICOM SEG),
  to a folder, a DICOMweb server (STOW-RS) or a DICOM node (C-STORE).
* :func:`list_studies`, :func:`convert_studies` and :func:`collect_dataset` turn the studies of a
  DICOMweb server or a folder into a NIfTI dataset, in shards that may run at once.
* :func:`read_image` reads a NIfTI file or a DICOM series as a :class:`Volume`;
  :func:`write_nifti` and :func:`write_segmentation` write one back.

Conventions: arrays are indexed ``[i, j, k]`` as in NIfTI (column, row, slice of a DICOM series);
affines map such an index to millimetres in **RAS**. DICOM's own coordinates are LPS; they stay
inside this room. Slices ascend along the normal that the row and column directions span
(PS3.3 C.7.6.2), whatever their instance numbers say, so that co-registered series agree.

Patients stay private: messages quote no header but SeriesDescription and SegmentLabel, and what
must be remembered of patients lies in ``<root>/.medseg/dicom``, readable by its owner only.
pydicom's warnings quote the values that break the standard, a patient's name among them. Reading
DICOM through this room therefore sets pydicom's ``reading_validation_mode`` to ``IGNORE``, for the
whole process and for good: pydicom checks a value when it is first asked for, which may be long
after the file was read and in another library.

What a predictor does with it::

    volume = read_image("DICOM/patient_1")              # or a .nii.gz
    network_input = volume.array.transpose(2, 1, 0)     # nnU-Net's [z, y, x]
    spacing = volume.spacing[::-1]                      # mm, in the same order
    ...
    mask = prediction.transpose(2, 1, 0)                # back to [i, j, k]
    if volume.instances:
        write_segmentation(mask, volume, "out.dcm", {"background": 0, "Spleen": 1})
    else:
        write_nifti(mask, volume.affine, "out.nii.gz")
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
