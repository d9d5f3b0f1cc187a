"""The ``medseg`` command: it parses, calls one function of the library and shows the result."""

from medseg.cli.main import main

__all__ = ["main"]
