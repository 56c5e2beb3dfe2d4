"""Pictures, drawn from panels by matplotlib. Nothing is solved here; every function
returns its drawing.
"""

from .draw import draw as draw
from .draw import draw_panel as draw_panel
from .plots import plot_drift as plot_drift
from .plots import plot_gap as plot_gap
from .plots import plot_observable as plot_observable
from .plots import plot_sharpness as plot_sharpness
from .plots import plot_states as plot_states
from .plots import plot_sweep as plot_sweep
from .plots import plot_training as plot_training
from .style import COLOURS as COLOURS
from .style import MARKERS as MARKERS
from .style import STYLE as STYLE
from .style import Drawing as Drawing
from .style import styled as styled
