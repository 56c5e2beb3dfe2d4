"""Trajectory: the result of a run."""

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
    """How a run ended: the results of diffrax, and those of training."""

    loss_nonfinite = (
        "The loss or the parameters became non-finite. `t_end` of the trajectory "
        "(use `throw=False`) is the last time at which they were finite."
    )
    blow_up = (
        "The steps became too small to advance the time reached: the flow blows "
        "up, or its vector field is not smooth, at `t_end` of the trajectory (use "
        "`throw=False`)."
    )
    senseless_input = (
        "The output times are not finite and increasing, or a tolerance or rate makes "
        "no sense. Outside `jit` and `vmap`, where the numbers are known, this is an "
        "`InputError`."
    )
    out_of_patience = "The validation loss had not improved for `patience` steps."
    interrupted = "The run was interrupted."


class Trajectory(eqx.Module):
    """Times, observables, final parameters and statistics of one run; a PyTree.

    `solve`, `descend` and `ensemble` return one. In that of an ensemble, every array
    has the members as its first axis.

    Args:
        ts: output times, (times,); of a descent, time per step × steps.
        observed: observables by name, each with time as its first axis; nan where
            `reached` is False.
        scales: for each observed law, its largest absolute term at each time, (times,).
        params: parameters at `t_end`.
        path: parameters at every output time, with time as the first axis; None unless
            saved.
        best: parameters with the lowest validation loss; None without validation.
        result: how the run ended, a member of `RESULTS`.
        t_end: last time that the run reached, ().
        n_reached: number of output times that the run reached, ().
        counts: evaluations, products and steps by name, ().
        refined: the solve at a hundredth of the tolerances; None without `error=True`.
        solver: name of the requested solver or optimiser.
        labels: names of the observables, each with its unit, dims and long name.
        methods: names of the solvers that the run could choose from.
        switches: times at which the run changed to the next method, inf for changes
            that did not occur.
        sharpness: last estimate of the Jacobian's spectral radius, (); for a gradient
            flow, the largest absolute Hessian eigenvalue. None for solvers that do not
            estimate it.
        edge: largest sharpness at which a descent is stable; None if unknown.
        engine: what ran the members of an ensemble, "pool" or "kernel"; else None.
        events: for each event of a flow, the first time at which it changed sign, ();
            nan if it never did.
        state: final state of a flow with state, from which `solve` resumes; else None.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
    >>> traj = fa.solve(flow, jnp.ones(1), ts=[0.0, 1.0], observe={"x": lambda x: x[0]})
    >>> traj.ts.tolist(), round(float(traj.observed["x"][-1]), 4), traj.outcome
    ([0.0, 1.0], 0.3679, 'successful')
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
    engine: str | None = eqx.field(static=True, default=None)
    events: dict[str, Float[Array, "*member"]] = eqx.field(default_factory=dict)
    state: PyTree | None = None

    # Not fields, so not part of the PyTree: a trajectory that was traced, mapped over
    # or rebuilt may no longer match its source.
    _source = None
    _provenance = ""

    @property
    def source(self) -> Source | None:
        """The flow or loss that the run followed; None if unknown."""
        return self._source

    @property
    def provenance(self) -> str:
        """Versions and platform of a run read from a data set, as JSON; else empty."""
        return self._provenance

    def of(self, source: Source) -> "Trajectory":
        """Record the flow or loss that this run followed.

        Args:
            source: the flow or loss.

        Returns:
            This trajectory itself.
        """
        object.__setattr__(self, "_source", source)
        return self

    def member(self, row: int) -> "Trajectory":
        """One run of an ensemble.

        Args:
            row: number of the member, from 0.

        Returns:
            Its trajectory, without the members axis.
        """
        return jax.tree.map(
            lambda x: x[row] if eqx.is_array(x) or isinstance(x, np.ndarray) else x,
            self,
        )

    @property
    def stats(self) -> dict[str, Any]:
        """The cost of the run.

        `gradient_evaluations` and `hessian_vector_products` (rejected steps included;
        absent for solvers that do not count them), `steps`, `rejected` and `solver`.
        If the run chose between solvers, also `choices` (see `solver_log`); if a solver
        estimated it, `sharpness`; of an ensemble, `engine`; and the largest value of
        each observable with a limit.
        """
        stats = {**self.counts, "solver": self.solver}
        if self.sharpness is not None:
            stats["sharpness"] = self.sharpness
        if self.solver_log is not None:
            stats["choices"] = self.solver_log
        if self.engine is not None:
            stats["engine"] = self.engine
        largest = {k: jnp.max(self._largest_entry(k), -1) for k, _ in self._limits}
        return stats | largest

    @property
    def exceeded(self) -> dict[str, float]:
        """For each observable of one run that passes its limit, the first output time
        at which it is above: from there on, the run is not to be trusted.
        """
        found = {}
        for name, limit in self._limits:
            above = np.asarray(self._largest_entry(name)) > limit
            if above.any():
                found[name] = float(self.ts[np.argmax(above)])
        return found

    @property
    def _limits(self) -> list[tuple[str, float]]:
        """The observables with a limit, and these."""
        return [(name, x.limit) for name, x in self.labels if x.limit is not None]

    def _largest_entry(self, name: str) -> Float[Array, "*member time"]:
        """The largest entry of an observable at each time, −inf if not reached."""
        values = jnp.asarray(self.observed[name])
        values = values.reshape(*self.reached.shape, -1).max(axis=-1, initial=-jnp.inf)
        return jnp.where(self.reached, values, -jnp.inf)

    @property
    def solver_log(self) -> list[dict[str, Any]] | None:
        """The solvers used, in order, each with the time `since` which it was in use.

        None if there was no choice, or for a batch of runs.
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
        """Attach the finer solve, from which the errors are estimated.

        Args:
            finer: the same solve at a hundredth of the tolerances; None removes it.

        Returns:
            A copy of this trajectory with `refined` set.
        """
        return eqx.tree_at(
            lambda run: run.refined, self, finer, is_leaf=lambda x: x is None
        )

    @property
    def error_stats(self) -> dict[str, Any] | None:
        """The statistics of the finer solve; None without `error=True`."""
        return None if self.refined is None else self.refined.stats

    @property
    def error(self) -> dict[str, Array] | None:
        """Estimated global error of each observable, entry by entry over time.

        The difference from the solve at a hundredth of the tolerances. It is nearly the
        error of the coarser solve, since that of the finer one is a few hundredths of
        it. Where the two cross, the difference is not an error estimate, so its dips
        are filled (`errorbar`). None without `error=True`.
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
        """Mark missing values by nan: at times not reached, for events that did not
        occur, and for a sharpness that was not estimated.

        Compiled code leaves 0 and inf there. The nan is filled in outside compiled code
        if the numbers are known, so that `jax_debug_nans` finds only genuine ones.

        Returns:
            A copy of this trajectory.
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
        """Raise the error that `result` names if the run failed.

        Args:
            failed: whether it did; may be traced.

        Returns:
            This trajectory.

        Raises:
            equinox.EquinoxRuntimeError: if `failed`; inside a traced program, when that
                program runs.
        """
        if not isinstance(failed, Tracer):
            # Not `error_if`, which names the call that was compiled first.
            if failed:
                raise eqx.EquinoxRuntimeError(RESULTS[self.result])
            return self
        keys, rest = eqx.partition(self, _is_keys)
        # An error cannot be tied to random keys.
        return eqx.combine(keys, self.result.error_if(rest, failed))

    def to_dataset(self, parameters: bool = True) -> Any:
        """An xarray data set, for zarr and NetCDF; `from_dataset` reads it back.

        Its variables:

        - observables by name, with dims, units and long names, and their estimated
          errors as `NAME_error`;
        - the time of each event as `events.NAME` (nan: it did not occur), its error as
          `event_errors.NAME`, and the scale of each law as `scales.NAME`;
        - parameters as `params.PATH`, `params_best.PATH` and `params_path.PATH`, and
          the state of a flow with state as `state.PATH`. PATH is the keys of the path
          joined by dots, percent-encoded except for letters, digits and -_+@~. Random
          keys are stored as their bits.
        - `finer.…`: the same variables for the finer solve.

        Outcome, statistics and `provenance` are attributes: numbers and strings, with
        lists as JSON. In the data set of an ensemble, all variables have the first dim
        `member`, and the statistics are variables `stats.NAME`; if the members have
        different times, `time` is a coordinate along `output`.

        If observables have names beyond Latin-1, `to_netcdf` needs netCDF4 or h5netcdf:
        SciPy, which xarray uses otherwise, cannot write them. zarr can.

        Args:
            parameters: include parameters and state.

        Returns:
            The `xarray.Dataset`.

        >>> import jax.numpy as jnp, flowattn as fa
        >>> flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
        >>> traj = fa.solve(flow, jnp.ones(1), t1=1.0, observe={"x": lambda x: x[0]})
        >>> traj.to_dataset(parameters=False)["x"].dims
        ('time',)
        """
        return to_dataset(self, parameters)

    @classmethod
    def from_dataset(
        cls, dataset: Any, like: PyTree = None, flow: AbstractFlow | None = None
    ) -> "Trajectory":
        """Read a trajectory from a data set made by `to_dataset`.

        The data set may have been stored as zarr (such as the groups "flow" and
        "descent" that `flowattn run --out` writes) or NetCDF in between. All numbers
        are the same to the last bit. The trajectory does not know its loss, so
        `compare` claims no order for it.

        Args:
            dataset: the `xarray.Dataset`.
            like: parameters of the same structure, shapes and dtypes, for example from
                `jax.eval_shape`; the stored arrays replace theirs, other leaves stay.
                Without it, parameters are nested dicts by path.
            flow: the flow that was solved, if it has a state, whose structure the
                stored state then takes.

        Returns:
            The `Trajectory`.

        Raises:
            InputError: for a data set that holds no run, or whose parameters do not
                match `like`.

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
        """How the run ended in one word, `successful` if nothing went wrong; for an
        ensemble, a list with one word for each member.
        """
        if np.ndim(self.n_reached) == 0:
            return outcome_name(self.result)
        words = np.array([*OUTCOMES, "unknown"])
        return words[outcome_codes(self.result)].tolist()


def _is_keys(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys."""
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _apart(ours: Any, theirs: Any, known: Bool[Array, "..."]) -> Any:
    """|ours − theirs|; for integers, which have no nan, only where both are known."""
    if jnp.issubdtype(ours.dtype, jnp.inexact):
        return jnp.abs(ours - theirs)
    # Works for unsigned integers and for booleans.
    larger, smaller = jnp.maximum(ours, theirs), jnp.minimum(ours, theirs)
    real = jnp.zeros((), float).dtype
    if ours.dtype == jnp.bool_:
        larger, smaller = larger.astype(real), smaller.astype(real)
    known = known.reshape(known.shape + (1,) * (ours.ndim - known.ndim))
    return jnp.where(known, (larger - smaller).astype(real), jnp.nan)


def _between(one: Any, other: Any) -> Any:
    """|one − other| of two event times, nan if either did not occur."""
    never = jnp.isnan(one) | jnp.isnan(other)
    apart = jnp.abs(jnp.where(never, 0.0, one) - jnp.where(never, 0.0, other))
    return _nan_where(never, apart)


def _nan_where(missing: Any, values: Any) -> Any:
    """Values with nan where some are missing, if their dtype has nan; filled in outside
    compiled code if both are known.
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
    """The index in `OUTCOMES` of each of many results; `len(OUTCOMES)` for a result
    that is not listed there.
    """
    is_one = [np.asarray(result == getattr(RESULTS, name)) for name in OUTCOMES]
    return np.argmax([*is_one, np.ones_like(is_one[0])], axis=0)
