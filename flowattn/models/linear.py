"""Linear attention on regression in context: heads, and the matrix that they make."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractLinearHeads(eqx.Module):
    """Heads of linear attention, whose prediction is βᵀ M x_q."""

    values: eqx.AbstractVar[Float[Array, " H"]]

    @property
    @abc.abstractmethod
    def matrix(self) -> Float[Array, "D D"]:
        """M."""


class MergedHeads(AbstractLinearHeads):
    """Heads with one matrix for key and query: M = Σ_h v_h U_h.

    Args:
        values: v, a number for each head.
        matrices: U.
    """

    values: Float[Array, " H"]
    matrices: Float[Array, "H D D"]

    @property
    def matrix(self) -> Float[Array, "D D"]:
        """M."""
        return jnp.einsum("h,hij->ij", self.values, self.matrices)


class SeparateHeads(AbstractLinearHeads):
    """Heads with keys and queries of rank R: M = Σ_h v_h Σ_r k_hr q_hrᵀ.

    Args:
        values: v, a number for each head.
        keys: k.
        queries: q.
    """

    values: Float[Array, " H"]
    keys: Float[Array, "H R D"]
    queries: Float[Array, "H R D"]

    @property
    def matrix(self) -> Float[Array, "D D"]:
        """M."""
        return jnp.einsum("h,hri,hrj->ij", self.values, self.keys, self.queries)
