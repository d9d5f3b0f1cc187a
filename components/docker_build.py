"""Component ``docker_build``."""

from medseg.kubeflow import stage_component


@stage_component(secrets=("registry",), image="builder")
def docker_build(
    context: str,
    destination: str,
    overwrite: bool = False,
    insecure_registry: bool = False,
) -> str:
    """Adds a context's one layer to its base image and pushes the result; returns its digest.

    Needs no privilege and never unpacks the base, whose layers stay on the volume.

    Args:
        context: A build context of create_docker_context.
        destination: Name of the image, registry/path:tag.
        overwrite: Replace an image of this name that differs.
        insecure_registry: The registry speaks plain HTTP or has a certificate of its own.

    Returns:
        The image's digest, sha256:….
    """
    from medseg.deploy import docker_build as build
    from medseg.project import stage

    with stage("docker_build", target=destination) as root:
        return build(
            root,
            context,
            destination,
            overwrite=overwrite,
            insecure_registry=insecure_registry,
        )
