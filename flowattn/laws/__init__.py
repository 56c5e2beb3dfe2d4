"""Laws: quantities that a flow keeps."""

from .base import Law as Law
from .base import drift as drift
