from .runs import Tracker as Tracker
from .runs import is_behind as is_behind
from .runs import metric_name as metric_name
from .runs import open_run as open_run
from .runs import run_id as run_id
from .store import masked as masked
from .trial import TryRun as TryRun
