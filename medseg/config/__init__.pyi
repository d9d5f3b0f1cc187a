from .labels import IGNORE as IGNORE
from .labels import Labels as Labels
from .labels import Structure as Structure
from .task import DEFAULT_SUFFIXES as DEFAULT_SUFFIXES
from .task import LABEL_KEY as LABEL_KEY
from .task import BundleConfig as BundleConfig
from .task import TaskConfig as TaskConfig
from .task import load_config as load_config
