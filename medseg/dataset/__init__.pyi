from .quality import collect_dataset as collect_dataset
