"""Component ``list_studies``."""

from medseg.kubeflow import stage_component


@stage_component(secrets=("dicomweb",))
def list_studies(
    studies: str, output_folder: str = "", config_file_path: str = "", shards: int = 1
) -> list[int]:
    """Lists the studies of a source and deals them out to shards that convert at the same time.

    Args:
        studies: DICOMweb URL (http(s)://…/dicom-web) or file:///mnt/Data/folder; empty where the
            config's data_dir is NIfTI already.
        output_folder: Folder of the NIfTI dataset; default: the config's data_dir.
        config_file_path: The task's config (optional where output_folder is given).
        shards: Into how many parts the studies are dealt.

    Returns:
        The numbers of the shards; their lists of studies lie on the volume.
    """
    from medseg.config import load_config
    from medseg.dicom import list_studies as write_shards
    from medseg.project import stage

    with stage("list_studies", target=output_folder or config_file_path, private=True) as root:
        config = load_config(config_file_path, root) if config_file_path else None
        return write_shards(root, studies, output_folder, config=config, shards=shards)
