"""Discover: seconds from a fresh process to laws and certificate."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

import flowattn as fa

_ROOT = Path(__file__).resolve().parents[2]
_ROWS = (
    "linear",
    "ReLU",
    "topic words, cross-entropy",
    "attention, concatenated",
    "momentum, linear",
    "block",
)
_LARGE = "block with 4 heads of 16, width 64, 100 words, by matrices"


def _block(p: dict[str, Array], ids: Array) -> Array:
    """A pre-norm transformer block with heads as first axes."""
    from scripts.laws.layers import affine, attend, rms_norm, swiglu

    def head(wq: Array, bq: Array, wk: Array, bk: Array, wv: Array, wo: Array) -> Array:
        return attend(affine(z, wq, bq), affine(z, wk, bk), z @ wv) @ wo

    x = p["E"][ids]
    z = p["g1"][None] * rms_norm(x)
    heads = (p[name] for name in ("Wq", "bq", "Wk", "bk", "Wv", "Wo"))
    x = x + jnp.sum(jax.vmap(head)(*heads), axis=0)
    x = x + swiglu(p["g2"][None] * rms_norm(x), p["A"], p["B"], p["C"])
    return p["g3"][None] * rms_norm(x) @ p["U"]


def measured(name: str) -> dict[str, Any]:
    """Two calls of one case in this process; the first compiles."""
    start = time.perf_counter()
    from scripts.laws.architectures import ARCHITECTURES
    from scripts.laws.base import words

    fa.set_precision("float64")
    settings: dict[str, Any] = {}
    if name == _LARGE:
        v, d, h, k, r = 100, 64, 4, 16, 128
        shapes = {"E": (v, d), "U": (d, v), "A": (d, r), "B": (d, r), "C": (r, d)}
        shapes |= {f"g{i}": (d,) for i in (1, 2, 3)} | {"bq": (h, k), "bk": (h, k)}
        shapes |= {n: (h, d, k) for n in ("Wq", "Wk", "Wv")} | {"Wo": (h, k, d)}
        params = {key: jnp.zeros(shape) for key, shape in shapes.items()}
        family = fa.any_loss(_block, words(16, v))
        settings["entries"] = False
    else:
        one = ARCHITECTURES[name]
        params, family = one.params, one.family
        settings |= {"atoms": one.atoms, "times": one.times}
    found = fa.discover(family, params, **settings)
    first = time.perf_counter() - start
    start = time.perf_counter()
    fa.discover(family, params, **settings)
    return {
        "first_call_seconds": first,
        "seconds": time.perf_counter() - start,
        "note": f"{found.parameters} parameters, {found.independent} independent"
        + (", complete" if found.complete else ""),
    }


def discover(long: bool) -> dict[str, Any]:
    """The laws of an architecture, with their certificate: seconds from a fresh process
    (without the imports of Python's interpreter), nearly all of it compilation, and of
    a second call. `--long`: all architectures of the page on laws.

    There is no peer: published codes have neither softmax nor a certificate.
    """
    from scripts.laws.architectures import ARCHITECTURES

    rows: dict[str, Any] = {}
    for name in (*(ARCHITECTURES if long else _ROWS), _LARGE):
        code = (
            "import json; from scripts.benchmarks.discover import measured; "
            f"print(json.dumps(measured({name!r})))"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=_ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        rows[name] = json.loads(run.stdout.splitlines()[-1])
    return {"cases": {"in float64": rows}}
