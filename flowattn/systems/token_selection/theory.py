"""One sample of orthogonal tokens: the closed form.

Tokens of length² κ, of which the first is worth γ > 0 and the others 0, a label of 1,
W = 1, and p trained from 0. The logits a_t = x_t·p have

    a_t' = κ ℓ' ∂f/∂a_t = κγ ℓ' s₁(δ_{1t} − s_t),    f = γ s₁,

with ℓ' = 1 for the loss −f and σ(−f) for log(1 + e^{−f}). All other tokens stay alike,
s_t = (1 − s₁)/(T − 1), so of x = a₁ − a_t

    x' = r ℓ'(γ s₁) s₁(1 − s₁),    s₁ = σ(x − ln(T − 1)),    r = κγ T/(T − 1).

With z = x − ln(T − 1), 1/(s₁(1 − s₁)) = 2 + 2 cosh z: for the linear loss
2x + 2 sinh z = r t + its value at 0, for the logistic one
r t = ∫ (2 + 2 cosh z)(1 + e^{γσ(z)}) dx. Late x ~ ln t.
"""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ...models import SelectionHead
from ...observables import Observable
from ...problem import Problem
from ...tasks import TokenSamples
from ..inverse import inverse
from .observables import SelectionLoss

# The integrand is analytic within π of the real axis: over x < 14, that is up to a
# million times the first unit of time, 64 nodes leave rounding alone.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class OneSample(eqx.Module):
    """The sample, and how far its first token's logit is above the others over time.

    Args:
        length: κ.
        value: γ, positive.
        tokens: T.
        kind: of the loss.

    >>> for kind in ("linear", "logistic"):
    ...     sample = OneSample(jnp.array(9.0), jnp.array(0.7), 8, kind)
    ...     print(round(float(sample.difference_at(jnp.array([50.0]))[0]), 6))
    7.767802
    6.597831
    """

    length: Float[Array, ""]
    value: Float[Array, ""]
    tokens: int = eqx.field(static=True)
    kind: Literal["linear", "logistic"] = eqx.field(static=True)

    @property
    def problem(self) -> Problem:
        """The flow of the query, with x and its closed form."""
        tokens = jnp.sqrt(self.length) * jnp.eye(self.tokens)[None]
        values = jnp.zeros((1, self.tokens)).at[0, 0].set(self.value)
        samples = TokenSamples(tokens, values, jnp.ones(1), jnp.zeros(1, bool))
        start = SelectionHead(jnp.eye(self.tokens), jnp.zeros(self.tokens))
        seen = Observable(
            Partial(_difference, tokens), (), "1", "logit of token 1 above the others"
        )
        return Problem(
            start,
            SelectionLoss(samples, self.kind),
            observables={"difference": seen},
            rates=frozen_weight(start),
            closed_forms={"difference": self.difference_at},
        )

    @property
    def _rate(self) -> Float[Array, ""]:
        return self.length * self.value * self.tokens / (self.tokens - 1)

    def time_of(self, x: Float[Array, " time"]) -> Float[Array, " time"]:
        """The time at which the difference has come from 0 to x."""
        even = math.log(self.tokens - 1)
        if self.kind == "linear":
            ends = 2 * x + 2 * jnp.sinh(x - even) + 2 * math.sinh(even)
            return ends / self._rate
        z = x[:, None] * jnp.asarray((1 + _NODES) / 2, x.dtype)[None] - even
        slowness = (2 + 2 * jnp.cosh(z)) * (1 + jnp.exp(self.value * jax.nn.sigmoid(z)))
        total = slowness @ jnp.asarray(_WEIGHTS / 2, x.dtype)
        return x * total / self._rate

    def difference_at(self, ts: Float[Array, " time"]) -> Float[Array, " time"]:
        """x over time, by bisection: sinh z is at most r t/2."""
        high = math.log(self.tokens - 1) + jnp.arcsinh(self._rate * ts / 2)
        return inverse(self.time_of, ts, jnp.zeros_like(high), high)


def frozen_weight(head: SelectionHead) -> Any:
    """The rates of a flow that moves the query alone."""
    return eqx.tree_at(lambda h: (h.weight, h.query), head, (0.0, 1.0))


def _difference(tokens, params):
    logits = tokens[0] @ (params.weight @ params.query)
    return logits[0] - logits[1]
