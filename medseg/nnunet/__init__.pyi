from .checkpoints import load_checkpoint as load_checkpoint
from .paths import environment as environment
from .preprocessing import plan_and_preprocess as plan_and_preprocess
from .raw import prepare_dataset as prepare_dataset
from .settings import trained_settings as trained_settings
from .training import train as train
from .validation import predict_validation as predict_validation
