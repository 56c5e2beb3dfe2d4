"""Plan: a problem, an optimiser and options, all resolved and validated."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ..disk.paths import require_folder
from ..errors import InputError, known_numbers
from ..flows import AT_EDGE, ORDERS
from ..optimizers import SGD, AbstractOptimizer, not_an_optimizer
from ..precision import float_dtype, require_resolved
from ..problem import Problem
from ..systems import AbstractSetting, AbstractStudy, AbstractSystem, Defaults
from ..trajectory import Trajectory
from .options import (
    FOLLOWING,
    MOST_STEPS,
    Options,
    require_of_run,
    require_of_study,
    require_sensible,
)

# The name, in results, of what has none: a problem of one's own.
OWN = "problem"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run, from when to when, and how."""

    system: AbstractSetting | None
    given: Problem | None
    options: Options
    optimizer: AbstractOptimizer
    clock: AbstractOptimizer
    ts: np.ndarray | None
    t1: float
    steps: int
    flow: bool
    descent: bool
    atol: float
    outputs: int
    precision: str

    @property
    def name(self) -> str:
        """The name of the run, in results."""
        return OWN if self.system is None else self.system.name

    @property
    def config(self) -> dict[str, Any]:
        """Everything that was chosen, ready for JSON."""
        config = fields_of(self.options)
        if self.system is None:  # only systems are drawn with a seed
            del config["seed"], config["data"]
        else:
            config = {**fields_of(self.system), **config}
        settled = ("t1", "steps", "flow", "descent", "atol", "outputs", "precision")
        config |= {name: getattr(self, name) for name in settled}
        if self.flow:
            config["flow"] = self.options.flow
        optimizer = self.optimizer.config
        for name in ("learning_rate", "momentum"):
            config[name] = optimizer.get(name)
        if self.ts is not None:
            config["ts"] = self.ts.tolist()
        return config | {"optimizer": optimizer}

    @property
    def at_edge(self) -> bool:
        """Whether the flow is one of the edge of stability."""
        return self.flow and self.options.flow in AT_EDGE

    @property
    def begin(self) -> float:
        """The time at which the flow begins."""
        return float(self.clock.time(self.options.flow_after))

    @property
    def observed_steps(self) -> np.ndarray:
        """The steps of the descent at which it is observed."""
        return np.union1d(self._spaced_steps, [self.options.flow_after])

    @property
    def _spaced_steps(self) -> np.ndarray:
        if self.ts is not None:
            nearest = [self.clock.steps(t) for t in self.ts]
            return self._met(np.clip(nearest, 0, self.steps))
        if self.options.spacing == "log":
            return self._met(np.geomspace(1, self.steps, self.outputs))
        # Enough of the records lie in the time that flow and descent have in common.
        common = self.steps
        if self.flow:
            common = min(self.steps, _steps_within(self.clock, self.t1))
        most = 100 * self.outputs
        every = max(1, common // self.outputs, self.steps // most)
        every = self.meets_every * -(-every // self.meets_every)
        return np.append(np.arange(0, self.steps, every), self.steps)

    def _met(self, steps: Any) -> np.ndarray:
        """The nearest of the steps at which the descent comes back to the flow, each
        once.
        """
        most = self.steps - self.steps % self.meets_every
        rounds = np.round(np.asarray(steps, float) / self.meets_every).astype(int)
        return np.unique(np.minimum(rounds * self.meets_every, most))

    @property
    def meets_every(self) -> int:
        """The number of steps after which the descent comes back to the flow."""
        if self.options.flow == "even":
            return 2
        if self.given is None or isinstance(self.options.flow, str):
            return 1
        return self.given.flow.meets_every

    def output_times(self, run: Trajectory | None) -> np.ndarray:
        """The flow's output times: those of the descent, and its own beyond them."""
        t1 = self.t1
        if self.ts is not None:
            own = self.ts
        elif self.options.spacing == "log":
            first = min(float(self.clock.time(1)) or t1 / 10, t1 / 10)
            own = np.append(0.0, np.geomspace(first, t1, self.outputs))
        else:
            own = np.linspace(0, t1, self.outputs + 1)
        begin = self.begin
        if begin > 0:
            own = np.append(begin, own[own > begin])
        if run is None:
            return own
        shared = np.asarray(run.ts, np.float64)
        spacing = 1e-6 * t1
        if self.meets_every > 1:  # the last step need not be one of those
            rounds = shared / float(self.clock.time(self.meets_every))
            met = np.abs(rounds - np.round(rounds)) < 1e-3
            missed = np.min(np.abs(own[:, None] - shared[~met]), 1, initial=np.inf)
            own, shared = own[missed > spacing], shared[met]
        # The first rate of a warm-up may be 0: its step takes no time.
        shared = shared[(shared <= t1 + spacing) & (np.diff(shared, prepend=-1.0) > 0)]
        shared = shared[shared >= begin - spacing * min(1.0, begin)]
        if abs(shared[-1] - t1) <= spacing:
            shared[-1] = t1
        beyond = own[own > shared[-1] + spacing]
        return np.concatenate([shared, beyond])


def plan(
    what: AbstractSetting | Problem,
    optimizer: AbstractOptimizer | None,
    options: Options,
    ts: Any = None,
    called: Callable[[str], str] = str,
) -> Plan:
    """Resolve what was left open. `called` returns the name of an option as the user
    wrote it.

    Raises `InputError` for options that make no sense.
    """
    system = what if isinstance(what, AbstractSetting) else None
    given = what if isinstance(what, Problem) else None
    if system is None and given is None:
        kind = f"a {type(what).__name__}"
        if isinstance(what, type):
            kind = f"the class {what.__name__}, which makes one when it is called"
        raise InputError(
            "run needs a system, a study or a problem, fa.systems.Focus() or "
            f"fa.Problem(params, loss) for instance, got {kind}"
        )
    if not isinstance(optimizer, AbstractOptimizer | None):
        raise not_an_optimizer(optimizer)
    require_sensible(options, called)
    times = _times(ts, options)
    defaults = _of_problem(times) if system is None else system.defaults
    if system is None and (options.seed or options.data is not None):
        name = "seed" if options.seed else "data"
        raise InputError(f"{name} is of a system: a problem has its own data and start")
    if options.data is not None:
        require_folder(called("data"), options.data)
    study = isinstance(system, AbstractStudy)
    if study:
        require_of_study(defaults.t1 is None, options, called)
        if optimizer is not None:
            _require_of_study(optimizer, defaults, called)
    chosen = optimizer
    if chosen is None and given is not None:
        chosen = given.shadowed
    chosen = defaults.optimizer if chosen is None else chosen
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(chosen)):
        raise InputError("run needs an optimizer whose numbers are known, not traced")
    if defaults.steps == 0 and (optimizer is not None or options.flow in FOLLOWING):
        defaults = defaults._replace(steps=None)  # an optimiser implies a descent
    clock = _clock(given, options, chosen)
    t1, steps, flow = _lengths(system, defaults, options, times, clock, called)
    descent = options.descent and steps > 0
    if descent and times is not None and times[0] != 0:
        raise InputError(
            f"ts must begin at 0, from where steps are counted, got {times[0]:g}; "
            "descent=False runs the flow alone"
        )
    if not study:
        require_of_run(options, flow, descent, called)
        useful = descent or options.sharpness or options.spacing == "log"
        useful = useful or flow and options.flow in FOLLOWING
        if optimizer is not None and not useful:
            raise InputError(
                f"{called('optimizer')} is of the descent, which is not run"
            )
    if options.flow_after and flow and float(clock.time(options.flow_after)) >= t1:
        raise InputError(
            f"{called('flow_after')} {options.flow_after} leaves the flow no time: it "
            f"ends at t = {t1:g}"
        )
    if options.flow == "even" and options.flow_after % 2:
        raise InputError(
            f"{called('flow_after')} must be even, as the flow 'even' follows every "
            f"second step; got {options.flow_after}"
        )
    atol = options.rtol / 1000 if options.atol is None else options.atol
    outputs = defaults.outputs if options.outputs is None else options.outputs
    precision = str(np.dtype(_dtype_of(given)))
    require_resolved(options.rtol, precision)
    settled = t1, max(1, steps), flow, descent, atol, outputs, precision
    return Plan(system, given, options, chosen, clock, times, *settled)


def _clock(
    given: Problem | None, options: Options, optimizer: AbstractOptimizer
) -> AbstractOptimizer:
    """The optimiser whose clock flow and descent share."""
    if options.flow in ORDERS:
        return optimizer.even
    if given is not None and eqx.tree_equal(given.shadowed, optimizer):
        return given.flow.clock or optimizer
    return optimizer


def _require_of_study(
    optimizer: AbstractOptimizer, defaults: Defaults, called: Callable[[str], str]
) -> None:
    """Raises `InputError` for an optimiser that a survey would ignore."""
    name = called("optimizer")
    if defaults.t1 is not None:
        raise InputError(f"{name} does nothing here: these are flows from many starts")
    ours, theirs = (
        {**vars(one), "learning_rate": None} for one in (defaults.optimizer, optimizer)
    )
    if type(optimizer) is not type(defaults.optimizer) or ours != theirs:
        raise InputError(
            f"only the learning rate of {name} can differ here: these are networks "
            f"that are trained by {defaults.optimizer.name}"
        )


def _of_problem(times: np.ndarray | None) -> Defaults:
    """How a problem without a system is run by default."""
    return Defaults(None if times is None else float(times[-1]), SGD(0.1))


def _dtype_of(problem: Problem | None) -> Any:
    return jnp.zeros(()).dtype if problem is None else float_dtype(problem.params)


def _times(ts: Any, options: Options) -> np.ndarray | None:
    """The output times that were given."""
    if ts is None:
        return None
    for name in ("t1", "outputs"):
        if getattr(options, name) is not None:
            raise InputError(f"give either ts or {name}")
    if options.spacing != "linear":
        raise InputError("give either ts or spacing")
    times = known_numbers("ts", ts)
    if times is None or times.ndim != 1 or times.size < 2:
        raise InputError("ts must hold at least two times")
    if not (np.all(np.isfinite(times)) and np.all(np.diff(times) > 0)):
        raise InputError("ts must be finite and increase")
    return np.asarray(times, np.float64)


def _lengths(
    system: AbstractSetting | None,
    defaults: Defaults,
    options: Options,
    times: np.ndarray | None,
    clock: AbstractOptimizer,
    called: Callable[[str], str],
) -> tuple[float, int, bool]:
    """The flow's end, the descent's steps (0: none), and whether there is a flow."""
    asked = options.t1 if times is None else float(times[-1])
    t1 = defaults.t1 if asked is None else asked
    steps = defaults.steps if options.steps is None else options.steps
    if asked is not None and options.steps is None and steps != 0:
        steps = None  # as many as lead to the requested time
    if system is None and t1 is None:
        if steps is None:
            raise InputError(
                f"give {called('t1')}, the end of the flow, or {called('steps')}"
            )
        t1 = float(clock.time(steps))  # a problem's flow is as long as its descent
    if steps is None:
        assert t1 is not None
        steps = clock.steps(t1) if options.descent else 0
        if options.descent and steps == 0:
            step = float(clock.time(1))
            raise InputError(f"t1 {t1} is shorter than a step of the descent, {step}")
    descent = options.descent and steps > 0
    flow = options.flow is not False and t1 is not None
    if not (flow or descent):
        lacks, asks = ("descent", "steps") if options.descent else ("flow", "t1")
        name = "this problem" if system is None else f"this {system.name}"
        raise InputError(
            f"nothing to run: {name} has no {lacks} unless {called(asks)} is given"
        )
    if descent and steps > MOST_STEPS:
        raise InputError(f"steps must be at most {MOST_STEPS}, got {steps}")
    # A system without a flow of its own is run as long as its descent.
    end = float(clock.time(steps)) if descent else t1
    t1 = end if t1 is None else t1
    if isinstance(system, AbstractSystem):
        assert t1 is not None and end is not None
        system.require_within(t1 if flow else min(t1, end))
    assert t1 is not None
    return t1, steps, flow


def _steps_within(optimizer: AbstractOptimizer, t1: float) -> int:
    """The number of steps that end by a time; all if a schedule never gets there."""
    if not optimizer.scheduled:
        return int(t1 / float(optimizer.time_per_step))
    try:
        return optimizer.steps_before(t1)
    except InputError:
        return MOST_STEPS


def fields_of(instance: PyTree) -> dict[str, Any]:
    """The fields of a system or of options, ready for JSON."""
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
