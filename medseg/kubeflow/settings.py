"""``PlatformSettings``: what a site decides once, when it compiles its own pipelines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from medseg import __version__
from medseg.project import UserError, findings, hint
from medseg.project.variables import CA_CONFIG_MAP, SECRETS, SETTINGS_FILE

PREFIX = "MEDSEG_PLATFORM_"
REGISTRY = "ghcr.io/kfp-medseg"
"""Where a release publishes the images; ``.github/workflows/ci.yml`` names it by its owner."""

PLATFORM_PARAMETERS = (
    "pvc_name",
    "image",
    "cpu",
    "memory",
    "gpu_count",
    "gpu_type",
    "node_selector",
    "ca_config_map",
)
"""Parameters that every pipeline takes beside its own and its ``<name>_secret``s."""


# What Kubernetes takes as a quantity, a name and a wait: checked here, as KFP's compiler answers
# with a traceback and the cluster only once the run has started.
Cpu = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?m?$")]
Memory = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?$")]
Count = Annotated[str, Field(pattern=r"^[0-9]+$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
# what is mounted: KFP names the pod's volume after it
VolumeName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Key = Annotated[
    str,
    Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$"),
]
Label = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$")]
Wait = Annotated[str, Field(pattern=r"^[0-9]+[smh]$")]
Word = Annotated[str, Field(pattern=r"^\S+$")]

RESERVED = (
    "pipelines.kubeflow.org/",
    "pipeline/",
    "workflows.argoproj.io/",
    "io.github.kfp-medseg/",
)
"""How the labels and annotations begin that KFP, Argo and this project set themselves."""

# What a pod reaches without the site's proxy: itself, and Kubeflow's and Kubernetes' own servers,
# which KFP's launcher talks to with the same environment. Kubernetes fills in the last.
_INSIDE = (
    "localhost",
    "127.0.0.1",
    ".svc",
    ".cluster.local",
    ".kubeflow",
    "$(KUBERNETES_SERVICE_HOST)",
)

REQUESTS = {"cpu": "cpu_request", "memory": "memory_request"}
"""Limits, and the settings that say how much of them a stage asks for."""


class SecurityContext(BaseModel):
    """The user that a stage runs as; the runtime image is made for uid 1000."""

    model_config = ConfigDict(extra="forbid")

    run_as_user: int = Field(1000, ge=0)
    run_as_group: int = Field(1000, ge=0)
    run_as_non_root: bool = True


class Toleration(BaseModel):
    """A taint that stages may ignore, as Kubernetes writes it."""

    model_config = ConfigDict(extra="forbid")

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class _Kubernetes(BaseModel):
    """Something in Kubernetes' own notation."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class NodeRequirement(_Kubernetes):
    """What a label or field of a node must be."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _values_fit(self) -> NodeRequirement:
        allowed, words = {
            "In": (self.values, "values"),
            "NotIn": (self.values, "values"),
            "Exists": (not self.values, "no values"),
            "DoesNotExist": (not self.values, "no values"),
        }.get(self.operator, (len(self.values) == 1, "one value"))
        if not allowed:
            raise ValueError(f"{self.key}: {self.operator} takes {words}")
        return self


class NodeTerm(_Kubernetes):
    """Requirements that a node must meet all."""

    match_expressions: list[NodeRequirement] = Field(default_factory=list)
    match_fields: list[NodeRequirement] = Field(default_factory=list)


class NodeTerms(_Kubernetes):
    """Terms, one of which a node must meet."""

    node_selector_terms: list[NodeTerm] = Field(min_length=1)


class PreferredTerm(_Kubernetes):
    """A term that a node had better meet."""

    weight: int = Field(ge=1, le=100)
    preference: NodeTerm


class NodeAffinity(_Kubernetes):
    """A pod's ``nodeAffinity``, as Kubernetes writes it."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredTerm] = Field(
        default_factory=list
    )

    @property
    def terms(self) -> list[tuple[NodeTerm, int | None]]:
        """All terms, with the weight of those that are only preferred."""
        required = self.required_during_scheduling_ignored_during_execution
        preferred = self.preferred_during_scheduling_ignored_during_execution
        return [
            *((term, None) for term in (required.node_selector_terms if required else ())),
            *((each.preference, each.weight) for each in preferred),
        ]


class StageSettings(BaseModel):
    """What one stage asks for; a field that is left out is the site's own."""

    model_config = ConfigDict(extra="forbid")

    cpu_request: Cpu | None = None
    memory_request: Memory | None = None
    shared_memory: Memory | None = None
    retries: int | None = Field(None, ge=0)
    time_limit_s: int | None = Field(None, ge=60)


if TYPE_CHECKING:
    _SecretNames = BaseSettings
else:  # a field for each kind of Secret
    _SecretNames = create_model(
        "_SecretNames",
        __base__=BaseSettings,
        **{
            row.parameter: (
                VolumeName,
                Field(row.default_name, description=f"Secret with {row.purpose}"),
            )
            for row in SECRETS.values()
        },
    )


class PlatformSettings(_SecretNames):
    """Settings of a site: a YAML file, over it the environment, under both these defaults.

    A field ``x`` is read from the environment as ``MEDSEG_PLATFORM_X``; fields with structure as
    JSON. The file is named by ``MEDSEG_PLATFORM_FILE``.

    Fields that end up as defaults of pipeline parameters can be changed again at every run; the
    others are fixed in the compiled YAML. For each kind of Secret (:mod:`medseg.project.variables`)
    the field ``<kind>_secret`` holds the Secret's name.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # --- defaults of run-time parameters ---
    registry: str = Field(
        REGISTRY,
        pattern=r"^\S*$",
        description="registry and path of the images, such as registry/group",
    )
    tag: Word = Field(__version__, description="tag of the images")
    pvc_name: VolumeName = Field(
        "medseg-data", description="claim of the project volume, mounted at the data root"
    )
    cpu: Cpu = Field("2", description="CPU limit of a stage, such as 2 or 500m")
    memory: Memory = Field("8Gi", description="memory limit of a stage, such as 8Gi")
    gpu_count: Count = Field("0", description="GPUs of a stage that uses one")
    gpu_type: Word = Field(
        "nvidia.com/gpu", description="resource name of the GPUs, such as nvidia.com/gpu"
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="labels that a node must have to run the stages"
    )

    ca_config_map: VolumeName = Field(
        CA_CONFIG_MAP,
        description="ConfigMap with the certificates of your own authorities (key ca.crt), if any",
    )

    # --- fixed at compile time ---
    fixed: list[str] = Field(
        default_factory=list,
        description="parameters above and Secrets that no run may change, and no form shows",
    )
    mount_path: str = Field(
        "/mnt/Data", pattern=r"^/[^:]*[^/:]$", description="where the volume is mounted"
    )
    shared_memory: Memory = Field("8Gi", description="size of the memory-backed /dev/shm")
    cpu_request: Cpu = Field("500m", description="CPU that a stage asks for")
    memory_request: Memory = Field("1Gi", description="memory that a stage asks for")
    retries: int = Field(1, ge=0, description="times that a failed stage is tried again")
    retry_backoff: Wait = Field("30s", description="wait before the next try")
    time_limit_s: int = Field(86_400, ge=60, description="time limit of a stage")
    stages: dict[str, StageSettings] = Field(
        default_factory=dict, description="stages that ask for something else, by component name"
    )
    tolerations: list[Toleration] = Field(
        default_factory=lambda: [
            Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
        ],
        description="Kubernetes tolerations of all stages, as the node selector is that of all",
    )
    labels: dict[Key, Label] = Field(
        default_factory=dict, description="labels of the stages' pods, such as a queue's name"
    )
    annotations: dict[Key, str] = Field(
        default_factory=dict, description="annotations of the stages' pods"
    )
    node_affinity: NodeAffinity = Field(
        default_factory=NodeAffinity,
        description="node affinity of all stages, as Kubernetes has it",
    )
    http_proxy: str = Field("", description="proxy of the stages for http URLs")
    https_proxy: str = Field("", description="proxy of the stages for https URLs")
    no_proxy: str = Field(
        "",
        description="hosts reached without it, separated by commas; the cluster's own always are",
    )
    security_context: SecurityContext = Field(default_factory=SecurityContext)
    image_pull_secrets: list[Name] = Field(
        default_factory=list, description="Secrets that pull the images"
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="Kubernetes image pull policy"
    )
    caching: bool = Field(False, description="KFP caching; it cannot see the volume: leave it off")

    def image(self, name: str) -> str:
        """The reference of one of the project's images.

        Args:
            name: Its folder in ``images/``, such as ``runtime``.
        """
        return f"{self.registry or REGISTRY}/{name}:{self.tag}"

    def stage(self, name: str, asks: StageSettings | None = None) -> StageSettings:
        """What a stage asks for, with every field filled.

        Args:
            name: The component, such as ``plan_and_preprocess``.
            asks: What it asks for by itself; the site's ``stages`` go over it.

        Raises:
            UserError: It would ask for more than the limit.
        """
        common = StageSettings(**{key: getattr(self, key) for key in StageSettings.model_fields})
        layers = (common, asks or StageSettings(), self.stages.get(name, StageSettings()))
        values: dict[str, Any] = {}
        for layer in layers:
            values |= layer.model_dump(exclude_none=True)
        stage = StageSettings(**values)
        if finding := self._misfit(stage, f"stages.{name}."):
            raise UserError(f"the platform settings have errors: {finding}.")
        return stage

    def proxies(self) -> dict[str, str]:
        """The variables that send a stage's connections through the site's proxy."""
        found = {"http_proxy": self.http_proxy, "https_proxy": self.https_proxy}
        found = {name: value for name, value in found.items() if value}
        hosts = (host.strip() for host in self.no_proxy.split(","))
        direct = ",".join(dict.fromkeys((*_INSIDE, *filter(None, hosts))))
        return {**found, "no_proxy": direct} if found else {}

    def check_mounts(self, stage: str, secrets: Iterable[str]) -> None:
        """Refuses names under which KFP could not mount what a stage needs.

        Args:
            stage: The component.
            secrets: The kinds of Secret that it reads.

        Raises:
            UserError: The claim, the ConfigMap and the Secrets are not all called differently.
        """
        parameters = ("pvc_name", "ca_config_map", *(SECRETS[kind].parameter for kind in secrets))
        if finding := one_volume_twice({name: getattr(self, name) for name in parameters}):
            raise UserError(f"the platform settings do not fit the stage {stage}: {finding}.")

    def parameters(self) -> dict[str, Any]:
        """The defaults of :data:`PLATFORM_PARAMETERS`."""
        image = {"image": self.image("runtime")}
        return {key: image.get(key) or getattr(self, key) for key in PLATFORM_PARAMETERS}

    @field_validator("http_proxy", "https_proxy")
    @classmethod
    def _is_proxy(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/@]+/?", value):
            raise ValueError(
                "write it as http://proxy.example.org:3128, without user name and password, which "
                "everybody could read in the pods"
            )
        return value

    @field_validator("labels", "annotations")
    @classmethod
    def _are_free(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if key.startswith(RESERVED):
                raise ValueError(f"{key} is set by Kubeflow or this project: leave it out")
        return value

    @field_validator("fixed")
    @classmethod
    def _can_be_fixed(cls, value: list[str]) -> list[str]:
        known = (*PLATFORM_PARAMETERS, *(row.parameter for row in SECRETS.values()))
        for name in value:
            if name not in known:
                raise ValueError(
                    f"{name!r} is no parameter of the platform{hint(name, known)}: these settings "
                    "have no value for it, and what a pipeline itself asks for stays in its form"
                )
        return value

    @model_validator(mode="after")
    def _requests_fit(self) -> PlatformSettings:
        asked = {"": StageSettings(**{key: getattr(self, key) for key in REQUESTS.values()})}
        asked |= {f"stages.{name}.": stage for name, stage in sorted(self.stages.items())}
        for where, stage in asked.items():
            if finding := self._misfit(stage, where):
                raise ValueError(finding)
        return self

    def _misfit(self, stage: StageSettings, where: str) -> str:
        for limit, request in REQUESTS.items():
            asked = getattr(stage, request)
            if asked and is_more(asked, getattr(self, limit)):
                return (
                    f"{where}{request} ({asked}) is more than the limit {limit} "
                    f"({getattr(self, limit)}): lower the one or raise the other"
                )
        return ""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file (pydantic-settings' hook)."""
        return (env_settings, init_settings)


def load_settings(file: Path | None = None) -> PlatformSettings:
    """The site's settings.

    Args:
        file: The YAML file; by default the one that ``MEDSEG_PLATFORM_FILE`` names, if any.

    Raises:
        UserError: The file is missing or not a mapping, or a field (of the file or the
            environment) is unknown, of the wrong type or does not fit the others.
    """
    if file is None and SETTINGS_FILE.value:
        file = Path(SETTINGS_FILE.value)
    content: Any = {}
    if file is not None:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"the platform settings {file} cannot be read: {error}.") from None
        if not isinstance(content, dict):
            raise UserError(f"the platform settings {file} must hold 'key: value' lines.")
    _check_environment()
    try:
        return PlatformSettings(**content)
    except SettingsError as error:
        raise UserError(
            f"the platform settings have errors: {error}: write it as JSON, such as "
            f'{PREFIX}NODE_SELECTOR=\'{{"pool": "gpu"}}\'.'
        ) from None
    except ValidationError as error:
        mistakes = findings(error, PlatformSettings)
        raise UserError(f"the platform settings have errors: {mistakes}.") from None


def suits(field: str, value: Any) -> bool:
    """Whether a value may stand in a field of the settings, such as ``memory``.

    Args:
        field: The field, or ``image``; of any other name every value does.
        value: The value.
    """
    known = PlatformSettings.model_fields.get(field)
    if known is None and field != "image":
        return True
    kind: Any = Annotated[known.annotation, known] if known else Word
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def one_volume_twice(names: Mapping[str, str]) -> str:
    """What is wrong with the names of all that one stage mounts; empty where nothing is.

    Args:
        names: The claim, the ConfigMap and the Secrets by the parameter that names each.
    """
    seen: dict[str, str] = {}
    for parameter, name in names.items():
        other = seen.setdefault(name, parameter)
        if other != parameter:
            return (
                f"{other} and {parameter} are both {name!r}, and KFP names the pod's volumes after "
                "them: give one of them another name"
            )
    return ""


def is_more(one: str, other: str) -> bool:
    """Whether one quantity of Kubernetes (``500m``, ``8Gi``) is more than another."""
    from kubernetes.utils.quantity import parse_quantity  # imports the whole client

    return bool(parse_quantity(one) > parse_quantity(other))


def _check_environment() -> None:
    """Refuses a misspelt variable, which pydantic-settings would pass over."""
    for name in os.environ:
        field = name[len(PREFIX) :].lower()
        if not name.upper().startswith(PREFIX) or name == SETTINGS_FILE.name:
            continue
        if field not in PlatformSettings.model_fields:
            known = [f"{PREFIX}{each.upper()}" for each in PlatformSettings.model_fields]
            raise UserError(
                f"{name} in the environment is no platform setting{hint(name, known)}: correct it."
            )
