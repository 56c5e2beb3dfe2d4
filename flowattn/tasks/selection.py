"""Token selection: samples of Gaussian tokens, one of which carries the signal of the
class.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray


class TokenSamples(eqx.Module):
    """Samples of tokens, with what each token is worth.

    Args:
        tokens: x_t of each sample; in coordinates of their span, k is the dimension of
            that.
        values: x_tᵀν.
        labels: 1 or −1.
        flipped: whether the label is not that of the class.
    """

    tokens: Float[Array, "n T k"]
    values: Float[Array, "n T"]
    labels: Float[Array, " n"]
    flipped: Bool[Array, " n"]


class TokenSelectionTask(eqx.Module):
    """Tokens N(0, 1) in d dimensions; in a sample of class c token 1 has the signal μ_c
    added to it, token 2 the weak signal ρμ_c, and token 3 ρ times that of the other
    class. The two signals are ‖μ‖e₁ (class 1) and ‖μ‖e₂ (class −1).

    A token is worth x_tᵀν with ν = (μ₁ − μ₂)/(‖μ₁ − μ₂‖ ‖μ‖) = (e₁ − e₂)/(√2 ‖μ‖): for
    class 1 token 1 is worth 1/√2, tokens 2 and 3 ±ρ/√2, each with noise N(0, 1/‖μ‖²),
    which is all that any other token is worth.

    Args:
        signal: ‖μ‖.
        rho: ρ.
        dimension: d.
        tokens: T, the number of tokens of a sample, at least 3.

    >>> import jax.numpy as jnp, jax.random as jr
    >>> task = TokenSelectionTask(jnp.array(1e6), jnp.array(0.1), 10, 4)
    >>> right = jnp.zeros(2, bool)
    >>> samples = task.sample(jr.key(0), jnp.array([1.0, -1.0]), right)
    >>> (jnp.round(jnp.sqrt(2.0) * samples.values, 3) + 0.0).tolist()
    [[1.0, 0.1, -0.1, 0.0], [-1.0, -0.1, 0.1, 0.0]]
    """

    signal: Float[Array, ""]
    rho: Float[Array, ""]
    dimension: int = eqx.field(static=True)
    tokens: int = eqx.field(static=True)

    def draw(self, key: PRNGKeyArray, label: Float[Array, ""]) -> Float[Array, "T d"]:
        """The tokens of one sample.

        Args:
            key: of the draw.
            label: its class, 1 or −1.

        Returns:
            The tokens.
        """
        own = jnp.stack([1 + label, 1 - label]) / 2
        rows = jnp.stack([own, self.rho * own, self.rho * own[::-1]])
        noise = jr.normal(key, (self.tokens, self.dimension))
        return noise.at[:3, :2].add(self.signal * rows)

    def value(self, tokens: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """What tokens are worth.

        Args:
            tokens: some tokens x.

        Returns:
            xᵀν of each.
        """
        return (tokens[..., 0] - tokens[..., 1]) / (math.sqrt(2) * self.signal)

    def sample(
        self,
        key: PRNGKeyArray,
        classes: Float[Array, " n"],
        flipped: Bool[Array, " n"],
    ) -> TokenSamples:
        """Samples of given classes, some of which have the label of the other.

        Args:
            key: of the draw.
            classes: 1 or −1.
            flipped: whose labels are wrong.

        Returns:
            The `TokenSamples`.
        """
        tokens = jax.vmap(self.draw)(jr.split(key, classes.size), classes)
        labels = jnp.where(flipped, -classes, classes)
        return TokenSamples(tokens, self.value(tokens), labels, flipped)
