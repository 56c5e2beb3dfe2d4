"""Trajectory: what a run leaves behind."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from .disk.datasets import from_dataset, to_dataset
from .errorbar import without_dips
from .flows import AbstractFlow
from .flows.sources import Source
from .observables import Label


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """How a run ended: diffrax's results, and those of training."""

    loss_nonfinite = (
        "The loss or the parameters became non-finite. `t_end` of the trajectory "
        "(use `throw=False`) is the last time at which they were finite."
    )
    blow_up = (
        "The steps became too small to move the time that was reached: the flow blows "
        "up, or its vector field is not smooth, at `t_end` of the trajectory (use "
        "`throw=False`)."
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

    Of an ensemble the members are the first axis of every array.

    - `ts`: output times (for a descent: time per step × steps).
    - `observed[name]`: array with time as its first axis; nan where `reached` is False.
    - `scales[name]`: for each observed law its largest absolute term at each time.
    - `params`: parameters at `t_end`; `path`: parameters at every time, if saved.
    - `best`: parameters with the lowest validation loss, if a descent looked.
    - `n_reached`: how many of the output times the run reached.
    - `result`: how the run ended; `t_end`: the last time that it reached.
    - `refined`: the solve at a hundredth of the tolerances, if an error was asked for.
    - `solver`: what the run was asked to use; `methods`: those that it could choose
      among; `switches`: the times at which it took the next of them, inf beyond.
    - `sharpness`: the last estimate of the Jacobian's spectral radius, where a solver
      made one: the largest Hessian eigenvalue in size, for a gradient flow.
    - `edge`: of a descent the largest sharpness at which it is stable, where its
      optimiser says so.
    - `state`: of a flow that carries more than parameters, what it ended with, from
      which `solve` resumes; else None.
    - `events[name]`: of a flow the first time at which an event changed sign, nan where
      it never did.
    """

    ts: Float[Array, "*member time"]
    observed: dict[str, Array]
    scales: dict[str, Array]
    params: PyTree
    path: PyTree | None
    best: PyTree | None
    result: Any
    t_end: Float[Array, "*member"]
    n_reached: Int[Array, "*member"]
    counts: dict[str, Int[Array, "*member"]]
    refined: "Trajectory | None"
    solver: str = eqx.field(static=True)
    labels: tuple[tuple[str, Label], ...] = eqx.field(static=True)
    methods: tuple[str, ...] = eqx.field(static=True, default=())
    switches: Float[Array, "*member change"] | None = None
    sharpness: Float[Array, "*member"] | None = None
    edge: Float[Array, "..."] | None = None
    events: dict[str, Float[Array, "*member"]] = eqx.field(default_factory=dict)
    state: PyTree | None = None

    # Beside the fields, so that it is no part of the PyTree: what is traced, mapped
    # over or rebuilt may no longer be what was run.
    _source = None
    _provenance = ""

    @property
    def source(self) -> Source | None:
        """What the run followed; None where that is not known."""
        return self._source

    @property
    def provenance(self) -> str:
        """With what a run that was read back was computed, as JSON; else empty."""
        return self._provenance

    def of(self, source: Source) -> "Trajectory":
        """This very run, knowing what it followed."""
        object.__setattr__(self, "_source", source)
        return self

    def member(self, row: int) -> "Trajectory":
        """One run of an ensemble."""
        return jax.tree.map(
            lambda x: x[row] if eqx.is_array(x) or isinstance(x, np.ndarray) else x,
            self,
        )

    @property
    def stats(self) -> dict[str, Any]:
        """What the run took.

        `gradient_evaluations` and `hessian_vector_products` (rejected steps included;
        absent for solvers that do not report them), `steps`, `rejected`, `solver`;
        where the solver was to be chosen `choices`, each a solver and the time from
        which it worked; where a solver estimated it, `sharpness`.
        """
        stats = {**self.counts, "solver": self.solver}
        if self.sharpness is not None:
            stats["sharpness"] = self.sharpness
        if self.solver_log is not None:
            stats["choices"] = self.solver_log
        return stats

    @property
    def solver_log(self) -> list[dict[str, Any]] | None:
        """The solvers that worked, in order, each with the time `since` it did.

        None where there was nothing to choose, or the run is one of a batch.
        """
        switches = self.switches
        if len(self.methods) < 2 or switches is None:
            return None
        if isinstance(switches, Tracer) or switches.ndim != 1:
            return None
        times = [float(self.ts[0]), *(float(t) for t in switches if np.isfinite(t))]
        names = (self.methods[i % len(self.methods)] for i in range(len(times)))
        return [{"solver": n, "since": t} for n, t in zip(names, times, strict=True)]

    def with_refined(self, finer: "Trajectory | None") -> "Trajectory":
        """The same run beside one at a hundredth of the tolerances."""
        return eqx.tree_at(
            lambda run: run.refined, self, finer, is_leaf=lambda x: x is None
        )

    @property
    def error_stats(self) -> dict[str, Any] | None:
        """The statistics of the finer solve, None without `error=True`."""
        return None if self.refined is None else self.refined.stats

    @property
    def error(self) -> dict[str, Array] | None:
        """Estimated global error of each observable, entry by entry over time.

        The difference to the solve at a hundredth of the tolerances: nearly all of the
        error of the coarser one, since the finer's is a few hundredths of it. Where the
        two cross the difference says nothing, so its dips are filled (`errorbar`). None
        without `error=True`.
        """
        if self.refined is None:
            return None
        finer, both = self.refined.observed, self.reached & self.refined.reached
        time = jnp.ndim(self.n_reached)
        return {
            name: without_dips(_apart(x, finer[name], both), time)
            for name, x in self.observed.items()
        }

    @property
    def event_error(self) -> dict[str, Array] | None:
        """Estimated error of the time of each event; None without `error=True`."""
        if self.refined is None:
            return None
        finer = self.refined.events
        return {name: _between(t, finer[name]) for name, t in self.events.items()}

    @property
    def reached(self) -> Bool[Array, "*member time"]:
        """Which of the output times the run reached."""
        saved = jnp.expand_dims(self.n_reached, -1)
        rows = jnp.arange(self.ts.shape[-1])
        return jnp.expand_dims(rows, tuple(range(saved.ndim - 1))) < saved

    def marked(self) -> "Trajectory":
        """The same run with nan where there is nothing: at times not reached, for
        events that never were and an estimate that was not made.

        Compiled code puts 0 and inf there. Where the numbers are known nan is put in
        outside of it, so that what `jax_debug_nans` finds is a nan of the run's own.
        """

        def rows(x: Any) -> Any:
            missing = ~self.reached
            missing = missing.reshape(missing.shape + (1,) * (x.ndim - missing.ndim))
            return _nan_where(missing, x)

        def never(t: Any) -> Any:
            return _nan_where(jnp.isinf(t), t)

        sharpness = self.sharpness
        if sharpness is not None:
            sharpness = _nan_where(sharpness <= 0, sharpness)
        return eqx.tree_at(
            lambda run: (run.observed, run.scales, run.path, run.events, run.sharpness),
            self,
            (
                *jax.tree.map(rows, (self.observed, self.scales, self.path)),
                jax.tree.map(never, self.events),
                sharpness,
            ),
            is_leaf=lambda x: x is None,
        )

    def raised(self, failed: Bool[Array, "..."]) -> "Trajectory":
        """The same run, or the error that its result is where it `failed`."""
        if not isinstance(failed, Tracer):
            # Not by `error_if`, which names the call that was compiled first.
            if failed:
                raise eqx.EquinoxRuntimeError(RESULTS[self.result])
            return self
        keys, rest = eqx.partition(self, _is_keys)
        # An error cannot be tied to random keys.
        return eqx.combine(keys, self.result.error_if(rest, failed))

    def to_dataset(self, parameters: bool = True) -> Any:
        """An xarray data set, for zarr and NetCDF; `from_dataset` reads it back.

        - observables by their names, with dims, units and long names, and their
          estimated errors as `NAME_error`;
        - the time of each event as `events.NAME` (nan: it never came), its error as
          `event_errors.NAME`, and the scale of each law as `scales.NAME`;
        - parameters as `params.PATH`, `params_best.PATH`, `params_path.PATH`: the keys
          of the path, in which whatever is neither letter, digit nor one of -_+@~ is
          percent-encoded, joined by dots; the state of a flow that has one as
          `state.PATH`. Random keys are kept as their bits.
        - `finer.…`: the same of the finer solve.

        How the run ended and what it took are attributes, all of them numbers and
        strings, lists as JSON; so is its `provenance`. Of an ensemble all variables
        have the first dim `member`, and these numbers are variables `stats.NAME`; where
        members have times of their own, `time` is a coordinate along `output`.

        `parameters=False` leaves the parameters out. For names of observables beyond
        Latin-1 `to_netcdf` needs netCDF4 or h5netcdf: SciPy, by which xarray writes
        where neither is installed, cannot write them. zarr can.
        """
        return to_dataset(self, parameters)

    @classmethod
    def from_dataset(
        cls, dataset: Any, like: PyTree = None, flow: AbstractFlow | None = None
    ) -> "Trajectory":
        """The trajectory that `to_dataset` made a data set of, also by way of a zarr
        store (of `flowattn run --out` too: its group "flow" or "descent") or NetCDF.

        `like`: parameters of the same structure, shapes and dtypes (values do not
        matter; `jax.eval_shape` gives such), into which those of the data set are put;
        what is no array in them stays. Without it parameters are dicts within dicts,
        by their paths. `flow`: the one that was solved, where it has a state, into the
        form of which that is put. Numbers are the same to the last bit. A trajectory
        that was read back does not know which loss it is of, so `compare` claims no
        order of it.

        Raises `InputError` for a data set that holds no run, or whose parameters are
        not like those.

        >>> import jax.numpy as jnp, flowattn as fa
        >>> flow = fa.GradientFlow(lambda p: jnp.sum(p["x"] ** 2))
        >>> start = {"x": jnp.ones(2)}
        >>> traj = fa.solve(flow, start, t1=1.0, observe={"x0": lambda p: p["x"][0]})
        >>> back = fa.Trajectory.from_dataset(traj.to_dataset(), like=start)
        >>> bool(jnp.all(back.params["x"] == traj.params["x"])), back.outcome
        (True, 'successful')
        """
        state = None
        if flow is not None and flow.has_state and like is not None:
            state = eqx.filter_eval_shape(flow.start, like)
        fields = from_dataset(dataset, like, state, OUTCOMES)
        read = cls._of_fields(fields)
        object.__setattr__(
            read, "_provenance", str(dataset.attrs.get("provenance", ""))
        )
        return read

    @classmethod
    def _of_fields(cls, fields: dict[str, Any]) -> "Trajectory":
        finer, place = fields["refined"], jnp.asarray(fields["result"])
        results = (getattr(RESULTS, name) for name in OUTCOMES)
        result = jax.tree.map(lambda *codes: jnp.stack(codes)[place], *results)
        made = None if finer is None else cls._of_fields(finer)
        return cls(**{**fields, "result": result, "refined": made})

    @property
    def outcome(self) -> Any:
        """One word for how the run ended, `successful` where nothing went wrong; of an
        ensemble a list of them, one for each member.
        """
        if np.ndim(self.n_reached) == 0:
            return outcome_name(self.result)
        words = np.array([*OUTCOMES, "unknown"])
        return words[outcome_codes(self.result)].tolist()


def _is_keys(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys."""
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _apart(ours: Any, theirs: Any, known: Bool[Array, "..."]) -> Any:
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


def _between(one: Any, other: Any) -> Any:
    """How far two times are apart, nan where one never was."""
    never = jnp.isnan(one) | jnp.isnan(other)
    apart = jnp.abs(jnp.where(never, 0.0, one) - jnp.where(never, 0.0, other))
    return _nan_where(never, apart)


def _nan_where(missing: Any, values: Any) -> Any:
    """Values with nan where some are missing, of dtypes that have it; put there outside
    of compiled code where both are known.
    """
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        return values
    nan = np.array(np.nan, values.dtype)
    if isinstance(missing, Tracer) or isinstance(values, Tracer):
        return jnp.where(missing, nan, values)
    if not np.any(missing):
        return values
    return jax.device_put(np.where(missing, nan, values))


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
