"""Solvers: those that diffrax lacks, and the choice among all."""

from .methods import SOLVERS as SOLVERS
from .methods import Method as Method
from .methods import methods as methods
from .rkc import RKC as RKC
