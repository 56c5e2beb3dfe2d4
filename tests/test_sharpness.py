"""sharpness where Lanczos ends early: multiple eigenvalues, flat points, saddles."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa
from flowattn.cli.main import main


class Form(eqx.Module):
    """½ xᵀ H x, its Hessian an argument: one program for all of one shape."""

    hessian: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.vdot(x, self.hessian @ x)


def rotated(spectrum, dtype):
    n = len(spectrum)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    return jnp.asarray((basis * np.array(spectrum, float)) @ basis.T, dtype)


# Of 40 numbers the Krylov space is cut at 30: it must end early to be exact.
SPECTRA = {
    "zero": [0] * 40,
    "identity": [1] * 40,
    "negative": [-1] * 40,
    "low rank": [3] * 2 + [0] * 38,
    "saddle": [-5] * 10 + [2] * 10 + [0] * 20,
    "tiny": [1e-20] * 40,
    "huge": [1e15] * 40,
    "clusters": [7] + [1] * 39,
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_multiple_eigenvalues_are_found_as_often_as_they_occur(dtype):
    top = jax.jit(lambda hessian: fa.sharpness(Form(hessian), 3)(jnp.zeros(40, dtype)))
    hessians = jnp.stack([rotated(s, dtype) for s in SPECTRA.values()])
    for name, hessian, together in zip(
        SPECTRA, hessians, jax.vmap(top)(hessians), strict=True
    ):
        largest = np.sort(SPECTRA[name])[::-1][:3]
        # Backward stable: rounding of n products, in the size of the operator.
        bound = 40 * jnp.finfo(dtype).eps * max(np.abs(SPECTRA[name]).max(), 1e-300)
        for found in (top(hessian), together):
            np.testing.assert_allclose(found, largest, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize(
    ("top", "rest", "k"),
    [
        ([5] * 2, np.linspace(0, 4, 448), 2),
        ([5] * 150, np.linspace(0, 4, 300), 4),
        ([5, 5, 4.5], np.linspace(0, 4, 95), 3),
        ([1, 1, 0], [0] * 60, 3),
        ([0, 0, 0], [-5] * 60, 3),
        ([1e-9, 0, 0], np.linspace(-5, 0, 60), 3),
        ([-1, -1, -1], [-1] * 60, 3),
    ],
)
def test_multiple_eigenvalues_beyond_the_number_of_products(top, rest, k):
    """A Krylov space holds one vector of each."""
    spectrum = [*top, *rest]
    found = fa.sharpness(Form(rotated(spectrum, jnp.float64)), k)(
        jnp.zeros(len(spectrum))
    )
    size = np.max(np.abs(spectrum))
    np.testing.assert_allclose(found, top[:k], rtol=1e-3, atol=1e-3 * size)


def test_the_derivative_at_a_multiple_eigenvalue():
    """Of Σ xᵢ⁴/12 the eigenvalues are xᵢ², and the derivatives of their sum 2 xᵢ."""
    top = fa.sharpness(lambda x: jnp.sum(x**4) / 12, 2)
    x = jnp.concatenate([jnp.full(2, 2.0), jnp.ones(60)])
    slope = jax.grad(lambda x: jnp.sum(top(x)))(x)
    np.testing.assert_allclose(slope, [4, 4, *[0] * 60], atol=1e-9)


def test_flat_and_single_points():
    quartic = fa.sharpness(lambda x: jnp.sum(x**4), 2)
    np.testing.assert_array_equal(quartic(jnp.zeros(4)), [0, 0])
    assert fa.sharpness(lambda x: 2.0 * x**2)(jnp.array(1.0)) == 4.0
    slope = jax.grad(lambda x: quartic(x)[0])(jnp.array([1.0, 0.0, 0.5, 0.2]))
    np.testing.assert_allclose(slope, [24.0, 0, 0, 0], atol=1e-9)  # of 12 x²


def test_the_command_line_refuses_more_modes_than_parameters(capsys):
    assert main(["run", "focus", "--reduced", "--sharpness", "3000"]) == 2
    assert "3000 eigenvalues of a Hessian in 2 parameters" in capsys.readouterr().err
