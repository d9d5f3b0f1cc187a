from .folders import dataset_folder as dataset_folder
from .quality import CONVERSION as CONVERSION
from .quality import collect_dataset as collect_dataset
