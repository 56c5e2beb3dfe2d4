"""Settings: the settings of a sweep, resolved and validated before it runs."""

import dataclasses
import inspect
import json
import math
import operator
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import (
    InputError,
    quoted,
    require_positive,
    require_scalar,
    whole_number,
)
from ..fields import require_kind
from ..flows import DIRECTIONS, ORDERS, Kind, flow_of
from ..numerics.members import explicit
from ..optimizers import SGD, AbstractOptimizer, Adam
from ..precision import require_resolved
from ..runs.options import Settings
from ..systems import AbstractSystem
from .axes import Axis, axes_of, require_few
from .cell import OF_DESCENT, How

# The directions of a flow by default.
_DIRECTIONS = {"central": DIRECTIONS}
# Hours at 10⁵ cells a second.
_MOST_CELLS = 10**9
# Each takes seconds to compile.
_MOST_PROGRAMS = 10**4
_MOST_OUTPUTS = 10**6
# Settings that stores of version 0.1 do not have.
_LATER = ("flow", "order", "directions")
# The largest 32-bit count.
_MOST_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep with all numbers resolved: the product of axes and seeds."""

    system: AbstractSystem
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    how: How
    data: str | None = None

    @property
    def dims(self) -> tuple[str, ...]:
        """The axes, and the seeds."""
        return (*(axis.name for axis in self.axes), "seed")

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values along each."""
        return (*(len(axis.values) for axis in self.axes), len(self.seeds))

    @property
    def config(self) -> dict[str, Any]:
        """Everything that determines the numbers, ready for JSON."""
        system = {f.name: _plain(getattr(self.system, f.name)) for f in _fields(self)}
        vary = {axis.name: list(axis.values) for axis in self.axes}
        optimizer = self.how.descent
        descent = None if optimizer is None else optimizer.config
        how = {**self.how._asdict(), "descent": descent}
        # Absent where not given, as in stores of before.
        how = {k: v for k, v in how.items() if k not in _LATER or v is not None}
        whole = {
            "system": {"name": self.system.name, **system},
            "vary": vary,
            "seeds": list(self.seeds),
            **how,
            "dtype": str(jnp.zeros(()).dtype),
        }
        return json.loads(json.dumps(whole))

    @property
    def statics(self) -> list[dict[str, Any]]:
        """Every combination of values that need separate programs."""
        outer = [axis for axis in self.axes if not axis.traced]
        names = [axis.name for axis in outer]
        values = product(*(axis.values for axis in outer))
        return [dict(zip(names, at, strict=True)) for at in values]


def _fields(sweep: Sweep) -> tuple[Any, ...]:
    return dataclasses.fields(sweep.system)


def _plain(value: Any) -> Any:
    """A setting in the form of JSON."""
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    return float(value)


def settled(
    system: AbstractSystem,
    vary: Mapping[str, Any],
    seeds: int | Sequence[Any] = 1,
    *,
    t1: float | None = Settings.t1,
    rtol: float = Settings.rtol,
    atol: float | None = Settings.atol,
    solver: Any = Settings.solver,
    max_steps: int = Settings.max_steps,
    outputs: int | None = Settings.outputs,
    observe: str | Sequence[str] | None = None,
    error: bool | None = None,
    descent: str | AbstractOptimizer | None = None,
    flow: Any = None,
    order: Any = None,
    directions: Any = None,
    data: str | None = None,
) -> Sweep:
    """A sweep with everything that was left open resolved.

    Raises `InputError` for settings that make no sense, and for cells that are not
    valid systems.
    """
    require_kind("flow", flow, Kind | None)
    require_kind("data", data, str | None)
    require_kind("error", error, bool | None)
    axes = axes_of(system, vary)
    names = [axis.name for axis in axes]
    given = {"t1": t1, "rtol": rtol, "atol": atol, "solver": solver}
    for name in given.keys() & names:
        if given[name] != SETTINGS[name]:
            raise InputError(f"{name} is varied: next to its axis it has no effect")
    end = system.defaults.t1 if t1 is None else t1
    if end is None and "t1" not in names:
        raise InputError(f"this {system.name} has no flow unless t1 is given")
    end = 1.0 if end is None else end
    require_scalar(t1=end, rtol=rtol)
    require_positive(t1=end, rtol=rtol)
    if atol is not None:
        require_scalar(atol=atol)
        require_positive(atol=atol)
    numbers = _seeds(seeds)
    observe = (observe,) if isinstance(observe, str) else observe
    if not isinstance(observe, Sequence | None):
        raise InputError(f"observe must be a list of names, got {quoted(observe)}")
    optimizer = None if descent is None else descent_of(system, descent)
    for name in set(names) & set(OF_DESCENT):
        if optimizer is None:
            raise InputError(f"axis {name} is of a descent; give one, as sgd:0.1")
        if not hasattr(optimizer, name):
            raise InputError(f"axis {name} is not of the descent, {optimizer.name}")
    if outputs is None:
        outputs = 0 if optimizer is None else 19
    require_scalar(outputs=outputs)
    if outputs < 0:
        raise InputError(f"outputs must be 0 or more, got {outputs}")
    count: int = whole_number("outputs", outputs) if outputs else 0
    how = How(
        float(end),
        float(rtol),
        None if atol is None else float(atol),
        _solver(solver),
        whole_number("max_steps", max_steps),
        count,
        None if observe is None else tuple(observe),
        optimizer is not None if error is None else error,
        optimizer,
        flow,
        _settled_count("order", order, ORDERS.get(flow)),
        _settled_count("directions", directions, _DIRECTIONS.get(flow)),
    )
    sweep = Sweep(system, axes, numbers, how, data)
    _require_finite_work(sweep)
    _require_sensible(sweep)
    return sweep


# The settings of a sweep by name, with their defaults.
SETTINGS = {
    name: parameter.default
    for name, parameter in inspect.signature(settled).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def _settled_count(name: str, given: Any, default: int | None) -> Any:
    """A count, by default that of the kind of flow, which may have none."""
    if given is None and default is None:
        return None
    return whole_number(name, default if given is None else given)


def _seeds(seeds: int | Sequence[Any]) -> tuple[int, ...]:
    """The numbers from 0 to N − 1, or the given seeds.

    Raises `InputError` for invalid seeds.
    """
    if np.ndim(seeds) == 0:
        count = _whole("seeds", seeds)
        if count < 1:
            raise InputError(f"seeds must be at least 1, got {count}")
        require_few("seeds", count)
        return tuple(range(count))
    numbers = tuple(_whole("seeds", seed) for seed in seeds)  # pyright: ignore
    for number in numbers:
        if not 0 <= number < 2**32:
            raise InputError(f"seeds must be from 0 to {2**32 - 1}, got {number}")
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError("seeds must be one or more, each once")
    return numbers


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be whole numbers, got {value!r}") from None


def _solver(solver: Any) -> str:
    """A solver by its name, which a store can hold."""
    if not isinstance(solver, str):
        raise InputError(f"solver must be tsit5 or dopri8 in a sweep, got {solver!r}")
    return "tsit5" if solver == "auto" else solver


def descent_of(
    system: AbstractSystem, given: str | AbstractOptimizer
) -> AbstractOptimizer:
    """A descent: an optimiser, or text with its name and learning rate; sgd defaults to
    the paper's.

    >>> from flowattn.systems import Focus
    >>> descent_of(Focus(), "sgd:0.5").learning_rate
    0.5
    """
    if isinstance(given, AbstractOptimizer):
        if given.scheduled:
            raise InputError(
                "a sweep's descent has a constant learning rate, not a schedule"
            )
        return given
    require_kind("descent", given, str)
    name, *rest = given.split(":")
    try:
        numbers = [float(text) for text in rest]
        if name == "sgd" and not numbers:
            return system.defaults.optimizer
        kinds = {("sgd", 1): SGD, ("sgd", 2): SGD, ("adam", 1): Adam}
        return kinds[name, len(numbers)](*numbers)
    except (KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"descent {given!r} is unknown; write sgd, sgd:RATE, sgd:RATE:MOMENTUM or "
            "adam:RATE, or give an optimizer"
        ) from None


def _require_finite_work(sweep: Sweep) -> None:
    """Raises `InputError` for more cells, programs, outputs or steps than can
    finish.
    """
    how = sweep.how
    for name, most in (("outputs", _MOST_OUTPUTS), ("max_steps", _MOST_STEPS)):
        value = getattr(how, name)
        if value > most:
            raise InputError(f"{name} must be at most {most}, got {quoted(value)}")
    cells = math.prod(sweep.shape)
    if cells > _MOST_CELLS:
        raise InputError(
            f"a sweep has at most {_MOST_CELLS:.0e} cells, not {cells:.0e}"
        )
    programs = math.prod(len(axis.values) for axis in sweep.axes if not axis.traced)
    if programs > _MOST_PROGRAMS:
        raise InputError(
            f"axes of fields that are fixed in a program need {programs:.0e} programs; "
            f"at most {_MOST_PROGRAMS} can be"
        )


def _require_sensible(sweep: Sweep) -> None:
    """Raises `InputError` for axis values, and combinations, that are not valid
    systems.
    """
    fields = {field.name for field in _fields(sweep)}
    dtype = jnp.zeros(()).dtype
    for static in sweep.statics:
        mine = {name: value for name, value in static.items() if name in fields}
        system = dataclasses.replace(sweep.system, **mine)
        solver = static.get("solver", sweep.how.solver)
        explicit(solver, sweep.how.rtol)
        for axis in sweep.axes:
            for value in axis.values if axis.traced and axis.name in fields else ():
                dataclasses.replace(system, **{axis.name: value})
        ends = next((a.values for a in sweep.axes if a.name == "t1"), (sweep.how.t1,))
        for end in ends:
            system.require_within(end)
    for axis in sweep.axes:
        if axis.name in ("t1", "rtol", "atol", "learning_rate"):
            for value in axis.values:
                require_positive(**{axis.name: value})
    if sweep.how.descent is not None:
        _require_steps(sweep)
    _require_flow(sweep)
    rtols = next((a.values for a in sweep.axes if a.name == "rtol"), (sweep.how.rtol,))
    require_resolved(rtols, dtype)


def _require_steps(sweep: Sweep) -> None:
    """Raises `InputError` if a descent makes no sense for some value of an axis, or has
    fewer steps than are to be observed.
    """
    known = {axis.name: axis.values for axis in sweep.axes}
    descent, outputs = sweep.how.descent, sweep.how.outputs
    assert descent is not None
    for name in OF_DESCENT:
        for value in known.get(name, ()):
            dataclasses.replace(descent, **{name: value})
    steps = fewest_steps(sweep)
    if steps < outputs + 1:
        named = _named(_largest(sweep)) or descent.name
        raise InputError(
            f"a descent ({named}) takes {steps} steps to t = {_first_end(sweep):g}, of "
            f"which {outputs + 1} are to be observed; choose fewer "
            "outputs, a later t1 or a smaller rate"
        )


def fewest_steps(sweep: Sweep) -> int:
    """The number of steps of the shortest descent of a sweep that has descents."""
    assert sweep.how.descent is not None
    return _fastest(sweep.how.descent, _largest(sweep)).steps(_first_end(sweep))


def _first_end(sweep: Sweep) -> float:
    """The earliest end of a cell."""
    ends = next((a.values for a in sweep.axes if a.name == "t1"), (sweep.how.t1,))
    return min(ends)


def _largest(sweep: Sweep) -> dict[str, Any]:
    """The largest value of each axis of the descent."""
    return {a.name: max(a.values) for a in sweep.axes if a.name in OF_DESCENT}


def _fastest(
    descent: AbstractOptimizer, largest: Mapping[str, Any]
) -> AbstractOptimizer:
    """A descent with these values."""
    return dataclasses.replace(descent, **largest) if largest else descent


def _require_flow(sweep: Sweep) -> None:
    """Raises `InputError` for a flow that the descent does not have; warns, once for
    all cells, of one that can be unstable at the largest momentum.
    """
    flow, descent = sweep.how.flow, sweep.how.descent
    given: dict[str, Any] = {
        "order": sweep.how.order,
        "directions": sweep.how.directions,
    }
    if flow is None or flow == "gradient":
        flow_of("gradient", _any_loss, SGD(0.1), **given)  # which has neither
        return
    if descent is None:
        raise InputError(
            f"flow='{flow}' follows an optimizer: give a descent, as sgd:0.1"
        )
    flow_of(flow, _any_loss, _fastest(descent, _largest(sweep)), **given)


def _any_loss(params: Any) -> Any:
    """A loss for a flow that is made only to be checked."""
    return jnp.sum(params)


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
