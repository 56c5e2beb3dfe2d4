"""Parts: what a lane does, as programs of single numbers, for a kernel.

A kernel holds no arrays, only numbers, each a tile of lanes. Whatever decides in a lane
(the first step, its end, whether it counts, the interpolation) is `Lanes` and
`StepControl` as `pool` uses them, turned into such programs: one code decides in both.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import PyTree

from ...trajectory import RESULTS
from ..adapters import ENDED, explicit_path, outcome_of, second_point
from ..scalars import Program, Unfit, program
from ..solvers import ExplicitStep
from .lane import Lane, Lanes, Start
from .pool import checked_every

# The kernel is compiled in seconds for fields up to about these sizes; beyond, its
# numbers do not fit into the registers of a device.
_OPERATIONS, _DIM = 2000, 32
# What Pallas lowers to Triton, of the operations on single numbers.
_LOWERED = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clz
    convert_element_type cos cosh div eq erf_inv exp exp2 expm1 floor ge gt integer_pow
    is_finite le log log1p log2 logistic lt max min mul ne neg nextafter not or
    population_count pow rem rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square sub tan tanh xor
    """.split()
)


class Entries:
    """The arrays of trees like an example, as lists."""

    def __init__(self, example: PyTree):
        arrays, self._rest = eqx.partition(example, eqx.is_array)
        leaves, self._structure = jax.tree.flatten(arrays)
        self.leaves = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]

    @property
    def dtypes(self) -> list[np.dtype]:
        """The type of every number."""
        return [x.dtype for x in self.leaves for _ in range(x.size)]

    def __len__(self) -> int:
        return sum(x.size for x in self.leaves)

    def of(self, tree: PyTree) -> list[Any]:
        """The arrays of a tree."""
        return jax.tree.leaves(eqx.filter(tree, eqx.is_array))

    def tree(self, arrays: list[Any]) -> PyTree:
        """The tree with these arrays."""
        return eqx.combine(jax.tree.unflatten(self._structure, arrays), self._rest)

    def joined(self, rows: list[Any], lanes: int) -> PyTree:
        """The tree of lanes (the last axis) from the rows of their numbers."""
        arrays, rows = [], list(rows)
        for like in self.leaves:
            own, rows = rows[: like.size], rows[like.size :]
            stacked = jnp.stack(own) if own else jnp.zeros((0, lanes))
            arrays.append(stacked.reshape(*like.shape, lanes).astype(like.dtype))
        return self.tree(arrays)


def settings_of(rule: Lanes) -> tuple[Any, ...]:
    """The numbers that all lanes of a rule share and that often change from call to
    call; None for those that are a lane's own.
    """
    shared = rule.shared
    return shared.times, shared.rtol, shared.atol, shared.reach, rule.max_steps


class Parts:
    """The programs of one rule.

    - `settings`: `settings_of` the rule; `own`: what differs from lane to lane and does
      not move; `y`: what moves; `rest`: the lane without these and its slope;
    - `field`: the slope at a local time and a point;
    - `enter`: the lane at the start; `probe`: the length of a trial step, from the
      first slope; `choose`: the lane with its first step, from the slope at its end;
    - `judge`: the lane after a step, with the end, the slope there, the next length;
    - `between`: the state within a step; `defined`: whether the field is defined at an
      output there, None if always.

    Data of the flow that all lanes share are constants of the programs.

    Raises:
        Unfit: for a rule that is no such program, with the reason.
    """

    def __init__(self, rule: Lanes, own: PyTree, fits: bool = True):
        """`own`: that of one cell; `fits`: refuse what is too large for a device."""
        self.outputs = rule.outputs
        # Outputs are the kernel's: its lanes hold no step from which to read them.
        self._lanes = dataclasses.replace(rule, outputs=0)
        self.tableau = rule.tableau
        _require_fit(rule)
        fixed, y = self._lanes.begun(own)
        self.settings, self.own = Entries(settings_of(rule)), Entries(fixed)
        self.y = Entries(y)
        settings, own_arrays = self.settings.of(settings_of(rule)), self.own.of(fixed)
        whole = rule.solve(own)
        self.dtype = whole.times.dtype
        if fits and len(self.y) > _DIM:
            raise Unfit(f"{len(self.y)} parameters; a kernel holds {_DIM} at most")
        if self.dtype not in (jnp.float32, jnp.float64):
            raise Unfit(f"{self.dtype}; a kernel computes in float32 or float64")
        if any(x.dtype != self.dtype for x in self.y.leaves):
            raise Unfit(f"parameters that are not all {self.dtype}")
        zero = jnp.zeros((), self.dtype)
        start = settings, own_arrays, self.y.of(y)
        self.rest = Entries(self._rest(self._entered(*start)))
        rest = self.rest.of(self._rest(self._entered(*start)))
        slopes = [start[2]] * self.tableau.stages
        self.field = _made(self._field, (settings, own_arrays, rest, zero, start[2]))
        operations = self.field.operations.total()
        if fits and operations > _OPERATIONS:
            raise Unfit(
                f"a field of {operations} operations; a kernel takes {_OPERATIONS}"
            )
        self.enter = _made(self._enter, start)
        self.probe = _made(self._probe, (*start, start[2]))
        self.choose = _made(self._choose, (settings, own_arrays, rest, *[start[2]] * 3))
        undefined = jnp.array(False)
        step = rest, start[2], zero, start[2], slopes, undefined
        self.judge = _made(self._judge, (settings, own_arrays, *step))
        at = zero, zero, start[2], start[2], slopes
        self.between = _made(self._between, at)
        defined = None
        if self.outputs:
            place = settings, own_arrays, rest, zero, start[2]
            defined = _made(self._defined, place)
            if all(node.known and node.value for node in defined.outputs):
                defined = None
        self.defined = defined
        flags = self.rest.tree(
            [
                np.full(like.shape, sum(x.size for x in self.rest.leaves[:place]))
                for place, like in enumerate(self.rest.leaves)
            ]
        )
        # The array of output times: its place in the settings or in `own`, and which.
        shared = rule.shared.times is not None
        places = self.own.tree(list(range(len(self.own.leaves))))
        self.times = (0, True) if shared else (int(places.times), False)
        # Where in the numbers of a lane some are.
        self.at_result = int(flags.result._value)
        self.at_high, self.at_low = int(flags.elapsed.high), int(flags.elapsed.low)
        self.at_written = int(flags.written)

    def _rule(self, settings: list[Any]) -> Lanes:
        """The rule with these settings."""
        held = self.settings.tree(settings)
        return eqx.tree_at(settings_of, self._lanes, held, is_leaf=lambda x: x is None)

    @staticmethod
    def _rest(lane: Lane) -> Lane:
        return eqx.tree_at(
            lambda lane: (lane.own, lane.y, lane.slope),
            lane,
            (None, None, None),
            is_leaf=lambda x: x is None,
        )

    def _lane(self, rest: Any, own: Any, y: Any, slope: Any) -> Lane:
        return eqx.tree_at(
            lambda lane: (lane.own, lane.y, lane.slope),
            self.rest.tree(rest),
            (self.own.tree(own), self.y.tree(y), self.y.tree(slope)),
            is_leaf=lambda x: x is None,
        )

    def _entered(self, settings: Any, own: Any, y: Any) -> Lane:
        start, rule = self.y.tree(y), self._rule(settings)
        phase, step = jnp.zeros((), jnp.array(0).dtype), jnp.ones((), self.dtype)
        return rule.enter(Start(self.own.tree(own), start, start, phase, step))

    def _enter(self, args: Any) -> Any:
        return self.rest.of(self._rest(self._entered(*args)))

    def _field(self, args: Any) -> Any:
        settings, own, rest, t, y = args
        rule, lane = self._rule(settings), self.rest.tree(rest)
        whole = rule.solve(self.own.tree(own))
        before = whole.before(lane.elapsed, lane.phase)
        return self.y.of(whole.term().vf(t, self.y.tree(y), before))

    def _probe(self, args: Any) -> Any:
        settings, own, y, slope = args
        whole = self._rule(settings).solve(self.own.tree(own))
        y, slope = self.y.tree(y), self.y.tree(slope)
        return second_point(y, slope, whole.rtol, whole.atol, optx.rms_norm)

    def _choose(self, args: Any) -> Any:
        settings, own, rest, y, first, second = args
        rule, lane = self._rule(settings), self._lane(rest, own, y, first)
        whole = rule.solve(lane.own)
        none, zero = jnp.array(0), jnp.zeros((), self.dtype)
        before = rule.since(lane)

        def slope(terms: Any, t: Any, y: Any, args: Any) -> PyTree:
            del terms, y, args  # the second of two evaluations is not at time 0
            both = self.y.tree(first), self.y.tree(second)
            return jax.tree.map(lambda a, b: jnp.where(t == 0, a, b), *both)

        term = whole.term()
        order = rule.shared.methods[0].error_order(term)
        control = whole.control(whole.span, none, none, None)
        _, state = control.init(
            term, zero, whole.span, lane.y, None, before, slope, order
        )
        lane = eqx.tree_at(lambda lane: lane.pace.step, lane, state.step)
        return self.rest.of(self._rest(lane)), rule.stride(lane, before)

    def _judge(self, args: Any) -> Any:
        settings, own, rest, y, h, y1, slopes, undefined = args
        rule, lane = self._rule(settings), self._lane(rest, own, y, slopes[0])
        before, weights = rule.since(lane), self.tableau.error
        error = [
            h * sum(float(w) * k for w, k in zip(weights, each, strict=True) if w)
            for each in zip(*slopes, strict=True)
        ]
        last = self.y.tree([k[None] for k in slopes[-1]])
        made = ExplicitStep(self.y.tree(y1), self.y.tree(error), last)
        new = rule.judge(lane, before, h, made, undefined)
        # When the pool checks its lanes, these are checked.
        checked = new.pace.tried % checked_every(self.outputs) == 0
        ends = checked & new.pace.nonfinite & rule.stuck(new, new.slope)
        ends &= new.result == RESULTS.event_occurred
        small: Any = RESULTS.dt_min_reached
        new = eqx.tree_at(
            lambda lane: lane.result, new, RESULTS.where(ends, small, new.result)
        )
        rest = self.rest.of(self._rest(new))
        following = rule.stride(new, before)
        return rest, self.y.of(new.y), self.y.of(new.slope), following

    def _between(self, args: Any) -> Any:
        at, h, y, y1, slopes = args
        rises = [h * jnp.stack(each) for each in zip(*slopes, strict=True)]
        ends = self.y.tree(y), self.y.tree(y1)
        path = explicit_path(self._lanes.solver, h, *ends, self.y.tree(rises))
        return self.y.of(path.evaluate(at))

    def _defined(self, args: Any) -> Any:
        settings, own, rest, t, y = args
        rule, lane = self._rule(settings), self.rest.tree(rest)
        whole = rule.solve(self.own.tree(own))
        before = whole.before(lane.elapsed, lane.phase)
        return whole.defined(before, t, self.y.tree(y))

    @property
    def under_way(self) -> int:
        """The result code of a lane that is at work."""
        return int(outcome_of(ENDED)._value)

    @property
    def done(self) -> int:
        """The result code of a lane that has succeeded."""
        return int(RESULTS.successful._value)


def _require_fit(rule: Lanes) -> None:
    """Raises `Unfit` for what no kernel does, however small."""
    if rule.shared.events:
        raise Unfit("events, which only a pool locates")
    if rule.shared.flow.jumps:
        raise Unfit("a field that jumps")
    if not (rule.tableau.fsal and rule.tableau.ssal):
        raise Unfit("a method whose last stage is not at the end of its step")


def _made(fn: Any, example: Any) -> Program:
    made, _ = program(fn, example)
    for node in made.nodes:
        if node.operation is None:
            continue
        name = node.operation.name
        if name not in _LOWERED or (name == "select_n" and len(node.args) > 3):
            raise Unfit(f"{name}: kernels have no such operation")
    return made
