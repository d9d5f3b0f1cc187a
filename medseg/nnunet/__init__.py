"""Everything that calls nnU-Net (version 2.6.4, the only one this room knows).

The order of a task's stages; each takes the task's config and may be run again at any time:

1. :func:`prepare_dataset`: the NIfTI dataset becomes nnU-Net's raw dataset, every case checked.
2. :func:`plan_and_preprocess`: fingerprint, plans, preprocessed cases, splits.
3. :func:`train`: one fold with nnU-Net's own trainer, tracked, resumable.
4. :func:`predict_validation`: predictions of the fold's validation split and ``summary.json``.

:func:`environment` points nnU-Net at the config's folders; :func:`load_checkpoint` reads its
checkpoints without unpickling code; :func:`trained_settings` says how a fold was trained.
"""

from medseg.nnunet.checkpoints import load_checkpoint
from medseg.nnunet.dataset import prepare_dataset
from medseg.nnunet.paths import environment
from medseg.nnunet.preprocessing import plan_and_preprocess
from medseg.nnunet.settings import trained_settings
from medseg.nnunet.training import train
from medseg.nnunet.validation import predict_validation

__all__ = [
    "environment",
    "load_checkpoint",
    "plan_and_preprocess",
    "predict_validation",
    "prepare_dataset",
    "train",
    "trained_settings",
]
