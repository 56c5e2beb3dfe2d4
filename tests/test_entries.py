"""Entries of the parameters as functions that compiled code can tell apart."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import flowattn as fa
from flowattn.identity import Computed, digest


class Point(NamedTuple):
    x: jax.Array
    parts: dict

    @property
    def double(self):
        return 2 * self.x


POINT = Point(jnp.array(3.0), {"a": [jnp.array(5.0), jnp.array(7.0)]})


def test_an_entry_is_found_by_its_path():
    for path, value in (("x", 3), ("double", 6), ("parts.a.1", 7)):
        assert fa.Entry(path)(POINT) == value
    assert fa.Entry("parts.a.0", of=lambda pair: pair[1])((0, POINT)) == 5


@pytest.mark.parametrize("path", ["y", "parts.b", "parts.a.2", "x.y", ""])
def test_an_entry_that_is_not_there(path):
    with pytest.raises(fa.InputError, match=f"there is no entry {path!r}"):
        fa.Entry(path)(POINT)


def test_entries_of_one_path_are_one_program():
    traced = []

    @jax.jit
    def observed(entry):
        traced.append(entry)
        return entry(POINT)

    assert [observed(fa.Entry(path)) for path in ("x", "x", "double")] == [3, 3, 6]
    assert len(traced) == 2
    x, again, double = (
        digest(Computed(fa.Entry(path), (POINT,))) for path in ("x", "x", "double")
    )
    assert x == again != double
