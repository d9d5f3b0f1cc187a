from .checkpoints import export_checkpoint as export_checkpoint
from .inference import segment as segment
from .layout import prepare_bundle as prepare_bundle
from .paths import model_file as model_file
from .paths import present_model as present_model
from .paths import promotions_file as promotions_file
from .torchscript import convert_pt_to_ts as convert_pt_to_ts
