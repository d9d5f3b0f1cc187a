"""Component ``download_decathlon``."""

from kfp.dsl import Dataset, Output

from medseg.kubeflow import stage_component


@stage_component()
def download_decathlon(
    decathlon_task: str, dataset: Output[Dataset], mirror: str = "", checksum: str = ""
) -> None:
    """Downloads a task of the Medical Segmentation Decathlon and writes a config that trains on it.

    The archive is checked before it is unpacked; an interrupted download goes on where it was.
    The dataset lies in the folder of the task's name, the config in configs/.

    Args:
        decathlon_task: The task, such as Task09_Spleen.
        dataset: Training cases, source, checksum, licence and citation.
        mirror: Folder that holds <task>.tar, or such a file: https://…, file:///mnt/Data/… or a
            path inside the data root. Default: where MONAI downloads from.
        checksum: MD5 or SHA-256 of the archive, where a mirror's is not the original.
    """
    from medseg.dataset import download_decathlon as download
    from medseg.project import stage

    with stage("download_decathlon", target=decathlon_task) as root:
        done = download(root, decathlon_task, mirror=mirror, checksum=checksum)
        dataset.metadata.update(done.facts)
        dataset.metadata["config"] = root.relative(done.config)
        dataset.uri = root.address(done.folder)
