"""The experiments: which descent, from where, and the flows it is compared with."""

import dataclasses
from collections.abc import Callable

from .models import Problem, attention, chebyshev, deep, signs, sine

EVEN = ("even1", "even2", "even3")
ALL = ("gradient", *EVEN, "rod", "central1", "central2")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A descent, and the flows that follow it.

    Attributes:
        title: what it shows.
        make: the loss and its initial parameters.
        eta: the learning rate.
        first: steps before the comparison begins.
        steps: steps compared.
        rows: names of the flows.
        rtol, atol: tolerances; atol: None: rtol/1000. Of central flows, whose fields
            have kinks, rtol is 1e-5 at least.
        window: steps on either side of the running means.
        centred: whether flows of the centre begin at the descent's centre (and the rod
            with its whole oscillation), or, as users begin them, at its parameters.
        after: the share of the run after which the largest distance counts; None: from
            the first time at the edge on.
    """

    title: str
    make: Callable[[], Problem]
    eta: float
    first: int
    steps: int
    rows: tuple[str, ...] = ALL
    rtol: float = 1e-5
    atol: float | None = None
    window: int = 25
    centred: bool = False
    after: float | None = None


def regime(title, make, eta, first, steps, rows=ALL) -> Experiment:
    """One of the regimes of the small networks, compared without running means."""
    return Experiment(
        title,
        make,
        eta,
        first,
        steps,
        rows,
        atol=1e-5,
        window=0,
        centred=True,
        after=0.1,
    )


EXPERIMENTS = {
    "A": Experiment("the edge, established", deep, 0.1, 750, 800, ALL),
    "B": Experiment(
        "from initialisation",
        deep,
        0.1,
        0,
        1600,
        ("gradient", "even2", "even3", "rod", "central1"),
    ),
    "C": Experiment(
        "delayed loss of stability",
        deep,
        0.1,
        500,
        500,
        ("gradient", "even1", "even2", "even3", "even4", "rod", "central1"),
        rtol=1e-9,
    ),
    "D": Experiment(
        "attention, from initialisation",
        attention,
        0.5,
        0,
        1500,
        ("gradient", "even1", "even2", "even3", "rod", "central1"),
        rtol=1e-7,
    ),
    "two": Experiment(
        "two unstable directions",
        deep,
        0.15,
        700,
        500,
        ("gradient", *EVEN, "even4", "rod", "central2"),
    ),
    "established": regime("established 2-cycle (T₅)", chebyshev, 0.1, 1300, 600),
    "beating": regime("two directions, beating (T₅)", chebyshev, 0.15, 1700, 400),
    "sine": regime("sin 6x", sine, 0.25, 900, 600),
    "delayed": regime("delayed onset (T₅)", chebyshev, 0.05, 3300, 900),
    "catapult": regime("delayed onset, catapult (signs)", signs, 0.5, 600, 400),
    "violent": regime("violent catapults (T₅)", chebyshev, 0.4, 900, 400),
    "violent-late": regime("violent catapults, later", chebyshev, 0.4, 1600, 300),
    "chaotic": regime("chaotic (signs)", signs, 2.0, 100, 400),
}
