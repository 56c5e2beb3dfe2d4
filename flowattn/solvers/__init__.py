"""Solvers: those that diffrax lacks, and the choice among all."""

from .explicit import ExplicitStep as ExplicitStep
from .explicit import explicit_step as explicit_step
from .explicit import tableau_of as tableau_of
from .methods import SOLVERS as SOLVERS
from .methods import Method as Method
from .methods import Tried as Tried
from .methods import crossing as crossing
from .methods import methods as methods
from .rkc import RKC as RKC
