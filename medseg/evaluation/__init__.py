"""Metrics, the validation and test summaries, and the report.

* :func:`evaluate` completes nnU-Net's validation summary of a fold with surface distances;
  :func:`test_model` makes the same summary for the held-back test cases, segmented with the
  packaged model; :func:`evaluate_folder` for any two folders.
* :func:`kfp_metrics` flattens a summary for a KFP ``Metrics`` artifact.
* :func:`decide_retraining` and :func:`promote` say whether a recurring run trains again, and
  whether the new model takes the place of the present one.
* :func:`write_report` joins everything into one HTML file.

:mod:`medseg.evaluation.metrics` and :mod:`medseg.evaluation.summary` say what is measured and what
the summary adds to nnU-Net's schema.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
