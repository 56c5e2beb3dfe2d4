"""Edge of stability: flows there, against the schemes of the literature."""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Scalar

import flowattn as fa

from .edge_schemes import Case, Path, published, rk4


def _network(sizes: tuple[int, ...], scale: float = 1.0) -> tuple[Array, Callable]:
    """Numbers of a tanh network, the last weights times `scale`, and its map."""
    keys, params = jr.split(jr.key(0), len(sizes)), []
    for number, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        size = (scale if number == len(sizes) - 2 else 1.0) / math.sqrt(a)
        bias = 0.1 * jr.normal(jr.fold_in(keys[number], 1), (b,))
        params.append((size * jr.normal(keys[number], (a, b)), bias))
    flat, unravel = ravel_pytree(params)

    def network(w: Array, x: Array) -> Array:
        for number, (weight, bias) in enumerate(unravel(w)):
            x = (jnp.tanh(x) if number else x) @ weight + bias[None]
        return x

    return flat, network


def _descended(loss: Callable, w: Array, eta: float, steps: int) -> Array:
    """The iterates of gradient descent."""

    def step(w, _):
        after = w - eta * jax.grad(loss)(w)
        return after, after

    return jax.jit(lambda w: jax.lax.scan(step, w, length=steps)[1])(w)


def chebyshev() -> Case:
    """A tanh MLP 1-16-16-1 on T₄ at 20 points, mean square, η = .1."""
    x = jnp.linspace(-1, 1, 20)[:, None]
    y = jnp.cos(4 * jnp.arccos(jnp.clip(x, -1, 1)))
    w, network = _network((1, 16, 16, 1))

    def loss(w: Array) -> Scalar:
        return jnp.mean((network(w, x) - y) ** 2)

    start = _descended(loss, w, 0.1, 750)[-1]
    return Case(loss, start, 0.1, 800, k=1, products=14)


def digits() -> Case:
    """A tanh MLP 64-32-10 on 500 digits of scikit-learn, square loss, η = .2."""
    from sklearn.datasets import load_digits

    given, labels = (np.asarray(x)[:500] for x in load_digits(return_X_y=True))
    given = given - np.mean(given, axis=0)
    x, y = jnp.asarray(given / np.std(given)), jax.nn.one_hot(labels, 10)
    w, network = _network((64, 32, 10), scale=0.2)

    def loss(w: Array) -> Scalar:
        return jnp.mean(jnp.sum((network(w, x) - y) ** 2, -1))

    start = _descended(loss, w, 0.2, 800)[-1]
    return Case(loss, start, 0.2, 200, k=2, products=32)


def _itself(w: Array) -> Array:
    return w


def _solved(case: Case, flow: fa.AbstractFlow, rtol: float, solver: str) -> Path:
    """A flow of ours."""
    centre = getattr(flow, "observables", {}).get("centre", _itself)
    traj = fa.solve(
        flow,
        case.start,
        ts=case.eta * np.arange(case.steps + 1),
        rtol=rtol,
        solver=solver,
        observe={"centre": centre},
    )
    return Path(
        np.asarray(traj.observed["centre"]),
        int(traj.stats["gradient_evaluations"]),
        int(traj.stats["hessian_vector_products"]),
        # The centre of a state, its next and the one after is that of the next.
        early=int(isinstance(flow, fa.DescentFlow)),
    )


def _error(path: Path, exact: Path) -> float:
    """The distance at the end, relative to the distance moved."""
    first, last = exact.rows[0], exact.rows[-1]
    return float(np.linalg.norm(path.rows[-1] - last) / np.linalg.norm(last - first))


def _at_error_of(rows: dict[str, Any], peer: str) -> dict[str, Any]:
    """The work of our solvers at a peer's error, where their errors are on either side
    of it: by interpolation between the logarithms.
    """
    found, error = {}, rows[peer]["error"]
    mine = [row for row in rows.values() if "kind" in row]
    for kind in dict.fromkeys(row["kind"] for row in mine):
        points = sorted(
            (math.log(row["error"]), math.log(row["gradients_per_step"]))
            for row in mine
            if row["kind"] == kind
        )
        errors, work = zip(*points, strict=True)
        if errors[0] <= math.log(error) <= errors[-1]:
            at = math.exp(np.interp(math.log(error), errors, work))
            row = {"gradients_per_step": at, "error": error, "note": "interpolated"}
            found[f"{kind} at RK4's error"] = row
    return found


class _Table:
    """The rows of one model."""

    def __init__(self, case: Case):
        self.case, self.rows = case, {}
        after = _descended(case.loss, case.start, case.eta, case.steps + 2)
        self.iterates = np.array([case.start, *after])

    def add(
        self,
        name: str,
        run: Callable[[], Path],
        exact: Path | None = None,
        **entries: Any,
    ) -> Path:
        """A row of a method."""
        begin = time.perf_counter()
        path = run()
        row = {"gradients_per_step": path.work / self.case.steps, **entries}
        row |= {"from_descent": path.distance(self.iterates)}
        row |= {} if exact is None else {"error": _error(path, exact)}
        row |= {"seconds_with_compilation": time.perf_counter() - begin}
        row |= {"note": path.note} if path.note else {}
        self.rows[name] = row
        print(name, row, file=sys.stderr, flush=True)
        return path

    def ours(self, name: str, flow: fa.AbstractFlow, tried: list, tight: float) -> Path:
        """Rows of a flow of ours, the first of which is the reference."""
        solver = "dopri8" if tight < 1e-8 else "tsit5"
        first = functools.partial(_solved, self.case, flow, tight, solver)
        named = f"{name}, {solver}, rtol {tight:g}"
        exact = self.add(named, first, note="the reference")
        for solver, rtol in tried:
            run = functools.partial(_solved, self.case, flow, rtol, solver)
            kind = f"{name}, {solver}"
            self.add(f"{kind}, rtol {rtol:g}", run, exact, kind=kind)
        return exact


def gradient_flows(table: _Table) -> None:
    """Gradient flow: RK4 of the literature, ours, and ours at its error."""
    case, solvers = table.case, {"tsit5": (1e-3, 1e-4, 1e-6), "dopri8": (1e-3, 1e-5)}
    solvers |= {"rkc": (1e-3, 1e-4, 1e-6, 1e-8), "auto": (1e-4, 1e-6)}
    tried = [(solver, rtol) for solver, rtols in solvers.items() for rtol in rtols]
    exact = table.ours("gradient flow", fa.GradientFlow(case.loss), tried, 1e-11)
    for alpha in (1.0, 0.5, 0.25):
        name = f"gradient flow, RK4 at {alpha:g}/sharpness"
        table.add(name, functools.partial(rk4, case, alpha), exact)
    table.rows |= _at_error_of(table.rows, "gradient flow, RK4 at 1/sharpness")


def edge_flows(table: _Table) -> None:
    """Flows of the oscillating descent: central flow as published and ours, even flow
    and rod flow.
    """
    case = table.case
    loss, sgd = case.loss, fa.SGD(case.eta)
    flow = fa.CentralFlow(loss, sgd, k=case.k, products=case.products)
    tried = [("tsit5", r) for r in (1e-3, 1e-4, 1e-5)]
    exact = table.ours("central flow", flow, tried, 1e-8)
    tolerances = {False: 1e-10, True: 1e-5 / (10 * case.start.size)}
    paths = {}
    schemes = [(4, False, True), (4, True, True)]
    schemes += [(4, True, False), (case.finest, True, False)]
    for substeps, fresh, full in schemes:
        when = "substep" if fresh else "step"
        above = "1.5/η" if full else "1.95/η"
        name = f"published central flow, {substeps} substeps, eigenvectors"
        name = f"{name} above {above} each {when}"
        scheme = substeps, fresh, tolerances[fresh], full
        run = functools.partial(published, case, *scheme)
        paths[name] = table.add(name, run, exact)
    *others, finest = paths
    for name in others:
        table.rows[name]["own_limit"] = _error(paths[name], paths[finest])
    for order in (1, 3):
        flow = fa.DescentFlow(loss, sgd, order=order, period=2)
        table.ours(f"even flow, p = {order}", flow, [("tsit5", 1e-5)], 1e-8)
    table.ours("rod flow", fa.RodFlow(loss, sgd), [("tsit5", 1e-5)], 1e-8)


def eos(long: bool) -> dict[str, Any]:
    """Gradient descent oscillating at its edge of stability, and flows there: gradient
    equivalents for each step of descent, on a tanh MLP (1-16-16-1, T₄ at 20 points,
    mean square, η = 0.1, 800 steps after step 750; one direction at the edge) and on
    digits (a tanh MLP 64-32-10 on 500 of scikit-learn's, square loss, η = 0.2, 200
    steps after step 800; two directions).

    A Hessian-vector product counts as two gradients, the gradient of a curvature as
    four. The first error is of the parameters at the end (of centres, where a flow has
    them), relative to the distance moved, against the reference solve of the same flow:
    an error of the numerical method. The last column is how far the mean over the last
    50 steps is from that of the centres of the descent, (θₖ₋₁ + 2 θₖ + θₖ₊₁)/4: an
    error of the flow as a model.

    RK4 is that of Cohen et al. (arXiv 2103.00065): steps of α/sharpness, with α = 1 by
    default; the sharpness here by 26 products every 10 steps of descent. The central
    flow of Cohen et al. (arXiv 2410.24206) is written out in double precision with the
    settings of their code: 4 steps of Euler for each step of descent, all curvatures
    above 1.5/η by warm-started LOBPCG (tolerance 1e-10 once a step, as in PyTorch; 1e-5
    at each substep, as in JAX), those above 1.95/η in the complementarity problem, by
    CVXPY. Tracking those above 1.95/η alone, by our solver, changes nothing but the
    work. "Of its own limit" compares it with itself at 16 substeps (`--long`: 64).
    Ours has a relaxation time of 4 η, theirs that of a substep: the two differ until
    the constraint has settled. All begin at an iterate, off the centre. Descent costs
    one gradient a step: no flow is a cheaper way to its iterates.

    Gradient flow, here the wrong model of descent, is where RKC belongs: half a
    gradient to two a step for errors of 1e-3 to 1e-5, 2 to 17 times below Tsit5 and,
    at RK4's error, 7 to 11 times below RK4. For central flow on the MLP (ours with
    k = 1) both schemes cost about the same, and ours is nearer to its limit. On digits
    (k = 2) the published settings cost three to four times as much as ours, because 14
    curvatures are above 1.5/η and only two directions oscillate; with these alone the
    published scheme is cheaper than ours, at twice the error. The two limits differ by
    more than the error of the published scheme, and by less than either differs from
    descent. Even flow is nearest to the descent at a tenth of the work or less, since
    it reads the descent's own steps; so it explains nothing, which central flow does.
    Paths contract: errors on the way may exceed those at the end. Two models with one
    start each do not show how others behave.
    """
    cases = {}
    for name, case in {"tanh MLP": chebyshev(), "digits": digits()}.items():
        table = _Table(dataclasses.replace(case, finest=64) if long else case)
        table.rows["gradient descent"] = {"gradients_per_step": 1.0}
        gradient_flows(table)
        edge_flows(table)
        cases[name] = table.rows
    return {"cases": cases}
