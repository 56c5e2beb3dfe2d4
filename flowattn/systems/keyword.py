"""Keyword: the toy classifier of Snell, Zhong, Klein & Steinhardt, "Approximating How
Single Head Attention Learns" (arXiv 2103.07601)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, Scalar
from scipy.special import wrightomega

from .. import laws
from ..errors import InputError
from ..observables import Observable
from ..panels import Panel
from ..problem import Problem
from ..trajectory import Trajectory
from .base import AbstractSystem, AnyRun, Defaults, theory_panels

_ROOT2 = math.sqrt(2)


class KeywordPoint(eqx.Module):
    """β of the two words, and the attention on the keyword: a free `weight` p, or the
    `logit` a of p = σ(a).
    """

    beta0: Float[Array, ""]
    beta1: Float[Array, ""]
    weight: Float[Array, ""] | None = None
    logit: Float[Array, ""] | None = None

    @property
    def attention(self) -> Float[Array, ""]:
        """p."""
        if self.logit is not None:
            return jax.nn.sigmoid(self.logit)
        assert self.weight is not None
        return self.weight

    @property
    def margin(self) -> Float[Array, ""]:
        """D = β₁ − β₀: what the keyword says for the positive class."""
        return self.beta1 - self.beta0


class Keyword(AbstractSystem):
    """Attention that has to find the keyword, while the word's meaning is learned.

    The sentence {0, 1} is positive, {0, 0} negative; with p the attention on word 1 the
    loss is s₀ − s₁ = −pD, D = β₁ − β₀ (see `laws.beta_sum`).

    Raises `InputError` for starts that make no system.

    >>> import jax.random as jr, flowattn as fa
    >>> problem = fa.systems.Keyword().problem(key=jr.key(0))
    >>> traj = fa.solve(problem.flow, problem.params, t1=2.0, events=problem.events)
    >>> round(float(traj.events["time_to_attend"]), 4)
    0.9312
    """

    name: ClassVar[str] = "keyword"
    example: ClassVar[str] = "--beta0 0.3 --beta1 -0.2 --p 0.4"
    citation: ClassVar[str] = (
        "Snell, Zhong, Klein & Steinhardt, Approximating How Single Head Attention "
        "Learns, arXiv 2103.07601, 2021"
    )

    beta0: SupportsFloat = 0.0
    """β₀ at the start."""
    beta1: SupportsFloat = 0.0
    """β₁ at the start."""
    p: SupportsFloat = 0.5
    """Attention on the keyword at the start."""
    attention: Literal["linear", "softmax"] = eqx.field(static=True, default="linear")
    """p itself moves, without bounds; or a softmax of logits that move."""
    logits: Literal[1, 2] | None = eqx.field(static=True, default=None)
    """Softmax: whether one logit moves, or two; None: one."""

    def __check_init__(self):
        p, softmax = self.p, self.attention == "softmax"
        if isinstance(p, int | float) and softmax and not 0 < p < 1:
            raise InputError(f"p must be in (0, 1) for softmax attention, got {p}")
        if isinstance(p, int | float) and not p < 1:
            raise InputError(f"p must be below 1, which it is to reach, got {p}")

    @property
    def idle(self) -> dict[str, str]:
        """Without a softmax there are no logits."""
        softmax = self.attention == "softmax"
        return {} if softmax else {"logits": "is of attention='softmax'"}

    @property
    def defaults(self) -> Defaults:
        """A free weight explodes as e^{√2 t}, a softmax takes its time."""
        return Defaults(5.0 if self.attention == "linear" else 500.0, steps=0)

    @property
    def moving_logits(self) -> int:
        """κ."""
        return self.logits or 1

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from the start; nothing is drawn."""
        del key, data
        beta0, beta1, p = (
            jnp.asarray(x, float) for x in (self.beta0, self.beta1, self.p)
        )
        known = [laws.beta_sum()]
        if self.attention == "linear":
            start = KeywordPoint(beta0, beta1, weight=p)
            rates, event = None, _attends
            known.append(laws.keyword_energy())
        else:
            logit = jnp.log(p) - jnp.log1p(-p)
            start = KeywordPoint(beta0, beta1, logit=logit)
            one, count = jnp.ones(()), jnp.asarray(float(self.moving_logits))
            rates = KeywordPoint(one, one, logit=count)
            event = Partial(_regains, logit)
            known.append(laws.keyword_softmax(self.moving_logits))
        return Problem(
            start,
            keyword_loss,
            validation=keyword_loss,
            observables=_observables(start),
            laws=known,
            rates=rates,
            events={"time_to_attend": event},
            closed_forms=_closed_forms(start) if start.logit is None else {},
        )

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Attention, margin and both β over time, with the closed forms."""
        return {"training": theory_panels(run, ("p", "margin", "beta0", "beta1"))}

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """What theory says: whether the keyword is ever attended to, and when (free
        weight); the logit at which a softmax turns back.
        """
        del flow
        start = problem.params
        if self.attention == "linear":
            margin, p = float(start.margin), float(start.weight)
            return {
                "attends": margin > -_ROOT2 * p,
                "time_to_attend": time_to_attend(margin, p),
            }
        margin, logit = float(start.margin), float(start.logit)
        turns = turning_logit(margin, logit, self.moving_logits)
        return {"attends": True, "turning_logit": turns if margin < 0 else math.nan}


def keyword_loss(params: KeywordPoint) -> Scalar:
    """s₀ − s₁ = −pD."""
    return -params.attention * params.margin


def time_to_attend(margin: float, p: float) -> float:
    """When a free weight reaches 1; nan where it never does, or begins beyond.

    p = a e^{√2 t} + b e^{−√2 t} with a = (p₀ + D₀/√2)/2 and b = (p₀ − D₀/√2)/2, so
    e^{√2 t} is the root of a x² − x + b = 0 that is above 1: with a > 0 and
    a + b = p₀ < 1 the larger one.

    >>> [round(time_to_attend(*x), 7) for x in ((0.0, 0.5), (-0.5, 0.4), (-0.5, 0.6))]
    [0.9312299, 2.6542893, 1.4347395]
    """
    a, b = (p + margin / _ROOT2) / 2, (p - margin / _ROOT2) / 2
    if a <= 0 or p >= 1:
        return math.nan
    # 4ab = p₀² − D₀²/2 < 1.
    return math.log((1 + math.sqrt(1 - 4 * a * b)) / (2 * a)) / _ROOT2


def turning_logit(margin: float, logit: float, logits: int) -> float:
    """Where the logit of a softmax turns back: a + e^a = a₀ + e^{a₀} − κD₀²/4, D = 0.

    x + e^x = K is solved by x = K − ω(K), with Wright's ω.
    """
    total = logit + math.exp(logit) - logits * margin**2 / 4
    return float(total - np.real(wrightomega(total)))


def _attends(params: KeywordPoint) -> Float[Array, ""]:
    assert params.weight is not None
    return params.weight - 1


def _regains(start, params: KeywordPoint) -> Float[Array, ""]:
    return params.logit - start


def _observables(start: KeywordPoint) -> dict[str, Observable]:
    named = {
        "loss": (keyword_loss, "loss s₀ − s₁"),
        "beta0": (_beta0, "β₀"),
        "beta1": (_beta1, "β₁"),
        "p": (_attention, "attention on the keyword, p"),
        "margin": (_margin, "margin D = β₁ − β₀"),
    }
    if start.logit is not None:
        named["logit"] = (_logit, "logit a of the attention")
    return {name: Observable(fn, (), "1", text) for name, (fn, text) in named.items()}


def _closed_forms(start: KeywordPoint) -> dict[str, Any]:
    """p'' = 2p and D'' = 2D, so both are sums of cosh √2t and sinh √2t."""
    return {
        "p": Partial(_hyperbolic, start.weight, start.margin / _ROOT2),
        "margin": Partial(_hyperbolic, start.margin, _ROOT2 * start.attention),
    }


def _hyperbolic(even, odd, ts):
    return even * jnp.cosh(_ROOT2 * ts) + odd * jnp.sinh(_ROOT2 * ts)


def _beta0(params):
    return params.beta0


def _beta1(params):
    return params.beta1


def _attention(params):
    return params.attention


def _margin(params):
    return params.margin


def _logit(params):
    return params.logit
