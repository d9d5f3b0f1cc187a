"""From the checkpoints of a Lightning training (MAIA's) to nnU-Net's and the bundle's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from medseg.bundle.checkpoints import export_checkpoint
from medseg.bundle.paths import checkpoint_file
from medseg.config import TaskConfig
from medseg.nnunet.foreign import ForeignState, take_over
from medseg.nnunet.models import read_weights
from medseg.nnunet.preprocessing import preprocessed
from medseg.project import Manifest, UserError, fingerprint, progress

_VERSION = re.compile(r"-v(?P<version>\d+)$")
_PART = re.compile(r"(?P<key>[^=]+)=(?P<value>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:-|$)")


@dataclass(frozen=True)
class LightningName:
    """What a Lightning checkpoint's name says.

    Attributes:
        path: The file.
        epoch: The epoch, which Lightning counts from 0; None for ``last.ckpt``.
        metric: The name of the metric by which it was kept; empty where there is none.
        value: That metric's value.
        version: The number that Lightning adds to a name that was there already; 0 for none.
    """

    path: Path
    epoch: int | None
    metric: str
    value: float
    version: int

    @classmethod
    def of(cls, path: Path) -> LightningName | None:
        """Reads a name such as ``epoch=9-Val_Dice=0.93-v1.ckpt``; None for other names."""
        stem, version = path.stem, 0
        if found := _VERSION.search(stem):
            stem, version = stem[: found.start()], int(found["version"])
        if stem == "last":
            return cls(path, None, "", 0.0, version)
        parts = {part["key"]: part["value"] for part in _PART.finditer(stem)}
        if not parts.get("epoch", "").isdigit() or _PART.sub("", stem):
            return None
        metrics = {key: value for key, value in parts.items() if key not in ("epoch", "step")}
        metric, value = next(iter(metrics.items()), ("", "0"))
        return cls(path, int(parts["epoch"]), metric, float(value), version)

    @property
    def rank(self) -> tuple[float, int, int]:
        """The best checkpoint has the highest: by metric, then the later one."""
        value = -self.value if "loss" in self.metric.lower() else self.value
        return (value, self.epoch or 0, self.version)


@dataclass(frozen=True)
class Converted:
    """What :func:`convert_ckpt_to_pt` has made.

    Attributes:
        fold: The fold.
        last: Name of the Lightning file that became the final checkpoint.
        best: Name of the one that became the best.
        epochs: Finished epochs of ``last``.
        best_dice: The metric of ``best``; None where no file names one.
        checkpoint: The final checkpoint of nnU-Net's, relative to the data root.
        model: The bundle's ``model.pt``, relative to the data root.
    """

    fold: int | str
    last: str
    best: str
    epochs: int
    best_dice: float | None
    checkpoint: str
    model: str


def convert_ckpt_to_pt(config: TaskConfig) -> Converted:
    """Brings a Lightning training of the config's fold into nnU-Net's layout and the bundle.

    Reads ``models/fold_F/*.ckpt`` of the bundle, where MAIA's training leaves them. The best is
    the one with the highest metric in its name (``epoch=9-Val_Dice=0.93.ckpt``; the lowest of a
    loss), the last the one with the most epochs among ``last.ckpt`` and ``epoch=9.ckpt``; ``-v1``,
    which Lightning adds to a name that is taken, counts as the newer. They become
    ``checkpoint_final.pth`` and ``checkpoint_best.pth`` of nnU-Net's fold, and from there the
    bundle's ``checkpoint_epoch=N.pt`` (N counts from 1), ``checkpoint_key_metric=V.pt`` and
    ``model.pt``, as after ``train``. The weights must be those of the network that the dataset's
    plans describe. The Lightning files stay.

    Args:
        config: The task's config; its dataset is preprocessed.

    Returns:
        What has become of what.

    Raises:
        UserError: The dataset is not preprocessed; there are no checkpoints; one is truncated,
            holds pickled objects of classes, or weights of another network.
    """
    plans = preprocessed(config).plans_hash
    names = _names(checkpoint_file(config).parent, config)
    manifest = Manifest(config.fold_folder(), "convert_ckpt_to_pt")
    inputs = fingerprint({"plans": plans}, [name.path for name in names])
    before = manifest.result(inputs)
    if before is None:
        last, best = _choose(names)
        outputs = take_over(config, last, best)
        export_checkpoint(config)
        result = Converted(
            fold=config.fold,
            last=last.path.name,
            best=(best or last).path.name,
            epochs=last.epochs,
            best_dice=best.best_dice if best else None,
            checkpoint=config.root.relative(outputs[0]),
            model=config.root.relative(checkpoint_file(config)),
        )
        manifest.record(inputs, outputs, asdict(result))
    else:
        result = Converted(**before)
        progress(f"fold {config.fold}: {result.last} is converted already")
        export_checkpoint(config)
    return result


def _names(folder: Path, config: TaskConfig) -> list[LightningName]:
    files = sorted(folder.glob("*.ckpt")) if folder.is_dir() else []
    found = [name for name in map(LightningName.of, files) if name is not None]
    for path in files:
        if path not in [name.path for name in found]:
            progress(f"passed over: {path.name}, as its name says neither an epoch nor 'last'")
    if not found:
        raise UserError(
            f"{folder} holds no checkpoints of Lightning: put those of fold {config.fold} there, "
            "named as Lightning names them (last.ckpt, epoch=9.ckpt, epoch=9-Val_Dice=0.93.ckpt), "
            "or correct bundle_config.bundle_root."
        )
    return found


def _choose(names: list[LightningName]) -> tuple[ForeignState, ForeignState | None]:
    """The last state, and the best, where a name says which."""
    measured = [name for name in names if name.metric]
    best = max(measured, key=lambda name: name.rank, default=None)
    newest = {name.epoch is None: name for name in sorted(names, key=_age) if not name.metric}
    candidates = [_state(name) for name in newest.values()]
    if best is None:
        return max(candidates, key=lambda state: state.epochs), None
    chosen = _state(best)
    return max([*candidates, chosen], key=lambda state: state.epochs), chosen


def _age(name: LightningName) -> tuple[int, int]:
    return (name.epoch or 0, name.version)


def _state(name: LightningName) -> ForeignState:
    file = read_weights(name.path)
    if file.kind != "lightning":
        raise UserError(f"{name.path} is no checkpoint of Lightning: it holds no state_dict.")
    epoch = file.content.get("epoch", name.epoch)
    if not isinstance(epoch, int):
        raise UserError(f"{name.path} does not say its epoch: name another checkpoint.")
    optimizers = file.content.get("optimizer_states") or [None]
    optimizer = optimizers[0] if isinstance(optimizers[0], Mapping) else None
    return ForeignState(
        path=name.path,
        weights=file.weights,
        epochs=epoch + 1,
        best_dice=name.value if name.metric else None,
        optimizer=optimizer,
    )
