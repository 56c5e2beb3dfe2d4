"""Optimizers: the update rules of a descent."""

from .base import AbstractOptimizer as AbstractOptimizer
from .rules import SGD as SGD
from .rules import Adam as Adam
from .rules import RMSProp as RMSProp
from .wrapped import Optax as Optax
from .wrapped import not_an_optimizer as not_an_optimizer
from .wrapped import optimizer_of as optimizer_of
