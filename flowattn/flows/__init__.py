"""Flows: vector fields on parameters."""

from .base import AbstractFlow as AbstractFlow
from .gradient import GradientFlow as GradientFlow
