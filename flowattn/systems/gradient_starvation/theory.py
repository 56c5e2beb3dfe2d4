"""The theory of gradient starvation: the flow in outputs, in features and in residuals.

With the margins u = YΦθ = U S Vᵀθ, the residuals α = σ(−u), the kernel K = U S² Uᵀ and
the features' coordinates z = Uᵀu, each closes by itself, without V:

    weight decay   u' = Kα − λu,      z' = S² Uᵀα − λz,
    decoupled      u' = K (α − λu),   z' = S² (Uᵀα − λz),

and α' = −α(1 − α) ∘ u' with u = log((1 − α)/α).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ...flows import AbstractFlow

# Newton's steps, and the halvings of each that are tried.
_STEPS, _HALVINGS = 60, 12


def directions(overlap: Float[Array, ""]) -> Float[Array, "2 2"]:
    """U = [[√(1 − δ²), −δ], [δ, √(1 − δ²)]]: a column for each feature, a row for each
    example; δ is what the strong feature is in the second example.
    """
    rest = jnp.sqrt(1 - overlap**2)
    return jnp.array([[rest, -overlap], [overlap, rest]])


def kernel_of(
    basis: Float[Array, "n n"], strengths: Float[Array, " n"]
) -> Float[Array, "n n"]:
    """K = U S² Uᵀ."""
    return (basis * strengths[None] ** 2) @ basis.T


@eqx.filter_jit
def fixed_point(
    kernel: Float[Array, "n n"], penalty: Float[Array, ""]
) -> Float[Array, " n"]:
    """α at the minimum under weight decay: λ log((1 − α)/α) = Kα; nan for λ = 0, which
    has none.

    In β, θ − θ₀ = (YΦ)ᵀβ and u = Kβ, the loss Σ log(1 + e^{−u}) + (λ/2) βᵀKβ is convex,
    also where K is singular. Newton's step for it is (AK + λ)⁻¹(α − λβ),
    A = diag(α(1 − α)); it is halved until the loss does not rise.

    Spectral decoupling has K (α − λu) = 0, which is the same with the identity as K.

    Args:
        kernel: K, with the labels, Y ΦΦᵀ Y.
        penalty: λ.

    Returns:
        α of each example.

    >>> alpha = fixed_point(jnp.eye(1), jnp.asarray(0.002))
    >>> round(float(alpha[0] / 0.002), 8)  # u*
    4.66512041
    """
    steps = 0.5 ** jnp.arange(_HALVINGS + 1.0)

    def loss(beta):
        u = kernel @ beta
        return jnp.sum(jax.nn.softplus(-u)) + penalty / 2 * beta @ u

    def improved(_, beta):
        alpha = jax.nn.sigmoid(-(kernel @ beta))
        slopes = (alpha * (1 - alpha))[:, None] * kernel
        matrix = slopes + penalty * jnp.eye(beta.size)
        step = jnp.linalg.solve(matrix, alpha - penalty * beta)
        found = jax.vmap(lambda size: loss(beta + size * step))(steps)
        # Near the minimum losses differ by rounding alone.
        now = loss(beta)
        taken = jnp.argmax(found <= now + 1e-13 * jnp.abs(now))
        return beta + steps[taken] * step

    beta = jax.lax.fori_loop(0, _STEPS, improved, jnp.zeros(kernel.shape[0]))
    alpha = jax.nn.sigmoid(-(kernel @ beta))
    return jnp.where(penalty > 0, alpha, jnp.nan)


def starvation(
    basis: Float[Array, "n n"],
    strengths: Float[Array, " n"],
    penalty: Float[Array, ""],
    alpha: Float[Array, " n"],
) -> Float[Array, " n"]:
    """∂z*/∂s₁² under weight decay at the fixed point: how far each feature is learned
    more as the first is stronger. Negative: it is starved.

    From λu = Kα, dα = −A du and dK = e₁e₁ᵀ ds₁² with e₁ the first column of U:
    (λ + KA) du = e₁ (e₁·α) ds₁².

    Args:
        basis: U.
        strengths: s.
        penalty: λ.
        alpha: the fixed point.

    Returns:
        A number for each feature.
    """
    kernel = kernel_of(basis, strengths)
    matrix = penalty * jnp.eye(alpha.size) + kernel * (alpha * (1 - alpha))[None]
    first = basis[:, 0]
    return basis.T @ jnp.linalg.solve(matrix, first * (first @ alpha))


class OutputFlow(AbstractFlow):
    """The flow of the margins, u' = Kα − λu, or K (α − λu).

    Args:
        kernel: K.
        penalty: λ.
        decoupled: whether the outputs are penalised, not the parameters.
    """

    kernel: Float[Array, "n n"]
    penalty: Float[Array, ""]
    decoupled: bool = eqx.field(static=True)

    def __call__(self, params: Float[Array, " n"], t=0.0) -> Float[Array, " n"]:
        alpha = jax.nn.sigmoid(-params)
        if self.decoupled:
            return self.kernel @ (alpha - self.penalty * params)
        return self.kernel @ alpha - self.penalty * params


class ResidualFlow(AbstractFlow):
    """The flow of the residuals, α' = −α(1 − α) ∘ u'. Under weight decay

        α' = λ α(1 − α) ∘ [log((1 − α)/α) − Kα/λ].

    Args:
        outputs: the flow of u.
    """

    outputs: OutputFlow

    def __call__(self, params: Float[Array, " n"], t=0.0) -> Float[Array, " n"]:
        return -params * (1 - params) * self.outputs(margins_of(params))


class DualFlow(AbstractFlow):
    """The paper's dual descent, α' = log((1 − α)/α) − Kα/λ.

    Its fixed point is that of training, its path is not: that of training has the same
    bracket times λα(1 − α), a factor of each example.

    Args:
        kernel: K.
        penalty: λ.
    """

    kernel: Float[Array, "n n"]
    penalty: Float[Array, ""]

    def __call__(self, params: Float[Array, " n"], t=0.0) -> Float[Array, " n"]:
        return margins_of(params) - self.kernel @ params / self.penalty


def margins_of(alpha: Float[Array, " n"]) -> Float[Array, " n"]:
    """u = log((1 − α)/α)."""
    return jnp.log1p(-alpha) - jnp.log(alpha)


class FeatureSpaceLoss(eqx.Module):
    """The loss as a function of z, whose gradient flow with the rates s² is training:

        Σ log(1 + e^{−(Uz)}) + (λ/2) Σ z²/s²,   decoupled + (λ/2) Σ z².

    Args:
        basis: U.
        strengths: s.
        penalty: λ.
        decoupled: whether the outputs are penalised, not the parameters.
    """

    basis: Float[Array, "n n"]
    strengths: Float[Array, " n"]
    penalty: Float[Array, ""]
    decoupled: bool = eqx.field(static=True)

    def __call__(self, params: Float[Array, " n"]) -> Scalar:
        sizes = params if self.decoupled else params / self.strengths
        fit = jnp.sum(jax.nn.softplus(-(self.basis @ params)))
        return fit + self.penalty / 2 * sizes @ sizes
