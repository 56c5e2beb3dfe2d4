"""Formulas of identities: Python, LaTeX, and the symmetry that makes each a law."""

import functools
import re
from collections.abc import Callable, Container, Sequence
from fractions import Fraction

from .identities import Identity
from .quantities import Quantity

# What generators call free matrices, numbers and vectors: arrays of these names are put
# in quotes.
_FREE = ("S", "s", "c", "1")
# Factors are written as fractions up to this denominator.
_DENOMINATOR = 2000


def python(identity: Identity) -> str:
    """An identity as Python of the names of its arrays, [h] for each head."""
    times = {quantity.time for _, quantity in identity.terms}
    shown = functools.partial(_python, timed=len(times) > 1)
    text = _sum(identity, shown, "*")
    if len(times) == 1 and (time := times.pop()):
        text = f"{time}*{_grouped(text)}"
    return _masked(identity, text, "diag({})", "blocks({}, {})")


def latex(identity: Identity) -> str:
    """An identity as LaTeX."""
    text = _sum(identity, _latex, r"\,")
    return _masked(
        identity,
        text,
        r"\operatorname{{diag}}\left({}\right)",
        r"\operatorname{{blocks}}_{{{1}}}\left({0}\right)",
    )


def generator(identity: Identity, functions: Container[str] = ()) -> str:
    """The changes of the parameters that leave every loss of the family as it is, and
    make the identity a law of its gradient flows: the gradient of ½ Σ s tr(S WᵀW) is
    s W S, that of a linear law its coefficients.

    Empty where there is no such text, and for identities that depend on the time or on
    functions of the parameters.
    """
    changes: dict[str, str] = {}
    mixed = len({quantity.degree for _, quantity in identity.terms}) > 1
    own = "_h" if identity.each else ""
    for factor, quantity in identity.terms:
        if quantity.leaf in _FREE:
            quantity = quantity.replaced(leaf=f'"{quantity.leaf}"')
        if quantity.time or quantity.kind == "turn" or quantity.entry is not None:
            return ""
        if quantity.leaf in functions:
            return ""
        name = _part(quantity)
        change = changes.get(name, name)
        if mixed and quantity.kind == "sum":  # s as in the exponents, of a number
            moved = f"{change} + {_factor(factor / 2, ' ')}s"
        else:
            moved = _moved(factor, quantity, name, change, own)
        if moved is None:
            return ""
        changes[name] = moved
    suffix = _matrices(identity)
    if suffix is None:
        return ""
    return ", ".join(f"{name} -> {change}" for name, change in changes.items()) + suffix


def _moved(
    factor: float, quantity: Quantity, name: str, change: str, own: str
) -> str | None:
    """What a term turns the array of a name into, after other terms have."""
    times = _factor(factor, " ")
    if quantity.kind == "sum":
        ones = [axis in quantity.axis for axis in range(quantity.ndim)]
        shift = {
            (): "c",
            (False,): "c",
            (True,): "c 1",
            (False, False): "c",
            (True, False): "1 cᵀ",
            (False, True): "c 1ᵀ",
            (True, True): "c 1 1ᵀ",
        }.get(tuple(ones))
        return None if shift is None else f"{change} + {times}{shift}"
    if quantity.kind == "slice":
        return None
    if quantity.kind == "norm":
        return None if quantity.at else f"exp({times}s{own}) {change}"
    if quantity.ndim > 2:
        return None
    factor_text = f"exp({times}S{own})"
    right = quantity.ndim == 2 and quantity.axis == (1,)
    return f"{change} {factor_text}" if right else f"{factor_text} {change}"


def _matrices(identity: Identity) -> str | None:
    """Which matrices S are meant; None where there is no word for them."""
    if any(quantity.kind == "gram" for _, quantity in identity.terms):
        if identity.mask == "diagonal":
            return "; S diagonal"
        if isinstance(identity.mask, int):
            return f"; S block-diagonal of {identity.mask}"
    return "" if identity.mask == "all" else None


def _sum(identity: Identity, shown: Callable[[Quantity, bool], str], times: str) -> str:
    """The terms of an identity, each shown with whether its factor is 1: what is itself
    a difference then needs no parentheses.
    """
    text = ""
    for factor, quantity in identity.terms:
        sign = (" - " if factor < 0 else " + ") if text else "-" * (factor < 0)
        text += sign + _factor(abs(factor), times) + shown(quantity, factor == 1)
    return text


def _factor(number: float, times: str) -> str:
    """A factor in front of a term: nothing for 1, a fraction, or six digits."""
    text = fraction(number, _DENOMINATOR, 1e-12 * abs(number))
    return text.removesuffix("1") if text in ("1", "-1") else text + times


def fraction(number: float, denominator: int, within: float) -> str:
    """A number as a fraction with a denominator up to a limit, if it is one within an
    error; else with six digits.

    >>> fraction(-0.2, 64, 1e-8), fraction(0.123456789, 64, 1e-8)
    ('-1/5', '0.123457')
    """
    near = Fraction(float(number)).limit_denominator(denominator)
    return str(near) if abs(float(near) - number) <= within else f"{number:.6g}"


def _masked(identity: Identity, text: str, diagonal: str, blocks: str) -> str:
    mask = identity.mask
    if mask == "all":
        return text
    if mask == "diagonal":
        return diagonal.format(text)
    if isinstance(mask, int):
        return blocks.format(text, mask)
    text = f"({text})" if len(identity.terms) > 1 or "@" in text else text
    if len(mask) == 1:
        return f"{text}[{', '.join(map(str, mask[0]))}]"
    return f"{text}[{', '.join(str(list(axis)) for axis in zip(*mask, strict=True))}]"


def _part(quantity: Quantity) -> str:
    index = {None: "", "each": "[h]", "all": "[h]"}.get(quantity.index)  # pyright: ignore
    return quantity.leaf + (f"[{quantity.index}]" if index is None else index)


def _at(quantity: Quantity) -> str:
    """The slices along an axis, as an index."""
    at = str(quantity.at[0]) if len(quantity.at) == 1 else str(list(quantity.at))
    axes = [":"] * quantity.ndim
    axes[quantity.axis[0]] = at
    while axes[-1] == ":":
        axes.pop()
    return ", ".join(axes)


def _python(quantity: Quantity, bare: bool, timed: bool) -> str:
    name = "w" if quantity.index == "all" else _part(quantity)
    text = _plain(quantity, name)
    if quantity.index == "all":
        text = f"sum({text} for w in {quantity.leaf})"
    if quantity.entry and quantity.ndim:
        wrapped = f"({text})" if "@" in text else text
        text = f"{wrapped}[{', '.join(map(str, quantity.entry))}]"
    if quantity.time and timed:
        return f"{quantity.time}*{_grouped(text)}"
    return text if bare else _grouped(text)


def _grouped(text: str) -> str:
    return f"({text})" if " " in re.sub(r"\([^()]*\)", "", text) else text


def _plain(quantity: Quantity, name: str) -> str:
    ndim, axis = quantity.ndim, quantity.axis
    if quantity.kind == "sum":
        if not axis:
            return name
        if len(axis) == ndim:
            return f"sum({name})"
        return f"sum({name}, axis={axis[0] if len(axis) == 1 else axis})"
    if quantity.kind == "slice":
        return f"{name}[{_at(quantity)}]"
    if not ndim:
        return f"{name}**2"
    if quantity.kind == "norm":
        part = f"{name}[{_at(quantity)}]" if quantity.at else name
        return f"{part}**2" if ndim == len(quantity.at) == 1 else f"norm({part})**2"
    if quantity.kind == "turn":
        other = quantity.other + name[len(quantity.leaf) :]
        return f"{_product(quantity, other, name)} - {_product(quantity, name, other)}"
    return _product(quantity, name, name)


def _product(quantity: Quantity, one: str, two: str) -> str:
    """The matrix of products of the slices of two arrays along an axis."""
    if quantity.ndim == 1:
        return f"outer({one}, {two})"
    if quantity.ndim == 2:
        return f"{one}.T@{two}" if quantity.axis == (1,) else f"{one}@{two}.T"
    rest = [a for a in range(quantity.ndim) if a != quantity.axis[0]]
    return f"tensordot({one}, {two}, ({rest}, {rest}))"


def symbol(name: str) -> str:
    r"""The name of an array in LaTeX: the digits and all but the last key of a path
    become subscripts.

    >>> print(symbol("Wq"), symbol("layers.1.weight"), symbol("W1"), symbol("mu"))
    W_{q} \mathrm{weight}_{\mathrm{layers},1} W_{1} \mu
    """
    for form, shown in _FUNCTIONS:
        if match := re.fullmatch(form, name):
            return shown.format(*map(symbol, match.groups()))
    *path, last = name.split(".")
    below = [p if p.isdigit() or len(p) == 1 else rf"\mathrm{{{p}}}" for p in path]
    word = re.sub(r"_?\d+$", "", last) or last
    own = last[len(word) :].removeprefix("_")
    if word in _GREEK:
        base = rf"\{word}"
    elif re.fullmatch("[A-Za-z][a-z]?", word):
        base, own = word[0], word[1:] + own
    else:
        base = rf"\mathrm{{{word.replace('_', ' ')}}}"
    below = [own] * bool(own) + below
    return base + (f"_{{{','.join(below)}}}" if below else "")


# The functions of a few numbers that the dictionary has by default.
_FUNCTIONS = (
    (r"exp\((\w[^()]*)\)", "e^{{{}}}"),
    (r"exp\(-([^()]*)\)", "e^{{-{}}}"),
    (r"log\(abs\((.*)\)\)", r"\log\lvert {}\rvert"),
    (r"([^*]*)\*([^*]*)", r"{}\,{}"),
)
_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho "
    "sigma tau phi chi psi omega".split()
)


def _latex(quantity: Quantity, bare: bool) -> str:
    name = symbol(quantity.leaf)
    if quantity.index is not None:
        head = quantity.index if isinstance(quantity.index, int) else "h"
        name = rf"{name}^{{({head})}}"
    text = _latex_plain(quantity, name)
    if quantity.index == "all":
        text = rf"\sum_h {text}"
    if quantity.entry and quantity.ndim:
        entry = ",".join(str(i + 1) for i in quantity.entry)
        text = (
            rf"\left({text}\right)_{{{entry}}}"
            if quantity.degree > 1
            else f"{text}_{{{entry}}}"
        )
    if quantity.kind == "turn" and (quantity.time or not bare):
        text = rf"\left({text}\right)"
    return rf"{symbol(quantity.time)}\,{text}" if quantity.time else text


_TOP = r"\top"


def _raised(name: str, above: str) -> str:
    """A name with a superscript, which joins that of a head."""
    return f"{name[:-1]}{above}}}" if "^{" in name else f"{name}^{above}"


def _latex_plain(quantity: Quantity, name: str) -> str:
    ndim, axis = quantity.ndim, quantity.axis
    if quantity.kind == "sum":
        return {
            (2, (0,)): rf"\mathbf{{1}}^\top {name}",
            (2, (1,)): rf"{name}\,\mathbf{{1}}",
            (2, (0, 1)): rf"\mathbf{{1}}^\top {name}\,\mathbf{{1}}",
            (1, (0,)): rf"\mathbf{{1}}^\top {name}",
        }.get(
            (ndim, axis),
            name if not axis else rf"\sum_{{{','.join(map(str, axis))}}} {name}",
        )
    if quantity.kind == "slice":
        return f"{name}[{_at(quantity)}]"
    if not ndim:
        return _raised(name, "2")
    if quantity.kind == "norm":
        if ndim == len(quantity.at) == 1:
            return f"{name}_{{{quantity.at[0] + 1}}}^2"
        inner = f"{name}[{_at(quantity)}]" if quantity.at else name
        return rf"\lVert {inner}\rVert^2"
    if quantity.kind == "turn":
        other = name.replace(symbol(quantity.leaf), symbol(quantity.other), 1)
        products = [(other, name), (name, other)]
        return " - ".join(_latex_product(quantity, *pair) for pair in products)
    return _latex_product(quantity, name, name)


def _latex_product(quantity: Quantity, one: str, two: str) -> str:
    if quantity.ndim == 2 and quantity.axis == (1,):
        return f"{_raised(one, _TOP)} {two}"
    if quantity.ndim <= 2:
        return f"{one} {_raised(two, _TOP)}"
    return rf"\langle {one}, {two}\rangle_{{{quantity.axis[0]}}}"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in table
    ]
