"""Tests run in double precision, with shapes checked and no silent promotion."""

import jax
import jaxtyping
import matplotlib
import pytest

matplotlib.use("agg")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with jaxtyping.install_import_hook("flowattn", "beartype.beartype"):
    import flowattn  # noqa: F401


@pytest.fixture(autouse=True)
def _double_precision():
    """The command line sets the precision of its process: put it back."""
    yield
    jax.config.update("jax_enable_x64", True)
