"""The images: size, rebuild, a model made an image, and inference in it.

    ./build.sh bench containers

What goes into the images is the demo's model, what is segmented one of its test cases. Whatever is
compared runs by turns, so that load on the machine meets both alike.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import docker
import yaml

from medseg import __version__
from medseg.bundle.torchscript import load_packaged
from medseg.deploy import write_context
from medseg.deploy.engine import hardened
from medseg.kubeflow.settings import PlatformSettings
from tests.bench import project
from tests.containers.conftest import PROJECT, SEGMENT, build_images
from tests.containers.engine import Registry, base_image, docker_engine

REPEATS = 3
BUILD = """
import json, resource, sys, time
from medseg.deploy import docker_build
from medseg.project import stage
started = time.perf_counter()
with stage("docker_build") as root:
    docker_build(root, "context", sys.argv[1])
seconds = time.perf_counter() - started
who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
print(json.dumps([seconds, max(resource.getrusage(each).ru_maxrss for each in who) / 1024]))
"""


def rebuild(base: str) -> float:
    """Seconds that building the runtime image takes after a change of the source."""
    source = PROJECT / "medseg" / "deploy" / "__init__.py"
    text = source.read_bytes()
    try:
        source.write_bytes(text + f"\n# rebuilt at {time.time()}\n".encode())
        started = time.perf_counter()
        build_images(base, only="runtime")
        return time.perf_counter() - started
    finally:
        source.write_bytes(text)


def task_file(path: Path) -> Path:
    """A segmentation task for the demo's model."""
    kind = {"code": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"}
    labels = load_packaged(project.model_file()).segments
    task = {
        "Modalities": {"image": {"File_Pattern": ".nii.gz"}},
        "Segments": [
            {"segment_label": name, "segmented_property_type": kind, **SEGMENT}
            for name, value in labels.items()
            if value
        ],
    }
    path.write_text(yaml.safe_dump({"tasks": {"Bench": task}}))
    return path


def change(context: Path, number: int) -> None:
    """Makes the context's layer another one, so that it has to be pushed."""
    folder = context / "rootfs/opt/holoscan/docs"
    folder.mkdir(exist_ok=True)
    (folder / "number.txt").write_text(f"{number} {time.time()}")


def ours(client: docker.DockerClient, root: Path, name: str) -> tuple[float, float]:
    """Seconds and MiB of docker_build, in a container that has no more than 512 MiB."""
    owner = root.stat()
    output = client.containers.run(
        PlatformSettings().image("builder"),
        ["python3", "-c", BUILD, name],
        remove=True,
        network_mode="host",
        mem_limit="512m",
        memswap_limit="512m",
        volumes={str(root): {"bind": "/mnt/Data"}},
        **hardened(owner.st_uid, owner.st_gid),
    )
    seconds, mebibytes = json.loads(output.decode().splitlines()[-1])
    return seconds, mebibytes


def theirs(client: docker.DockerClient, context: Path, name: str) -> float:
    """Seconds of ``docker build`` and ``docker push``."""
    started = time.perf_counter()
    client.images.build(path=str(context), tag=name, rm=True)
    for line in client.images.push(name, stream=True, decode=True):
        assert "error" not in line, line
    return time.perf_counter() - started


def builds(client: docker.DockerClient, folder: Path) -> str:
    """Prints what making a model an image takes; returns the image's name."""
    registry = Registry(folder / "registry")
    try:
        base = f"{registry.host}/map-nifti"
        client.images.get(PlatformSettings().image("map-nifti")).tag(base, __version__)
        client.images.push(base, __version__)
        root = folder / "root"
        write_context(
            root / "contexts",
            project.model_file(),
            task_file(folder / "task.yaml"),
            bases={"nifti": f"{base}:{__version__}"},
        )
        context = root / "context"
        (root / "contexts/nifti").rename(context)
        name = f"{registry.host}/bench"
        ours(client, root, f"{name}:first")  # fetches the base, once
        theirs(client, context, f"{name}:docker-first")
        pairs = []
        for number in range(REPEATS):
            change(context, number)
            (seconds, peak) = ours(client, root, f"{name}:{number}")
            pairs.append((seconds, theirs(client, context, f"{name}:docker-{number}"), peak))
        for seconds, other, peak in pairs:
            print(
                f"docker_build {seconds:.1f} s, {peak:.0f} MiB; docker build and push {other:.1f} s"
            )
        slowest = max(seconds for seconds, _, _ in pairs)
        print(
            f"docker_build with the base cached, in 512 MiB: {slowest:.1f} s (target: at most 15)"
        )
        print(f"peak memory of a process: {max(peak for *_, peak in pairs):.0f} MiB (target: 512)")
        ratio = statistics.median(seconds / other for seconds, other, _ in pairs)
        print(f"ratio to docker build and push (median of {REPEATS}): {ratio:.2f}")
        client.images.get(f"{name}:docker-{REPEATS - 1}").tag("medseg-bench/model", "1")
        return "medseg-bench/model:1"
    finally:
        registry.stop()


def inference(image: str, folder: Path) -> None:
    """Prints how soon inference starts, and what a case takes in the image and without."""
    case = project.held_back_image()

    def infer() -> tuple[float, float]:
        output = folder / "infer"
        shutil.rmtree(output, ignore_errors=True)
        started = time.perf_counter()
        first = float("nan")
        command = [project.MEDSEG, "infer", "--image", image, str(case), "-o", str(output)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                if "starting inference" in line:
                    first = time.perf_counter() - started
        assert process.returncode == 0
        return first, time.perf_counter() - started

    def segment() -> float:
        command: list[Any] = [project.MEDSEG, "segment", case, "--model", project.model_file()]
        started = time.perf_counter()
        subprocess.run([*command, "-o", folder / "case.nii.gz"], check=True, capture_output=True)
        return time.perf_counter() - started

    infer()  # what is read from the disk for the first time is nobody's fault
    runs = [(*infer(), segment()) for _ in range(REPEATS)]
    for first, whole, alone in runs:
        print(f"medseg infer {whole:.1f} s, inference after {first:.1f} s; segment {alone:.1f} s")
    print(f"start of inference after {max(run[0] for run in runs):.1f} s (target: below 10)")
    ratio = statistics.median(whole / alone for _, whole, alone in runs)
    print(f"ratio to medseg segment (median of {REPEATS}): {ratio:.2f} (target: at most 1.3)")


def main() -> None:
    """Builds the images, then prints all figures and their targets."""
    project.demo_root()
    with tempfile.TemporaryDirectory() as scratch, docker_engine(Path(scratch)) as client:
        folder = Path(scratch)
        base = base_image(client, folder)
        build_images(base)
        size = client.images.get(PlatformSettings().image("runtime")).attrs["Size"]
        print(f"runtime image: {size / 1e9:.2f} GB (target, with a CPU torch: at most 3.5)")
        print(f"rebuild after a change of the source: {rebuild(base):.0f} s (target: below 60)")
        inference(builds(client, folder), folder)


if __name__ == "__main__":
    main()
