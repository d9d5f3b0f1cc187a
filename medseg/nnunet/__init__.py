"""Everything that calls nnU-Net (version 2.6.4, the only one this room knows).

The order of a task's stages; each takes the task's config and may be run again at any time:

1. :func:`prepare_dataset`: the NIfTI dataset becomes nnU-Net's raw dataset, every case checked.
2. :func:`plan_and_preprocess`: fingerprint, plans, preprocessed cases, splits.
3. :func:`train`: one fold with nnU-Net's own trainer, tracked, resumable.
4. :func:`predict_validation`: predictions of the fold's validation split.

:class:`TrainedFold` says how a fold was trained, so that nobody else reads nnU-Net's files.
:func:`environment` points nnU-Net at the config's folders; :func:`load_checkpoint` reads its
checkpoints without unpickling code.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
