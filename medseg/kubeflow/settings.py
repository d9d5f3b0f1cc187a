"""``PlatformSettings``: what a site decides once, when it compiles its own pipelines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from medseg import __version__
from medseg.project import UserError

SETTINGS_VARIABLE = "MEDSEG_PLATFORM_FILE"
"""Names the YAML file of the site's settings."""


# What Kubernetes takes as a quantity, a name and a wait: checked here, as KFP's compiler answers
# with a traceback and the cluster only once the run has started.
Cpu = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?m?$")]
Memory = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?$")]
Count = Annotated[str, Field(pattern=r"^[0-9]+$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Wait = Annotated[str, Field(pattern=r"^[0-9]+[smh]$")]


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


class StageSettings(BaseModel):
    """What one stage asks for; a field that is left out is the site's own."""

    model_config = ConfigDict(extra="forbid")

    cpu_request: Cpu | None = None
    memory_request: Memory | None = None
    shared_memory: Memory | None = None
    retries: int | None = Field(None, ge=0)
    time_limit_s: int | None = Field(None, ge=60)


_STAGES: dict[str, dict[str, Any]] = {
    "train": {"cpu_request": "1", "memory_request": "4Gi", "time_limit_s": 604_800},
    "plan_and_preprocess": {"cpu_request": "1", "memory_request": "4Gi"},
    "notify": {"cpu_request": "100m", "memory_request": "128Mi", "time_limit_s": 600},
}
"""Stages that ask for more or less than the others; ``PlatformSettings.stages`` goes over it."""


class PlatformSettings(BaseSettings):
    """Settings of a site: a YAML file, over it the environment, under both these defaults.

    A field ``x`` is read from the environment as ``MEDSEG_PLATFORM_X``; fields with structure as
    JSON. The file is named by ``MEDSEG_PLATFORM_FILE``.

    Fields that end up as defaults of pipeline parameters can be changed again at every run; the
    others are fixed in the compiled YAML.
    """

    model_config = SettingsConfigDict(env_prefix="MEDSEG_PLATFORM_", extra="forbid", frozen=True)

    # --- defaults of run-time parameters ---
    registry: str = Field("", description="registry and path of the images, such as registry/group")
    tag: str = Field(__version__, description="tag of the images")
    pvc_name: Name = Field("medseg-data", description="claim of the project volume")
    cpu: Cpu = Field("2", description="CPU limit of a stage")
    memory: Memory = Field("8Gi", description="memory limit of a stage")
    gpu_count: Count = Field("0", description="GPUs of a stage that uses one")
    gpu_type: str = Field("nvidia.com/gpu", description="resource name of the GPUs")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of the nodes")
    dicomweb_secret: Name = Field("medseg-dicomweb", description="Secret with access to the PACS")
    mlflow_secret: Name = Field("medseg-mlflow", description="Secret with access to MLflow")
    s3_secret: Name = Field("medseg-s3", description="Secret with access to MLflow's S3 storage")
    registry_secret: Name = Field(
        "maiacloud-dockerhub", description="Secret with the right to push to the registry"
    )
    notify_secret: Name = Field(
        "medseg-notify", description="Secret with the webhook that hears of failures"
    )

    # --- fixed at compile time ---
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
        description="Kubernetes tolerations of stages that use a GPU",
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
        return "/".join(filter(None, (self.registry or "kfp-medseg", f"{name}:{self.tag}")))

    def stage(self, name: str) -> StageSettings:
        """What a stage asks for, with every field filled.

        Args:
            name: The component, such as ``plan_and_preprocess``; KFP's dashes do as well.
        """
        name = name.replace("-", "_")
        given = self.stages.get(name, StageSettings()).model_dump(exclude_none=True)
        common = {field: getattr(self, field) for field in StageSettings.model_fields}
        return StageSettings(**{**common, **_STAGES.get(name, {}), **given})

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
        UserError: The file is missing or not a mapping, or a field is unknown or of the wrong type.
    """
    if file is None and os.environ.get(SETTINGS_VARIABLE):
        file = Path(os.environ[SETTINGS_VARIABLE])
    content: Any = {}
    if file is not None:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"the platform settings {file} cannot be read: {error}.") from None
        if not isinstance(content, dict):
            raise UserError(f"the platform settings {file} must hold 'key: value' lines.")
    try:
        return PlatformSettings(**content)
    except ValidationError as error:
        findings = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise UserError(f"the platform settings have errors: {findings}.") from None
