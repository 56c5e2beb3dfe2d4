"""Trajectory: what a run leaves behind. The only file that knows xarray."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from .observables import Label

if TYPE_CHECKING:
    import xarray as xr


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """How a run ended: diffrax's results, and those of training."""

    loss_nonfinite = (
        "The loss or the parameters became non-finite. `t_end` of the trajectory "
        "(use `throw=False`) is the last time at which they were finite."
    )
    blow_up = (
        "The step size fell below 1e-14 of the time span: the flow blows up, or its "
        "vector field is not smooth, at `t_end` of the trajectory (use `throw=False`)."
    )
    senseless_input = (
        "The output times are not finite and increasing, or a tolerance or rate makes "
        "no sense. Where numbers are known, outside of `jit` and `vmap`, this is an "
        "`InputError`."
    )
    out_of_patience = "The validation loss had not improved for `patience` steps."
    interrupted = "The run was interrupted."


class Trajectory(eqx.Module):
    """Times, observables, final parameters and bookkeeping of one run; a PyTree.

    - `ts`: output times (for a descent: time per step × steps).
    - `observed[name]`: array with time as its first axis; nan where `reached` is False.
    - `scales[name]`: for each observed law its largest absolute term at each time.
    - `params`: parameters at `t_end`; `path`: parameters at every time, if saved.
    - `best`: parameters with the lowest validation loss, if a descent looked.
    - `result`: how the run ended; `t_end`: the last time that it reached.
    - `finer`: the same solve at a tenth of the tolerances, if an error was asked for.
    - `solver`: what the run was asked to use; `methods`: those that it could choose
      among; `changes`: the times at which it took the next of them, inf beyond.
    - `sharpness`: the last estimate of the Jacobian's spectral radius, where a solver
      made one: the largest Hessian eigenvalue in size, for a gradient flow.
    - `learning_rate`: of plain gradient descent.
    - `events[name]`: of a flow the first time at which an event changed sign, nan where
      it never did.
    """

    ts: Float[Array, " time"]
    observed: dict[str, Array]
    scales: dict[str, Array]
    params: PyTree
    path: PyTree | None
    best: PyTree | None
    result: Any
    t_end: Float[Array, ""]
    saved: Int[Array, ""]
    counts: dict[str, Int[Array, ""]]
    finer: "Trajectory | None"
    solver: str = eqx.field(static=True)
    labels: tuple[tuple[str, Label], ...] = eqx.field(static=True)
    methods: tuple[str, ...] = eqx.field(static=True, default=())
    changes: Float[Array, " change"] | None = None
    sharpness: Float[Array, ""] | None = None
    learning_rate: Float[Array, ""] | None = None
    events: dict[str, Float[Array, ""]] = eqx.field(default_factory=dict)

    @property
    def stats(self) -> dict[str, Any]:
        """What the run took.

        `gradient_evaluations` and `hessian_vector_products` (rejected steps included;
        absent for solvers that do not tell), `steps`, `rejected`, `solver`; where the
        solver was to be chosen `choices`, each a solver and the time from which it
        worked; where a solver estimated it, `sharpness`.
        """
        stats = {**self.counts, "solver": self.solver}
        if self.sharpness is not None:
            stats["sharpness"] = self.sharpness
        if self.choices is not None:
            stats["choices"] = self.choices
        return stats

    @property
    def choices(self) -> list[dict[str, Any]] | None:
        """The solvers that worked, in order, each with the time `since` it did.

        None where there was nothing to choose, or the run is one of a batch.
        """
        changes = self.changes
        if len(self.methods) < 2 or changes is None:
            return None
        if isinstance(changes, Tracer) or changes.ndim != 1:
            return None
        times = [float(self.ts[0]), *(float(t) for t in changes if np.isfinite(t))]
        names = (self.methods[i % len(self.methods)] for i in range(len(times)))
        return [{"solver": n, "since": t} for n, t in zip(names, times, strict=True)]

    def with_finer(self, finer: "Trajectory | None") -> "Trajectory":
        """The same run beside one at a tenth of the tolerances."""
        return eqx.tree_at(
            lambda run: run.finer, self, finer, is_leaf=lambda x: x is None
        )

    @property
    def error_stats(self) -> dict[str, Any] | None:
        """The statistics of the finer solve, None without `error=True`."""
        return None if self.finer is None else self.finer.stats

    @property
    def error(self) -> dict[str, Array] | None:
        """Estimated global error of each observable, entry by entry over time.

        The difference to the solve at a tenth of the tolerances: nearly the whole
        error of the coarser, since the finer's is about a tenth of it. None without
        `error=True`.
        """
        if self.finer is None:
            return None
        finer, both = self.finer.observed, self.reached & self.finer.reached
        return {name: _apart(x, finer[name], both) for name, x in self.observed.items()}

    @property
    def event_error(self) -> dict[str, Array] | None:
        """Estimated error of the time of each event; None without `error=True`."""
        if self.finer is None:
            return None
        finer = self.finer.events
        return {name: jnp.abs(t - finer[name]) for name, t in self.events.items()}

    @property
    def reached(self) -> Bool[Array, "*run time"]:
        """Which of the output times the run reached."""
        saved = jnp.expand_dims(self.saved, -1)
        rows = jnp.arange(self.ts.shape[-1])
        return jnp.expand_dims(rows, tuple(range(saved.ndim - 1))) < saved

    def raised(self, failed: Bool[Array, "..."]) -> "Trajectory":
        """The same run, or the error that its result is where it `failed`."""
        keys, rest = eqx.partition(self, _is_keys)
        # An error cannot be tied to random keys.
        return eqx.combine(keys, self.result.error_if(rest, failed))

    def to_dataset(self, parameters: bool = True) -> "xr.Dataset":
        """An xarray data set: observables (with dims, units, long names), their
        estimated errors as `NAME_error`, and final parameters as `params.PATH`.

        `parameters=False` leaves the parameters out.
        """
        import xarray as xr

        labels = dict(self.labels)
        variables: dict[str, Any] = {}
        coords: dict[str, Any] = {
            "time": ("time", np.asarray(self.ts), {"long_name": "flow time"})
        }
        errors = self.error or {}
        for name, values in self.observed.items():
            label = labels[name]
            dims = ("time", *dims_of(label, name, np.ndim(values) - 1))
            attrs = {"units": label.units, "long_name": label.long_name or name}
            variables[name] = (dims, np.asarray(values), attrs)
            for dim, entries in label.coords:
                coords[dim] = (dim, np.asarray(entries))
            if name in errors:
                attrs = {**attrs, "long_name": f"estimated error of {name}"}
                variables[f"{name}_error"] = (dims, np.asarray(errors[name]), attrs)
        if parameters:
            variables |= _arrays("params", self.params, ())
            variables |= _arrays("params_path", self.path, ("time",))
            variables |= _arrays("params_best", self.best, ())
        stats = {k: v.item() if eqx.is_array(v) else v for k, v in self.stats.items()}
        attrs = {**stats, "result": self.outcome, "t_end": float(self.t_end)}
        attrs |= {f"event {name}": float(t) for name, t in self.events.items()}
        return xr.Dataset(variables, coords, attrs)

    @property
    def outcome(self) -> str:
        """One word for how the run ended, `successful` where nothing went wrong."""
        return outcome_name(self.result)


def _is_keys(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys."""
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _apart(ours: Array, theirs: Array, known: Bool[Array, "..."]) -> Array:
    """|ours − theirs|; of counts, which have no nan, only where both are known."""
    if jnp.issubdtype(ours.dtype, jnp.inexact):
        return jnp.abs(ours - theirs)
    # Also of counts without a sign, and of yes and no.
    larger, smaller = jnp.maximum(ours, theirs), jnp.minimum(ours, theirs)
    real = jnp.zeros((), float).dtype
    if ours.dtype == jnp.bool_:
        larger, smaller = larger.astype(real), smaller.astype(real)
    known = known.reshape(known.shape + (1,) * (ours.ndim - known.ndim))
    return jnp.where(known, (larger - smaller).astype(real), jnp.nan)


OUTCOMES = ("successful", "max_steps_reached", "loss_nonfinite", "blow_up")
OUTCOMES += ("out_of_patience", "interrupted")


def outcome_name(result: Any) -> str:
    """The name of a concrete result code.

    >>> outcome_name(RESULTS.blow_up)
    'blow_up'
    """
    for name in (*OUTCOMES, "senseless_input"):
        if result == getattr(RESULTS, name):
            return name
    return str(result)


def outcome_codes(result: Any) -> Int[np.ndarray, " run"]:
    """The places in `OUTCOMES` of the results of many runs; their number where a
    result is none of these.
    """
    is_one = [np.asarray(result == getattr(RESULTS, name)) for name in OUTCOMES]
    return np.argmax([*is_one, np.ones_like(is_one[0])], axis=0)


def columns_dataset(
    columns: Mapping[str, tuple[Any, tuple[str, ...], str, str]],
    coords: Mapping[str, Any],
) -> "xr.Dataset":
    """An xarray data set of named arrays, each with its dims, units and long name."""
    import xarray as xr

    return xr.Dataset(
        {
            name: (dims, np.asarray(values), {"units": units, "long_name": text})
            for name, (values, dims, units, text) in columns.items()
        },
        dict(coords),
    )


def dims_of(label: Label, name: str, count: int) -> tuple[str, ...]:
    """The label's dims, or numbered ones where it has none for that many axes."""
    if label.dims is not None and len(label.dims) == count:
        return label.dims
    return tuple(f"{name}_{axis}" for axis in range(count))


def _arrays(prefix: str, tree: PyTree, leading: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of a PyTree as variables named by their paths."""
    variables = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not eqx.is_array(leaf):
            continue
        inner = jax.tree_util.keystr(path, simple=True, separator=".")
        name = f"{prefix}.{inner}" if inner else prefix
        array = np.asarray(leaf)
        free = array.ndim - len(leading)
        dims = (*leading, *(f"{name}_{axis}" for axis in range(free)))
        variables[name] = (dims, array)
    return variables
