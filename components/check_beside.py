"""Component ``check_beside``."""

from medseg.kubeflow import stage_component


@stage_component(secrets=("registry",), image="builder", time_limit_s=1800, retries=0)
def check_beside(
    run: str, registry: str = "", push: bool = False, insecure_registry: bool = False
) -> None:
    """Looks at the registry from the image that pushes, and is the second pod on the volume.

    What it finds stands in the table of the stage check.

    Args:
        run: Name of the table's folder in reports/.
        registry: Registry and path, such as registry.example.org/imaging.
        push: Push an empty image there, medseg-check:empty.
        insecure_registry: The registry speaks plain HTTP or has a certificate of its own.
    """
    from medseg.check import check_beside as look

    look(run, registry, push=push, insecure=insecure_registry)
