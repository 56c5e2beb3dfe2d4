"""Keyword: the toy classifier of Snell, Zhong, Klein & Steinhardt, "Approximating How
Single Head Attention Learns" (arXiv 2103.07601). The README derives its formulas.
"""

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

from ...entries import Entry
from ...errors import InputError
from ...laws import Law
from ...observables import Observable
from ...panels import Panel
from ...problem import Problem
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, theory_panels
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
        """D = β₁ − β₀: the keyword's evidence for the positive class."""
        return self.beta1 - self.beta0


class Keyword(AbstractSystem):
    """Attention that must find the keyword, while the word's meaning is learned.

    Raises:
        InputError: for starts that do not make a system.

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
    """p itself moves, without bounds; or the logits of a softmax move."""
    logits: Literal[1, 2] | None = eqx.field(static=True, default=None)
    """Softmax: whether one logit moves, or two; None: one."""

    def __check_init__(self):
        p, softmax = self.p, self.attention == "softmax"
        if isinstance(p, int | float) and softmax and not 0 < p < 1:
            raise InputError(f"p must be in (0, 1) for softmax attention, got {p}")
        if isinstance(p, int | float) and not p < 1:
            raise InputError(f"p must be below 1, which it should reach later, got {p}")

    @property
    def idle(self) -> dict[str, str]:
        """Without a softmax there are no logits."""
        softmax = self.attention == "softmax"
        return {} if softmax else {"logits": "is of attention='softmax'"}

    @property
    def defaults(self) -> Defaults:
        """A free weight explodes as e^{√2 t}; a softmax is slow."""
        return Defaults(5.0 if self.attention == "linear" else 500.0, steps=0)

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from the start; nothing is drawn."""
        del key, data
        fields = self.beta0, self.beta1, self.p
        beta0, beta1, p = (jnp.asarray(x, float) for x in fields)
        shown = {"beta0": "β₀", "beta1": "β₁", "p": "attention on the keyword, p"}
        shown["margin"] = "margin D = β₁ − β₀"
        if self.attention == "linear":
            start, rates = KeywordPoint(beta0, beta1, weight=p), None
            attends = Partial(_beyond, Entry("weight"), 1.0)
            law = _law(_energy, "keyword_energy", "energy of the keyword flow")
            forms = {
                "p": Partial(_hyperbolic, p, start.margin / _ROOT2),
                "margin": Partial(_hyperbolic, start.margin, _ROOT2 * p),
            }
        else:
            logit = jnp.log(p) - jnp.log1p(-p)
            start = KeywordPoint(beta0, beta1, logit=logit)
            one, logits = jnp.ones(()), self.logits or 1
            rates = KeywordPoint(one, one, logit=jnp.asarray(float(logits)))
            attends = Partial(_beyond, Entry("logit"), logit)
            text = "constant of the softmax keyword flow"
            law = _law(Partial(_softmax, logits), "keyword_softmax", text)
            forms, shown["logit"] = {}, "logit a of the attention"
        return Problem(
            start,
            keyword_loss,
            validation=keyword_loss,
            observables={"loss": Observable(keyword_loss, (), "1", "loss s₀ − s₁")}
            | {k: Observable(Entry(k), (), "1", text) for k, text in shown.items()},
            laws=[_law(_sum, "beta_sum", "sum of the two words' scores"), law],
            rates=rates,
            events={"time_to_attend": attends},
            closed_forms=forms,
        )

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Attention, margin and both β over time, with the closed forms."""
        return {"training": theory_panels(run, ("p", "margin", "beta0", "beta1"))}

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """Predictions of the theory: whether the keyword is ever attended to, and when
        (free weight); the logit at which a softmax turns back.
        """
        del flow
        start, margin = problem.params, float(problem.params.margin)
        if start.logit is None:
            p = float(start.weight)
            time = time_to_attend(margin, p)
            return {"attends": margin > -_ROOT2 * p, "time_to_attend": time}
        turns = turning_logit(margin, float(start.logit), self.logits or 1)
        return {"attends": True, "turning_logit": turns if margin < 0 else math.nan}


def keyword_loss(params: KeywordPoint) -> Scalar:
    """s₀ − s₁ = −pD."""
    return -params.p * params.margin


def time_to_attend(margin: float, p: float) -> float:
    """The time at which a free weight reaches 1; nan if it never does, or starts
    beyond.

    >>> [round(time_to_attend(*x), 7) for x in ((0.0, 0.5), (-0.5, 0.4), (-0.5, 0.6))]
    [0.9312299, 2.6542893, 1.4347395]
    """
    a, b = (p + margin / _ROOT2) / 2, (p - margin / _ROOT2) / 2
    if a <= 0 or p >= 1:
        return math.nan
    # 4ab = p₀² − D₀²/2 < 1.
    return math.log((1 + math.sqrt(1 - 4 * a * b)) / (2 * a)) / _ROOT2


def turning_logit(margin: float, logit: float, logits: int) -> float:
    """The turning point of a softmax's logit: x + e^x = K has x = K − ω(K), with
    Wright's ω.
    """
    total = logit + math.exp(logit) - logits * margin**2 / 4
    return float(total - np.real(wrightomega(total)))


def _law(terms: Any, name: str, text: str) -> Law:
    cited = "Snell, Zhong, Klein & Steinhardt 2021 (arXiv 2103.07601)"
    cited += ", integrated here" if name == "keyword_softmax" else ""
    return Law(terms, name, "exact", citation=cited, dims=(), long_name=text)


def _sum(params):
    return jnp.stack([params.beta0, params.beta1])


def _energy(params):
    return jnp.stack([2 * params.weight**2, -(params.margin**2)])


def _softmax(logits, params):
    a = params.logit
    rest = -4 / logits * jnp.stack([a, jnp.exp(a)])
    return jnp.append(rest, params.margin**2)


def _beyond(of, value, params):
    return of(params) - value


def _hyperbolic(even, odd, ts):
    return even * jnp.cosh(_ROOT2 * ts) + odd * jnp.sinh(_ROOT2 * ts)
