"""JSON that may stand where a sound file was: any values, and sound files changed."""

import copy
import json

from hypothesis import strategies as st

# Values of all shapes that JSON has, and some that mean something here.
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([10**24, -(10**400), 2**63, 1e308, float("nan"), float("inf")]),
    st.text(max_size=5),
    st.sampled_from(["float64", "str", "/etc", "../..", "bytes", "gzip", "default"]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=8,
)
# No JSON, or such that no reader need be able to hold.
NESTED = [b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900]
DIGITS = [b"1" * 5000, b'{"config": ' + b"1" * 5000 + b"}"]
ODD = [
    *NESTED,
    *DIGITS,
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"\0",
    b"NaN",
    b"\xef\xbb\xbf{}",
]


def places(held, path=()):
    """The paths to all values within a JSON value."""
    yield path
    if isinstance(held, dict | list):
        for key, value in held.items() if isinstance(held, dict) else enumerate(held):
            yield from places(value, (*path, key))


@st.composite
def changed(draw, sound: bytes) -> bytes:
    """A sound file with some of its values taken away or put elsewhere."""
    held = {"": json.loads(sound)}
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(places(held))[1:]))
        outer = held
        for key in path:
            outer = outer[key]
        if draw(st.integers(0, 3)) == 0 and last != "":
            del outer[last]
        else:
            found = draw(st.sampled_from(list(places(held))))
            other = held
            for key in found:
                other = other[key]
            outer[last] = copy.deepcopy(draw(st.one_of(values, st.just(other))))
    content = json.dumps(held[""]).encode()
    if draw(st.integers(0, 9)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return content


def anything(sound: bytes) -> st.SearchStrategy[bytes]:
    """Any JSON, or a sound file changed."""
    return st.one_of(
        changed(sound), values.map(lambda value: json.dumps(value).encode())
    )
