"""What `discover` takes, in which forms, and what it refuses in one line."""

import inspect
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa

from .test_discover import chain, linear, normal, ones, product


def two(first, second):
    return lambda params, x: x @ first(params) @ second(params)


PAIRS = normal(2)
SQUARE, TALL = jnp.ones((2, 2)), jnp.ones((2, 1))


def laws(model, params, inputs=PAIRS, **settings):
    found = fa.discover(fa.any_loss(model, inputs), params, **settings)
    assert found.complete, found
    return found


@pytest.mark.parametrize(
    "first, second, text",
    [
        ("h", "w", "h.T@h - w@w.T"),
        ("a.b", "c", "a.b.T@a.b - c@c.T"),
        ("α", "β", "α.T@α - β@β.T"),
        ("a b", "c+d", '"a b".T@"a b" - "c+d"@"c+d".T'),
        ("U[0]", 'V"', r'"U[0]".T@"U[0]" - "V\""@"V\"".T'),
        ("a\nb", "c", r'"a\nb".T@"a\nb" - c@c.T'),
    ],
)
def test_names_stay_readable(first, second, text):
    params = {first: SQUARE, second: TALL}
    found = laws(two(lambda p: p[first], lambda p: p[second]), params)
    (law,) = found.laws.values()
    assert law.formula == law.label.long_name == text
    assert f"  {text}  3" in str(found)
    assert len(found.latex().splitlines()) == 1
    family = fa.any_loss(two(lambda p: p[first], lambda p: p[second]), normal(2))
    assert max(found.check(family, params).values()) < 1e-12


def test_symmetries_tell_arrays_from_free_matrices():
    found = laws(two(lambda p: p["S"], lambda p: p["c"]), {"S": SQUARE, "c": TALL})
    (law,) = found.laws.values()
    assert law.name == "S.T@S - c@c.T"
    assert law.generator == '"S" -> "S" exp(S), "c" -> exp(-S) "c"'


def test_a_number_that_scales_an_array_has_a_symmetry():
    def model(p, x):
        return jnp.tanh(jnp.exp(p["tau"]) * (p["q"] @ x))

    found = laws(model, ones(tau=(), q=(2,)))
    (law,) = found.laws.values()
    assert law.name == "2*tau - norm(q)**2"
    assert law.generator == "tau -> tau + s, q -> exp(-s) q"
    p, x, s = {"tau": jnp.array(0.3), "q": jnp.array([0.7, -0.4])}, jnp.ones(2), 0.6
    moved = {"tau": p["tau"] + s, "q": jnp.exp(-s) * p["q"]}
    np.testing.assert_allclose(model(moved, x), model(p, x), rtol=1e-14)


@pytest.mark.parametrize(
    "params, first, second, text",
    [
        ([SQUARE, TALL], lambda p: p[0], lambda p: p[1], "0.T@0 - 1@1.T"),
        (
            ({"q": SQUARE}, (TALL,)),
            lambda p: p[0]["q"],
            lambda p: p[1][0],
            "0.q.T@0.q - 1.0@1.0.T",
        ),
        (
            {"a": {"b": SQUARE}, "c": TALL, "n": jnp.array(3), "s": "text", "o": None},
            lambda p: p["a"]["b"],
            lambda p: p["c"] * p["n"].astype(float),
            "a.b.T@a.b - c@c.T",
        ),
        (
            {"U": SQUARE, "V": TALL, "empty": jnp.ones((0, 3))},
            lambda p: p["U"],
            lambda p: p["V"] + p["empty"].sum(),
            "U.T@U - V@V.T",
        ),
    ],
)
def test_parameters_are_trees(params, first, second, text):
    assert list(laws(two(first, second), params).laws) == [text]


class Net(eqx.Module):
    one: eqx.nn.Linear
    two: eqx.nn.Linear
    act: object

    def __call__(self, x):
        return self.two(self.act(self.one(x)))  # pyright: ignore[reportCallIssue]


def test_modules_are_parameters():
    keys = jr.split(jr.key(0))
    layers = (eqx.nn.Linear(2, 3, key=keys[0]), eqx.nn.Linear(3, 1, key=keys[1]))
    net = Net(*layers, jax.nn.relu)
    found = laws(lambda net, x: net(x), net)
    assert found.independent == 3
    (law,) = found.laws.values()
    W, b, V = net.one.weight, net.one.bias, net.two.weight
    expected = jnp.sum(W**2, axis=1) + b**2 - V[0] ** 2
    np.testing.assert_allclose(jnp.abs(law(net)), jnp.abs(expected), rtol=1e-14)
    assert not laws(lambda net, x: net(x), Net(*layers, jax.nn.gelu)).laws


def test_bare_arrays_are_parameters():
    assert not laws(lambda p, x: p * x, jnp.ones(()), normal()).laws
    found = laws(product, jnp.ones(2), normal())
    assert list(found.laws) == ["params[0]**2 - params[1]**2"]


def test_paths_that_collide_are_refused_but_for_a_view():
    params = {"a.b": SQUARE, "a": {"b": TALL}}
    family = fa.any_loss(two(lambda p: p["a.b"], lambda p: p["a"]["b"]), normal(2))
    with pytest.raises(fa.InputError, match="two arrays .* 'a.b': .* view="):
        fa.discover(family, params)
    found = fa.discover(
        family, params, view=lambda p: {"U": p["a.b"], "V": p["a"]["b"]}
    )
    assert list(found.laws) == ["U.T@U - V@V.T"] and found.complete


def convolved(act):
    def model(params, x):
        first, second = (params[n] for n in ("A", "B"))
        hidden = act(jax.lax.conv(x, first, (1, 1), "SAME"))
        return jax.lax.conv(hidden, second, (1, 1), "SAME")

    return model


def test_kernels_of_convolutions_balance_channels():
    params = ones(A=(3, 2, 2, 1), B=(2, 3, 1, 2))
    found = laws(convolved(jax.nn.relu), params, normal(1, 2, 4, 4))
    assert found.independent == 3
    (law,) = found.laws.values()
    params = {n: jr.normal(jr.key(1), x.shape) for n, x in params.items()}
    expected = np.sum(params["A"] ** 2, (1, 2, 3)) - np.sum(params["B"] ** 2, (0, 2, 3))
    np.testing.assert_allclose(np.abs(law(params)), np.abs(expected), rtol=1e-13)


@pytest.mark.slow
def test_linear_convolutions_balance_whole_matrices_of_channels():
    params = ones(A=(2, 1, 2, 2), B=(1, 2, 2, 2))
    family = fa.any_loss(convolved(lambda x: x), normal(1, 1, 4, 4))
    found = fa.discover(family, params)
    # A ∗ B is symmetric in the two: the group is O(2, 2), with one more law across.
    assert (found.independent, found.at_most) == (3, 4)

    def across(params):
        return {"z": jnp.concatenate([x.reshape(2, -1) for x in params.values()])}

    found = fa.discover(family, params, view=across)
    assert found.independent == 4 and found.complete


@pytest.mark.parametrize("scale", [1e-6, pytest.param(1e6, marks=pytest.mark.slow)])
def test_inputs_may_have_any_size(scale):
    _, params, found = linear()
    other = laws(chain, params, lambda key: scale * jr.normal(key, (3,)))
    assert str(other) == str(found)


def test_inputs_may_have_different_sizes():
    sizes = jnp.array([1e5, 1.0, 1e-5])
    _, params, found = linear()
    other = laws(chain, params, lambda key: sizes * jr.normal(key, (3,)))
    assert str(other) == str(found)


@pytest.mark.parametrize("weak", [1e-6, 1e-9])
def test_small_slopes_are_slopes(weak):
    def model(p, x):
        return x[0] * p["a"] * p["b"] + weak * x[1] * p["c"] * p["d"]

    found = laws(model, ones(a=(), b=(), c=(), d=()))
    assert list(found.laws) == ["a**2 - b**2", "c**2 - d**2"]


def test_slopes_that_cannot_be_told_from_none_are_refused():
    def model(p, x):
        return x[0] * p["a"] * p["b"] + 1e-12 * x[1] * p["c"] * p["d"]

    family = fa.any_loss(model, normal(2))
    with pytest.raises(fa.InputError, match="times as fast as others.*: scale"):
        fa.discover(family, ones(a=(), b=(), c=(), d=()))


def margin(threshold):
    """A loss that most data leave at 0."""

    def loss(params, data):
        x, r = data
        return jax.nn.relu(r @ (x @ params["U"] @ params["V"]) - threshold)

    def draw(key):
        one, other = jr.split(key)
        return jr.normal(one, (3,)), jr.normal(other, (3,))

    return fa.any_data(loss, draw)


def test_data_that_move_nothing_do_not_count():
    params = ones(U=(3, 2), V=(2, 3))
    found = fa.discover(margin(3.0), params)
    assert list(found.laws) == ["U.T@U - V@V.T"] and found.complete
    with pytest.raises(fa.InputError, match="nothing moves at .* draw such as"):
        fa.discover(margin(10.0), params)


def test_saturated_draws_do_not_count():
    """Where a softmax is saturated, rounding errors are all that moves."""

    def model(p, x):
        return jax.nn.softmax(jnp.exp(p["tau"]) * (x @ p["q"] @ p["k"].T))

    found = laws(model, ones(tau=(), q=(3, 2), k=(4, 2)), normal(3))
    assert found.clear and not found.approximate
    assert list(found.laws) == [
        "sum(k, axis=0)",
        "k.T@k - q.T@q",
        "2*tau - norm(k)**2",
    ]


POINT = ones(a=(), b=())
FAMILY = fa.any_loss(lambda p, x: x * p["a"] * p["b"], normal())


def asked(flows=FAMILY, params=POINT, **settings):
    return lambda: inspect.unwrap(fa.discover)(flows, params, **settings)


def of_loss(model):
    return fa.any_loss(model, normal())


@pytest.mark.parametrize(
    "call, message",
    [
        (asked(params=jax.tree.map(jnp.float32, POINT)), 'set_precision("float64")'),
        (asked(params={"a": 1}), "no floating-point array"),
        (asked(params=None), "no floating-point array"),
        (asked(lambda p: p["a"] ** 2), "a function of a random key; called with a key"),
        (asked(tol=1.5), "tol must be below 1"),
        (asked(3), "discover needs a flow, or a function key -> flow"),
        (asked(lambda key: jnp.sum), "of a loss, return fa.GradientFlow"),
        (asked(lambda key: jnp.ones(3)), "must return a flow for each key"),
        (
            asked(
                of_loss(lambda p, x: x * p["W"].sum()), ones(W=(90, 3)), entries=True
            ),
            "unknowns are more than 4000, most of them of W (90, 3): entries=False",
        ),
        (
            asked(of_loss(lambda p, x: x * jnp.log(p["a"]))),
            "not finite at .*% of the random parameters: give sample=",
        ),
        (asked(of_loss(lambda p, x: 0 * x * p["a"])), "no parameter moves"),
        (asked(fa.any_loss(lambda p, x: 3, normal())), "no floating-point output"),
        (asked(view=3), "view must be a function"),
        (asked(view=lambda p: [p["a"]]), "view must return a dict"),
        (asked(view=lambda p: {"a": "x"}), "floating-point arrays, which 'a' is not"),
        (asked(view=lambda p: {"a": jnp.array(3)}), "floating-point arrays, which"),
        (asked(view=lambda p: {}), "view must return named arrays, got none"),
        (asked(view=lambda p: {"a/b": p["a"]}), "'a/b' cannot name an array"),
        (asked(view=lambda p: {"a@b": p["a"]}), "rename it by view="),
        (asked(view=lambda p: {3: p["a"]}), "3 cannot name an array"),
        (asked(atoms=[1]), "atoms must be a dict of functions by name"),
        (asked(atoms={"k": 3}), "atoms must be a dict of functions by name"),
        (asked(atoms={"k": lambda p: 3}), "floating-point arrays, which 'k' is not"),
        (asked(atoms={"k": lambda p: jnp.ones(())}), "'k' does not depend on what"),
        (asked(atoms={"a": lambda p: p["a"] ** 3}), "'a' has the name of an array"),
        (
            asked(atoms={"root": lambda p: jnp.sqrt(p["a"])}),
            "that of 'root' is not finite at .* give sample=",
        ),
        (asked(times={"k": 3}), "times must be a dict of functions by name"),
        (
            asked(times={"k": lambda t: t * jnp.ones(2)}),
            "one number each: 'k' does not",
        ),
        (asked(sample="far"), "or 'near', got 'far'"),
        (asked(sample=lambda p, key: {"a": p["a"]}), "sample must return what it is"),
        (
            asked(sample=lambda p, key: {**p, "a": jnp.ones(2)}),
            "sample must return what it is",
        ),
        (asked(sample=lambda p, key: p), "sample must draw parameters, got the same"),
        (asked(key=3), "key must be a random key"),
        (asked(key=jr.split(jr.key(0))), "one random key, got an array"),
        (asked(tol=-1.0), "tol must be positive"),
        (asked(depth=0), "depth must be positive"),
        (asked(depth=1.5), "depth must be a whole number"),
        (asked(certify=3), "certify must be True or False"),
        (asked(entries="yes"), "entries must be True or False"),
        (
            lambda: jax.jit(lambda p: asked(params=p)().independent)(POINT),
            "outside jit",
        ),
        (
            lambda: jax.vmap(lambda p: asked(params=p)().independent)(
                jax.tree.map(lambda x: jnp.stack([x, x]), POINT)
            ),
            "outside jit, vmap and grad",
        ),
        (
            lambda: jax.grad(lambda p: 1.0 * asked(params=p)().independent)(POINT),
            "outside jit, vmap and grad",
        ),
        (
            lambda: inspect.unwrap(fa.any_loss)(3, normal()),
            "predict must be a function",
        ),
        (lambda: inspect.unwrap(fa.any_loss)(product, 3), "inputs must be a function"),
        (lambda: inspect.unwrap(fa.any_data)(3, normal()), "loss must be a function"),
        (lambda: inspect.unwrap(fa.any_data)(product, 3), "draw must be a function"),
        (
            lambda: linear()[2].check(FAMILY, POINT),
            "the parameters have no array 'U', only a, b",
        ),
    ],
)
def test_wrong_input_is_one_line(call, message):
    with pytest.raises(fa.InputError) as caught:
        call()
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), str(caught.value))
    assert "\n" not in str(caught.value)
