"""Linear ICL in fewer numbers: aligned heads, and one mode of merged heads.

Where M is diagonal, so is G = C − E₂ M Λ, with the entries g_d = λ_d² − λ_d³ a_d M_dd.

Aligned heads: k_hr = q_hr = κ_hr e_d, with any component d for each pair (h, r). Then
k_hr' = v_h G q_hr = v_h κ_hr g_d e_d, and q_hr' is the same, so that heads stay aligned
and M diagonal:

    v_h' = Σ_r κ_hr² g_d,   κ_hr' = v_h κ_hr g_d,   M_dd = Σ v_h κ_hr² over pairs of d.

As k and q are one number, the gradient in κ is twice that of either: this is the flow
of the loss in (v, κ) with the rates ½ for v and ¼ for κ.

One mode: v_h = c_h v and U_h = c_h diag(u) with ‖c‖ = 1, so M = v diag(u). Then
v_h' = ⟨U_h, G⟩ and U_h' = v_h G keep c, with v' = Σ_d u_d g_d and u_d' = v g_d.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from ...models import MergedHeads, SeparateHeads
from .theory import shrinkage


class AlignedPoint(eqx.Module):
    """Heads whose keys and queries are κ e_d.

    Args:
        values: v of each head.
        pairs: κ of each pair (h, r).
        components: d of each pair; None: of rates.
    """

    values: Float[Array, " H"]
    pairs: Float[Array, "H R"]
    components: Int[Array, "H R"] | None

    def diagonal(self, size: int) -> Float[Array, " D"]:
        """The diagonal of M, of `size` components."""
        strengths = self.values[:, None] * self.pairs**2
        return jnp.zeros(size, strengths.dtype).at[self.components].add(strengths)


class ModePoint(eqx.Module):
    """One mode of merged heads, v_h = c_h v and U_h = c_h diag(u).

    Args:
        value: v.
        entries: u.
    """

    value: Float[Array, ""]
    entries: Float[Array, " D"]

    def diagonal(self, size: int) -> Float[Array, " D"]:
        """The diagonal of M, of `size` components."""
        return (self.value * self.entries)[:size]


class DiagonalLoss(eqx.Module):
    """The loss of a diagonal M: tr Λ + Σ_d (λ_d³ a_d M_dd² − 2 λ_d² M_dd).

    Args:
        spectrum: the eigenvalues of Λ.
        context: N.
    """

    spectrum: Float[Array, " D"]
    context: int = eqx.field(static=True)

    def __call__(self, params: AlignedPoint | ModePoint) -> Scalar:
        found = params.diagonal(self.spectrum.size)
        cubes = self.spectrum**3 * shrinkage(self.spectrum, self.context)
        falls = 2 * self.spectrum**2 * found - cubes * found**2
        return jnp.sum(self.spectrum) - jnp.sum(falls)


def aligned(size: int, point: AlignedPoint) -> SeparateHeads:
    """The heads of a point, on tokens of `size` components."""
    keys = point.pairs[:, :, None] * jnp.eye(size)[point.components]
    return SeparateHeads(point.values, keys, keys)


def aligned_part(params: SeparateHeads) -> AlignedPoint:
    """Every pair along the component in which the mean of its key and query is largest;
    exact for heads that are aligned.
    """
    means = (params.keys + params.queries) / 2
    components = jnp.argmax(jnp.abs(means), axis=-1)
    pairs = jnp.take_along_axis(means, components[:, :, None], axis=-1)[..., 0]
    return AlignedPoint(params.values, pairs, components)


def mode(guess: Float[Array, " D"], params: MergedHeads) -> ModePoint:
    """The mode of merged heads that grows first: c along v + ⟨U, ĝ⟩, ĝ = Λ²/‖Λ²‖.

    Where M is small, v' = ‖Λ²‖ ⟨U, ĝ⟩ and ⟨U, ĝ⟩' = ‖Λ²‖ v: their sum grows.
    """
    entries = jnp.diagonal(params.matrices, axis1=-2, axis2=-1)
    shares = params.values + entries @ guess
    shares = shares / jnp.linalg.norm(shares)
    return ModePoint(shares @ params.values, shares @ entries)


def one_mode(heads: int, point: ModePoint) -> MergedHeads:
    """Heads in one mode with equal shares."""
    shares = jnp.full(heads, heads**-0.5)
    matrices = shares[:, None, None] * jnp.diag(point.entries)[None]
    return MergedHeads(shares * point.value, matrices)
