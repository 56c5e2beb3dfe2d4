"""Every architecture by name, with its laws."""

from .attention import ATTENTION
from .base import Architecture
from .composed import BLOCKS, PREDICTED
from .feedforward import FEEDFORWARD
from .momentum import MOMENTUM

ARCHITECTURES: dict[str, Architecture] = {
    **FEEDFORWARD,
    **ATTENTION,
    **BLOCKS,
    **PREDICTED,
    **MOMENTUM,
}
