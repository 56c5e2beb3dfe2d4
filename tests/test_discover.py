"""Laws found by `discover`, against exact kernels, theory and wrong claims."""

import dataclasses
import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import flowattn as fa
from flowattn.laws.dictionary import Dictionary, Vocabulary
from flowattn.laws.draws import Draws
from flowattn.laws.fields import fields_of
from flowattn.laws.formulas import latex, python
from flowattn.laws.identities import Identity
from flowattn.laws.nullspace import null_space
from flowattn.laws.quantities import Quantity


def normal(*shape):
    """Random inputs of a shape."""
    return lambda key: jr.normal(key, shape)


def ones(**shapes):
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def chain(params, x):
    """x W₁ W₂ …, in the order of the names."""
    return functools.reduce(jnp.matmul, params.values(), x)


def product(params, x):
    return jnp.prod(params) * x


def span(functions, params):
    """An orthonormal basis of the span of the gradients of functions."""
    flat, unravel = ravel_pytree(params)

    def together(flat):
        return jnp.concatenate([jnp.ravel(fn(unravel(flat))) for fn in functions])

    slopes = np.asarray(jax.jacobian(together)(flat))
    slopes = slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-300)
    _, values, directions = np.linalg.svd(slopes, full_matrices=False)
    return directions[values > 1e-8].T


def same_span(one, other, params):
    """Whether laws have the same gradients at a random point."""
    flat, unravel = ravel_pytree(params)
    at = unravel(jr.normal(jr.key(5), flat.shape))
    a, b = span(one, at), span(other, at)
    if a.shape != b.shape:
        return False
    return not a.shape[1] or np.max(scipy.linalg.subspace_angles(a, b)) < 1e-10


@functools.cache
def linear():
    """Two layers, 3×2 and 2×2, and their three laws."""
    family = fa.any_loss(chain, normal(3))
    return family, (params := ones(U=(3, 2), V=(2, 2))), fa.discover(family, params)


class Quadratic(fa.AbstractFlow):
    """θ' = T θ θ, the gradient of nothing."""

    tensor: jax.Array

    def __call__(self, params, t=0.0):
        return jnp.einsum("ijk,j,k", self.tensor, params, params)


def test_fields_that_are_no_gradients_conserve_nothing():
    found = fa.discover(
        lambda key: Quadratic(jr.normal(key, (3, 3, 3))), jnp.ones(3), entries=True
    )
    assert not found.laws and found.complete and found.settled
    alone = fa.discover(Quadratic(jr.normal(jr.key(1), (5, 5, 5))), jnp.ones(5))
    assert not alone.laws and alone.complete is None
    assert str(alone) == (
        "no independent laws of this flow, at most 4 near a generic parameter"
    )


def test_check_refutes_a_wrong_law():
    family, params, found = linear()
    (entry,) = found.found
    assert found.check(family, params)[entry.law.name] < 1e-12
    first, (factor, quantity) = entry.identity.terms
    wrong = dataclasses.replace(entry.identity, terms=(first, (-factor, quantity)))
    law = fa.Law(type(entry.law.terms)(wrong, entry.law.terms.words), "wrong", "exact")
    other = dataclasses.replace(found, found=(dataclasses.replace(entry, law=law),))
    assert other.check(family, params)["wrong"] > 1e-2


def test_too_few_rows_find_too_many_laws():
    family, params, _ = linear()
    fields = fields_of(family, params, None, None)
    shapes = {"U": (3, 2), "V": (2, 2)}
    dictionary = Dictionary(Vocabulary(shapes))
    rows = dictionary.rows(fields.at(Draws(jr.key(0)), 200).unit)
    unknowns = dictionary.columns

    def found(number):
        basis, spectrum = null_space(rows[:number], dictionary.noise)
        return basis.shape[1], spectrum.kept

    laws, kept = found(200)
    rank = unknowns - laws
    assert laws == 3 + 2  # norms are sums of rows, and of columns
    assert found(rank - 4)[0] == laws + 4
    fewest, near = found(rank + 1)
    assert fewest == laws and near < 0.2 * kept


@pytest.mark.parametrize("factors", [3, 4])
def test_laws_of_products(factors):
    """All brackets vanish: over their own norm, rounding errors would have full rank
    and leave no law.
    """
    found = fa.discover(fa.any_loss(product, normal()), jnp.ones(factors))
    assert found.complete and found.independent == factors - 1
    last = f"params[{factors - 1}]**2"
    assert list(found.laws) == [f"params[{i}]**2 - {last}" for i in range(factors - 1)]


def test_brackets_that_vanish_are_no_directions():
    family = fa.any_loss(product, normal())
    whole = fa.discover(family, jnp.ones(4), entries=False)
    assert not whole.laws and "whole matrices cannot write" in str(whole)
    some = fa.discover(family, jnp.ones(4), view=lambda p: {"x": p[:2]})
    assert (some.independent, some.at_most, some.settled) == (1, 3, True)
    assert [depth.rank for depth in some.depths] == [1, 1]
    assert "2 more laws exist" in str(some)


def kernel(rows):
    """A basis of the null space of rows of fractions."""
    rows, pivots = [list(row) for row in rows], []
    for column in range(len(rows[0])):
        done = len(pivots)
        at = next((i for i in range(done, len(rows)) if rows[i][column]), None)
        if at is None:
            continue
        rows[done], rows[at] = rows[at], rows[done]
        rows[done] = [x / rows[done][column] for x in rows[done]]
        for i, row in enumerate(rows):
            if i != done and row[column]:
                factor = row[column]
                rows[i] = [x - factor * y for x, y in zip(row, rows[done], strict=True)]
        pivots.append(column)
    found = []
    for free in set(range(len(rows[0]))) - set(pivots):
        vector = [Fraction(0)] * len(rows[0])
        vector[free] = Fraction(1)
        for i, pivot in enumerate(pivots):
            vector[pivot] = -rows[i][free]
        found.append(vector)
    return found


def polynomials(size):
    """x_i, and x_i x_j: pairs of indices, of which size is a factor 1."""
    return list(itertools.combinations_with_replacement(range(size + 1), 2))[:-1]


def exact(fields, size):
    """The laws among all quadratic polynomials: functions of a flat vector, from
    velocities at integer points by exact elimination.
    """
    random, pairs = np.random.default_rng(0), polynomials(size)
    rows = []
    for _ in range(len(pairs) + 5):
        x = [Fraction(int(n)) for n in random.integers(-9, 10, size)]
        speed = fields(x, random)
        x, speed = [*x, Fraction(1)], [*speed, Fraction(0)]
        rows.append([x[i] * speed[j] + x[j] * speed[i] for i, j in pairs])

    def law(vector, flat):
        x = jnp.append(flat, 1.0)
        parts = zip(vector, pairs, strict=True)
        return sum(float(c) * x[i] * x[j] for c, (i, j) in parts if c)

    return [functools.partial(law, vector) for vector in kernel(rows)]


def along_product(x, random):
    r = Fraction(int(random.integers(1, 9)))
    return [r * x[1] * x[2], r * x[0] * x[2], r * x[0] * x[1]]


def along_matrices(x, random):
    """−∇⟨R, U V⟩ for 2×2 matrices."""
    r = [Fraction(int(n)) for n in random.integers(-9, 10, 4)]
    R, U, V = (np.array(part, object).reshape(2, 2) for part in (r, x[:4], x[4:]))
    return [*(R @ V.T).ravel(), *(U.T @ R).ravel()]


@pytest.mark.parametrize(
    "velocities, size, number",
    [(along_product, 3, 2), (along_matrices, 8, 3)],
)
def test_all_quadratic_laws_are_those_of_exact_elimination(velocities, size, number):
    if size == 3:
        model, params = product, jnp.ones(3)
        family = fa.any_loss(model, normal())
    else:
        params = ones(U=(2, 2), V=(2, 2))
        family = fa.any_loss(chain, normal(2, 2))
    laws = exact(velocities, size)
    assert len(laws) == number
    found = fa.discover(family, params)
    assert found.complete and found.independent == number
    theirs = [lambda p, law=law: law(ravel_pytree(p)[0]) for law in laws]
    assert same_span(found.laws.values(), theirs, params)


def chain_of(sizes):
    """A chain of matrix products, and the balances of its layers."""
    layers = itertools.pairwise(sizes)
    params = {f"W{i}": jnp.ones(shape) for i, shape in enumerate(layers, 1)}
    names = list(params)
    laws = [
        lambda p, a=a, b=b: p[a].T @ p[a] - p[b] @ p[b].T
        for a, b in itertools.pairwise(names)
    ]
    found = fa.discover(fa.any_loss(chain, normal(sizes[0])), params)
    return params, laws, found


def _check_chain(sizes):
    params, laws, found = chain_of(sizes)
    assert found.complete and found.independent == found.at_most, found
    assert not found.independent or same_span(found.laws.values(), laws, params)
    assert bool(found.independent) == bool(laws)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((2, 3, 1, 2), marks=pytest.mark.slow),
        (1, 1, 1, 1, 1),
        (2, 1, 2),
        (4, 1),
    ],
)
def test_chains_of_matrices(sizes):
    _check_chain(sizes)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_random_chains_of_matrices(sizes):
    # From a number to a number all flows have one direction, and so more laws.
    assume(sizes[0] * sizes[-1] > 1)
    _check_chain(sizes)


def test_names_keys_and_order_change_no_law():
    family, params, found = linear()
    (law,) = found.laws.values()
    assert law.name == "U.T@U - V@V.T"
    again = fa.discover(family, dict(reversed(params.items())), key=jr.key(0))
    assert str(again) == str(found) and again.depths == found.depths
    assert str(fa.discover(family, params, key=jr.key(7))) == str(found)
    renamed = {"A1": params["U"], "B2": params["V"]}
    other = fa.discover(fa.any_loss(chain, normal(3)), renamed)
    assert str(other) == str(found).replace("U", "A1").replace("V", "B2")

    def turned(p, x):
        return x @ p["second"] @ p["first"]

    swapped = {"first": params["V"], "second": params["U"]}
    other = fa.discover(fa.any_loss(turned, normal(3)), swapped)
    assert list(other.laws) == ["first@first.T - second.T@second"]


def test_old_style_keys_serve():
    family, params, found = linear()
    assert list(fa.discover(family, params, key=jr.PRNGKey(3)).laws) == list(found.laws)


def test_whole_matrices_have_the_laws_of_their_entries():
    family, params, found = linear()
    whole = fa.discover(family, params, entries=False)
    assert str(whole) == str(found)
    assert (whole.kept, whole.dropped) == (None, None)


def test_without_a_certificate_nothing_is_claimed():
    family, params, found = linear()
    bare = fa.discover(family, params, certify=False)
    assert (bare.at_most, bare.complete, bare.settled) == (None, None, False)
    assert str(bare).splitlines()[0] == (
        "3 independent laws for every loss; not certified"
    )
    assert list(bare.laws) == list(found.laws)


def test_one_bracket_too_few_leaves_it_open():
    family, params, _ = linear()
    found = fa.discover(family, params, depth=1)
    assert not found.settled and found.complete is False
    assert found.at_most > found.independent
    assert "open; try depth=2" in str(found)


@pytest.mark.slow
def test_few_data_need_deeper_brackets():
    """Two sentences that hold every word have the laws of any data."""

    def model(p, x):
        shares = jax.nn.softmax(p["K"][x] @ p["q"])
        return shares @ p["E"][x] @ p["U"]

    params = ones(K=(3, 2), q=(2,), E=(3, 2), U=(2, 2))
    few = jnp.array([[0, 1], [1, 2]])
    any_words = fa.any_loss(model, lambda key: jr.randint(key, (2,), 0, 3))
    two = fa.any_loss(model, lambda key: few[jr.randint(key, (), 0, 2)])
    one, other = fa.discover(any_words, params), fa.discover(two, params)
    assert one.complete and other.complete
    assert one.laws.keys() == other.laws.keys()
    assert len(other.depths) > len(one.depths)


@pytest.mark.parametrize("factor", [1.0, -1.0, 2.0])
@pytest.mark.parametrize("first", [True, False])
def test_differences_within_sums_have_parentheses(factor, first):
    """A formula means what it says: as Python, evaluated, it is the law."""
    turn = Quantity("turn", "v", 2, None, (1,), other="w")
    gram = Quantity("gram", "u", 2, None, (1,))
    terms = ((factor, turn), (1.0, gram)) if first else ((1.0, gram), (factor, turn))
    identity = Identity(terms)
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=(3, 2)) for name in "uvw"}
    value = sum(identity.values(arrays, {}))
    np.testing.assert_allclose(eval(python(identity), arrays), value, atol=1e-14)
    wrapped = r"\left(" in latex(identity)
    assert wrapped == (factor != 1)
