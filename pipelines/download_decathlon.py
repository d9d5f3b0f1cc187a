"""Pipeline ``download_decathlon``."""

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(name="medseg-download-decathlon", display_name="Download Decathlon")
def download_decathlon(decathlon_task: str, mirror: str = "", checksum: str = "") -> None:
    """Downloads a task of the Medical Segmentation Decathlon, ready for the pipeline lifecycle.

    Args:
        decathlon_task: The task, such as Task09_Spleen.
        mirror: Folder that holds <task>.tar, or such a file: https://…, file:///mnt/Data/… or a
            path inside the data root. Default: where MONAI downloads from.
        checksum: MD5 or SHA-256 of the archive, where a mirror's is not the original.
    """
    components.download_decathlon(decathlon_task=decathlon_task, mirror=mirror, checksum=checksum)
