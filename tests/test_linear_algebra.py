"""Sweeps of systems that factorise matrices: threads must not wait for each other."""

import subprocess
import sys

import pytest

_SYSTEM = """
from typing import ClassVar, SupportsFloat
import flowattn as fa
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial


def drawn(basis, x):
    return 0.5 * jnp.sum((basis @ x - 1) ** 2)


def solved(basis, x):
    found = jnp.linalg.qr(0.05 * basis + jnp.eye(4) + 0.1 * jnp.diag(x))[1]
    return 0.5 * jnp.sum((found @ x - 1) ** 2)


class Factorised(fa.systems.AbstractSystem):
    name: ClassVar[str] = "factorised"
    citation: ClassVar[str] = "none"
    scale: SupportsFloat = 1.0

    def problem(self, key, data=None):
        basis = jnp.linalg.qr(jr.normal(key, (60, 24)))[0][:4, :4]
        start = jnp.asarray(self.scale, float) * jnp.ones(4)
        return fa.Problem(start, Partial({loss}, basis))


scales = jnp.linspace(0.1, 2.0, 10).tolist()
found = fa.sweep(Factorised(), {{"scale": scales}}, seeds=1000, t1=1.0)
print(int((found["result"] == 0).sum()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["drawn", "solved"])
def test_threads_that_factorise_matrices_do_not_wait_for_each_other(loss):
    """Without care JAX's QR in two threads hangs here within seconds."""
    code = _SYSTEM.format(loss=loss)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) == 10_000
