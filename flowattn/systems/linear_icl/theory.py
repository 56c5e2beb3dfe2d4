"""The theory of linear attention that learns regression in context.

With Λ diagonal, eigenvalues λ_d, and N pairs in a sequence, a_d = 1 + (1 + tr Λ/λ_d)/N.
Where M is diagonal, so is G = C − E₂ M Λ, with entries g_d = λ_d² − λ_d³ a_d M_dd: each
component is learned by itself, M_dd → 1/(λ_d a_d).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ..inverse import inverse


def shrinkage(spectrum: Float[Array, " D"], context: int) -> Float[Array, " D"]:
    """a_d = 1 + (1 + tr Λ/λ_d)/N: what a finite context costs each component."""
    return 1 + (1 + jnp.sum(spectrum) / spectrum) / context


def plateaus(spectrum: Float[Array, " D"], context: int) -> Float[Array, " D+1"]:
    """L_m = tr Λ − Σ_{d≤m} λ_d/a_d: the loss once the first m components are learned.

    >>> eigenvalues = jnp.array([4.0, 3.0, 2.0, 1.0]) / 10
    >>> [round(float(x), 7) for x in plateaus(eigenvalues, 31)]
    [1.0, 0.6405797, 0.3773722, 0.2098046, 0.1359951]
    """
    falls = jnp.cumsum(spectrum / shrinkage(spectrum, context))
    return jnp.sum(spectrum) - jnp.concatenate([jnp.zeros(1), falls])


def primitive(u: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """F(u) = ∫ du/(u² − u⁵), up to a constant: the time of an aligned head of rank 1.

    With s = (λ a)^(−1/3), v = s u, v' = λ² v² − λ³ a v⁵ is u' = λ² s (u² − u⁵), so
    that t = [F(u) − F(u₀)]/(λ² s).
    """
    root = jnp.sqrt(3.0)
    rest = jnp.where(u < 1, jnp.log1p(-jnp.minimum(u, 1.0)), jnp.log(jnp.abs(1 - u)))
    logs = jnp.log1p(u + u**2) / 6 - rest / 3
    return -1 / u + logs - jnp.arctan((2 * u + 1) / root) / root


def time_of(
    u: Float[Array, "*n"],
    start: Float[Array, "*n"],
    spectrum: Float[Array, "*n"],
    shrunk: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    """The time at which an aligned head of rank 1 has come from u₀ to u.

    >>> eigenvalues = jnp.array([4.0, 3.0, 2.0, 1.0]) / 10
    >>> a = shrinkage(eigenvalues, 31)
    >>> half, start = jnp.full(4, 0.5 ** (1 / 3)), 0.05 * (eigenvalues * a) ** (1 / 3)
    >>> [round(float(t), 4) for t in time_of(half, start, eigenvalues, a)]
    [120.939, 215.6113, 486.8066, 1956.3138]
    """
    size = (spectrum * shrunk) ** (-1 / 3)
    return (primitive(u) - primitive(start)) / (spectrum**2 * size)


def value_at(
    ts: Float[Array, " time"],
    start: Float[Array, " D"],
    spectrum: Float[Array, " D"],
    context: int,
) -> Float[Array, "time D"]:
    """The values of aligned heads of rank 1 over time, from v = κ = `start`: the
    inverse of `time_of`, by bisection.

    F grows from −∞ at 0 to ∞ at 1; in y = log(u/(1 − u)) both ends are far away. From
    starts beyond 1, u falls to 1, and F grows to ∞ in y = −log(u − 1).
    """
    shrunk = shrinkage(spectrum, context)
    size = (spectrum * shrunk) ** (-1 / 3)
    first = start / size
    target = primitive(first)[None] + spectrum[None] ** 2 * size[None] * ts[:, None]
    above = (first > 1)[None]
    apart = jnp.abs(1 - first)
    low = jnp.log(jnp.where(first > 1, 1.0, first) / apart)[None]
    low = jnp.broadcast_to(low, target.shape)

    def at(y):
        return jnp.where(above, 1 + jnp.exp(-y), jax.nn.sigmoid(y))

    # Beyond y = 36 u is 1.
    high = jnp.full_like(low, 36.0)
    return size[None] * at(inverse(lambda y: primitive(at(y)), target, low, high))


def white_scale(
    ts: Float[Array, " time"], start: Scalar, dimension: int, context: int
) -> Float[Array, " time"]:
    """σ(t) of M = σ 1 for merged heads and Λ = 1: from u₀ = ‖(v + U ĝ)/2‖²,

    σ(t) = e^{2√D t}/[c (e^{2√D t} − 1) + √D/u₀],   c = 1 + (1 + D)/N.
    """
    root = jnp.sqrt(float(dimension))
    c = 1 + (1 + dimension) / context
    fall = jnp.exp(-2 * root * ts)
    return 1 / (c * (1 - fall) + fall * root / start)
