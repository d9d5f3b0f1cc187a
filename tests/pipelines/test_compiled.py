"""The compiled YAML: valid for KFP, fresh, and with every platform setting in its place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from medseg import components
from medseg.cli.compiling import compile_pipelines
from medseg.kubeflow.compiled import compiled_folder, pipeline_names, read_pipeline, read_yaml
from medseg.kubeflow.local_docker import stage_access
from medseg.kubeflow.settings import PLATFORM_PARAMETERS, PlatformSettings, load_settings
from medseg.kubeflow.stage import needs_of
from medseg.project import UserError
from medseg.project.variables import SECRETS, SETTINGS_FILE
from tests.conftest import PROJECT

PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
GPU = {
    "check",
    "find-best-configuration",
    "train",
    "finetune",
    "validate",
    "segment",
    "test-model",
    "promote",
    "inference",
}
"""Stages that compute on a GPU, said once more here, so that no other comes to ask for one.

Those that ``./build.sh new-component`` has made say it in their own test.
"""

NEEDS = {
    name.replace("_", "-"): needs_of(getattr(components, name).component_spec)
    for name in components.__all__
}

SITE = {
    "registry": "registry.site/group",
    "tag": "9.9",
    "mount_path": "/data",
    "pvc_name": "site-claim",
    "cpu": "16",
    "memory": "64Gi",
    "gpu_count": "1",
    "gpu_type": "amd.com/gpu",
    "node_selector": {"pool": "gpu"},
    "ca_config_map": "site-ca",
    "http_proxy": "http://proxy.site:3128",
    "https_proxy": "http://proxy.site:3128",
    "no_proxy": "pacs.site, .site",
    "labels": {"kueue.x-k8s.io/queue-name": "imaging", "cost-centre": "4711"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "node_affinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]},
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
            ]
        },
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 10,
                "preference": {"matchExpressions": [{"key": "quiet", "operator": "Exists"}]},
            }
        ],
    },
    "shared_memory": "16Gi",
    "cpu_request": "250m",
    "memory_request": "512Mi",
    "retries": 3,
    "retry_backoff": "2m",
    "time_limit_s": 7200,
    "stages": {
        "train": {"memory_request": "8Gi", "shared_memory": "32Gi", "retries": 0},
        "report": {"time_limit_s": 600, "cpu_request": "2"},
    },
    "tolerations": [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"},
        {"key": "pool", "operator": "Exists"},
    ],
    "security_context": {"run_as_user": 4000, "run_as_group": 4001, "run_as_non_root": True},
    "image_pull_secrets": ["site-registry"],
    "image_pull_policy": "Always",
    "dicomweb_secret": "site-pacs",
    "mlflow_secret": "site-mlflow",
    "mlflow_artifacts_secret": "site-s3",
    "notify_secret": "site-hook",
    "registry_secret": "site-registry",
    "caching": True,
}

SITE_ENVIRONMENT = {
    "MEDSEG_DATA_ROOT": "/data",
    "http_proxy": "http://proxy.site:3128",
    "https_proxy": "http://proxy.site:3128",
    "no_proxy": "localhost,127.0.0.1,.svc,.cluster.local,.kubeflow,$(KUBERNETES_SERVICE_HOST),"
    "pacs.site,.site",
}

SITE_AFFINITY = [
    {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]},
    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
    {"matchExpressions": [{"key": "quiet", "operator": "Exists"}], "weight": 10},
]


def _compile(output: Path, folder: Path, **environment: str) -> None:
    """Compiles as another user would: another folder, home and hash seed."""
    folder.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSEG_", "PYTHON"))}
    subprocess.run(
        [sys.executable, "-c", "from medseg.cli import main; main()", "compile", "-o", str(output)],
        cwd=folder,
        env={**clean, "HOME": str(folder), "PYTHONHASHSEED": "4711", **environment},
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlatformSettings, Path]:
    """A set compiled with settings that differ from every default."""
    folder = tmp_path_factory.mktemp("site")
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(SITE))
    _compile(folder / "out", folder / "cwd", MEDSEG_PLATFORM_FILE=str(file))
    settings = load_settings(file)
    same = {f for f in SITE if getattr(settings, f) == PlatformSettings.model_fields[f].default}
    assert not same, "the site's settings must differ from the defaults to show anything"
    return settings, folder / "out"


def test_compiled_is_fresh(tmp_path: Path) -> None:
    _compile(tmp_path / "out", tmp_path / "elsewhere")
    committed = {p.name: p.read_bytes() for p in compiled_folder().glob("*.yaml")}
    again = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.yaml")}
    assert sorted(again) == sorted(committed)
    stale = [name for name in again if again[name] != committed[name]]
    assert not stale, f"compiled/ is stale: run ./build.sh compile ({', '.join(stale)})"


@dataclass
class Stage:
    """A container task, as the driver sees it: inputs resolved to the pipeline's parameters."""

    name: str
    spec: pipeline_spec_pb2.PipelineTaskSpec
    container: pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec
    kubernetes: kubernetes_executor_config_pb2.KubernetesExecutorConfig
    dag: dict[str, str]
    own: dict[str, str]

    def root(self, text: str) -> str:
        """The pipeline parameter that a placeholder of the container ends in."""
        match = PLACEHOLDER.fullmatch(text)
        assert match, f"{self.name}: {text!r} is no run-time parameter"
        return self.own[match[1]]

    def named(self, parameter: Any) -> str:
        """The pipeline parameter of a platform field; the driver looks in the enclosing DAG."""
        return self.dag[parameter.component_input_parameter]


def _read(path: Path) -> tuple[pipeline_spec_pb2.PipelineSpec, list[Stage]]:
    """Parses both documents into KFP's messages (unknown fields are errors) and walks the DAGs."""
    pipeline, platform = yaml.safe_load_all(path.read_text())
    spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    deployment = json_format.ParseDict(
        pipeline["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig()
    )

    def walk(dag: pipeline_spec_pb2.DagSpec, known: dict[str, str]) -> Iterator[Stage]:
        for task in dag.tasks.values():
            component = spec.components[task.component_ref.name]
            own: dict[str, str] = {}
            for name, value in task.inputs.parameters.items():
                if value.component_input_parameter:
                    source = value.component_input_parameter
                    assert source in known, f"{task.task_info.name} asks its DAG for {source}"
                    own[name] = known[source]
                else:
                    own[name] = f"value of {name}"
            items = task.parameter_iterator.items.input_parameter
            assert not items or items in own, f"{task.task_info.name} has no list to go through"
            own[task.parameter_iterator.item_input] = "item"
            if component.HasField("dag"):
                missing = set(component.input_definitions.parameters) - set(own)
                optional = {
                    k for k, v in component.input_definitions.parameters.items() if v.is_optional
                }
                assert missing <= optional, f"{task.task_info.name} misses {missing}"
                yield from walk(component.dag, own)
            else:
                label = component.executor_label
                yield Stage(
                    name=task.component_ref.name.removeprefix("comp-").rstrip("-0123456789"),
                    spec=task,
                    container=deployment.executors[label].container,
                    kubernetes=json_format.ParseDict(
                        executors[label], kubernetes_executor_config_pb2.KubernetesExecutorConfig()
                    ),
                    dag=known,
                    own=own,
                )

    inputs = spec.root.input_definitions.parameters
    return spec, list(walk(spec.root.dag, {name: name for name in inputs}))


def _check(path: Path, settings: PlatformSettings) -> set[str]:
    spec, stages = _read(path)
    inputs = spec.root.input_definitions.parameters
    defaults = {
        "pvc_name": settings.pvc_name,
        "image": settings.image("runtime"),
        "builder_image": settings.image("builder"),
        "cpu": settings.cpu,
        "memory": settings.memory,
        "gpu_count": settings.gpu_count,
        "gpu_type": settings.gpu_type,
        "node_selector": settings.node_selector,
        "ca_config_map": settings.ca_config_map,
    }
    images = {NEEDS[stage.name].image_parameter for stage in stages}
    if "builder_image" not in images:
        del defaults["builder_image"]
    if path.stem == "inference":  # which image it runs is what its user must say
        del defaults["image"]
        assert not inputs["image"].is_optional
    wanted = {kind for stage in stages for kind in NEEDS[stage.name].secrets}
    defaults |= {f"{kind}_secret": getattr(settings, f"{kind}_secret") for kind in wanted}
    for name, value in defaults.items():
        assert json_format.MessageToDict(inputs[name].default_value) == value, name
        assert inputs[name].is_optional
        assert inputs[name].description, name
    assert {n for n in inputs if n.endswith("_secret")} == {f"{kind}_secret" for kind in wanted}

    for stage in stages:
        _check_container(stage, settings, f"{path.stem}: {stage.name}")
        _check_pod(stage, settings, f"{path.stem}: {stage.name}")
    return {stage.name for stage in stages}


def _check_container(stage: Stage, settings: PlatformSettings, where: str) -> None:
    """What runs, with how much, and where its volume and nodes come from."""
    needs = NEEDS[stage.name]
    asked = settings.stage(stage.name.replace("-", "_"), needs.asks)
    container, kubernetes = stage.container, stage.kubernetes
    resources = container.resources
    if "--function_to_execute" in container.args:  # SIGTERM reaches Python, not a shell
        assert "_KFP_RUNTIME=true exec python3 -m" in container.command[2], where
    assert stage.root(container.image) == needs.image_parameter, where
    assert stage.root(resources.resource_cpu_limit) == "cpu", where
    assert stage.root(resources.resource_memory_limit) == "memory", where
    assert resources.resource_cpu_request == asked.cpu_request, where
    assert resources.resource_memory_request == asked.memory_request, where
    assert needs.gpu == resources.HasField("accelerator"), where
    own_test = PROJECT / f"tests/unit/components/test_{stage.name.replace('-', '_')}.py"
    assert own_test.exists() or (stage.name in GPU) == needs.gpu, where
    tolerations = [
        json_format.MessageToDict(t, preserving_proto_field_name=True)
        for t in kubernetes.tolerations
    ]
    if needs.gpu:
        assert stage.root(resources.accelerator.resource_count) == "gpu_count", where
        assert stage.root(resources.accelerator.resource_type) == "gpu_type", where
    assert tolerations == [t.model_dump(exclude_none=True) for t in settings.tolerations], where

    assert len(kubernetes.pvc_mount) == 1, where
    assert stage.named(kubernetes.pvc_mount[0].pvc_name_parameter) == "pvc_name", where
    assert kubernetes.pvc_mount[0].mount_path == settings.mount_path, where
    env = {item.name: item.value for item in container.env}
    assert env == (SITE_ENVIRONMENT if settings.http_proxy else {}), where
    assert [(f.name, f.field_path) for f in kubernetes.field_path_as_env] == [
        ("MEDSEG_RUN_ID", "metadata.labels['pipeline/runid']")
    ], where
    selector = kubernetes.node_selector.node_selector_json
    assert stage.named(selector) == "node_selector", where


def _check_pod(stage: Stage, settings: PlatformSettings, where: str) -> None:
    """Secrets, mounts, retries, time and user."""
    needs = NEEDS[stage.name]
    asked = settings.stage(stage.name.replace("-", "_"), needs.asks)
    kubernetes = stage.kubernetes
    secrets = {
        stage.named(secret.secret_name_parameter): secret.mount_path
        for secret in kubernetes.secret_as_volume
    }
    assert secrets == {f"{kind}_secret": SECRETS[kind].mount_path for kind in needs.secrets}, where
    assert all(secret.optional for secret in kubernetes.secret_as_volume), where
    assert not kubernetes.secret_as_env, where  # KFP before 2.15 knows no optional ones
    (authorities,) = kubernetes.config_map_as_volume
    assert stage.named(authorities.config_map_name_parameter) == "ca_config_map", where
    assert (authorities.mount_path, authorities.optional) == ("/etc/medseg/ca", True), where

    labels = dict(kubernetes.pod_metadata.labels)
    assert (labels.pop("io.github.kfp-medseg/network", "") == "none") != bool(needs.secrets), where
    assert labels == settings.labels, where
    assert dict(kubernetes.pod_metadata.annotations) == settings.annotations, where
    affinity = [json_format.MessageToDict(term) for term in kubernetes.node_affinity]
    assert affinity == (SITE_AFFINITY if settings.labels else []), where

    mounts = {mount.mount_path: mount for mount in kubernetes.empty_dir_mounts}
    assert set(mounts) == {"/tmp"} | ({"/dev/shm"} if needs.shared_memory else set()), where
    if needs.shared_memory:
        assert mounts["/dev/shm"].medium == "Memory", where
        assert mounts["/dev/shm"].size_limit == asked.shared_memory, where

    retry = stage.spec.retry_policy
    assert retry.max_retry_count == asked.retries, where
    if asked.retries:
        waits = {"30s": 30, "2m": 120}
        assert retry.backoff_duration.seconds == waits[settings.retry_backoff], where
    assert kubernetes.active_deadline_seconds == asked.time_limit_s, where
    context = kubernetes.security_context
    assert context.run_as_user == settings.security_context.run_as_user, where
    assert context.run_as_group == settings.security_context.run_as_group, where
    assert context.run_as_non_root is settings.security_context.run_as_non_root, where
    assert kubernetes.image_pull_policy == settings.image_pull_policy, where
    assert [s.secret_name for s in kubernetes.image_pull_secret] == (settings.image_pull_secrets), (
        where
    )
    assert stage.spec.caching_options.enable_cache is settings.caching, where


@pytest.mark.parametrize("name", pipeline_names())
def test_default_settings_read_back(name: str) -> None:
    assert _check(compiled_folder() / f"{name}.yaml", PlatformSettings())


@pytest.mark.parametrize("name", pipeline_names())
def test_a_sites_settings_read_back(name: str, site: tuple[PlatformSettings, Path]) -> None:
    settings, folder = site
    assert _check(folder / f"{name}.yaml", settings)


@pytest.mark.parametrize("name", pipeline_names())
def test_everything_is_described_in_a_line(name: str) -> None:
    pipeline, _ = yaml.safe_load_all((compiled_folder() / f"{name}.yaml").read_text())
    assert pipeline["pipelineInfo"]["description"]
    for component, spec in {"root": pipeline["root"], **pipeline["components"]}.items():
        for part in ("inputDefinitions", "outputDefinitions"):
            defined = spec.get(part, {})
            for key, value in {
                **defined.get("parameters", {}),
                **defined.get("artifacts", {}),
            }.items():
                described = re.fullmatch(r"\S.*\S", value.get("description", ""))
                assert described or key.startswith("pipelinechannel--"), f"{component}: {key}"


def test_what_a_site_has_fixed_is_no_parameter(tmp_path: Path) -> None:
    fixed = [*PLATFORM_PARAMETERS, *(row.parameter for row in SECRETS.values())]
    settings = {**SITE, "fixed": fixed}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings))
    _compile(tmp_path / "out", tmp_path / "cwd", MEDSEG_PLATFORM_FILE=str(tmp_path / "site.yaml"))
    for name in pipeline_names():
        path = tmp_path / "out" / f"{name}.yaml"
        pipeline, (_, stages) = read_pipeline(str(path)), _read(path)
        ours = read_pipeline(name).parameters.values()
        assert set(pipeline.parameters) == {
            p.name for p in ours if p.required or not p.for_platform
        }
        assert pipeline.claim({}) == "site-claim"
        for stage in stages:
            needs, container, kubernetes = NEEDS[stage.name], stage.container, stage.kubernetes
            if needs.image == "runtime" and name != "inference":  # whose image is the user's
                assert container.image == "registry.site/group/runtime:9.9"
            assert container.resources.resource_memory_limit == "64Gi"
            if needs.gpu:
                assert container.resources.accelerator.resource_count == "1"
                assert container.resources.accelerator.resource_type == "amd.com/gpu"
            assert dict(kubernetes.node_selector.labels) == {"pool": "gpu"}
            assert kubernetes.config_map_as_volume[0].config_map_name == "site-ca"
            mounted = {each.mount_path: each.secret_name for each in kubernetes.secret_as_volume}
            assert mounted == {
                SECRETS[kind].mount_path: SITE[f"{kind}_secret"] for kind in needs.secrets
            }
        access = stage_access(read_yaml(path))
        assert access == stage_access(read_yaml(compiled_folder() / f"{name}.yaml"))


def test_every_component_is_a_stage_of_a_pipeline() -> None:
    stages = set()
    for path in compiled_folder().glob("*.yaml"):
        stages |= {stage.name for stage in _read(path)[1]}
    assert stages == set(NEEDS)


@pytest.mark.parametrize("name", ["lifecycle", "train", "finetune"])
def test_long_pipelines_end_in_notify(name: str) -> None:
    spec, _ = _read(compiled_folder() / f"{name}.yaml")
    task = spec.root.dag.tasks["notify"]
    assert task.trigger_policy.strategy == task.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED
    assert list(task.dependent_tasks) == ["exit-handler-1"]
    assert set(spec.root.dag.tasks) == {"exit-handler-1", "notify"}
    last = task.inputs.parameters["last_stage"].runtime_value.constant.string_value
    assert last in {stage.name for stage in _read(compiled_folder() / f"{name}.yaml")[1]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("memory", "8 GB", "memory"),
        ("cpu", "two", "cpu"),
        ("pvc_name", "My_Claim", "pvc_name"),
        ("image_pull_policy", "Sometimes", "image_pull_policy"),
        ("tolerations", [{"key": "x", "efect": "NoSchedule"}], "tolerations.0.efect"),
        ("stages", {"train": {"memory_request": "lots"}}, "stages.train.memory_request"),
        ("registri", "x", "registri"),
        ("stages", {"trian": {"retries": 2}}, "no stage: 'trian' (did you mean 'train'?)"),
        ("registry", "my registry", "registry"),
        ("mlflow_secret", "team.mlflow", "mlflow_secret"),
        ("ca_config_map", "medseg-data", "pvc_name and ca_config_map are both 'medseg-data', and"),
        ("https_proxy", "proxy.site:3128", "'https_proxy': write it as http://proxy.example.org"),
        ("http_proxy", "http://me:s3cret@proxy", "without user name and password"),
        ("labels", {"pipeline/runid": "1"}, "'labels': pipeline/runid is set by Kubeflow or this"),
        ("labels", {"team": "a b"}, "labels.team"),
        ("annotations", {"a/b/c": "x"}, "annotations.a/b/c"),
        (
            "node_affinity",
            {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "preference": {"matchExpressions": [{"key": "g", "operator": "In"}]},
                    }
                ]
            },
            "g: In takes values",
        ),
        (
            "node_affinity",
            {"nodeSelectorTerms": []},
            "unknown key 'node_affinity.nodeSelectorTerms'",
        ),
        (
            "fixed",
            ["gpu_typ"],
            "'gpu_typ' is no parameter of the platform (did you mean 'gpu_type'?)",
        ),
        ("fixed", ["config_file_path"], "these settings have no value for it, and what a pipeline"),
        ("memory", "2Gi", ".memory_request (4Gi) is more than the limit"),
        ("stages", {"report": {"cpu_request": "3"}}, "stages.report.cpu_request (3) is more than"),
    ],
)
def test_wrong_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: Any, message: str
) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump({field: value}))
    monkeypatch.setenv(SETTINGS_FILE.name, str(file))
    with pytest.raises(UserError, match=re.escape(message)):
        compile_pipelines(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NODE_SELECTOR", "gpu", 'NODE_SELECTOR=\'{"pool": "gpu"}\'.'),
        ("REGISTRI", "x", "did you mean 'MEDSEG_PLATFORM_REGISTRY'?"),
        ("MEMORY", "8 GB", "memory"),
    ],
)
def test_a_wrong_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"MEDSEG_PLATFORM_{variable}", value)
    with pytest.raises(UserError, match=re.escape(message)):
        load_settings()


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_bytes(b"registry: \xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path / "site.yaml")


def test_a_sites_set_does_not_replace_the_committed_one(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("registry: registry.site/group\n")
    folder = tmp_path / "cwd"
    folder.mkdir()
    command = [sys.executable, "-c", "from medseg.cli import main; main()", "compile"]
    given = ["--settings", str(tmp_path / "site.yaml")]
    done = subprocess.run([*command, *given], cwd=folder, check=True, capture_output=True)
    assert done.stdout.decode().splitlines()[-1] == "site/validate.yaml"
    assert not (folder / "compiled").exists()
    assert "registry.site/group/runtime" in (folder / "site" / "train.yaml").read_text()
