"""``stage_component``: a component together with what its stage asks of the cluster."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from docstring_parser import parse
from kfp import dsl
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.structures import ComponentSpec

from medseg.kubeflow.settings import StageSettings, load_settings
from medseg.project import UserError
from medseg.project.variables import SECRETS, SecretKind

IMAGES = ("runtime", "builder", "map-dicom", "map-nifti")
"""The project's own images; a component may also name one of the user's."""


@dataclass(frozen=True)
class Needs:
    """What a stage asks of the cluster beside the volume.

    Attributes:
        gpu: It computes on a GPU where there is one.
        shared_memory: Its worker processes exchange arrays through ``/dev/shm``.
        secrets: The kinds of Secret that it reads (see :mod:`medseg.project.variables`).
        network: It may open connections; every stage that reads a Secret may.
        image: The image of the project that it runs in, or a reference of the user's own.
        asks: Where it asks for more or less than the others: requests, time limit, retries. A
            site's settings go over it.
    """

    gpu: bool = False
    shared_memory: bool = False
    secrets: tuple[str, ...] = ()
    network: bool = False
    image: str = "runtime"
    asks: StageSettings = field(default_factory=StageSettings)

    @property
    def image_parameter(self) -> str:
        """The pipelines' parameter that names its image."""
        return "image" if self.image == "runtime" else f"{self.image}_image"


# by identity, since the name of a user's own component may be that of another; what KFP keeps of
# a component is its specification, which all of its tasks share
_needs: dict[int, tuple[ComponentSpec, Needs]] = {}


def stage_component(
    *,
    gpu: bool = False,
    shared_memory: bool = False,
    secrets: tuple[str, ...] = (),
    network: bool = False,
    image: str = "runtime",
    cpu_request: str | None = None,
    memory_request: str | None = None,
    time_limit_s: int | None = None,
    retries: int | None = None,
    **options: Any,
) -> Callable[[Callable[..., Any]], BaseComponent]:
    """Makes a function a KFP component that says what its stage needs.

    A :func:`~medseg.kubeflow.platform_pipeline` gives it that, whatever pipeline it stands in. (KFP
    itself drops all lines above ``def`` from what a stage executes.)

    Args:
        gpu: It computes on a GPU where there is one.
        shared_memory: Its worker processes exchange arrays through ``/dev/shm``.
        secrets: The kinds of Secret that it reads, such as ``("dicomweb",)``; in its body
            ``medseg.project.secret("dicomweb", "token")`` gives a value.
        network: It opens connections without a Secret; a local run in containers gives a stage
            that does neither no network.
        image: One of the project's images, such as ``runtime``, or the full name of your own.
        cpu_request: CPU that it asks for, such as ``500m``, where that is not the site's usual.
        memory_request: Memory that it asks for, such as ``4Gi``, likewise.
        time_limit_s: Seconds after which it is stopped, likewise.
        retries: Times that it is tried again, likewise.
        options: Passed on to ``dsl.component``, such as ``packages_to_install``.

    Raises:
        UserError: A kind of Secret is unknown.
    """
    needs = Needs(
        gpu=gpu,
        shared_memory=shared_memory,
        secrets=secrets,
        network=network or bool(secrets),
        image=image,
        asks=StageSettings(
            cpu_request=cpu_request,
            memory_request=memory_request,
            time_limit_s=time_limit_s,
            retries=retries,
        ),
    )

    def decorate(function: Callable[..., Any]) -> BaseComponent:
        own = image in IMAGES
        settings = {
            "base_image": load_settings().image(image) if own else image,
            "install_kfp_package": not own,  # the project's images have it
        }
        component = dsl.component(function, **{**settings, **options})
        return _register(component, needs, function)

    return decorate


def stage_container(needs: Needs) -> Callable[[Callable[..., Any]], BaseComponent]:
    """Makes a function that returns a ``dsl.ContainerSpec`` a component that says what it needs.

    Args:
        needs: What it asks for.

    Raises:
        UserError: A kind of Secret is unknown.
    """
    return lambda function: _register(dsl.container_component(function), needs, function)


def _register(
    component: BaseComponent, needs: Needs, function: Callable[..., Any]
) -> BaseComponent:
    secret_kinds(needs.secrets)
    _describe(component.component_spec, function)
    _needs[id(component.component_spec)] = (component.component_spec, needs)
    return component


def _describe(spec: ComponentSpec, function: Callable[..., Any]) -> None:
    """Gives every input and output its line of the docstring; KFP leaves out most outputs."""
    manual = parse(inspect.getdoc(function) or "")
    lines = {item.arg_name: item.description for item in manual.params}
    if manual.returns:
        lines["Output"] = manual.returns.description
    for name, value in {**(spec.inputs or {}), **(spec.outputs or {})}.items():
        text = value.description or lines.get(name) or ""
        value.description = " ".join(text.split()) or None


def secret_kinds(kinds: tuple[str, ...]) -> list[SecretKind]:
    """The rows of kinds of Secret.

    Args:
        kinds: Such as ``("mlflow", "dicomweb")``.

    Raises:
        UserError: There is no such kind.
    """
    for kind in kinds:
        if kind not in SECRETS:
            raise UserError(f"there is no Secret of the kind {kind!r}, only {', '.join(SECRETS)}.")
    return [SECRETS[kind] for kind in kinds]


def needs_of(spec: ComponentSpec) -> Needs:
    """What a component asks for; of one that says nothing only its author knows.

    Args:
        spec: Its specification, as the component and each of its tasks have it.
    """
    return _needs[id(spec)][1] if id(spec) in _needs else Needs(network=True)


def stage_name(spec: ComponentSpec) -> str:
    """The name of a component as Python and the site's settings write it; KFP writes dashes."""
    return str(spec.name).replace("-", "_")
