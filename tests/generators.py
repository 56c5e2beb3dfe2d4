"""Symmetries as `Law.generator` prints them, applied to parameters as finite maps."""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import scipy.linalg

# A free matrix, vector or number, the same in all items of a text: its typical entry.
SIZE = 0.4

_ITEM = re.compile(r"(?P<leaf>[\w.]+)(\[(?P<index>\w+)\])? -> (?P<image>.+)")
_FACTOR = r"(?P<factor>-?\d+(/\d+)? |-)?"
_IMAGES = {
    "right": rf"LEAF exp\({_FACTOR}S\)",
    "left": rf"exp\({_FACTOR}S\) LEAF",
    "scale": rf"exp\({_FACTOR}s\) LEAF",
    "rows": r"LEAF \+ 1 cᵀ",
    "columns": r"LEAF \+ c 1ᵀ",
    "shift": r"LEAF \+ c",
}
_STRUCTURE = re.compile(r"S (symmetric|diagonal|block-diagonal of (?P<size>\d+))")


@dataclasses.dataclass(frozen=True)
class Item:
    """The map of one leaf, or of one head of it, or of "h": each head."""

    leaf: str
    index: str | None
    kind: str
    factor: float

    @property
    def negative(self) -> "Item":
        return dataclasses.replace(self, factor=-self.factor)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Items that share S, s and c; the blocks of S have `block` rows, None: all."""

    items: tuple[Item, ...]
    block: int | None
    each: bool

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
        leading = {len(moved[x.leaf]) for x in self.items if x.index == "h"}
        for head in range(leading.pop()) if self.each else (None,):
            self._move(moved, head, random.bit_generator.random_raw())
        return moved

    def _move(self, moved: dict[str, np.ndarray], head: int | None, seed: int):
        for item in self.items:
            # Every item draws the same S, s or c.
            random = np.random.default_rng(seed)
            whole = moved[item.leaf]
            index = head if item.index == "h" else item.index
            part = whole if index is None else whole[int(index)]
            part[...] = self._image(item, part.copy(), random)

    def _image(self, item: Item, w: np.ndarray, random: np.random.Generator):
        if item.kind == "scale":
            return np.exp(item.factor * SIZE * (1 + random.random())) * w
        if item.kind == "rows":
            return w + np.ones((len(w), 1)) * random.normal(size=(1, *w.shape[1:]))
        if item.kind == "columns":
            return w + random.normal(size=(len(w), 1)) * np.ones((1, *w.shape[1:]))
        if item.kind == "shift":
            return w + random.normal(size=w.shape)
        size = w.shape[-1 if item.kind == "right" else 0]
        s = SIZE * random.normal(size=(size, size))
        blocks = np.arange(size) // (self.block or size)
        s = (s + s.T) * (blocks[:, None] == blocks)
        map_of = scipy.linalg.expm(item.factor * s)
        return w @ map_of if item.kind == "right" else map_of @ w


def parsed(text: str) -> Generator:
    """The generator that a text says; `ValueError` for any other text."""
    rest, _, structure = text.partition("; ")
    block = None
    if structure:
        said = _STRUCTURE.fullmatch(structure)
        if said is None:
            raise ValueError(f"no structure of S: {structure!r}")
        block = int(said["size"]) if said["size"] else None
        block = 1 if said[1] == "diagonal" else block
    each = rest.startswith("for each h: ")
    items = rest.removeprefix("for each h: ").split(", ")
    return Generator(tuple(_item(item) for item in items), block, each)


def _item(text: str) -> Item:
    said = _ITEM.fullmatch(text)
    if said is None:
        raise ValueError(f"no map of a leaf: {text!r}")
    leaf = text.partition(" -> ")[0]
    for kind, pattern in _IMAGES.items():
        image = re.fullmatch(pattern.replace("LEAF", re.escape(leaf)), said["image"])
        if image:
            factor = image.groupdict().get("factor") or "1"
            factor = -1.0 if factor == "-" else float(Fraction(factor.strip()))
            return Item(said["leaf"], said["index"], kind, factor)
    raise ValueError(f"no image of {leaf}: {said['image']!r}")
