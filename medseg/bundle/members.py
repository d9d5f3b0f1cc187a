"""A packaged model of several networks: folds that vote, configurations that vote, cascades.

It is one TorchScript file still. Its own network is the first member, which is what every reader of
such files gets (of a cascade, the first stage). The others travel as extra files, ``members/N.ts``,
each a TorchScript file of its own that nothing loads unasked, and ``members.json`` says what they
are. All have the plans and the ``dataset.json`` of ``inference.json``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.project import UserError

MEMBERS = "members.json"


@dataclass(frozen=True)
class Member:
    """One network of a packaged model.

    Attributes:
        configuration: nnU-Net's configuration.
        fold: The fold.
        trainer_name: nnU-Net's trainer.
        mirror_axes: Spatial axes over which predictions may be averaged.
        file: The extra file that holds it; empty for the file's own network.
    """

    configuration: str
    fold: int | str
    trainer_name: str
    mirror_axes: tuple[int, ...]
    file: str = ""


@dataclass(frozen=True)
class Members:
    """What the networks of a packaged model are.

    Attributes:
        networks: All of them, the file's own first.
        votes: The configurations whose probabilities are averaged; others are first stages of
            cascades. Folds of one configuration always vote.
        postprocessing: Label values of which only the largest component is kept, step by step.
    """

    networks: tuple[Member, ...]
    votes: tuple[str, ...]
    postprocessing: tuple[tuple[int, ...], ...] = ()

    def of(self, configuration: str) -> list[Member]:
        """The folds of a configuration."""
        return [member for member in self.networks if member.configuration == configuration]

    def to_json(self) -> str:
        """The text of ``members.json``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, path: Path) -> Members:
        """Reads what :meth:`to_json` wrote.

        Args:
            text: The text.
            path: The model, for the message.

        Raises:
            UserError: It is something else.
        """
        try:
            content = json.loads(text)
            members = cls(
                tuple(
                    Member(
                        str(each["configuration"]),
                        each["fold"],
                        str(each["trainer_name"]),
                        tuple(map(int, each["mirror_axes"])),
                        str(each["file"]),
                    )
                    for each in content["networks"]
                ),
                tuple(map(str, content["votes"])),
                tuple(tuple(map(int, step)) for step in content["postprocessing"]),
            )
        except (ValueError, KeyError, TypeError):
            members = cls((), ())
        if not members.votes or not all(members.of(name) for name in members.votes):
            raise UserError(
                f"the model {path} has a {MEMBERS} that does not say what its networks are: make "
                "it anew with convert_pt_to_ts."
            )
        return members

    @classmethod
    def single(cls, checkpoint: Mapping[str, Any]) -> Members:
        """Of a model with one network.

        Args:
            checkpoint: ``nnunet_config_ckpt`` of its ``inference.json``.
        """
        name = str(checkpoint["configuration"])
        axes = checkpoint.get("inference_allowed_mirroring_axes") or ()
        member = Member(name, "", str(checkpoint.get("trainer_name", "")), tuple(axes))
        return cls((member,), (name,))


def append(path: Path, name: str, content: memoryview) -> None:
    """Adds an extra file to a TorchScript file.

    Without torch, which would hold all of them in memory, and on a full disk end the process.

    Args:
        path: The TorchScript file.
        name: Of the extra file.
        content: Its content.
    """
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        entry = zipfile.ZipInfo(f"{folder}/extra/{name}")  # without the time of day
        with archive.open(entry, "w", force_zip64=True) as file:
            file.write(content)


def load_member(path: Path, name: str) -> torch.jit.ScriptModule:
    """One of the further networks of a packaged model, on the CPU.

    Args:
        path: The packaged model.
        name: The extra file that holds it.

    Raises:
        UserError: It is not there, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition("/")[0]
            content = archive.read(f"{folder}/extra/{name}")
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(content), map_location="cpu"
        )
    except (KeyError, RuntimeError, ValueError, zipfile.BadZipFile):
        raise UserError(
            f"the model {path} is damaged: its network {name} is missing or cannot be read. Copy "
            "it again, or make it anew with convert_pt_to_ts."
        ) from None
    return module
