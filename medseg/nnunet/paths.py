"""Where nnU-Net looks for its three folders."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from medseg.config import TaskConfig
from medseg.nnunet.devices import processes
from medseg.project import environment as environment_variables

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"


@contextmanager
def environment(config: TaskConfig, **variables: str) -> Iterator[None]:
    """Points nnU-Net at the config's folders for as long as the block runs.

    nnU-Net (until 2.8) copies its three paths into module attributes when it is first imported
    (``nnunetv2.paths``). So the environment variables serve modules and processes that start
    inside the block, and the attributes of modules that are already imported are set as well.
    Afterwards both are what they were.

    Args:
        config: The task's config. Its nnU-Net folders are made if needed.
        variables: Further environment variables for the block.
    """
    folders = {
        RAW: config.raw_folder.parent,
        PREPROCESSED: config.preprocessed_folder.parent,
        RESULTS: config.results_folder.parents[1],
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    values = {name: str(folder) for name, folder in folders.items()}
    settings = {
        **values,
        "nnUNet_def_n_proc": str(processes(config)),
        # nnU-Net loads checkpoints with weights_only=False; torch lets the environment overrule it.
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        **variables,
    }
    if "nnUNet_compile" not in os.environ and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        settings["nnUNet_compile"] = "false"  # it needs a C compiler, which slim images lack
    before = {name: os.environ.get(name) for name in values}
    with environment_variables(**settings):
        _set_imported(values)
        try:
            yield
        finally:
            _set_imported(before)


def _set_imported(values: Mapping[str, str | None]) -> None:
    for name, module in list(sys.modules.items()):
        if name == "nnunetv2" or name.startswith("nnunetv2."):
            for key in values.keys() & vars(module).keys():
                setattr(module, key, values[key])
