"""NIfTI datasets: how the files of a case are laid out, and a table of their quality.

* :func:`cases` and :func:`files_of` say which files the cases of a config are, :func:`cases_in`
  those of any folder, :func:`read_description` what a ``dataset.json`` says.
* :func:`case_hashes` tells whether a case has changed.
* :func:`download_decathlon` brings a task of the Medical Segmentation Decathlon to the volume.
* :class:`QualityRow` is what is remarked on a case at the conversion from DICOM,
  :func:`collect_dataset` gathers the table.

The room imports neither pydicom nor torch: annotation servers use it beside other versions of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
