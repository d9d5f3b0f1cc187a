"""From a packaged model to an image that runs anywhere, and running such images.

* :func:`create_docker_context` writes the build contexts of the two inference images.
* :func:`docker_build` adds a context's one layer to its base image and pushes the result, without
  privilege and without unpacking the base.
* :func:`infer` runs an inference image with Docker.
* ``application`` is what such an image runs; ``package`` is how it describes itself.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
