"""Gradient starvation: Pezeshki, Kaba, Bengio, Courville, Precup & Lajoie, "Gradient
Starvation: A Learning Proclivity in Neural Networks" (arXiv 2011.09468). The README
derives its formulas.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from ...errors import (
    InputError,
    known_numbers,
    require_from_0,
    require_positive,
)
from ...fields import require_room
from ...flows import GradientFlow
from ...laws import Law
from ...observables import Observable
from ...optimizers import SGD
from ...panels import Axis, Curve, Panel, Style
from ...problem import Problem, itself
from ...reductions import Reduction
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, theory_panels
from ..registry import REGISTRY
from . import theory
from .losses import FeatureLoss
from .theory import FeatureSpaceLoss, OutputFlow, ResidualFlow

FEATURES: tuple[str, ...] = ("strong", "weak")
# λ of the authors' toy: of the parameters, and of the outputs.
_WEIGHT_DECAY, _DECOUPLED = 0.01, 0.002


class GradientStarvation(AbstractSystem):
    """Logistic regression on a strong and a weak feature: the strong one, which
    explains the data, takes the gradient away from the weak one.

    Raises:
        InputError: for values that do not make a system.

    >>> import jax.random as jr, flowattn as fa
    >>> problem = fa.systems.GradientStarvation(strength=6.0).problem(key=jr.key(0))
    >>> traj = problem.solve(t1=2000.0, rtol=1e-9)
    >>> [round(float(z), 5) for z in traj.observed["z"][-1]]
    [9.07102, 1.18534]
    """

    name: ClassVar[str] = "gradient-starvation"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--strength 6 --spacing log"

    strength: SupportsFloat = 4.0
    """s₁, the strength of the strong feature."""
    weak: SupportsFloat = 2.0
    """s₂, the strength of the weak feature."""
    overlap: SupportsFloat = 0.5
    """δ: how far both features are in the same example, from −1 to 1."""
    penalty: SupportsFloat | None = None
    """λ, of the parameters or of the outputs; None: 0.01, decoupled 0.002."""
    decoupled: bool = eqx.field(static=True, default=False)
    """Spectral decoupling: penalise outputs in place of parameters."""
    dimension: int = eqx.field(static=True, default=2)
    """p, the number of parameters; those beyond two are seen by no example."""
    init: SupportsFloat = 0.0
    """Standard deviation of the initial parameters."""

    def __check_init__(self):
        require_positive(strength=self.strength, weak=self.weak)
        numbers = known_numbers("overlap", self.overlap)
        if numbers is not None and not np.all(np.abs(numbers) <= 1):
            raise InputError(f"overlap must be from -1 to 1, got {self.overlap}")
        if self.penalty is not None:
            require_from_0(penalty=self.penalty)
            if self.decoupled and self.unpenalised:
                raise InputError(
                    "penalty must be positive with decoupled: at 0 nothing is decoupled"
                )
        if self.dimension < 2:
            raise InputError(f"dimension must be at least 2, got {self.dimension}")
        law = 100, self.dimension, self.dimension
        require_room("the law of unseen parameters, dimension² at 100 times", *law)
        require_from_0(init=self.init)

    @property
    def unpenalised(self) -> bool:
        """Whether λ is known to be 0: then there is no fixed point."""
        if self.penalty is None:
            return False
        numbers = known_numbers("penalty", self.penalty)
        return numbers is not None and bool(np.all(numbers == 0))

    @property
    def defaults(self) -> Defaults:
        """To where the weak feature has arrived; at the authors' end, t = 250, it is up
        to 0.4 % short. The learning rate is theirs.
        """
        return Defaults(2000.0, SGD(0.05))

    @property
    def small(self) -> "GradientStarvation":
        """With a parameter that no example sees, whose laws there are."""
        return dataclasses.replace(self, dimension=max(3, self.dimension))

    @property
    def basis(self) -> Float[Array, "example feature"]:
        """U: the features (columns) in the examples (rows)."""
        return theory.directions(jnp.asarray(self.overlap, float))

    @property
    def strengths(self) -> Float[Array, " feature"]:
        """s, the strong feature first."""
        return jnp.stack([jnp.asarray(x, float) for x in (self.strength, self.weak)])

    @property
    def kernel(self) -> Float[Array, "example example_2"]:
        """K = U S² Uᵀ, the tangent kernel of the margins."""
        return theory.kernel_of(self.basis, self.strengths)

    @property
    def lam(self) -> Float[Array, ""]:
        """λ."""
        default = _DECOUPLED if self.decoupled else _WEIGHT_DECAY
        given = default if self.penalty is None else self.penalty
        return jnp.asarray(given, float)

    @property
    def frame(self) -> Float[Array, "parameter parameter_2"]:
        """An orthogonal matrix: its first two columns are V, the others are unseen. The
        identity for two parameters, else a reflection of it in (1, …, 1).
        """
        size = self.dimension
        return jnp.eye(size) - (2 / size if size > 2 else 0.0)

    @property
    def fixed_point(self) -> Float[Array, " feature"]:
        """z*, nan where λ is 0."""
        kernel = jnp.eye(2) if self.decoupled else self.kernel
        alpha = theory.fixed_point(kernel, self.lam)
        return self.basis.T @ theory.margins_of(alpha)

    @property
    def starvation(self) -> Float[Array, " feature"]:
        """∂z*/∂s₁²: negative for a feature that the strong one starves."""
        if self.decoupled:
            return jnp.zeros(2)
        alpha = theory.fixed_point(self.kernel, self.lam)
        return theory.starvation(self.basis, self.strengths, self.lam, alpha)

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from the start; `key` draws the start, which is at 0 by default."""
        del data
        seen = self.frame[:, :2].T
        features = self.basis @ (self.strengths[:, None] * seen)
        loss = FeatureLoss(features, self.lam, self.decoupled)
        start = jnp.asarray(self.init, float) * jr.normal(key, (self.dimension,))
        # z = Uᵀu, and θ = V S⁻¹ z is the pseudo-inverse of it.
        of_params = Partial(_product, self.strengths[:, None] * seen)
        observables = {"loss": Observable(loss, (), "1", "loss")}
        observables |= self._seen(of_params)
        whole = {"outputs": loss.margins, "outer": loss.outer}
        return Problem(
            start,
            loss,
            validation=loss,
            observables=observables,
            laws=self._laws(),
            reductions=self._reductions(loss, of_params),
            events=self._events(of_params),
            # A penalty of the parameters is no function of the outputs.
            **(whole if self.decoupled else {}),
        )

    def _seen(self, features: Any) -> dict[str, Observable]:
        """What is observed of parameters whose features' coordinates are given."""
        named = {"feature": FEATURES}
        found = {
            "z": Observable(features, ("feature",), "1", "feature learned, z", named),
            "alpha": Observable(
                Partial(_residuals, self.basis, features),
                ("example",),
                "1",
                "residual α = σ(−u)",
                {"example": ("first", "second")},
            ),
        }
        if not self.unpenalised:
            found["distance"] = Observable(
                Partial(_distance, self.fixed_point, features),
                (),
                "1",
                "‖z − z*‖/‖z*‖",
            )
        return found

    def _events(self, features: Any) -> dict[str, Any]:
        """When each feature is half learned."""
        if self.unpenalised:
            return {}
        half = self.fixed_point / 2
        return {
            f"half_{name}": Partial(_beyond, half[number], features, number)
            for number, name in enumerate(FEATURES)
        }

    def _reductions(self, loss: FeatureLoss, of_params: Any) -> dict[str, Reduction]:
        """Training in the features, in the outputs and in the residuals: none sees V.

        The loss is none of their observables: the norm of unseen parameters is in it.
        """
        basis, strengths, lam = self.basis, self.strengths, self.lam
        full = GradientFlow(loss)
        outputs = OutputFlow(self.kernel, lam, self.decoupled)
        inverse = self.frame[:, :2] / strengths[None]
        space = FeatureSpaceLoss(basis, strengths, lam, self.decoupled)
        of_outputs = Partial(_product, basis.T)
        of_residuals = Partial(_features_of_residuals, basis)
        parts = {
            "features": (
                GradientFlow(space, strengths**2),
                of_params,
                Partial(_product, inverse),
                itself,
            ),
            "outputs": (
                outputs,
                loss.margins,
                Partial(_product, inverse @ basis.T),
                of_outputs,
            ),
            "residuals": (
                ResidualFlow(outputs),
                Partial(_residuals, basis, of_params),
                Partial(_from_residuals, inverse @ basis.T),
                of_residuals,
            ),
        }
        return {
            name: Reduction(
                flow,
                full,
                project,
                lift,
                "exact",
                citation=self.citation,
                observables=self._seen(features),
                events=self._events(features),
            )
            for name, (flow, project, lift, features) in parts.items()
        }

    def _laws(self) -> list[Law]:
        """The parameters that no example sees only decay."""
        if self.dimension == 2:
            return []
        unseen = self.frame[:, 2:]
        if self.decoupled:
            terms = Partial(_unseen, unseen)
        else:
            terms = Partial(_decaying, unseen, self.lam)
        return [
            Law(
                terms,
                "unseen",
                "exact",
                dims=("direction",),
                long_name="parameters that no example sees"
                + ("" if self.decoupled else ", times e^{λt}"),
            )
        ]

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """The fixed point z*, and the starvation ∂z₂*/∂s₁²."""
        del problem, flow
        if self.unpenalised:
            return {}
        strong, weak = self.fixed_point
        return {
            "fixed_point_strong": float(strong),
            "fixed_point_weak": float(weak),
            "starvation": float(self.starvation[1]),
        }

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, features and residuals over time, and the plane of the features."""
        names = [
            name
            for name in ("loss", "z", "alpha", "distance")
            if name in run.problem.observables
        ]
        found = {"training": theory_panels(run, names)}
        curves = []
        runs: tuple[tuple[Trajectory | None, str, Style], ...] = (
            (run.flow, "flow", "path"),
            (run.descent, "gradient descent", "points"),
        )
        for one, label, style in runs:
            if one is not None:
                z = np.asarray(one.observed["z"])[np.asarray(one.reached)]
                curves.append(Curve(label, z[:, 0], z[:, 1], style, len(curves)))
        if not self.unpenalised:
            strong, weak = np.asarray(self.fixed_point)
            curves.append(Curve("fixed point", [strong], [weak], "points", "black"))
        plane = Panel("", Axis("strong feature z₁"), Axis("weak feature z₂"), curves)
        return {**found, "plane": [plane]}


def _product(matrix, params):
    return matrix @ params


def _residuals(basis, features, params):
    return jax.nn.sigmoid(-(basis @ features(params)))


def _features_of_residuals(basis, alpha):
    return basis.T @ theory.margins_of(alpha)


def _from_residuals(inverse, alpha):
    return inverse @ theory.margins_of(alpha)


def _distance(fixed, features, params):
    return jnp.linalg.norm(features(params) - fixed) / jnp.linalg.norm(fixed)


def _beyond(value, features, number, params):
    return features(params)[number] - value


def _unseen(unseen, params):
    return params[:, None] * unseen


def _decaying(unseen, lam, params, t):
    return jnp.exp(lam * t) * params[:, None] * unseen
