from .config import demo_config as demo_config
from .config import write_demo_config as write_demo_config
from .phantoms import generate_phantoms as generate_phantoms
