from .client import Cluster as Cluster
from .compiled import read_pipeline as read_pipeline
from .local import run_local as run_local
from .platform import platform_arguments as platform_arguments
from .platform import platform_pipeline as platform_pipeline
from .settings import PlatformSettings as PlatformSettings
from .settings import load_settings as load_settings
