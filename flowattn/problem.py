"""Problem: a loss and a start, with everything to observe and check in training."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .errors import InputError, quoted, unknown
from .flows import (
    DIRECTIONS,
    AbstractFlow,
    Kind,
    Switch,
    flow_of,
    gradient_flow,
    moving,
    require_flow,
)
from .laws import Law
from .losses import AbstractBatchLoss
from .numerics.descend import descend
from .numerics.solve import solve
from .observables import Observable, require_name, require_of_params
from .optimizers import AbstractOptimizer, not_an_optimizer
from .reductions import Reduction
from .tasks import Corpus
from .trajectory import Trajectory

# Longer observables of a flow are recorded if they are requested.
LONGEST = 100


def itself(params: PyTree) -> PyTree:
    """The model of parameters that are the full model."""
    return params


def _laws_by_name(laws: Any) -> dict[str, Law]:
    """Laws by name, from a collection of them or a dictionary."""
    found = laws.values() if isinstance(laws, Mapping) else laws
    if isinstance(found, Law) or not isinstance(found, Iterable):
        raise InputError(f"laws must be a list of laws, got {quoted(laws)}")
    if isinstance(laws, Mapping):
        for name, law in laws.items():
            if isinstance(law, Law) and law.name != name:
                raise InputError(f"the law {law.name!r} is given as {name!r}")
    by_name: dict[str, Law] = {}
    for law in found:
        if not isinstance(law, Law):
            raise InputError(f"laws must hold fa.Law, got a {type(law).__name__}")
        if law.name in by_name:
            raise InputError(f"two laws are named {law.name!r}")
        by_name[law.name] = law
    return by_name


def _by_name(what: str, given: Any) -> dict[str, Any]:
    """Things by name; `InputError` for anything but a dictionary."""
    if not isinstance(given, Mapping | None):
        raise InputError(f"{what} must be a dictionary by name, got {quoted(given)}")
    return dict(given or {})


class Problem(eqx.Module):
    """A loss and a start, with everything to observe and check in training.

    Args:
        params: the start, any PyTree; its floating-point arrays move.
        loss: maps parameters (shaped as `params`) to a scalar; it carries its data.
        observables: functions `params -> array` to observe along a run, by name. The
            loss is always observed, as "loss" unless another observable has that name.
        laws: what the gradient flow conserves; a list of `Law`, or a dictionary.
        reductions: reduced theories, `Reduction` by name.
        events: `params -> number` by name; a solve finds the times of their sign
            changes.
        closed_forms: observables by name as functions of an array of times.
        validation: a loss that can stop a descent (`patience`).
        rates: factors of the gradient, as in `GradientFlow`.
        switch: a loss that takes over at a time.
        flow: the flow to solve; None: the gradient flow of the loss, with these rates
            and this switch.
        model: returns the full model for parameters; None: the parameters are the
            model.
        corpus: the sentences that the loss is computed on, if any.
        outputs: returns the model's outputs on its data for parameters.
        outer: the loss of these outputs, if the loss is `outer(outputs(params))`.

    Raises:
        InputError: for arguments of another kind.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> problem = fa.Problem(jnp.array([2.0]), lambda x: 0.5 * jnp.sum(x**2))
    >>> traj = problem.solve(t1=1.0)
    >>> round(float(traj.observed["loss"][-1]), 4)  # 2/e²
    0.2707
    """

    params: PyTree
    loss: Any
    observables: dict[str, Callable[[PyTree], Any]]
    laws: dict[str, Law]
    reductions: dict[str, Reduction]
    events: dict[str, Callable[[PyTree], Any]]
    closed_forms: dict[str, Callable[[Any], Any]]
    validation: Any
    rates: PyTree | None
    switch: Switch | None
    own_flow: AbstractFlow | None
    model: Callable[[PyTree], Any]
    corpus: Corpus | None
    outputs: Callable[[PyTree], Any] | None
    outer: Callable[[Any], Any] | None

    def __init__(
        self,
        params: PyTree,
        loss: Callable[[PyTree], Any],
        *,
        observables: Mapping[str, Callable[[PyTree], Any]] = MappingProxyType({}),
        laws: Iterable[Law] | Mapping[str, Law] = (),
        reductions: Mapping[str, Reduction] = MappingProxyType({}),
        events: Mapping[str, Callable[[PyTree], Any]] = MappingProxyType({}),
        closed_forms: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
        validation: Callable[[PyTree], Any] | None = None,
        rates: PyTree | None = None,
        switch: Switch | None = None,
        flow: AbstractFlow | None = None,
        model: Callable[[PyTree], Any] | None = None,
        corpus: Corpus | None = None,
        outputs: Callable[[PyTree], Any] | None = None,
        outer: Callable[[Any], Any] | None = None,
    ):
        if isinstance(loss, AbstractFlow) or not callable(loss):
            raise InputError(
                "Problem needs a loss, a function of the parameters, got a "
                f"{type(loss).__name__}"
            )
        functions = {"validation": validation, "model": model}
        functions |= {"outputs": outputs, "outer": outer}
        for name, value in functions.items():
            if value is not None and not callable(value):
                raise InputError(f"{name} must be a function, got {quoted(value)}")
        if (outputs is None) != (outer is None):
            raise InputError("outputs and outer are given together")
        if not isinstance(switch, Switch | None):
            raise InputError(
                f"switch must be fa.Switch(at, loss), got {quoted(switch)}"
            )
        if flow is not None:
            require_flow("Problem", flow)
            if rates is not None or switch is not None:
                raise InputError(
                    "rates and switch are of the gradient flow: a flow of your own has "
                    "its own"
                )
        self.own_flow = flow
        self.params, self.loss, self.validation = params, loss, validation
        self.observables = _by_name("observables", observables)
        if "loss" not in self.observables:
            seen = Observable(loss, (), "1", "loss")
            self.observables = {"loss": seen, **self.observables}
        self.laws = _laws_by_name(laws)
        if clash := self.laws.keys() & self.observables.keys():
            raise InputError(f"a law and an observable are both named {min(clash)!r}")
        self.reductions = _by_name("reductions", reductions)
        for name, reduction in self.reductions.items():
            if not isinstance(reduction, Reduction):
                kind = type(reduction).__name__
                raise InputError(f"reduction {name!r} must be a Reduction, got {kind}")
        self.events = _by_name("events", events)
        for kind in ("observable", "event"):
            for name, fn in getattr(self, f"{kind}s").items():
                require_name(kind, name)
                require_of_params(f"{kind} {name!r}", fn)
        self.closed_forms = _by_name("closed_forms", closed_forms)
        for name, form in self.closed_forms.items():
            if name not in self.observables:
                raise unknown("closed form of", name, self.observables)
            if not callable(form):
                raise InputError(
                    f"the closed form of {name!r} must be a function of the times, got "
                    + quoted(form)
                )
        self.rates, self.switch, self.corpus = rates, switch, corpus
        self.model = itself if model is None else model
        self.outputs, self.outer = outputs, outer

    @property
    def observed(self) -> dict[str, Any]:
        """Everything observed along a run: the observables, and the laws."""
        return self.observables | self.laws

    @property
    def seen_of_flow(self) -> dict[str, Any]:
        """What the flow itself has to observe, by name, except long arrays.

        Raises:
            InputError: for a name that is one of an observable or a law, too.
        """
        flow = self.flow

        def values(params: PyTree) -> dict[str, Any]:
            state = flow.start(params)
            own = state if flow.has_state else None
            return {
                name: fn.seen(flow.params(state), 0.0, own)
                for name, fn in flow.observables.items()
            }

        shapes = eqx.filter_eval_shape(values, self.params)
        found = {k: x for k, x in flow.observables.items() if shapes[k].size <= LONGEST}
        if clash := found.keys() & self.observed.keys():
            raise InputError(
                f"{min(clash)!r} is observed by the flow {flow.kind!r} itself: give "
                "the observable or law another name"
            )
        return found

    @property
    def flow(self) -> AbstractFlow:
        """The flow of the problem: its own, or the gradient flow of the loss, which
        from the time of a switch on is that of the next loss.
        """
        if self.own_flow is not None:
            return self.own_flow
        return gradient_flow(self.loss, self.rates, self.switch)

    def seen_of_descent(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a descent observes to be compared with the flow by name, and the laws;
        long arrays of the flow's own are left out.

        Args:
            given: more functions of the parameters by name.

        Returns:
            Functions of the descent's parameters by name.
        """
        observe = self.observables | dict(given)
        found = self.flow.counterparts(observe)
        more = {name: fn for name, fn in found.items() if name not in observe}
        shapes = {k: eqx.filter_eval_shape(fn, self.params) for k, fn in more.items()}
        long = {name for name, shape in shapes.items() if shape.size > LONGEST}
        return {k: fn for k, fn in found.items() if k not in long} | self.laws

    @property
    def followed(self) -> dict[str, Any]:
        """The rates, the switch and the clock of a descent that follows the flow."""
        descent = self.flow.descent or {}
        return {name: part for name, part in descent.items() if name != "optimizer"}

    @property
    def shadowed(self) -> AbstractOptimizer | None:
        """The optimiser that the flow was made for, if it was made for one."""
        return (self.flow.descent or {}).get("optimizer")

    @property
    def has_edge(self) -> bool:
        """Whether the full gradient is descended, which has a stability edge."""
        loss = self.loss
        return not isinstance(loss, AbstractBatchLoss) or loss.whole

    def following(
        self,
        optimizer: AbstractOptimizer,
        flow: Kind = "descent",
        *,
        order: int | None = None,
        directions: int | None = None,
        check: bool = True,
    ) -> "Problem":
        """The same problem with a flow that an optimiser follows more closely.

        Args:
            optimizer: of the descent.
            flow: "descent", of the optimiser's own steps (`DescentFlow`); "modified",
                of the modified loss (`ModifiedLoss`); "gradient", of the loss; at the
                edge of stability "even", of every second step (`DescentFlow` with
                period 2), "central" (`CentralFlow`) and "rod" (`RodFlow`).
            order: of "descent", from 1 to 6, None: 2; and of "even", None: 3.
            directions: of "central", those that it holds at the edge; None: 2.
            check: as in `DescentFlow`.

        Returns:
            The problem.

        Raises:
            InputError: for an optimiser or a loss that has no such flow.

        >>> import jax.numpy as jnp, flowattn as fa
        >>> problem = fa.Problem(jnp.array([2.0]), lambda x: 0.5 * jnp.sum(x**2))
        >>> problem = problem.following(fa.Adam(0.01, b2=0.9), order=3)
        >>> problem.flow.order, problem.flow.gradients
        (3, 3)
        """
        if not isinstance(optimizer, AbstractOptimizer):
            raise not_an_optimizer(optimizer)
        same = {k: v for k, v in self.followed.items() if k in ("rates", "switch")}
        if flow == "central":
            arrays = jax.tree.leaves(moving(self.params, same.get("rates")))
            most = sum(x.size for x in arrays)
            if directions is not None and directions > most:
                raise InputError(
                    f"directions must be at most the number of parameters that move, "
                    f"{most}, got {directions}"
                )
            directions = min(DIRECTIONS, most) if directions is None else directions
        given = {"order": order, "directions": directions, "check": check}
        found = flow_of(flow, self.loss, optimizer, **same, **given)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for replaced in ("own_flow", "rates", "switch"):
            del fields[replaced]
        return Problem(**fields, flow=found)

    def with_reductions(self, reductions: Mapping[str, Reduction]) -> "Problem":
        """The same problem with more reductions.

        Args:
            reductions: `Reduction` by name.

        Returns:
            The problem.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own = fields.pop("own_flow")
        fields["reductions"] = self.reductions | dict(reductions)
        return Problem(**fields, flow=own)

    def solve(self, **settings: Any) -> Trajectory:
        """Solve the flow from the start, with every observable and event.

        Args:
            settings: as for `fa.solve`: `t1` or `ts`, tolerances, solver, …; an
                `observe` or `events` of your own is added.

        Returns:
            The `Trajectory`.

        Raises:
            InputError: as `fa.solve`.
        """
        given = _by_name("observe", settings.pop("observe", None))
        observe = self.observed | self.seen_of_flow | given
        events = self.events | _by_name("events", settings.pop("events", None))
        return solve(self.flow, self.params, observe=observe, events=events, **settings)

    def descend(
        self, optimizer: AbstractOptimizer | None = None, **settings: Any
    ) -> Trajectory:
        """Descend the loss by an optimiser, with every observable.

        Args:
            optimizer: for instance `fa.SGD(0.1)`; None: the one that the flow was made
                for, or that of `learning_rate`.
            settings: as for `fa.descend`: `steps`, `every`, …; an `observe` of your own
                is added.

        Returns:
            The `Trajectory`.

        Raises:
            InputError: as `fa.descend`.
        """
        given = _by_name("observe", settings.pop("observe", None))
        observe = self.seen_of_descent(given)
        if optimizer is None and settings.get("learning_rate") is None:
            optimizer = self.shadowed
        followed = self.followed
        if "time_per_step" in followed and not eqx.tree_equal(optimizer, self.shadowed):
            del followed["time_per_step"]
        settings = {**followed, **settings, "observe": observe}
        return descend(self.loss, self.params, optimizer, **settings)
