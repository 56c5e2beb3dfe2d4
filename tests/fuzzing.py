"""Readers of files that are not trusted, and what they may take."""

import tracemalloc
from collections.abc import Callable
from typing import Any

# What a file may make a reader take: so much, and so many times its size.
FREE, TIMES = 64 * 2**20, 50


def peak(call: Callable[[], Any]) -> int:
    """The most memory, in bytes, that a call holds beyond what there was."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
