"""Training dynamics of attention models as flows, beside gradient descent."""

from .cli import process as _process

if _process.is_command():
    _process.begin()

from . import laws as laws
from . import models as models
from . import systems as systems
from . import tasks as tasks
from .errors import InputError as InputError
from .flows import AbstractFlow as AbstractFlow
from .flows import GradientFlow as GradientFlow
from .flows import Switch as Switch
from .flows import SwitchedFlow as SwitchedFlow
from .laws import Law as Law
from .laws import drift as drift
from .losses import AbstractBatchLoss as AbstractBatchLoss
from .losses import AbstractExplicitLoss as AbstractExplicitLoss
from .measures.compare import compare as compare
from .measures.defect import defect as defect
from .measures.gap import EnsembleGap as EnsembleGap
from .measures.gap import Gap as Gap
from .measures.sharpness import sharpness as sharpness
from .numerics.descend import descend as descend
from .numerics.ensemble import ensemble as ensemble
from .numerics.segments import Progress as Progress
from .numerics.solve import solve as solve
from .numerics.solvers import RKC as RKC
from .observables import Observable as Observable
from .optimizers import SGD as SGD
from .optimizers import AbstractOptimizer as AbstractOptimizer
from .optimizers import Adam as Adam
from .optimizers import Optax as Optax
from .optimizers import RMSProp as RMSProp
from .panels import Axis as Axis
from .panels import Curve as Curve
from .panels import Image as Image
from .panels import Panel as Panel
from .panels import Picture as Picture
from .panels import Scale as Scale
from .precision import set_precision as set_precision
from .problem import Problem as Problem
from .reductions import Reduction as Reduction
from .runs.run import Run as Run
from .runs.run import run as run
from .sweeps import sweep as sweep
from .trajectory import RESULTS as RESULTS
from .trajectory import Trajectory as Trajectory
