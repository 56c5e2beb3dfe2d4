"""Symmetries as `Law.generator` prints them, applied to parameters as finite maps.

A text is a list of items "LEAF -> IMAGE", after which "; S diagonal" or "; S
block-diagonal of k" may stand. An image is the leaf between factors exp(S) or exp(s),
or with terms added: c, 1 cᵀ, c 1ᵀ, c 1, c 1 1ᵀ. Before S, s and these may stand a
number, or a minus. LEAF[h] is every head, each with its own S_h or s_h, or with one S.
"""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import scipy.linalg

# The typical entry of a free matrix, vector or number.
SIZE = 0.4

_NUMBER = r"(?P<number>-?\d+(?:/\d+)? |-)?"
_FACTOR = rf"exp\({_NUMBER}(?P<free>[Ss])(?P<own>_h)?\)"
_TERM = rf" \+ {_NUMBER}(?P<shift>1 cᵀ|c 1 1ᵀ|c 1ᵀ|c 1|c(?!ᵀ))"
_ITEM = re.compile(r"(?P<leaf>[\w.]+)(\[(?P<index>\w+)\])? -> (?P<image>.+)")
_STRUCTURE = re.compile(r"S (diagonal|block-diagonal of (?P<size>\d+))")


@dataclasses.dataclass(frozen=True)
class Map:
    """One factor of a leaf, from the "left" or the "right", or one term: its shape."""

    kind: str
    number: float
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Item:
    """The maps of one leaf, or of one head of it, or of "h": each head."""

    leaf: str
    index: str | None
    maps: tuple[Map, ...]

    @property
    def negative(self) -> "Item":
        turned = (dataclasses.replace(x, number=-x.number) for x in self.maps)
        return dataclasses.replace(self, maps=tuple(turned))


@dataclasses.dataclass(frozen=True)
class Generator:
    """Items that share S, s and c; the blocks of S have `block` rows, None: all."""

    items: tuple[Item, ...]
    block: int | None

    @property
    def wrong(self) -> "Generator":
        """The same with the sign of the last item turned."""
        *first, last = self.items
        return dataclasses.replace(self, items=(*first, last.negative))

    def moved(
        self, params: dict[str, np.ndarray], random: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Parameters under the map, S, s and c being random."""
        moved = {name: np.array(x) for name, x in params.items()}
        seed = random.bit_generator.random_raw()
        for item in self.items:
            whole = moved[item.leaf]
            if item.index is None:
                moved[item.leaf] = self._image(item, whole, seed)
                continue
            heads = range(len(whole)) if item.index == "h" else [int(item.index)]
            for head in heads:
                own = any(each.own for each in item.maps)
                whole[head] = self._image(item, whole[head], seed + head * own)
        return moved

    def _image(self, item: Item, w: np.ndarray, seed: int) -> np.ndarray:
        for each in item.maps:
            # The same numbers for every item.
            w = self._mapped(each, w, np.random.default_rng(seed))
        return w

    def _mapped(self, each: Map, w: np.ndarray, random: np.random.Generator):
        number = each.number
        if each.kind == "s":
            return np.exp(number * SIZE * (1 + random.random())) * w
        if each.kind in ("left", "right"):
            size = w.shape[-1 if each.kind == "right" else 0]
            s = SIZE * random.normal(size=(size, size))
            blocks = np.arange(size) // (self.block or size)
            s = (s + s.T) * (blocks[:, None] == blocks)
            map_of = scipy.linalg.expm(number * s)
            return w @ map_of if each.kind == "right" else map_of @ w
        shape = {
            "c": w.shape,
            "1 cᵀ": (1, *w.shape[1:]),
            "c 1ᵀ": (*w.shape[:1], 1),
            "c 1": (1,),
            "c 1 1ᵀ": (1, 1),
        }[each.kind]
        return w + number * random.normal(size=shape)


def parsed(text: str) -> Generator:
    """The generator that a text says; `ValueError` for any other text."""
    items, _, structure = text.partition("; ")
    block = None
    if structure:
        said = _STRUCTURE.fullmatch(structure)
        if said is None:
            raise ValueError(f"no structure of S: {structure!r}")
        block = int(said["size"] or 1)
    return Generator(tuple(_item(item) for item in items.split(", ")), block)


def _item(text: str) -> Item:
    said = _ITEM.fullmatch(text)
    if said is None:
        raise ValueError(f"no map of a leaf: {text!r}")
    leaf = text.partition(" -> ")[0]
    image = re.fullmatch(
        rf"(?P<left>.*?)\b{re.escape(leaf)}(?P<right>( exp.*)?)(?P<terms>( \+ .*)?)",
        said["image"],
    )
    if image is None:
        raise ValueError(f"no image of {leaf}: {said['image']!r}")
    maps = (
        *_maps(rf"{_FACTOR} ", image["left"], "left"),
        *_maps(rf" {_FACTOR}", image["right"], "right"),
        *_maps(_TERM, image["terms"], ""),
    )
    return Item(said["leaf"], said["index"], maps)


def _maps(pattern: str, text: str, side: str) -> list[Map]:
    found, end = [], 0
    while end < len(text):
        said = re.compile(pattern).match(text, end)
        if said is None:
            raise ValueError(f"neither a factor nor a term: {text[end:]!r}")
        kind = said["shift"] if not side else "s" if said["free"] == "s" else side
        number = said["number"] or "1"
        number = -1.0 if number == "-" else float(Fraction(number.strip()))
        found.append(Map(kind, number, bool(side and said["own"])))
        end = said.end()
    return found
