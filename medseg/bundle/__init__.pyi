from .checkpoints import export_checkpoint as export_checkpoint
from .inference import segment as segment
from .layout import prepare_bundle as prepare_bundle
from .torchscript import convert_pt_to_ts as convert_pt_to_ts
