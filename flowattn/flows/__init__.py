"""Flows: vector fields on parameters."""

from .base import AbstractFlow as AbstractFlow
from .gradient import GradientFlow as GradientFlow
from .gradient import scaled as scaled
from .switched import SwitchedFlow as SwitchedFlow
