"""Training dynamics of attention models as flows, beside gradient descent."""

from . import process as _process

if _process.is_command():
    _process.begin()

from . import laws as laws
from . import models as models
from . import systems as systems
from . import tasks as tasks
from .compare import compare as compare
from .defect import defect as defect
from .descend import descend as descend
from .ensemble import ensemble as ensemble
from .errors import InputError as InputError
from .flows import AbstractFlow as AbstractFlow
from .flows import GradientFlow as GradientFlow
from .flows import SwitchedFlow as SwitchedFlow
from .gap import EnsembleGap as EnsembleGap
from .gap import Gap as Gap
from .laws import Law as Law
from .laws import drift as drift
from .losses import AbstractBatchLoss as AbstractBatchLoss
from .losses import AbstractExplicitLoss as AbstractExplicitLoss
from .observables import Observable as Observable
from .precision import set_precision as set_precision
from .reductions import Reduction as Reduction
from .segments import Progress as Progress
from .sharpness import sharpness as sharpness
from .solve import solve as solve
from .solvers import RKC as RKC
from .sweeps import sweep as sweep
from .trajectory import RESULTS as RESULTS
from .trajectory import Trajectory as Trajectory
