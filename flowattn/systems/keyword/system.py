"""Keyword: the toy classifier of Snell, Zhong, Klein & Steinhardt, "Approximating How
Single Head Attention Learns" (arXiv 2103.07601).

Scores s₀ = β₀ and s₁ = (1 − p)β₀ + pβ₁ of the two sentences and the loss s₀ − s₁ = −pD
with D = β₁ − β₀. So along the flow

    β₀' = −p,  β₁' = p,  D' = 2p,   and   p' = D   or   a' = κp(1 − p)D

for a free weight p, or a softmax p = σ(a) of κ logits (1: a alone moves, 2: a is the
difference of two, which both move).
"""

import math
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, Scalar
from scipy.special import wrightomega

from ...entries import Entry
from ...errors import InputError
from ...laws import Law
from ...observables import Observable
from ...problem import Problem
from ...trajectory import Trajectory
from ..base import AbstractSystem, Defaults
from ..registry import REGISTRY

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
    def p(self) -> Any:
        """Attention on the keyword."""
        return self.weight if self.logit is None else jax.nn.sigmoid(self.logit)

    @property
    def margin(self) -> Float[Array, ""]:
        """D = β₁ − β₀: what the keyword says for the positive class."""
        return self.beta1 - self.beta0


class Keyword(AbstractSystem):
    """Attention that has to find the keyword, while the word's meaning is learned.

    The sentence {0, 1} is positive, {0, 0} negative; with p the attention on word 1 the
    loss is s₀ − s₁ = −pD, D = β₁ − β₀.

    Raises `InputError` for starts that make no system.

    >>> import jax.random as jr, flowattn as fa
    >>> problem = fa.systems.Keyword().problem(key=jr.key(0))
    >>> round(float(problem.solve(t1=2.0).events["time_to_attend"]), 4)
    0.9312
    """

    name: ClassVar[str] = "keyword"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--beta0 0.3 --beta1 -0.2 --p 0.4"

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
        named = {
            "beta0": "β₀",
            "beta1": "β₁",
            "p": "attention on the keyword, p",
            "margin": "margin D = β₁ − β₀",
        }
        known = [_law(_sum_terms, "beta-sum", "sum of the two words' scores")]
        beta0, beta1, p = (
            jnp.asarray(x, float) for x in (self.beta0, self.beta1, self.p)
        )
        if self.attention == "linear":
            start, rates = KeywordPoint(beta0, beta1, weight=p), None
            reaches = Partial(_beyond, Entry("weight"), 1.0)
            text = "energy of the keyword flow"
            known.append(_law(_energy_terms, "keyword-energy", text))
            # p'' = 2p and D'' = 2D, so both are sums of cosh √2t and sinh √2t.
            forms = {
                "p": Partial(_hyperbolic, p, start.margin / _ROOT2),
                "margin": Partial(_hyperbolic, start.margin, _ROOT2 * p),
            }
        else:
            logit = jnp.log(p) - jnp.log1p(-p)
            start = KeywordPoint(beta0, beta1, logit=logit)
            one, count = jnp.ones(()), jnp.asarray(float(self.moving_logits))
            rates = KeywordPoint(one, one, logit=count)
            reaches = Partial(_beyond, Entry("logit"), logit)
            terms = Partial(_softmax_terms, self.moving_logits)
            text = "constant of the softmax keyword flow"
            known.append(_law(terms, "keyword-softmax", text, ", integrated here"))
            named["logit"], forms = "logit a of the attention", {}
        return Problem(
            start,
            keyword_loss,
            validation=keyword_loss,
            observables={
                "loss": Observable(keyword_loss, (), "1", "loss s₀ − s₁"),
                **{k: Observable(Entry(k), (), "1", text) for k, text in named.items()},
            },
            laws=known,
            rates=rates,
            events={"time_to_attend": reaches},
            closed_forms=forms,
        )

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """What theory says: whether the keyword is ever attended to, and when (free
        weight); the logit at which a softmax turns back.
        """
        del flow
        margin = float(problem.params.margin)
        if self.attention == "linear":
            p = float(problem.params.weight)
            time = time_to_attend(margin, p)
            return {"attends": margin > -_ROOT2 * p, "time_to_attend": time}
        logit = float(problem.params.logit)
        turns = turning_logit(margin, logit, self.moving_logits)
        return {"attends": True, "turning_logit": turns if margin < 0 else math.nan}


def keyword_loss(params: KeywordPoint) -> Scalar:
    """s₀ − s₁ = −pD."""
    return -params.p * params.margin


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


def _law(terms: Any, name: str, text: str, more: str = "") -> Law:
    cited = f"Snell, Zhong, Klein & Steinhardt 2021 (arXiv 2103.07601){more}"
    return Law(terms, name, "exact", citation=cited, dims=(), long_name=text)


def _sum_terms(params):
    """β₀ + β₁, whose derivative is −p + p. Linear, so descent keeps it too."""
    return jnp.stack([params.beta0, params.beta1])


def _energy_terms(params):
    """2p² − D² of a free weight, whose derivative is 4pD − 4Dp."""
    return jnp.stack([2 * params.weight**2, -(params.margin**2)])


def _softmax_terms(logits, params):
    """D² − (4/κ)(a + e^a): (1 + e^a)(1 − p) = 1, so the derivative of the second term
    is (4/κ)(1 + e^a)κp(1 − p)D = 4pD, which is that of D².
    """
    a = params.logit
    rest = -4 / logits * jnp.stack([a, jnp.exp(a)])
    return jnp.append(rest, params.margin**2)


def _beyond(of, value, params):
    return of(params) - value


def _hyperbolic(even, odd, ts):
    return even * jnp.cosh(_ROOT2 * ts) + odd * jnp.sinh(_ROOT2 * ts)
