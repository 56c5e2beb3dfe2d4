"""Flows with state: a heavy ball, as a user writes it."""

from typing import Any, ClassVar, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import flowattn as fa
from flowattn.systems import AbstractSystem

RATE, BETA = 0.005, 0.9
MATRIX = jnp.array([[1.0, 0.3], [0.3, 3.0]])
START = {"x": jnp.array([1.0, -0.5]), "still": 3}


def bowl(params):
    x = params["x"]
    return 0.5 * x @ MATRIX @ x + 0.1 * jnp.sum(x**4)


class HeavyBall(fa.AbstractFlow):
    """h (1 + β)/(2 (1 − β)) θ'' + θ' = −∇L with h = η/(1 − β), from rest: the heavy
    ball θ_{k+1} − θ_k = β (θ_k − θ_{k−1}) − η ∇L to its next order in h.
    """

    loss: object
    rate: SupportsFloat
    beta: SupportsFloat

    def start(self, params):
        return params, jax.tree.map(jnp.zeros_like, eqx.filter(params, eqx.is_array))

    def params(self, state):
        return state[0]

    @property
    def descent(self):
        return {"optimizer": fa.SGD(self.rate, self.beta)}

    @property
    def order(self):
        return 2

    def __call__(self, state, t: Any = 0.0):
        params, speed = state
        slope = eqx.filter_grad(self.loss)(params)
        mass = self.rate * (1 + self.beta) / (2 * (1 - self.beta) ** 2)
        pull = jax.tree.map(lambda g, v: -(g + v) / mass, slope, speed)
        return eqx.combine(speed, jax.tree.map(lambda _: None, params)), pull


FLOW = HeavyBall(bowl, RATE, BETA)
SEEN = {"x": fa.Observable(lambda p: p["x"], ("axis",), "m", "place")}
SPREAD = fa.Law(lambda p: jnp.stack([p["x"][0], -p["x"][1]]), "spread", "approximate")


def solved(**how):
    return fa.solve(FLOW, START, t1=2.0, **how)


def test_its_gap_is_ten_times_smaller_than_the_gradient_flow_s():
    steps = {"steps": 60, "every": 2, "observe": SEEN}
    run = fa.descend(bowl, START, **FLOW.descent, **steps)
    gaps = []
    for flow in (fa.GradientFlow(bowl), FLOW):
        how = {"ts": run.ts, "observe": SEEN, "error": True}
        gaps.append(fa.compare(fa.solve(flow, START, **how), run))
    assert gaps[1].resolved
    assert 10 * gaps[1].max_relative < gaps[0].max_relative
    # What each claims of this descent.
    assert (gaps[0].order, gaps[1].order) == (1, 2)


def test_another_optimizer_is_not_what_it_was_made_for():
    run = fa.descend(bowl, START, fa.SGD(RATE, 0.5), steps=10, observe=SEEN)
    gap = fa.compare(fa.solve(FLOW, START, ts=run.ts, observe=SEEN), run)
    assert gap.order is None and "another optimizer" in gap.claim


def test_what_is_observed_is_of_the_parameters():
    run = solved(
        observe=SEEN | {"spread": SPREAD},
        save_params=True,
        events={"left": lambda p: p["x"][0] - 0.5},
        error=True,
    )
    labels = dict(run.labels)
    assert labels["x"].units == "m" and labels["x"].dims == ("axis",)
    assert run.observed["x"].shape == (101, 2) == run.path["x"].shape
    np.testing.assert_array_equal(run.path["x"], run.observed["x"])
    assert run.params["still"] == 3 and run.state[0]["still"] == 3
    assert float(fa.drift(SPREAD, run)) > 0.1
    assert 0 < float(run.events["left"]) < 2
    assert float(np.max(run.error["x"])) < 1e-5
    at = fa.solve(FLOW, START, ts=[0.0, float(run.events["left"])], observe=SEEN)
    assert abs(float(at.observed["x"][-1, 0]) - 0.5) < 1e-5


def test_against_scipy():
    from scipy.integrate import solve_ivp

    def field(t, y):
        state = {"x": jnp.asarray(y[:2]), "still": 3}, {"x": jnp.asarray(y[2:])}
        moves, pulls = FLOW((state[0], {"x": state[1]["x"], "still": None}))
        return np.concatenate([moves["x"], pulls["x"]])

    begin = np.concatenate([START["x"], np.zeros(2)])
    end = solve_ivp(field, (0, 0.5), begin, rtol=1e-10, atol=1e-12).y[:, -1]
    run = fa.solve(FLOW, START, t1=0.5, rtol=1e-9)
    np.testing.assert_allclose(run.params["x"], end[:2], rtol=1e-7)
    np.testing.assert_allclose(run.state[1]["x"], end[2:], rtol=1e-6)


def test_a_solve_resumes_from_a_state():
    half = solved(rtol=1e-9)
    again = fa.solve(FLOW, half.params, state=half.state, ts=[2.0, 3.0], rtol=1e-9)
    whole = fa.solve(FLOW, START, t1=3.0, rtol=1e-9)
    np.testing.assert_allclose(again.params["x"], whole.params["x"], rtol=1e-6)
    # Without its momentum it is another solution.
    fresh = fa.solve(FLOW, half.params, ts=[2.0, 3.0], rtol=1e-9)
    assert np.max(np.abs(fresh.params["x"] - whole.params["x"])) > 1e-4


def test_a_state_of_something_else_is_refused():
    half = solved()
    with pytest.raises(fa.InputError, match="state is of flows that have one"):
        fa.solve(fa.GradientFlow(bowl), START, state=half.state, t1=1.0)
    with pytest.raises(fa.InputError, match=r"shaped as flow\.start\(params\)"):
        fa.solve(FLOW, START, state=half.state[0], t1=1.0)
    with pytest.raises(fa.InputError, match="must have the same state"):
        fa.SwitchedFlow(FLOW, fa.GradientFlow(bowl), 1.0)


def test_flows_with_one_state_can_be_switched():
    stiffer = HeavyBall(lambda p: 2 * bowl(p), RATE, BETA)
    run = fa.solve(fa.SwitchedFlow(FLOW, stiffer, 1.0), START, t1=2.0, rtol=1e-9)
    first = fa.solve(FLOW, START, t1=1.0, rtol=1e-9)
    second = fa.solve(
        stiffer, first.params, state=first.state, ts=[1.0, 2.0], rtol=1e-9
    )
    np.testing.assert_allclose(run.params["x"], second.params["x"], rtol=1e-6)


def test_members_of_an_ensemble_are_single_solves():
    starts = {"x": jnp.stack([START["x"], 2 * START["x"], -START["x"]]), "still": 3}
    ends = fa.ensemble(FLOW, starts, t1=2.0, observe=SEEN, error=True)
    for row in range(3):
        start = {"x": starts["x"][row], "still": 3}
        run = fa.solve(FLOW, start, t1=2.0, observe=SEEN, solver="tsit5")
        np.testing.assert_allclose(ends.params["x"][row], run.params["x"], rtol=1e-8)
        np.testing.assert_allclose(
            ends.state[1]["x"][row], run.state[1]["x"], rtol=1e-8
        )
    assert ends.params["still"] == 3
    on = fa.ensemble(FLOW, ends.params, state=ends.state, ts=[2.0, 3.0], observe=SEEN)
    whole = fa.ensemble(FLOW, starts, t1=3.0, observe=SEEN)
    np.testing.assert_allclose(on.params["x"], whole.params["x"], rtol=1e-5)


def test_it_is_differentiated_and_compiled():
    def end(x):
        return jnp.sum(fa.solve(FLOW, {**START, "x": x}, t1=1.0, rtol=1e-9).params["x"])

    slope, h = jax.jit(jax.grad(end))(START["x"]), 1e-5
    for axis in range(2):
        step = h * jnp.eye(2)[axis]
        central = (end(START["x"] + step) - end(START["x"] - step)) / (2 * h)
        assert abs(float(slope[axis] - central)) < 1e-5


def test_a_data_set_keeps_the_state():
    run = solved(observe=SEEN)
    back = fa.Trajectory.from_dataset(run.to_dataset(), like=START, flow=FLOW)
    on = fa.solve(FLOW, back.params, state=back.state, ts=[2.0, 3.0])
    same = fa.solve(FLOW, run.params, state=run.state, ts=[2.0, 3.0])
    np.testing.assert_array_equal(on.params["x"], same.params["x"])


def test_an_interrupted_solve_resumes_with_its_state(tmp_path):
    def stops(progress):
        raise KeyboardInterrupt

    flow = HeavyBall(bowl, 1e-5, BETA)  # many steps
    how = {"t1": 0.05, "observe": SEEN, "checkpoint": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        fa.solve(flow, START, progress=stops, **how)
    assert (tmp_path / "flow.state").exists()
    resumed = fa.solve(flow, START, **how)
    whole = fa.solve(flow, START, t1=0.05, observe=SEEN)
    np.testing.assert_array_equal(resumed.observed["x"], whole.observed["x"])
    np.testing.assert_array_equal(resumed.state[1]["x"], whole.state[1]["x"])


def test_stiff_flows_of_complex_spectrum_do_not_get_rkc():
    assert solved().solver == "tsit5"
    assert fa.solve(fa.GradientFlow(bowl), START, t1=2.0).solver == "auto"


class Balls(AbstractSystem):
    """The bowl, by a heavy ball."""

    name: ClassVar[str] = "balls"
    citation: ClassVar[str] = "none"
    height: SupportsFloat = 1.0

    def problem(self, key, data=None):
        height = jnp.asarray(self.height, float)
        loss = Partial(_bowl_of, height)
        return fa.Problem(
            START["x"],
            loss,
            observables={"x": fa.Observable(lambda x: x, ("axis",))},
            flow=HeavyBall(loss, RATE, BETA),
            events={"left": lambda x: x[0] - 0.5},
        )


def _bowl_of(height, x):
    return height * bowl({"x": x})


def test_a_sweep_s_cells_are_single_solves(tmp_path):
    how = {"t1": 1.0, "descent": fa.SGD(RATE, BETA), "outputs": 3}
    found = fa.sweep(Balls(), {"height": [0.5, 1.0, 2.0]}, out=tmp_path / "s", **how)
    for row, height in enumerate((0.5, 1.0, 2.0)):
        problem = Balls(height=height).problem(None)
        run = problem.solve(t1=1.0, solver="tsit5")
        np.testing.assert_allclose(
            found.x[row, 0, -1], run.observed["x"][-1], rtol=1e-6
        )
        descent = problem.descend(steps=20)
        np.testing.assert_allclose(
            found.descent_x[row, 0, -1], descent.observed["x"][-1], rtol=1e-12
        )


def test_a_run_of_such_a_problem_compares_with_its_own_descent():
    run = fa.run(Balls().problem(None), t1=1.0)
    assert run.descent.solver == "gradient descent with momentum"
    assert run.gap.order == 2 and run.gap.resolved
    assert "x" in run.gap.observables


def test_the_defect_of_a_law_is_along_the_state():
    """At rest nothing changes; with a speed the law changes as its gradient says."""
    law = fa.Law(lambda p: p["x"] ** 2, "square", "approximate")
    assert float(fa.defect(law, FLOW, START)) == 0
    moving = fa.Law(lambda p: p["x"][:1] - p["x"][1:], "spread", "approximate")
    gradient = fa.GradientFlow(bowl)
    assert float(fa.defect(moving, gradient, START, 0.0)) > 0.1


def test_a_run_solves_a_reduction_with_a_state():
    flow = HeavyBall(lambda x: bowl({"x": x}), RATE, BETA)
    seen = {"x": fa.Observable(lambda x: x, ("axis",))}
    same = fa.Reduction(flow, flow, lambda x: x, lambda x: x, "exact", observables=seen)
    problem = fa.Problem(
        START["x"], flow.loss, flow=flow, observables=seen, reductions={"same": same}
    )
    run = fa.run(problem, t1=1.0)
    [found] = run.summary["reductions"]
    assert found["defect"] == 0 and found["max_relative"] == 0
