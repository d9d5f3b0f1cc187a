"""Metrics, the validation and test summaries, and the report.

* :func:`evaluate` measures a fold's validation predictions; :func:`evaluate_test_cases` segments
  the held-back test cases with the packaged model and measures those; :func:`evaluate_folder` any
  two folders. All write nnU-Net's summary, with surface distances.
* :func:`flat_means` gives a summary's means under flat names, as metrics have them.
* :func:`decide_retraining` and :func:`promote` say whether a recurring run trains again, and
  whether the new model takes the place of the present one.
* :func:`export_metrics` writes all numbers of a task as one table (:func:`metrics_table`), with
  intervals; :func:`compare_models` compares two models case by case; :func:`explore` opens the
  table in a browser.
* :func:`write_report` joins everything into one HTML file.

:mod:`medseg.evaluation.metrics` and :mod:`medseg.evaluation.summary` say what is measured and what
the summary adds to nnU-Net's schema.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
