"""Discover: the conservation laws of flows, with a certificate that there are no
others.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..errors import InputError, require_flags, require_positive, whole_number
from ..flows import AbstractFlow, GradientFlow
from ..identity import by_identity
from ..observables import takes_time
from .brackets import certificate
from .dictionary import Dictionary, Vocabulary, elementary
from .discovery import Discovery, Entry, entry_of
from .draws import Draws
from .fields import Fields, Samples, Words, fields_of, require_finite
from .identities import defect_of
from .nullspace import CLEAR, Span, null_space, scaled
from .readable import DENOMINATOR, Claim, Reader

# Rows beyond the number of unknowns; and draws that decide what holds.
_MORE, _FRESH = 40, 64
# Unknowns up to which every entry of a matrix is one by default, and at most.
_BY_ENTRIES, _MOST = 1500, 4000
# Parameters up to which brackets are taken.
_CERTIFIED = 400
# Directions in which gradients are compared, where they are too many to take all.
_DIRECTIONS = 2048
# A single flow with so few numbers gets exponentials, logarithms and products, and
# fractions with larger denominators.
_FEW, _FINE = 4, 2000
# Singular values of what is nearly a law, and the largest defect of one.
_NEARLY, _APPROXIMATE = 1e-3, 1e-2


def discover(
    flows: AbstractFlow | Callable[[Array], AbstractFlow],
    params: PyTree,
    *,
    key: Array | None = None,
    view: Callable[[PyTree], Mapping[str, Array]] | None = None,
    atoms: Mapping[str, Callable[..., Array]] | None = None,
    times: Mapping[str, Callable[[Array], Array]] | None = None,
    sample: Callable[[PyTree, Array], PyTree] | str | None = None,
    entries: bool | None = None,
    certify: bool = True,
    depth: int = 4,
    tol: float | None = None,
) -> Discovery:
    """Find the conservation laws of a flow, or of all flows of a family.

    A law is a function h with ∇h·F = 0 for every flow F. Laws are sought among sums of
    the entries of the parameters and of products of their slices (WᵀW, WWᵀ): random
    rows ∇φ·F of all these functions φ have the laws as null space. How many laws there
    can be, of any form, is bounded by the rank of the brackets of the flows: where as
    many are found, no other exists near a generic parameter. Random draws decide with
    probability 1; the gap of each spectrum is reported.

    Of a flow with a state, the laws are functions of `flow.start(params)` and the time.

    Args:
        flows: a flow, or a family `key -> flow` (`any_loss`, `any_data`).
        params: the parameters. Names, shapes and dtypes count, values do not.
        key: of all random draws; None: `jax.random.key(0)`.
        view: `params -> {name: array}`, what the laws are to be written in: parts and
            reshapes of the parameters. None: the arrays that move, by dotted paths.
        atoms: further functions of the dictionary by name, `params -> array` or
            `(params, t) -> array`. None: for a single flow of up to four numbers their
            exponentials, logarithms and products, else none.
        times: functions of the time by name, `t -> number`, by which everything in the
            dictionary may also be multiplied, such as exp(γt) for a momentum.
        sample: `(params, key) -> params`, where the laws are to hold; "near": about
            `params`. None: normal entries.
        entries: whether each entry of the matrices of products is an unknown, or each
            matrix as a whole, which any size allows. None: up to 1,500 unknowns.
        certify: whether brackets are taken, for up to 400 parameters.
        depth: the most flows in a bracket.
        tol: singular values, over the largest, that count as 0. None: by the size of
            rounding errors.

    Returns:
        A `Discovery`: its `laws` by name, as `solve(observe=)` and `drift` take them,
        and what is known about their number.

    Raises:
        InputError: for arguments that make no sense, single precision, velocities that
            are not finite at the draws, and too many unknowns.
        RuntimeError: if more laws are found than there can be, a defect of this
            library.

    >>> import jax.numpy as jnp, jax.random as jr, flowattn as fa
    >>> model = lambda p, x: p["u"] * p["v"] * x
    >>> params = {"u": jnp.ones(()), "v": jnp.ones(())}
    >>> found = fa.discover(fa.any_loss(model, lambda key: jr.normal(key)), params)
    >>> list(found.laws), found.complete
    (['u**2 - v**2'], True)
    """
    draws = Draws(key)
    require_flags(certify=certify, **({} if entries is None else {"entries": entries}))
    deepest = whole_number("depth", depth)
    if tol is not None:
        require_positive(tol=tol)
        if not tol < 1:
            raise InputError(
                f"tol must be below 1, the largest singular value, got {tol}"
            )
    one = isinstance(flows, AbstractFlow)
    fields = fields_of(flows, params, None, sample)
    fields, vocabulary = _worded(fields, view, atoms, times, one)
    size = fields.size
    few = one and size <= _FEW
    dictionary = Dictionary(vocabulary)
    whole = _whole(entries, dictionary)
    unknown = 4 * len(dictionary.quantities) + 60 if whole else dictionary.columns
    number = unknown + _MORE
    drawn = fields.at(draws, number + _FRESH)
    require_finite(drawn)
    if callable(sample) and not any(
        np.ptp(x, axis=0).any() for x in drawn.values.values()
    ):
        raise InputError("sample must draw parameters, got the same for all keys")
    drawn = drawn.unit
    samples, fresh = drawn.part(slice(number)), drawn.part(slice(number, None))
    # Rounding errors of gradients are of one size where directions are as long as the
    # parameters' velocities.
    speeds = scaled(samples.moved)[1]
    slopes = fields.slopes(draws, _directions(size, whole, draws) * speeds)
    _require_varying(vocabulary, slopes)

    def reader(**settings: Any) -> Reader:
        return Reader(vocabulary, samples, fresh, slopes, whole=whole, **settings)

    exact = reader(tol=tol, denominator=_FINE if few else DENOMINATOR)
    nearly = None
    spectrum, clear = None, True
    if whole:
        exact.read()
    else:
        limit = dictionary.noise if tol is None else tol
        rows, gradients = dictionary.rows(samples), dictionary.rows(slopes)
        basis, spectrum = null_space(rows, limit)
        clear = spectrum.kept >= CLEAR * limit or not spectrum.rank
        _read(exact, dictionary, basis, gradients)
        if spectrum.below(_NEARLY) > basis.shape[1]:
            rough = {"exact": _APPROXIMATE, "within": _APPROXIMATE, "denominator": 4}
            nearly = reader(tol=_NEARLY, **rough)
            nearly.span.basis = exact.span.basis
            _read(nearly, dictionary, null_space(rows, _NEARLY)[0], gradients)
    found = exact.span.rank
    proof, note = None, _uncertified(one, certify, size)
    if not note:
        proof = certificate(fields, draws, deepest, found)
        if proof.at_most < found:
            raise RuntimeError(
                f"{found} laws found, and brackets of depth {len(proof.depths)} leave "
                f"{proof.at_most}: please report this, with the random key {key}"
            )
    entry = functools.partial(
        entry_of,
        words=fields.words,
        shapes=vocabulary.shapes,
        of="state" if vocabulary.state else "params",
        symmetric=_symmetric(fields),
        start=fields.template,
    )
    numbers = itertools.count(1)

    def listed(reader: Reader | None, kind: Any) -> tuple[Entry, ...]:
        group = [] if reader is None else reader.found
        return tuple(
            entry(law, adds, defect_of(law, fresh), number=next(numbers), kind=kind)
            for law, adds in group
        )

    return Discovery(
        of=getattr(flows, "of", "of this flow" if one else "of these flows"),
        found=listed(exact, "exact"),
        nearly=tuple(sorted(listed(nearly, "approximate"), key=lambda x: x.defect)),
        parameters=size,
        unknowns=dictionary.columns,
        spectrum=spectrum,
        clear=clear and (proof is None or proof.depths[-1].clear),
        at_most=size - 1 if one else proof and proof.at_most,
        settled=(one and size == 2) or (proof is not None and proof.settled),
        depths=() if proof is None else proof.depths,
        note=note,
    )


def _read(
    reader: Reader, dictionary: Dictionary, basis: np.ndarray, gradients: np.ndarray
) -> None:
    """Read all laws of a null space: as readable ones, then the rest entry by entry."""
    span = Span(len(gradients), reader.span.tol)
    sums, terms = gradients @ basis, np.abs(gradients) @ np.abs(basis)
    total = span.new(sums, terms).shape[1]
    reader.read(total)
    rest = (Claim(*claim, "all") for claim in dictionary.sums(basis))
    reader.keep(rest, total)


def _worded(
    fields: Fields, view: Any, atoms: Any, times: Any, one: bool
) -> tuple[Fields, Vocabulary]:
    """Fields in the words that are asked for, and these words.

    Raises `InputError` for words that are no functions, or return no arrays.
    """
    given = {"atoms": atoms, "times": times}
    for what, functions in given.items():
        fine = functions is None or (
            isinstance(functions, Mapping)
            and all(isinstance(k, str) and callable(x) for k, x in functions.items())
        )
        if not fine:
            raise InputError(f"{what} must be a dict of functions by name")
    if view is not None and not callable(view):
        raise InputError(f"view must be a function, got a {type(view).__name__}")
    state = fields.template
    view = fields.words.view if view is None else by_identity(view)
    shapes = _shapes("view", view, state)
    if atoms is None:
        atoms = elementary(view, shapes) if one and fields.size <= _FEW else {}
    timed = tuple(k for k, fn in atoms.items() if takes_time(f"the atom {k!r}", fn))
    if clash := shapes.keys() & atoms.keys():
        raise InputError(f"the atom {min(clash)!r} has the name of an array")
    words = Words(view, tuple(atoms.items()), timed, tuple((times or {}).items()))
    clock = eqx.filter_eval_shape(words.clock, jnp.zeros(()))
    if wrong := [name for name, factor in clock.items() if factor.shape]:
        raise InputError(f"times must return one number each: {wrong[0]!r} does not")
    shapes = _shapes("atoms", eqx.Partial(words.arrays, t=jnp.zeros(())), state)
    shapes = {name: shape for name, shape in shapes.items() if math.prod(shape)}
    state = fields.flow.has_state
    vocabulary = Vocabulary(shapes, tuple(atoms), tuple(times or ()), state)
    fields = eqx.tree_at(lambda f: f.words, fields, words)
    return fields, vocabulary


def _shapes(what: str, view: Callable, state: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of named arrays; `InputError` for anything else."""
    arrays = eqx.filter_eval_shape(view, state)
    if not isinstance(arrays, Mapping):
        raise InputError(
            f"{what} must return a dict of named arrays, got a {type(arrays).__name__}"
        )
    if not arrays:
        raise InputError(f"{what} must return named arrays, got none")
    for name, array in arrays.items():
        if not isinstance(name, str) or not name or set("/@") & set(name):
            raise InputError(
                f"{name!r} cannot name an array in a formula: rename it by view=, a "
                "function params -> {name: array}"
            )
        if not jnp.issubdtype(getattr(array, "dtype", int), jnp.floating):
            raise InputError(
                f"{what} must return floating-point arrays, which {name!r} is not"
            )
    return {name: tuple(array.shape) for name, array in sorted(arrays.items())}


def _require_varying(vocabulary: Vocabulary, slopes: Samples) -> None:
    for name in vocabulary.atoms:
        if not np.any(slopes.velocities[name]):
            raise InputError(f"the atom {name!r} does not depend on what moves")


def _whole(entries: bool | None, dictionary: Dictionary) -> bool:
    """Whether matrices are taken as a whole.

    Raises `InputError` for more unknowns than a null space can have here.
    """
    columns = dictionary.columns
    if entries and columns > _MOST:
        sizes = dictionary.vocabulary.shapes
        largest = sorted(sizes, key=lambda name: -math.prod(sizes[name]))[:3]
        shown = ", ".join(f"{name} {sizes[name]}" for name in largest)
        raise InputError(
            f"{columns} unknowns are more than {_MOST}, most of them of {shown}: "
            "entries=False takes each matrix as a whole"
        )
    return not entries if entries is not None else columns > _BY_ENTRIES


def _directions(size: int, whole: bool, draws: Draws) -> np.ndarray:
    """All directions, or random ones where these are too many."""
    if size <= _DIRECTIONS or not whole:
        return np.eye(size)
    return draws.directions(_DIRECTIONS, size)


def _uncertified(one: bool, certify: bool, size: int) -> str:
    """Why no brackets are taken, if so."""
    if one:
        return "of a single flow: local laws are one fewer than its parameters"
    if not certify:
        return "not certified"
    if size > _CERTIFIED:
        return f"not certified: {size} parameters are more than {_CERTIFIED}"
    return ""


def _symmetric(fields: Fields) -> bool:
    """Whether gradients of laws are symmetries: of gradient flows with equal rates."""
    flow = fields.flow
    return isinstance(flow, GradientFlow) and flow.rates is None
