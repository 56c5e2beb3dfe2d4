"""Sweeps: a system at every point of a product of axes and seeds."""

from .again import Again as Again
from .again import History as History
from .run import counted as counted
from .run import opened_dataset as opened_dataset
from .run import require_undamaged as require_undamaged
from .run import sweep as sweep
from .states import training_states as training_states
