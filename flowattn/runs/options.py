"""Options: how a system is run from the command line, and which of them say nothing."""

import dataclasses
from typing import Literal

from ..fields import require_acting
from ..measures.gap import Scale
from ..numerics.solvers import SOLVERS
from ..systems import AbstractSystem


@dataclasses.dataclass(frozen=True)
class Options:
    """How a system is run."""

    t1: float | None = None
    """End of the flow; None: the paper's."""
    rtol: float = 1e-6
    """Relative tolerance of the flow's local error."""
    atol: float | None = None
    """Absolute tolerance; None: rtol / 1000."""
    solver: Literal[SOLVERS] = "auto"  # pyright: ignore
    """Solver of the flow; auto: Tsit5 or Dopri8, and RKC where the flow is stiff."""
    max_steps: int = 5000
    """Largest number of steps the flow may try before it is given up as stuck."""
    spacing: Literal["linear", "log"] = "linear"
    """Spacing of the output times; log: from one learning rate on."""
    sharpness: int = 0
    """Observe the N largest Hessian eigenvalues (from 26 products each time)."""
    seed: int = 0
    """Seed of the data and of the start."""
    precision: Literal["float64", "float32"] | None = None
    """Precision of everything; None: float64, on a TPU float32."""
    learning_rate: float | None = None
    """Learning rate of gradient descent; None: the paper's."""
    momentum: float | None = None
    """Momentum of gradient descent, below 1; None: the paper's."""
    steps: int | None = None
    """Steps of gradient descent; None: t1 (1 - momentum) / learning rate."""
    patience: int | None = None
    """Stop after N steps without a lower validation loss; None: never."""
    validate_from: int = 0
    """Step from which the validation loss is watched, to outlast a first plateau."""
    scale: Scale = "largest"
    """What the gap is relative to: the largest value over time, that at each time, or
    its logarithm."""
    flow: bool = True
    """Run the flow."""
    descent: bool = True
    """Run gradient descent."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""


_FLOW = ("rtol", "atol", "solver", "max_steps")
_DESCENT = ("learning_rate", "momentum", "steps", "patience", "validate_from")
_BOTH = ("spacing", "scale", "sharpness", "flow", "descent")


def require_of_survey(system: AbstractSystem, options: Options) -> None:
    """Raises `InputError` for options that say nothing to the runs of a survey."""
    idle = {*_BOTH, "solver", "momentum", "patience", "validate_from"}
    if system.defaults.t1 is None:
        idle, kind = idle | {"t1", *_FLOW}, "networks that are trained"
    else:
        idle, kind = idle | {"steps", "learning_rate"}, "flows from many starts"
    require_acting(
        options, dict.fromkeys(idle, f"says nothing here: these are {kind}"), _flag
    )


def require_of_run(options: Options, flow: bool, descent: bool) -> None:
    """Raises `InputError` for options of a flow or a descent that is not run."""
    idle = {}
    if not flow:
        why = "is of the flow, which is not run"
        why += " unless --t1 is given" if options.flow and options.t1 is None else ""
        idle |= dict.fromkeys(_FLOW, why)
        if options.steps is not None:
            idle["t1"] = "says nothing beside --steps where there is no flow"
    if not descent:
        why = "is of gradient descent, which is not run"
        why += " unless --steps is given" if options.descent else ""
        idle |= dict.fromkeys(_DESCENT, why)
        # Of a flow alone, too, they say where its edge is, and its first time.
        if options.sharpness or options.spacing == "log":
            del idle["learning_rate"], idle["momentum"]
    if not (flow and descent):
        idle["scale"] = "is of the gap between flow and descent, of which one is run"
    require_acting(options, idle, _flag)


def _flag(name: str) -> str:
    """An option as it is given; those that are on by themselves can be taken away."""
    off = "no-" if name in ("flow", "descent") else ""
    return f"--{off}{name.replace('_', '-')}"
