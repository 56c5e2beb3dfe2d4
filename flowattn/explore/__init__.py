"""Explore: a local page for the data set of a sweep."""

from .serve import serve as serve
from .store import Stored as Stored
