"""Programs of single numbers: equal to what they are made of, or refused."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax, nn

import flowattn as fa
from flowattn.numerics.scalars import Unfit, graph, program

from .scalar_models import MODELS, lanes, layer_norm

COUNT = 8


def tiles_of(arguments):
    """For each number of one lane, the numbers of all lanes."""
    leaves = jax.tree.leaves(arguments)
    return [jnp.asarray(tile) for x in leaves for tile in x.reshape(len(x), -1).T]


def largest_error(found, wanted):
    """Of two lists of arrays, relative to the largest entry of each; inf where their
    types, nans or infinities differ.
    """
    assert [x.dtype for x in found] == [x.dtype for x in wanted]
    most = 0.0
    for a, b in zip(found, wanted, strict=True):
        a, b = (np.asarray(x, float) for x in (a, b))
        defined = np.isfinite(b)
        same = np.array_equal(a[~defined], b[~defined], equal_nan=True)
        if not (same and np.isfinite(a[defined]).all()):
            return np.inf
        if defined.any():
            gap = np.abs(a[defined] - b[defined]).max()
            most = max(most, gap / (np.abs(b[defined]).max() or 1.0))
    return most


def check(fn, arguments, limit):
    """The program of a function is the function, for all lanes of arguments."""
    example = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arguments
    )
    made, out = program(fn, example)
    wanted = jax.jit(jax.vmap(fn, out_axes=0))(arguments)
    assert jax.tree.structure(out) == jax.tree.structure(wanted)
    (count,) = {len(x) for x in jax.tree.leaves(arguments)}
    found = made(tiles_of(arguments), (count,))
    assert largest_error(found, tiles_of(wanted)) < limit
    return made


@pytest.mark.parametrize("dtype, limit", [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("name", MODELS)
def test_programs_are_their_functions(name, dtype, limit):
    fn, example = MODELS[name]
    check(fn, lanes(example, COUNT, dtype=dtype), limit)


# Random models: layers of a state of three rows of four.

INDICES = st.lists(st.integers(-4, 5), min_size=4, max_size=4)
LAYERS = st.one_of(
    st.sampled_from(
        [
            ("dot",),
            ("softmax", 0),
            ("softmax", 1),
            ("norm",),
            ("cumsum",),
            ("tanh",),
            ("attend",),
        ]
    ),
    st.tuples(st.just("gather"), INDICES),
    st.tuples(st.just("where"), st.lists(st.booleans(), min_size=12, max_size=12)),
    st.tuples(st.just("scan"), st.integers(1, 3)),
)


def layer(made, x, w):
    match made:
        case ("dot",):
            return x @ w
        case ("softmax", axis):
            return nn.softmax(x, axis)
        case ("norm",):
            return layer_norm(x)
        case ("cumsum",):
            return jnp.cumsum(x, 1)
        case ("tanh",):
            return jnp.tanh(x)
        case ("attend",):
            return nn.softmax(x @ w @ x.T) @ x
        case ("gather", indices):
            return x[:, np.array(indices)]
        case ("where", mask):
            return jnp.where(np.array(mask).reshape(3, 4), x, -2 * x * w[:3])
        case ("scan", length):
            return lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, length)[0]
    raise AssertionError(made)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(LAYERS, min_size=1, max_size=4), st.sampled_from(["float64", "float32"])
)
def test_gradients_of_random_models(layers, dtype):
    def loss(p):
        x = p["x"]
        for n, made in enumerate(layers):
            x = layer(made, x, p["w"][n])
        return jnp.sum(x * jnp.asarray(np.linspace(-1, 1, 12).reshape(3, 4), x.dtype))

    p = {"x": jnp.zeros((3, 4)), "w": jnp.zeros((len(layers), 4, 4))}
    limit = 1e-13 if dtype == "float64" else 1e-5
    arguments = jax.tree.map(lambda x: x / 2, lanes(p, 4, dtype=dtype))
    check(jax.grad(loss), arguments, limit)


SYSTEMS = {
    "soft": fa.systems.Focus(reduced=True),
    "hard": fa.systems.Focus(loss="hard", reduced=True),
    "marginal": fa.systems.Focus(loss="marginal", reduced=True),
    "fixed": fa.systems.Focus(fixed_focus=0.3, reduced=True),
    "weight": fa.systems.Keyword(),
    "one logit": fa.systems.Keyword(attention="softmax", logits=1),
    "two logits": fa.systems.Keyword(attention="softmax", logits=2),
    "copying": fa.systems.Copying(reduced=True, length=40, vocabulary=40),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_fields_of_reduced_systems(name):
    problem = SYSTEMS[name].problem(jax.random.key(0))
    flow = problem.flow
    points = jax.tree.map(
        lambda x, noise: x[None] + noise / 2,
        problem.params,
        lanes(problem.params, COUNT),
    )
    made = check(lambda p: flow.moving(flow(p)), points, 1e-13)
    assert made.operations.total() < 100


# What is not finite.

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.5, 1e308])
EXACT = {
    "max": lambda x, y: (
        jnp.maximum(x, y),
        jnp.maximum(x, -jnp.inf),
        jnp.maximum(x, x),
    ),
    "min": lambda x, y: (jnp.minimum(x, y), jnp.minimum(x, jnp.inf)),
    "other bound": lambda x, y: (jnp.minimum(x, -jnp.inf), jnp.maximum(x, jnp.inf)),
    "clip": lambda x, y: (jnp.clip(x, -1.0, 1.0), jnp.clip(1.0, x, y)),
    "times 0": lambda x, y: (x * 0.0, 0.0 * x * y, x * 1.0, x * -1.0),
    "0 over": lambda x, y: (0.0 / x, x / 1.0, x / y),
    "sums": lambda x, y: (x + 0.0, 0.0 - x, x - 0.0, x - x, x + y, jnp.negative(-x)),
    "powers": lambda x, y: (x**0, x**2, x**-1, x**3, lax.integer_pow(x, -2)),
    "comparisons": lambda x, y: (
        (x == x, x != x, x < x, x <= x, x > x, x >= x),
        (x == y, x != y, x < y, x <= y, x > y, x >= y),
    ),
    "where": lambda x, y: (jnp.where(x > y, x, y), jnp.where(x > y, x, x)),
    "isnan": lambda x, y: (jnp.isnan(x), jnp.isfinite(x), jnp.isinf(x)),
    "argmax": lambda x, y: (
        jnp.argmax(jnp.stack([y, x, x * y, y])),
        jnp.argmin(jnp.stack([y, x, -x, y])),
    ),
    "reductions": lambda x, y: (
        (jnp.stack([x, y]).max(), jnp.stack([x, y]).min(), jnp.stack([x, y]).sum()),
        lax.cummax(jnp.stack([x, y, x])),
        jnp.stack([x, y]) @ jnp.array([0.0, 1.0], x.dtype),
    ),
    "softmax": lambda x, y: nn.softmax(jnp.stack([x, y])),
    "folded": lambda x, y: jnp.where(jnp.log(-1.0) > 0, x, jnp.sqrt(-1.0) * x),
    "empty": lambda x, y: jnp.max(jnp.stack([x, y])[:0], initial=-jnp.inf),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_programs_keep_nan_and_infinities(name, dtype):
    if dtype == "float32":
        grid = np.where(SPECIAL == 1e308, 1e38, SPECIAL)
    else:
        grid = SPECIAL
    x, y = (z.ravel().astype(dtype) for z in np.meshgrid(grid, grid))
    arguments = jnp.asarray(x), jnp.asarray(y)
    limit = 1e-13 if dtype == "float64" else 1e-5
    check(lambda p: EXACT[name](*p), arguments, limit)


def test_extremes_are_comparisons():
    """A GPU's maximum of a number and nan is the number."""
    made, _ = program(lambda p: (jnp.maximum(*p), jnp.clip(p[0], -1, 2)), 2 * [1.0])
    assert not {"max", "min"} & set(made.operations)
    made, _ = program(lambda n: jnp.maximum(n, 3), 1)
    assert made.operations == {"max": 1}


def test_what_is_multiplied_by_0_may_be_infinite():
    made, _ = program(lambda x: x * 0.0 + 0.0 / x, jnp.ones(()))
    assert made.operations.total() == 3 and made.used == {0}
    n = jnp.array([2, 0, -3])
    made, _ = program(lambda n: (n * 0, lax.div(n * 0, n)), n[0])
    zero, quotient = made([n], (3,))
    assert zero.tolist() == [0, 0, 0]
    assert quotient.tolist() == lax.div(0 * n, n).tolist()


# The graph.


def test_equal_operations_are_made_once_and_unused_ones_dropped():
    def fn(p):
        a, b, unused = p["a"], p["b"], p["unused"]
        jnp.exp(unused)
        return a * b + 2.0, (b * a + 2.0) * jnp.sin(1.0), jnp.negative(-a)

    made, _ = program(fn, {"a": jnp.ones(()), "b": jnp.ones(()), "unused": jnp.ones(2)})
    assert made.operations == {"mul": 2, "add": 1}
    assert sum(node.known for node in made.nodes) == 2
    assert made.used == {0, 1} and len(made.inputs) == 4
    assert [out.place for out in made.outputs] == [None, None, 0]
    first, second, third = made(
        [jnp.full((2, 3), 3.0), jnp.ones((2, 3)), None, None], (2, 3)
    )
    assert first.shape == (2, 3) and first[0, 0] == 5.0
    np.testing.assert_allclose(second, 5 * np.sin(1.0))
    assert third[1, 2] == 3.0


def test_programs_are_compiled_and_differentiated():
    fn, example = MODELS["head"]
    arguments = lanes(example, COUNT)
    made, _ = program(fn, example)
    tiles = tiles_of(arguments)
    found = jax.jit(lambda *tiles: made(tiles, (COUNT,)))(*tiles)
    assert largest_error(found, made(tiles, (COUNT,))) < 1e-13


def test_types_of_constants():
    values = np.uint64(2**63 + 5), np.float16(0.1), np.int8(-3), np.bool(True)
    made, _ = program(lambda x: (x, *values), jnp.float32(1))
    assert made.inputs == (np.float32,)
    found = made([jnp.ones((), jnp.float32)], ())
    assert [x.dtype for x in found[1:]] == [x.dtype for x in values]
    assert [x.item() for x in found[1:]] == [x.item() for x in values]


def test_weak_types():
    made, out = program(lambda x: x * jnp.ones((), jnp.float32), 2.0)
    assert out.dtype == jnp.float32 and made.outputs[0].dtype == np.float32
    assert made([jnp.full(2, 3.0)], (2,))[0].dtype == jnp.float32

    def fn(n):
        return n * 1.5, n.astype(float) * 1.5

    with jax.numpy_dtype_promotion("standard"):
        made, _ = program(fn, jnp.array(3))
    assert made.operations == {"convert_element_type": 1, "mul": 1}


# Refusals.

ROLL = jax.extend.core.Primitive("my_roll")
ROLL.def_abstract_eval(lambda x: x)


def _sampled(x):
    return x + jax.random.normal(jax.random.key(0), (3,), x.dtype)


def _bits(x):
    key = np.zeros(2, np.uint32)
    return x + jax.random.bits(jax.random.wrap_key_data(key), (3,)).astype(x.dtype)


def _generated(x):
    return x + lax.rng_bit_generator(np.zeros(4, np.uint32), (3,))[1].astype(x.dtype)


def _called_back_by_constants(x):
    return x + jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), x.dtype), 1.0)


def _called_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), x.dtype), x)


def _printed(x):
    jax.debug.print("{}", x)
    return x


def _printed_constants(x):
    jax.debug.print("{}", np.ones(2))
    return x


@jax.custom_vjp
def _halved(x):
    return x / 2


_halved.defvjp(lambda x: (_halved(x), x), lambda x, g: (g * x,))

REFUSED = {
    "sort": jnp.sort,
    "while": lambda x: lax.while_loop(lambda c: c[0] < 1, lambda c: c + 1, x),
    "top_k": lambda x: lax.top_k(x, 2),
    "scatter": lambda x: x.at[jnp.argmax(x)].set(0.0),
    "scatter-add": lambda x: x.at[jnp.argmax(x)].add(1.0),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(
        x, x[:1], (jnp.argmax(x),)
    ),
    "cholesky": lambda x: jnp.linalg.cholesky(jnp.diag(x)),
    "lu": lambda x: jnp.linalg.inv(jnp.diag(x)),
    "eigh": lambda x: jnp.linalg.eigvalsh(jnp.diag(x)),
    "svd": lambda x: jnp.linalg.svd(jnp.diag(x)),
    "qr": lambda x: jnp.linalg.qr(jnp.diag(x)),
    "fft": lambda x: jnp.fft.rfft(x).real,
    "random": _sampled,
    "random_wrap": _bits,
    "rng_bit_generator": _generated,
    "debug_print: is": _printed_constants,
    "pure_callback": _called_back,
    "pure_callback: is": _called_back_by_constants,
    "debug": _printed,
    "convert_element_type: the type complex": lambda x: jnp.abs(x.astype(complex)),
    "convert_element_type: the type bfloat16": lambda x: x.astype(jnp.bfloat16),
    "cumlogsumexp": lax.cumlogsumexp,
    "conv_general_dilated": lambda x: jnp.convolve(x, x),
    "reduce_window": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (2,), (1,), "VALID"
    ),
    "my_roll": ROLL.bind,
    "custom_lin": lambda x: jax.linearize(_halved, x)[1](x),
    "bitcast_convert_type: the": lambda x: lax.bitcast_convert_type(x[0], jnp.int32),
    "bitcast_convert_type": lambda x: lax.bitcast_convert_type(x, jnp.int32),
    "dot_general": lambda x: jnp.dot(x > 0, x > 1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_refused_with_its_name(reason):
    with pytest.raises(Unfit, match=f"^{reason}") as refusal:
        program(REFUSED[reason], jnp.ones(3))
    assert "\n" not in str(refusal.value)
    assert isinstance(refusal.value, NotImplementedError)


@pytest.mark.parametrize(
    "example",
    [jax.random.key(0), jnp.ones(2, complex), jnp.ones(2, jnp.bfloat16)],
    ids=["key", "complex", "bfloat16"],
)
def test_inputs_of_other_types_are_refused(example):
    with pytest.raises(Unfit, match="^an input: the type (key|complex|bfloat16)"):
        program(lambda x: 0.0, example)


def test_traced_constants_are_refused():
    def outer(y):
        with pytest.raises(Unfit, match="^a constant: it is being traced"):
            program(lambda x: x * y, y)
        return y

    jax.jit(outer)(jnp.ones(2))


DATA = np.random.default_rng(0).normal(size=(5000, 20))


@pytest.mark.parametrize(
    "reason, fn, shape, most",
    [
        ("dot_general", lambda w: jnp.sum(jnp.tanh(DATA @ w)), (20,), 2000),
        ("dot_general", lambda w: w @ w, (400, 400), 200_000),
        ("an input", jnp.sum, (1000, 1000), 200_000),
        ("exp", lambda x: jnp.exp(jnp.exp(x)), (60,), 100),
        ("broadcast_in_dim", lambda x: jnp.ones((10**5, 10)) * x[None], (10,), 100),
        ("gather", lambda x: x[x[:20].astype(int)], (2000,), 2500),
        (
            "scan",
            lambda x: lax.fori_loop(0, 10**9, lambda i, x: jnp.sin(x), x),
            (),
            200_000,
        ),
        ("a constant", lambda x: jnp.append(x, DATA), (2,), 2000),
        ("sin", lambda x: lax.fori_loop(0, 500, lambda i, x: jnp.sin(x), x), (), 400),
    ],
)
def test_too_large_programs_are_not_built(reason, fn, shape, most, monkeypatch):
    made = []
    monkeypatch.setattr(
        graph,
        "Node",
        lambda *args, node=graph.Node, **named: made.append(1) or node(*args, **named),
    )
    with pytest.raises(Unfit, match=f"^{reason}: too large for .* {most} oper"):
        program(fn, jax.ShapeDtypeStruct(shape, jnp.float64), most=most)
    assert len(made) <= np.prod(shape) + most + 10
