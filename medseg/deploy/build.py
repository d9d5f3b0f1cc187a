"""An image without a build: one layer appended to a base that is never unpacked."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from medseg.deploy.context import DESCRIPTION, read_context
from medseg.deploy.registry import ImageName, copy, credentials, remote_digest
from medseg.project import (
    DataRoot,
    UserError,
    atomic_folder,
    progress,
    read_json,
    scratch_folder,
)


def docker_build(
    root: DataRoot,
    context: str,
    destination: str,
    *,
    overwrite: bool = False,
    insecure_registry: bool = False,
) -> str:
    """Builds the image of a context and pushes it.

    The base's layers are kept on the volume as an OCI layout. The context's files become one more
    layer (owner root, times at the epoch), so that equal input gives an equal digest; a run that
    was killed after its push finds its own image and is done.

    Args:
        root: The data root.
        context: A build context of :func:`medseg.deploy.create_docker_context`.
        destination: Name of the image, ``registry/path:tag``.
        overwrite: Replace an image of this name that differs.
        insecure_registry: The registry speaks plain HTTP or has a certificate of its own; one on
            this machine may do so anyway.

    Returns:
        The image's digest.

    Raises:
        UserError: The context or the destination is wrong, the registry is away or denies access,
            or the tag exists and must not be overwritten.
    """
    name = ImageName.parse(destination, "destination")
    folder = root.resolve(context, field="context")
    description = read_context(folder)
    base = ImageName.parse(description["base"], f"base in {context}/{DESCRIPTION}")
    # what insecure_registry says is about the destination's registry
    insecure_base = insecure_registry and base.registry == name.registry
    cache = root.path / ".medseg" / "images"
    cache.mkdir(parents=True, exist_ok=True)
    environment = {
        # skopeo remembers there which registry has which layer, and mounts it rather than push it
        "XDG_DATA_HOME": str(cache),
    }
    # two images of one pipeline may be made at once
    with scratch_folder(cache / "work") as work, credentials() as options:
        environment["TMPDIR"] = str(work)
        existing = remote_digest(name, options, insecure=insecure_registry, denied_is_missing=True)
        layout = _cache_base(cache, base, options, insecure_base, environment)
        _link_layout(layout, cache / "blobs", work / "image")
        _append(work, folder / "rootfs", description)
        digest, manifest = _manifest(work / "image", "image")
        if existing == digest:
            progress(f"{name} is in the registry already ({digest})")
            return digest
        if existing and not overwrite:
            raise UserError(
                f"destination: {name} exists and is another image: choose a new tag, or set "
                "overwrite."
            )
        copy(
            f"oci:{work / 'image'}:image",
            f"docker://{name}",
            name,
            [*options, "--preserve-digests"],
            insecure=insecure_registry,
            environment=environment,
        )
        megabytes = manifest["layers"][-1]["size"] / 1e6
        progress(f"{name} pushed ({digest}, layer of {megabytes:.0f} MB)")
    return digest


def _cache_base(
    cache: Path,
    base: ImageName,
    options: list[str],
    insecure: bool,
    environment: dict[str, str],
) -> Path:
    """The OCI layout of the base, whose blobs lie in ``cache/blobs``."""
    digest = remote_digest(base, options, insecure=insecure)
    if digest is None:
        raise UserError(
            f"the base image {base} does not exist: push it with ./build.sh images --push."
        )
    layout = cache / "bases" / digest.removeprefix("sha256:")
    if not (layout / "index.json").is_file():
        progress(f"fetching the base image {base}, once")
        with atomic_folder(layout) as temporary:
            copy(
                f"docker://{base}",
                f"oci:{temporary}:base",
                base,
                [*options, "--dest-shared-blob-dir", str(cache / "blobs")],
                insecure=insecure,
                environment=environment,
            )
    return layout


def _link_layout(layout: Path, blobs: Path, target: Path) -> None:
    """An OCI layout of its own for umoci, with the base's blobs linked into it."""
    (target / "blobs" / "sha256").mkdir(parents=True)
    for name in ("oci-layout", "index.json"):
        shutil.copyfile(layout / name, target / name)

    def link(digest: str) -> Path:
        relative = Path(*digest.split(":"))
        path = target / "blobs" / relative
        try:
            path.hardlink_to(blobs / relative)
        except OSError:  # a volume without hard links
            path.symlink_to(blobs / relative)
        return path

    index = read_json(target / "index.json")
    manifest = read_json(link(index["manifests"][0]["digest"]))
    for item in (manifest["config"], *manifest["layers"]):
        link(item["digest"])


def _append(work: Path, rootfs: Path, description: dict[str, Any]) -> None:
    """Appends the layer and the settings to ``work/image``, as its tag ``image``."""
    layer = work / "layer.tar"
    with tarfile.open(layer, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(rootfs.rglob("*")):
            item = archive.gettarinfo(path, path.relative_to(rootfs).as_posix())
            item.uid = item.gid = item.mtime = 0
            item.uname = item.gname = "root"
            item.mode = 0o755 if item.isdir() else 0o644
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(path.open("rb")) if item.isreg() else None
                archive.addfile(item, file)
    created = _base_created(work / "image")
    _umoci(
        "raw",
        "add-layer",
        f"--image={work / 'image'}:base",
        "--tag=image",
        f"--history.created={created}",
        "--history.created_by=medseg docker_build",
        str(layer),
    )
    layer.unlink()
    settings = [f"--config.label={key}={value}" for key, value in description["labels"].items()]
    settings += [f"--config.env={key}={value}" for key, value in description["environment"].items()]
    _umoci(
        "config",
        f"--image={work / 'image'}:image",
        f"--created={created}",
        "--no-history",
        *settings,
    )


def _base_created(image: Path) -> str:
    """When the base was made: the image's own time must not depend on the clock."""
    _, manifest = _manifest(image, "base")
    created: str = _blob(image, manifest["config"]["digest"])["created"]
    return created


def _manifest(image: Path, tag: str) -> tuple[str, dict[str, Any]]:
    """Digest and content of a tag's manifest."""
    index = read_json(image / "index.json")
    digest: str = next(
        item["digest"]
        for item in index["manifests"]
        if item["annotations"]["org.opencontainers.image.ref.name"] == tag
    )
    return digest, _blob(image, digest)


def _blob(image: Path, digest: str) -> dict[str, Any]:
    return dict(read_json(image / "blobs" / Path(*digest.split(":"))))


def _umoci(*arguments: str) -> None:
    command = ["umoci", *arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True)
    except FileNotFoundError:
        raise UserError(
            "umoci is not installed: use the builder image, or sudo apt-get install umoci."
        ) from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"umoci {arguments[0]} failed: {last[0]}")
