"""Flows: vector fields on parameters."""

from .base import AbstractFlow as AbstractFlow
from .base import require_flow as require_flow
from .base import velocity as velocity
from .central import CentralFlow as CentralFlow
from .descent import DescentFlow as DescentFlow
from .gradient import GradientFlow as GradientFlow
from .gradient import moving as moving
from .gradient import number_of as number_of
from .gradient import others as others
from .gradient import require_moving as require_moving
from .gradient import scaled as scaled
from .gradient import settled_rates as settled_rates
from .kinds import AT_EDGE as AT_EDGE
from .kinds import DIRECTIONS as DIRECTIONS
from .kinds import LATER as LATER
from .kinds import ORDERS as ORDERS
from .kinds import Kind as Kind
from .kinds import flow_of as flow_of
from .modified import ModifiedLoss as ModifiedLoss
from .rod import RodFlow as RodFlow
from .subspace import AffineSubspace as AffineSubspace
from .subspace import Lifted as Lifted
from .subspace import within as within
from .switched import Switch as Switch
from .switched import SwitchedFlow as SwitchedFlow
from .switched import gradient_flow as gradient_flow
