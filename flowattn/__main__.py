"""`python -m flowattn`."""

from .cli.main import entry

entry()
