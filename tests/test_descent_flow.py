"""The flow of an optimiser's steps: exact where it can be, of the order it claims."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowattn as fa
from flowattn.errors import InputError
from flowattn.flows.steps import exponents

ORDERS = (1, 2, 3, 4, 5, 6)


class Attention(eqx.Module):
    """One query that attends to the tokens of 12 sentences."""

    tokens: jax.Array
    target: jax.Array

    @classmethod
    def make(cls):
        tokens = jr.normal(jr.key(0), (12, 4, 3))
        return cls(tokens, jnp.sin(4 * tokens[:, 0, 0]))

    def __call__(self, params):
        scores = jnp.einsum(
            "ntd,dr,er,ne->nt",
            self.tokens,
            params["keys"],
            params["query"],
            self.tokens[:, -1],
        )
        context = jnp.einsum("nt,ntd->nd", jax.nn.softmax(scores), self.tokens)
        return 0.5 * jnp.mean((context @ params["output"] - self.target) ** 2)


LOSS = Attention.make()
START = {
    "keys": 0.7 * jr.normal(jr.key(1), (3, 2)),
    "query": 0.7 * jr.normal(jr.key(2), (3, 2)),
    "output": 0.7 * jr.normal(jr.key(3), (3,)),
}


class Quadratic(eqx.Module):
    curvatures: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.sum(self.curvatures * x**2)


def velocity(flow, params, **how):
    return flow(flow.start(params, **how))


def test_order_1_of_gradient_descent_is_gradient_flow():
    ours = velocity(fa.DescentFlow(LOSS, fa.SGD(0.1), order=1), START).params
    theirs = fa.GradientFlow(LOSS)(START)
    for name in START:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_exponents_on_a_quadratic(order, period):
    """The multiplier 1 − ηλ becomes ℓ_p of its power, over the period."""
    eta, curvatures = 0.1, jnp.array([1.0, 5.0, 9.0, 15.0, 19.0, 21.0])
    flow = fa.DescentFlow(
        Quadratic(curvatures), fa.SGD(eta), order=order, period=period
    )
    start = jnp.ones(6)
    found = eta * velocity(flow, start).params  # a step's worth
    expected = exponents(order, (1 - eta * np.asarray(curvatures)) ** period) / period
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_exponents_of_momentum():
    """β = .9, ηλ = .01: the spec's eigenvalues of the field of (θ, m)."""
    eta, beta = 0.01, 0.9
    expected = [
        -0.055 + 0.083516j,
        -0.053025 + 0.088110j,
        -0.052697 + 0.088168j,
        -0.052680 + 0.088150j,
    ]
    step = np.array([[1 - eta, -eta * beta], [1, beta]])  # of (θ, m), λ = 1
    for order, wanted in enumerate(expected, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flow = fa.DescentFlow(
                Quadratic(jnp.ones(1)), fa.SGD(eta, momentum=beta), order=order
            )
        state = flow.start(jnp.ones(1))

        def field(z, flow=flow, state=state):
            held = jax.tree.map(lambda x: jnp.reshape(z[1], x.shape), state.optimizer)
            at = eqx.tree_at(lambda s: (s.params, s.optimizer), state, (z[:1], held))
            slope = flow(at)
            (moment,) = jax.tree.leaves(slope.optimizer)
            return flow.tau * jnp.stack([slope.params[0], moment.reshape(())])

        found = np.linalg.eigvals(np.asarray(jax.jacobian(field)(jnp.ones(2))))
        best = found[np.argmax(found.imag)]
        exact = exponents(order, np.linalg.eigvals(step))
        np.testing.assert_allclose(best, exact[np.argmax(exact.imag)], rtol=1e-10)
        assert abs(best - wanted) < 6e-7


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "optimizer",
    [
        fa.SGD(0.1),
        fa.SGD(0.1, momentum=0.6),
        fa.SGD(0.1, momentum=0.5, nesterov=True),
    ],
    ids=["plain", "momentum", "nesterov"],
)
def test_a_constant_gradient_is_followed_exactly(optimizer, order):
    """After the initial layer, in which the momentum settles."""

    def tilt(x):
        return jnp.sum(jnp.array([1.0, -2.0]) * x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow = fa.DescentFlow(tilt, optimizer, order=order)
    start = jnp.zeros(2)
    run = fa.descend(tilt, start, optimizer, steps=90, every=[80, 90])
    state = flow.start(start, steps=80)
    end = fa.solve(
        flow, start, state=state, ts=[flow.times(80), flow.times(90)], rtol=1e-9
    )
    np.testing.assert_allclose(end.params, run.params, rtol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_fixed_points_are_zeros(order):
    flow = fa.DescentFlow(
        Quadratic(jnp.array([1.0, 3.0])), fa.SGD(0.2, momentum=0.3), order=order
    )
    for leaf in jax.tree.leaves(velocity(flow, jnp.zeros(2))):
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_largest_exponent_on_circles():
    """A flow of order 1 or 2 is stable wherever the optimiser is."""
    circle = np.exp(1j * np.linspace(0, np.pi, 20001))
    largest = [exponents(p, circle).real.max() for p in ORDERS]
    np.testing.assert_allclose(
        largest, [0, 0, 0.083, 0.667, 2.33, 6.07], rtol=5e-3, atol=1e-12
    )
    inner = [exponents(p, np.sqrt(0.9) * circle).real.max() for p in (3, 4)]
    np.testing.assert_allclose(inner, [-0.014, 0.42], atol=5e-3)


@pytest.mark.parametrize("period, order, beta", [
    (1, 3, 0.915), (1, 4, 0.705), (1, 5, 0.526), (2, 3, 0.956), (2, 4, 0.840),
    (2, 5, 0.725),
])  # fmt: skip
def test_momentum_that_a_flow_may_not_bear_is_warned_of(period, order, beta):
    def make(momentum):
        fa.DescentFlow(LOSS, fa.SGD(0.1, momentum=momentum), order=order, period=period)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(beta - 0.002)
        make(0.0)
    with pytest.warns(UserWarning, match=f"order {order} can be"):
        make(beta + 0.002)


def test_single_precision_keeps_what_a_step_changes():
    """Displacements are sums of updates, not differences of states."""
    eta = 1e-4
    double = velocity(fa.DescentFlow(LOSS, fa.SGD(eta), order=2), START).params
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), (LOSS, START))
    single = velocity(fa.DescentFlow(narrow[0], fa.SGD(eta), order=2), narrow[1]).params
    for name in START:
        assert single[name].dtype == jnp.float32
        largest = np.abs(double[name]).max()
        np.testing.assert_allclose(single[name], double[name], atol=1e-5 * largest)


def gap(flow, steps, begin=0, **how):
    """The largest distance of the parameters of a flow from those of its descent."""
    see = {"w": flat}
    every = max(1, steps // 8)
    run = fa.descend(LOSS, START, **flow.descent, steps=steps, every=every, observe=see)
    at = np.arange(0, steps + 1, every)
    kept = at >= begin
    traj = fa.solve(
        flow,
        START,
        state=flow.start(START, steps=int(at[kept][0])),
        ts=flow.times(at[kept]),
        rtol=1e-11,
        solver="dopri8",
        observe=see,
    )
    apart = traj.observed["w"] - run.observed["w"][: len(at)][kept]
    return float(np.max(np.linalg.norm(apart, axis=1)))


def flat(params):
    return jax.flatten_util.ravel_pytree(params)[0]


def slopes(make, rates, t1, **how):
    gaps = []
    for rate in rates:
        flow = make(rate)
        gaps.append(gap(flow, round(t1 / float(flow.tau)), **how))
    return -np.diff(np.log2(gaps))


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_gradient_descent_is_followed_to_the_order(order):
    found = slopes(
        lambda eta: fa.DescentFlow(LOSS, fa.SGD(eta), order=order),
        0.2 / 2.0 ** np.arange(5),
        6.4,
    )
    assert abs(found[-1] - order) < 0.15, found


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_momentum_is_followed_to_the_order(order, nesterov):
    found = slopes(
        lambda eta: fa.DescentFlow(
            LOSS, fa.SGD(eta, momentum=0.5, nesterov=nesterov), order=order
        ),
        0.1 / 2.0 ** np.arange(4),
        12.8,
    )
    assert abs(found[-1] - order) < 0.15, found


def test_it_counts_gradients():
    flow = fa.DescentFlow(LOSS, fa.SGD(0.1), order=3, period=2)
    run = fa.solve(flow, START, t1=1.0, solver="tsit5")
    plain = fa.solve(fa.GradientFlow(LOSS), START, t1=1.0, solver="tsit5")
    assert flow.gradients == 6
    per_step = [
        (int(r.stats["gradient_evaluations"]) - 3 * g)
        / (int(r.stats["steps"]) + int(r.stats["rejected"]))
        for r, g in ((run, 6), (plain, 1))
    ]
    assert per_step == [36.0, 6.0]


def test_the_gradient_is_traced_once():
    traced = []

    def loss(x):
        traced.append(x)
        return jnp.sum(jnp.cos(x))

    counts = []
    for order in (1, 4):
        flow = fa.DescentFlow(loss, fa.SGD(0.1), order=order)
        state = flow.start(jnp.ones(2))
        traced.clear()
        jax.make_jaxpr(flow)(state)
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0


def test_a_count_advances_by_one_a_step():
    flow = fa.DescentFlow(LOSS, fa.Adam(0.01, b1=0.5, b2=0.9, eps=1e-2))
    traj = fa.solve(flow, START, t1=0.1, rtol=1e-8)
    (count,) = [
        x * s
        for x, s in zip(
            jax.tree.leaves(traj.state.optimizer),
            jax.tree.leaves(traj.state.scales),
            strict=True,
        )
        if x.ndim == 0
    ]
    np.testing.assert_allclose(count, 10.0, rtol=1e-12)


REFUSED = {
    "random": (lambda: optax.add_noise(0.1, 0.5, 0), "random"),
    "multi-steps": (lambda: optax.MultiSteps(optax.sgd(0.1), 3), "some of its steps"),
    "apply every": (
        lambda: optax.chain(optax.sgd(0.1), optax.apply_every(3)),
        "some of its steps",
    ),
    "line search": (lambda: optax.lbfgs(), "searches"),
    "truth values": (lambda: optax.apply_if_finite(optax.sgd(0.1), 2), "truth values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_steps_of_no_flow_are_refused(name):
    make, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        fa.DescentFlow(LOSS, fa.Optax(make(), 0.1))


@pytest.mark.parametrize(
    "rule",
    [
        optax.adam(1e-2),
        optax.adamw(1e-2),
        optax.nadam(1e-2),
        optax.rmsprop(1e-2),
        optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
        optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
    ],
    ids=["adam", "adamw", "nadam", "rmsprop", "cosine", "clipping"],
)
def test_others_are_taken_without_a_word(rule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fa.DescentFlow(LOSS, fa.Optax(rule, 0.1))


def test_signs_are_warned_of():
    with pytest.warns(UserWarning, match="signs"):
        fa.DescentFlow(LOSS, fa.Optax(optax.lion(1e-2), 1e-2))


@pytest.mark.parametrize(
    "how, reason",
    [
        ({"order": 0}, "order"),
        ({"order": 7}, "order must be from 1 to 6"),
        ({"order": 1.5}, "order must be a whole number"),
        ({"period": 0}, "period"),
    ],
)
def test_what_makes_no_sense_is_refused(how, reason):
    with pytest.raises(InputError, match=reason):
        fa.DescentFlow(LOSS, fa.SGD(0.1), **how)
    with pytest.raises(InputError, match="optimizer"):
        fa.DescentFlow(LOSS, 0.1)
    with pytest.raises(InputError, match="needs a loss"):
        fa.DescentFlow(fa.GradientFlow(LOSS), fa.SGD(0.1))


def test_a_loss_that_is_not_finite_has_no_velocity():
    flow = fa.DescentFlow(jnp.log, fa.SGD(0.1))
    assert np.isnan(velocity(flow, jnp.array(-1.0)).params)


def test_frozen_parts_and_other_leaves_stay():
    params = {**START, "name": "model", "count": 3}

    def loss(p):
        return LOSS({k: p[k] for k in START})

    rates = {k: 1.0 for k in params} | {"query": 0.0, "keys": 0.5}
    flow = fa.DescentFlow(loss, fa.SGD(0.1, momentum=0.5), rates=rates)
    traj = fa.solve(flow, params, t1=1.0)
    np.testing.assert_array_equal(traj.params["query"], START["query"])
    assert (traj.params["name"], traj.params["count"]) == ("model", 3)
    assert np.max(np.abs(traj.params["keys"] - START["keys"])) > 1e-3


def test_compare_claims_its_order():
    flow = fa.DescentFlow(LOSS, fa.SGD(0.1), order=2)
    see = {"w": flat}
    run = fa.descend(LOSS, START, **flow.descent, steps=50, observe=see)
    traj = fa.solve(flow, START, ts=run.ts, observe=see, error=True)
    gap = fa.compare(traj, run)
    assert gap.order == 2
    other = fa.solve(fa.GradientFlow(LOSS), START, ts=run.ts, observe=see, error=True)
    assert gap.max_relative < fa.compare(other, run).max_relative / 3


def test_jit_vmap_grad_and_ensembles():
    def end(eta, start):
        flow = fa.DescentFlow(LOSS, fa.SGD(eta, momentum=0.5))
        return flat(fa.solve(flow, start, t1=0.5, rtol=1e-8, throw=False).params)

    rates = jnp.array([0.05, 0.1])
    together = jax.jit(jax.vmap(end, in_axes=(0, None)))(rates, START)
    for eta, row in zip(rates, together, strict=True):
        np.testing.assert_allclose(row, end(float(eta), START), rtol=1e-7)
    slope = jax.grad(lambda eta: jnp.sum(end(eta, START)))(0.1)
    h = 1e-4
    central = (end(0.1 + h, START) - end(0.1 - h, START)).sum() / (2 * h)
    assert abs(slope - central) < 1e-4 * abs(central) + 1e-6
    flow = fa.DescentFlow(LOSS, fa.SGD(0.1, momentum=0.5))
    many = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), START)
    ends = fa.ensemble(flow, many, t1=0.5, rtol=1e-8)
    np.testing.assert_allclose(
        flat(jax.tree.map(lambda x: x[0], ends.params)), together[1], rtol=1e-6
    )


def test_a_schedule_has_the_clock_of_its_largest_rate():
    schedule = optax.cosine_decay_schedule(0.4, 20)
    flow = fa.DescentFlow(LOSS, fa.SGD(schedule, momentum=0.5))
    assert flow.tau == 0.8 and flow.times(3) == pytest.approx(2.4)
    other = eqx.tree_at(
        lambda f: f.optimizer.learning_rate, fa.DescentFlow(LOSS, fa.SGD(0.1)), 0.2
    )
    assert other.tau == 0.2
