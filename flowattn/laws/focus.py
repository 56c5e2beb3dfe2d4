"""The three laws of focus: what soft, hard and marginal attention conserve.

Vashisht & Ramaswamy's linear task moves in two numbers: μ, the margin of the right
class over the others in the classifier's logits for a foreground segment, and ν, the
margin of the foreground over the background in the focus scores
(`systems.focus_reduced`). With α = e^ν/(e^ν + m − 1), E = e^μ, β = E/(E + C − 1) and
Z = αβ + (1 − α)/C:

    soft      μ' = α/(e^{αμ} + C − 1)    ν' = α(1 − α)(C − 1)μ/[C(e^{αμ} + C − 1)]
    hard      μ' = α/(E + C − 1)         ν' = α(1 − α) log(Cβ)/C
    marginal  μ' = αβ/[Z(E + C − 1)]     ν' = α(1 − α)(β − 1/C)/(CZ)

Dividing, and with 1/(1 − α) = 1 + e^ν/(m − 1), time and α drop out of the right side:

    (1 + e^ν/(m − 1)) dν = r(μ) dμ,   so   ν + e^ν/(m − 1) − R(μ) is constant, R' = r:

    soft      r = (C − 1)μ/C
    hard      r = (E + C − 1) log(Cβ)/C
    marginal  r = (E + C − 1)(1 − 1/(Cβ))/C

Each `coordinates_of` maps parameters to an object with `mu` and `nu`.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import spence
from jax.tree_util import Partial

from .base import Law

_VASHISHT = "Vashisht & Ramaswamy 2023 (arXiv 2307.13421), integrated here"

Kind = Literal["exact", "approximate"]
CoordinatesOf = Callable[[Any], Any]


def soft_focus(
    coordinates_of: CoordinatesOf, segments: int, classes: int, kind: Kind, **about: Any
) -> Law:
    """ν + e^ν/(m − 1) − (C − 1)μ²/(2C): the SEN relation of topic words again.

    Args:
        coordinates_of: parameters ↦ an object with `mu` and `nu`.
        segments: m, the number of segments in a mosaic.
        classes: C, the number of classes.
        kind: "exact" for equal classes without noise, else "approximate".
        about: `since`, `until` and `regime`, as for `Law`.

    Returns:
        The `Law`, one number.
    """
    return _law("soft", _soft, coordinates_of, segments, classes, kind, about)


def hard_focus(
    coordinates_of: CoordinatesOf, segments: int, classes: int, kind: Kind, **about: Any
) -> Law:
    """ν + e^ν/(m − 1) − R(μ), R' = (e^μ + C − 1) log(Cβ)/C.

    With g = log(Cβ) = log C − log(1 + (C − 1)e^{−μ}), g' = 1 − β: by parts
    ∫ e^μ g = e^μ g − (C − 1) log(e^μ + C − 1), and since the derivative by μ of
    Li₂(−(C − 1)e^{−μ}) is log(1 + (C − 1)e^{−μ}),
    ∫ g = μ log C − Li₂(−(C − 1)e^{−μ}). Li₂(−x) = spence(1 + x).

    Args:
        coordinates_of: parameters ↦ an object with `mu` and `nu`.
        segments: m, the number of segments in a mosaic.
        classes: C, the number of classes.
        kind: "exact" for equal classes without noise, else "approximate".
        about: `since`, `until` and `regime`, as for `Law`.

    Returns:
        The `Law`, one number.
    """
    return _law("hard", _hard, coordinates_of, segments, classes, kind, about)


def marginal_focus(
    coordinates_of: CoordinatesOf, segments: int, classes: int, kind: Kind, **about: Any
) -> Law:
    """ν + e^ν/(m − 1) − R(μ),
    R = [e^μ + (C − 1)μ − (e^μ + 2(C − 1)μ − (C − 1)²e^{−μ})/C]/C.

    Args:
        coordinates_of: parameters ↦ an object with `mu` and `nu`.
        segments: m, the number of segments in a mosaic.
        classes: C, the number of classes.
        kind: "exact" for equal classes without noise, else "approximate".
        about: `since`, `until` and `regime`, as for `Law`.

    Returns:
        The `Law`, one number.
    """
    return _law("marginal", _marginal, coordinates_of, segments, classes, kind, about)


def _law(loss, growth, coordinates_of, segments, classes, kind, about) -> Law:
    return Law(
        Partial(_terms, coordinates_of, Partial(growth, classes), segments),
        f"{loss}_focus",
        kind,
        citation=_VASHISHT,
        dims=(),
        long_name=f"law of {loss} focus",
        **about,
    )


def _terms(coordinates_of, growth, segments, params):
    at = coordinates_of(params)
    start = growth(jnp.zeros_like(at.mu))
    return jnp.stack([at.nu, jnp.exp(at.nu) / (segments - 1), -(growth(at.mu) - start)])


def _soft(classes, mu):
    return (classes - 1) * mu**2 / (2 * classes)


def _hard(classes, mu):
    others = classes - 1
    ratio = others * jnp.exp(-mu)
    gain = jnp.log(float(classes)) - jnp.log1p(ratio)
    total = jnp.logaddexp(mu, jnp.log(float(others)))
    first = jnp.exp(mu) * gain - others * total
    rest = mu * jnp.log(float(classes)) - _dilogarithm(ratio)
    return (first + others * rest) / classes


@jax.custom_jvp
def _dilogarithm(x):
    """Li₂(−x) for x ≥ 0."""
    return spence(1 + x)


@_dilogarithm.defjvp
def _slope(primals, tangents):
    # JAX's derivative of spence is nan between 1 and 2.
    (x,), (change,) = primals, tangents
    slope = jnp.where(x > 0, jnp.log1p(x) / jnp.where(x > 0, x, 1), 1)
    return _dilogarithm(x), -slope * change


def _marginal(classes, mu):
    others = classes - 1
    up, down = jnp.exp(mu), jnp.exp(-mu)
    first = up + others * mu
    rest = up + 2 * others * mu - others**2 * down
    return (first - rest / classes) / classes
