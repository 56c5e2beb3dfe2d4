"""Options: how a problem is run, and which options have no effect."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from ..errors import InputError, quoted, require_positive
from ..fields import kinds, require_acting, require_kind
from ..flows import LATER, ORDERS, Kind
from ..measures.gap import Scale
from ..numerics.solvers import SOLVERS

MOST_STEPS = 10**9


@dataclasses.dataclass(frozen=True)
class Settings:
    """How flows are solved and when they are observed: the same fields, with the same
    defaults, for runs, the command line and sweeps.
    """

    t1: float | None = None
    """End of the flow; None: the system's own, or the time of the descent's steps."""
    rtol: float = 1e-6
    """Relative tolerance of the flow's local error."""
    atol: float | None = None
    """Absolute tolerance; None: rtol / 1000."""
    solver: Literal[SOLVERS] = "auto"  # pyright: ignore
    """Solver of the flow; auto: Tsit5 or Dopri8, and RKC where the flow is stiff."""
    max_steps: int = 5000
    """Largest number of steps the flow may try before it is given up as stuck."""
    outputs: int | None = None
    """Number of output times after the start; None: the system's own, usually 100."""


@dataclasses.dataclass(frozen=True)
class Options(Settings):
    """How a problem is run: its flow, its descent, and what is observed."""

    spacing: Literal["linear", "log"] = "linear"
    """Spacing of the output times; log: from one step of the descent on."""
    sharpness: int = 0
    """Observe the N largest Hessian eigenvalues (at 26 products or more each time)."""
    seed: int = 0
    """Seed of the data and of the start."""
    steps: int | None = None
    """Steps of the descent; None: the number that reaches t1."""
    patience: int | None = None
    """Stop after N steps without a lower validation loss; None: never."""
    validate_from: int = 0
    """First step at which the validation loss is evaluated, to outlast a plateau."""
    scale: Scale = "largest"
    """Unit of the gap: the largest value over time, the largest at each time, or the
    logarithm."""
    flow: bool | Kind = True
    """Flow to run: "gradient", of the loss; "modified", of the loss modified for the
    optimiser; "descent", of the optimiser's own steps; at the edge of stability "even",
    of every second step, "central", and "rod"; False: none; True: the system's own,
    usually "gradient"."""
    order: int | None = None
    """Order of the "descent" flow in the learning rate, from 1 to 6, None: 2; and of
    the "even" flow, None: 3."""
    directions: int | None = None
    """Directions that the "central" flow holds at the edge of stability; None: 2."""
    flow_after: int = 0
    """Steps of the descent after which a flow "descent", "even", "central" or "rod"
    begins, so that the optimiser's memory of its start has faded, or its oscillation
    has set in."""
    descent: bool = True
    """Run the descent."""
    lazy: bool = False
    """Also solve the lazy flow, of the model linearised about the start."""
    kernel: int = 0
    """Observe the tangent kernel of N of the model's outputs, drawn once and for all:
    how far it has come, its speed, and its alignment with the target −∇ℓ(0) of the loss
    ℓ of outputs (the labels of a mean square, of classes one-hot less their mean). At
    each output time it costs about 4 N gradients."""
    attribute: Literal["blocks"] | None = None
    """Also solve for the contribution of each block of parameters to the output along
    the target, for classes the mean logit of the right one less that of all."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""


def require_sensible(options: Options, called: Callable[[str], str] = str) -> None:
    """Raises `InputError` for an option that makes no sense; `called` returns the name
    of an option as the user wrote it.
    """
    for name, kind in kinds(Options).items():
        require_kind(name, getattr(options, name), kind)
    counts = ("max_steps", "steps", "patience", "validate_from", "sharpness", "outputs")
    counts = (*counts, "flow_after", "kernel")
    for name in counts:
        if (getattr(options, name) or 0) > MOST_STEPS:
            value = quoted(getattr(options, name))
            raise InputError(
                f"{called(name)} must be at most {MOST_STEPS}, got {value}"
            )
    positive = ("t1", "rtol", "atol", "max_steps", "steps", "patience", "outputs")
    for name in (*positive, "order", "directions"):
        if getattr(options, name) is not None:
            require_positive(**{name: getattr(options, name)})
    if options.patience is None and options.validate_from:
        raise InputError(f"{called('validate_from')} needs {called('patience')}")
    for name in ("validate_from", "sharpness", "flow_after", "kernel"):
        if getattr(options, name) < 0:
            value = quoted(getattr(options, name))
            raise InputError(f"{name} must be 0 or more, got {value}")
    if not (options.flow or options.descent):
        parts = f"{called('flow')} and {called('descent')}"
        raise InputError(f"{parts} are both off: nothing is left to run")
    require_seed(options.seed)


def require_seed(seed: int) -> None:
    """Raises `InputError` for a number that seeds nothing."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be from 0 to {2**32 - 1}, got {quoted(seed)}")


_FLOW = ("rtol", "atol", "solver", "max_steps")
# Flows of an optimiser.
FOLLOWING = ("modified", *LATER)
_DESCENT = ("steps", "patience", "validate_from")
_BOTH = (
    "spacing",
    "scale",
    "sharpness",
    "flow",
    "order",
    "directions",
    "flow_after",
    "descent",
    "outputs",
    "lazy",
    "kernel",
    "attribute",
)


def require_of_study(
    trained: bool, options: Options, called: Callable[[str], str] = str
) -> None:
    """Raises `InputError` for options without effect on the runs of a study: of
    networks that are `trained`, or of flows from many starts.
    """
    idle = {*_BOTH, "solver", "patience", "validate_from"}
    if trained:
        idle, kind = idle | {"t1", *_FLOW}, "networks that are trained"
    else:
        idle, kind = idle | {"steps"}, "flows from many starts"
    require_acting(
        options, dict.fromkeys(idle, f"does nothing here: these are {kind}"), called
    )


def require_of_run(
    options: Options, flow: bool, descent: bool, called: Callable[[str], str] = str
) -> None:
    """Raises `InputError` for options of a flow or a descent that is not run."""
    idle = {}
    if not flow:
        why = "is of the flow, which is not run"
        if options.flow and options.t1 is None:
            why += f" unless {called('t1')} is given"
        idle |= dict.fromkeys((*_FLOW, "lazy", "attribute"), why)
        if options.steps is not None:
            steps = called("steps")
            idle["t1"] = f"does nothing together with {steps} if there is no flow"
    if not descent:
        why = "is of the descent, which is not run"
        if options.descent:
            why += f" unless {called('steps')} is given"
        idle |= dict.fromkeys(_DESCENT, why)
    if options.flow not in ORDERS:
        idle["order"] = "is of flow='descent' and flow='even'"
    if options.flow in FOLLOWING:
        why = f"is of the gradient flow, not of flow='{options.flow}'"
        idle |= dict.fromkeys(("lazy", "kernel", "attribute"), why)
    if options.flow not in LATER:
        named = ", ".join(f"'{kind}'" for kind in LATER)
        idle["flow_after"] = f"is of the flows {named}"
    if options.flow != "central":
        idle["directions"] = "is of flow='central'"
    if not (flow and descent):
        idle["scale"] = "is of the gap between flow and descent, of which one is run"
    require_acting(options, idle, called)
