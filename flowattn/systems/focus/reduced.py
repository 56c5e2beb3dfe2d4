"""Focus in two numbers: the exact reduction of the linear task, and closed forms.

The task is the same for every class if all are equally frequent and segments carry no
noise: from a start that is symmetric under permutations of the classes, training stays
symmetric. Then u_y = ν for every class y, W_yy = μ(C − 1)/C and W_ky = −μ/C for k ≠ y
(the mean over k stays 0, since the gradient by the logits sums to 0), and the loss is

    soft      log(1 + (C − 1)e^{−αμ})
    hard      α log(1 + (C − 1)e^{−μ}) + (1 − α) log C
    marginal  −log(αβ + (1 − α)/C)

with α = e^ν/(e^ν + m − 1), β = e^μ/(e^μ + C − 1). A unit of μ moves the parameters by
with α = e^ν/(e^ν + m − 1), β = e^μ/(e^μ + C − 1). A unit of μ moves the parameters by a
vector of squared length C[((C − 1)/C)² + (C − 1)/C²] = C − 1, a unit of ν by one of
squared length C, and the two are orthogonal. So gradient flow of the parameters is
gradient flow of this loss with the rates 1/(C − 1) and 1/C, and gradient descent (also
with momentum) is, step for step, descent with those rates. Written out, it is the
system in `laws.focus`.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ...entries import Entry
from ...losses import AbstractExplicitLoss
from ...models import LinearClassifier, LinearFocus
from ...observables import Observable

Loss = Literal["soft", "hard", "marginal"]


class Focus2D(eqx.Module):
    """μ, the margin of the right logit, and ν, the margin of the foreground's score;
    None for a coordinate that is not trained.
    """

    mu: Any
    nu: Any


class ReducedLoss(AbstractExplicitLoss):
    """The loss as a function of μ and ν; of μ alone if ν is `frozen`."""

    frozen: Focus2D
    kind: Loss = eqx.field(static=True)
    segments: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)

    def __call__(self, params: Focus2D) -> Float[Array, ""]:
        at = eqx.combine(params, self.frozen)
        few, others = jnp.log(self.segments - 1.0), jnp.log(self.classes - 1.0)
        if self.kind == "soft":
            return jax.nn.softplus(others - jax.nn.sigmoid(at.nu - few) * at.mu)
        wrong, many = jax.nn.softplus(others - at.mu), jnp.log(float(self.classes))
        if self.kind == "hard":
            return jax.nn.sigmoid(at.nu - few) * wrong + (
                jax.nn.sigmoid(few - at.nu) * many
            )
        found = jax.nn.log_sigmoid(at.nu - few) - wrong
        return -jnp.logaddexp(found, jax.nn.log_sigmoid(few - at.nu) - many)

    def gradient(self, params: Focus2D) -> Focus2D:
        """The slopes by μ and ν.

        With α' = α(1 − α), β' = β(1 − β), and s the probability of all wrong labels,

            soft      −α s, −α' μ s,  s = σ(log(C − 1) − αμ)
            hard      −α (1 − β), α' (log(1 + (C − 1)e^{−μ}) − log C)
            marginal  −α β'/Z, −α' (β − 1/C)/Z,  Z = αβ + (1 − α)/C
        """
        at = eqx.combine(params, self.frozen)
        few, others = jnp.log(self.segments - 1.0), jnp.log(self.classes - 1.0)
        alpha, rest = _both_sigmoids(at.nu - few)
        if self.kind == "soft":
            wrong = jax.nn.sigmoid(others - alpha * at.mu)
            slope = Focus2D(-alpha * wrong, -alpha * rest * at.mu * wrong)
        elif self.kind == "hard":
            worse = jax.nn.softplus(others - at.mu) - jnp.log(float(self.classes))
            wrong = jax.nn.sigmoid(others - at.mu)
            slope = Focus2D(-alpha * wrong, alpha * rest * worse)
        else:
            beta, wrong = _both_sigmoids(at.mu - others)
            z = alpha * beta + rest / self.classes
            better = beta - 1 / self.classes
            slope = Focus2D(-alpha * beta * wrong / z, -alpha * rest * better / z)
        return slope if params.nu is not None else Focus2D(slope.mu, None)


def _both_sigmoids(x: Float[Array, ""]) -> tuple[Array, Array]:
    """σ(x) and σ(−x) from one exponential, accurate to rounding even where small."""
    small = jnp.exp(-jnp.abs(x))
    larger = 1 / (1 + small)
    smaller = small * larger
    return jnp.where(x > 0, larger, smaller), jnp.where(x > 0, smaller, larger)


def rates(classes: int, fixed: bool) -> Focus2D:
    """The rates of μ and ν."""
    return Focus2D(1 / (classes - 1), None if fixed else 1 / classes)


@eqx.filter_jit
def closed_form(
    kind: Loss,
    classes: int,
    alpha: Float[Array, ""] | float,
    t: Float[Array, "*time"],
    start: Float[Array, ""] | float = 0.0,
) -> Float[Array, "*time"]:
    """μ at times t, for a focus held at α (0 < α ≤ 1), from μ = `start`.

    The equations of μ separate. With G(x) = P expm1(x) + Q x − S expm1(−x),

        soft      P = 1, Q = C − 1, S = 0:  G(αμ) − G(α start) = α² t
        hard      the same G:               G(μ) − G(start) = α t
        marginal  P = α + b, Q = (C − 1)(α + 2b), S = (C − 1)² b, b = (1 − α)/C:
                  G(μ) − G(start) = α t,

    the last because μ' = αβ/[Z(e^μ + C − 1)] and
    Z(e^μ + C − 1)/β = Z(e^μ + C − 1)² e^{−μ} = G'(μ), by expanding the square.
    G is inverted by Newton's method: Lambert's W, which would also solve the first two,
    cancels at small and at large t. Finite and accurate to rounding for t beyond 1e12.

    >>> import jax.numpy as jnp
    >>> mu = closed_form("hard", 20, 0.4, jnp.array(1e3))
    >>> bool(abs(jnp.expm1(mu) + 19 * mu - 400) < 1e-9)
    True
    """
    alpha, t, start = jnp.asarray(alpha), jnp.asarray(t), jnp.asarray(start)
    others = classes - 1
    if kind == "marginal":
        b = (1 - alpha) / classes
        parts = alpha + b, others * (alpha + 2 * b), others**2 * b
    else:
        parts = jnp.ones_like(alpha), others * jnp.ones_like(alpha), 0 * alpha
    scale = alpha if kind == "soft" else jnp.ones_like(alpha)
    grown = _growth(parts, scale * start) + scale * alpha * t
    return _solved(parts, grown) / scale


def _growth(parts, x):
    p, q, s = parts
    return p * jnp.expm1(x) + q * x - s * jnp.expm1(-x)


# Double precision is reached in at most 9 steps over α from 0.01 to 1, C from 2 to 1e4
# and t from 1e-6 to 1e15.
_STEPS = 12


def _solved(parts, target):
    """x with G(x) = `target`, by Newton's method.

    Every term of G has the sign of x, so the solution lies below what each term alone
    would need. From there Newton's method descends where G is convex; where it is
    concave, one step may overshoot, but not beyond 0, and then it ascends. A negative
    target is the mirror image, with P and S exchanged.
    """
    sign = jnp.where(target < 0, -1.0, 1.0).astype(target.dtype)
    size = jnp.abs(target)
    p, q, s = parts
    mirrored = (jnp.where(sign < 0, s, p), q, jnp.where(sign < 0, p, s))
    tiny = jnp.finfo(target.dtype).tiny
    slope = sum(mirrored)
    highest = jnp.minimum(size / q, jnp.log1p(size / jnp.maximum(mirrored[0], tiny)))
    # Where G is convex throughout, G(x) ≥ G'(0) x too.
    convex = mirrored[0] >= mirrored[2]
    first = jnp.where(convex, jnp.minimum(highest, size / slope), highest)

    def newton(x, _):
        p, q, s = mirrored
        step = (_growth(mirrored, x) - size) / (p * jnp.exp(x) + q + s * jnp.exp(-x))
        return jnp.clip(x - step, 0.0, highest), None

    return sign * jax.lax.scan(newton, first, length=_STEPS)[0]


@eqx.filter_jit
def coordinates(frozen: LinearFocus, fixed: bool, params: LinearFocus) -> Focus2D:
    """μ and ν of a linear model's parameters, as means over the classes; no ν if the
    focus is fixed.
    """
    found = coordinates_by_class(eqx.combine(params, frozen))
    nu = None if fixed else jnp.mean(found.nu)
    return Focus2D(jnp.mean(found.mu), nu)


def coordinates_by_class(model: LinearFocus) -> Focus2D:
    """μ and ν of every class."""
    weight = model.classifier.weight[:-1]
    right = jnp.diagonal(weight)
    wrong = (jnp.sum(weight, axis=0) - right) / (weight.shape[1] - 1)
    return Focus2D(right - wrong, model.focus[:-1])


@eqx.filter_jit
def lifted(classes: int, at: Focus2D) -> LinearFocus:
    """The symmetric linear model of μ and ν."""
    weight = at.mu * (jnp.eye(classes) - 1 / classes)
    return LinearFocus(
        jnp.pad(jnp.broadcast_to(at.nu, (classes,)), (0, 1)),
        LinearClassifier(jnp.pad(weight, ((0, 1), (0, 0)))),
    )


def coordinate_observables(whole: Any) -> dict[str, Observable]:
    """μ and ν, by name; `whole` maps parameters to them."""
    return {
        "mu": Observable(Entry("mu", whole), (), "1", "logit margin of the label, μ"),
        "nu": Observable(
            Partial(_nu, whole),
            (),
            "1",
            "score margin of the foreground, ν",
        ),
    }


def reduced_observables(loss: ReducedLoss, whole: Any) -> dict[str, Observable]:
    """Loss, μ, ν, α and β of the reduced equations, by name."""
    return {
        "loss": Observable(loss, (), "nat", "training loss"),
        **coordinate_observables(whole),
        "alpha": Observable(
            Partial(_share, whole, loss.segments, "nu"), (), "1", ATTENTION
        ),
        "beta": Observable(
            Partial(_share, whole, loss.classes, "mu"), (), "1", PROBABILITY
        ),
    }


ATTENTION = "attention on the foreground"
PROBABILITY = "probability of the label given the foreground"


def _nu(whole, params):
    nu = whole(params).nu
    # A focus held at 1 has no finite ν.
    return jnp.where(jnp.isfinite(nu), nu, jnp.nan)


def _share(whole, among, name, params):
    """The softmax of a number among zeros."""
    return jax.nn.sigmoid(getattr(whole(params), name) - jnp.log(among - 1.0))
