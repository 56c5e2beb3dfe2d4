"""`python -m flowattn`."""

from .cli import entry

entry()
