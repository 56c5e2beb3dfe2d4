"""Solvers: those that diffrax lacks, and the choice among all."""

from .crossing import crossing as crossing
from .crossing import remembered as remembered
from .crossing import sign_of as sign_of
from .crossing import turns as turns
from .explicit import ExplicitStep as ExplicitStep
from .explicit import explicit_step as explicit_step
from .finite import SHORTENED as SHORTENED
from .finite import all_finite as all_finite
from .finite import stuck as stuck
from .methods import SOLVERS as SOLVERS
from .methods import Method as Method
from .methods import Tried as Tried
from .methods import Watch as Watch
from .methods import methods as methods
from .rkc import RKC as RKC
