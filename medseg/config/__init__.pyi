from .task import BundleConfig as BundleConfig
from .task import TaskConfig as TaskConfig
from .task import load_config as load_config
