"""The command that measures to which order a flow follows a descent."""

import dataclasses
import json
import warnings
from typing import Annotated, Any

import jax.random as jr
import tyro

from ..disk.paths import require_folder
from ..disk.store import staged
from ..errors import InputError, require_positive, whole_number
from ..flows import AbstractFlow, Kind
from ..measures.orders import orders
from ..optimizers import AbstractOptimizer
from ..panels import Picture
from ..plotting import draw
from ..runs.options import require_seed
from ..runs.pages import orders_page
from ..systems import AbstractSystem
from . import process
from .config import ConfigFlags
from .console import (
    PathText,
    Precision,
    command_line,
    page_path,
    picture_path,
    set_up,
    write_page,
)
from .flags import OptimizerFlags, at_rate, largest_of
from .progress import Voice

_OptimizerFlags = Annotated[OptimizerFlags, tyro.conf.arg(name="")]
_FLOWS = {
    "gradient": "the gradient flow",
    "modified": "the flow of the modified loss",
    "descent": "the flow of its own steps",
}
# A descent of 2³⁰ times as many steps would take years.
_MOST_HALVINGS = 30


@dataclasses.dataclass(frozen=True)
class Orders:
    """The power of the learning rate with which a descent leaves a flow, measured.

    Compares descent and flow at a learning rate and at halves of it, with the flow's
    numerical error, and fits the power.

    Example: flowattn orders focus --reduced --flow descent --order 2
    """

    system: AbstractSystem
    """Which system; SYSTEM --help lists its fields."""
    optimizer: _OptimizerFlags
    flow: Kind = "descent"
    """Flow: of the loss, of the loss modified for the optimiser, or of the optimiser's
    own steps."""
    order: int | None = None
    """Order of the descent flow in the learning rate, from 1 to 6; None: 2."""
    t1: float | None = None
    """End of flow and descents; None: the system's."""
    halvings: int = 4
    """How often the learning rate is halved, from --learning-rate on."""
    flow_after: int = 0
    """Steps of the descent, at the largest rate, after which the flow begins, so that
    the optimiser's memory of its start has faded."""
    rtol: float = 1e-9
    """Relative tolerance of the flow's local error."""
    seed: int = 0
    """Seed of the data and of the start."""
    precision: Precision = None
    """Precision of everything; None: float64, on a TPU float32."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""
    out: PathText | None = None
    """The picture of the table, .png, .pdf or .svg; None: none."""
    html: PathText | None = None
    """A page with the findings, the picture and the table, .html; None: none."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the numbers as JSON in place of the table."""
    voice: Annotated[Voice, tyro.conf.arg(name="")] = Voice()
    file: Annotated[ConfigFlags, tyro.conf.arg(name="")] = ConfigFlags()

    def __call__(self) -> int:
        set_up(self.precision)
        if self.data is not None:
            require_folder("--data", self.data)
        out = None if self.out is None else picture_path(self.out)
        html = None if self.html is None else page_path("--html", self.html)
        halvings = whole_number("halvings", self.halvings)
        if halvings > _MOST_HALVINGS:
            raise InputError(f"halvings must be at most {_MOST_HALVINGS}")
        require_seed(self.seed)
        if self.flow_after < 0:
            raise InputError(f"--flow-after must be 0 or more, got {self.flow_after}")
        t1 = self.system.defaults.t1 if self.t1 is None else self.t1
        if t1 is None:
            raise InputError(
                f"this {self.system.name} has no flow unless --t1 is given"
            )
        require_positive(t1=t1)
        self.system.require_within(t1)
        default = self.system.defaults.optimizer
        first = self.optimizer.chosen(default, t1, None) or default
        rate = largest_of(first)
        problem = self.system.problem(jr.key(self.seed), self.data)

        def optimizer(eta: Any) -> AbstractOptimizer:
            return at_rate(first, eta, t1)

        def flow(eta: Any) -> AbstractFlow:
            followed = problem.following(optimizer(eta), self.flow, order=self.order)
            return followed.flow

        with (
            self.voice.watch("orders") as progress,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            table = orders(
                flow,
                problem.params,
                learning_rates=[rate / 2**n for n in range(halvings + 1)],
                t1=t1,
                optimizer=optimizer,
                rtol=self.rtol,
                steps_before=self.flow_after,
                progress=progress,
            )
        print(json.dumps(table.summary, indent=2) if self.json else table)
        for line in dict.fromkeys(str(one.message) for one in said):
            process.say(f"flowattn: {line}")
        if out is None and html is None:
            return 0
        title = f"{self.system.name}: {first.name} and {_FLOWS[self.flow]}"
        caption = f"Largest distance of all parameters up to t = {t1:g}."
        picture = Picture([table.panel()], title, caption)
        drawing, tell = draw(picture), process.say if self.json else print
        if out is not None:
            with staged(out.parent) as stage:
                drawing.save(stage / out.name)
            tell(str(out))
        if html is not None:
            about = self.system.citation
            page = orders_page(table, picture, drawing, about, command_line())
            write_page(page, html, tell)
        return 0
