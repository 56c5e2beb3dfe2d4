"""Flows: vector fields on parameters."""

from .base import AbstractFlow as AbstractFlow
from .base import require_flow as require_flow
from .gradient import GradientFlow as GradientFlow
from .gradient import scaled as scaled
from .switched import SwitchedFlow as SwitchedFlow
