"""Data sets: runs as xarray data sets, and back."""

import json
import math
import unicodedata
import urllib.parse
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..errors import InputError
from ..observables import Label
from .provenance import provenance

if TYPE_CHECKING:
    import xarray as xr

_FORMAT = "flowattn trajectory 1"
# Dtypes that files support directly; for others the name is stored with the values.
_PLAIN = ("float32", "float64", "complex64", "complex128", "bool")
# A name is a file name in a zarr store, which may have 255 bytes.
_LONGEST = 200
_DTYPE, _KEY = "jax_dtype", "random_key"


def dims_of(label: Label, name: str, count: int) -> tuple[str, ...]:
    """The label's dims, or numbered ones if it has none for that many axes."""
    if label.dims is not None and len(label.dims) == count:
        return label.dims
    return tuple(f"{name}_{axis}" for axis in range(count))


def columns_dataset(
    columns: Mapping[str, tuple[Any, tuple[str, ...], str, str]],
    coords: Mapping[str, Any],
) -> "xr.Dataset":
    """An xarray data set of named arrays, each with its dims, units and long name."""
    import xarray as xr

    return xr.Dataset(
        {
            name: (dims, np.asarray(values), {"units": units, "long_name": text})
            for name, (values, dims, units, text) in columns.items()
        },
        dict(coords),
    )


def leaf_names(prefix: str, tree: PyTree) -> Iterator[tuple[str, Any]]:
    """The arrays of a PyTree under the names of their variables.

    The name is the path with its keys joined by dots. In a key, every character except
    letters, digits and -_+@~ is percent-encoded, so that no two paths have the same
    name and each can be a file name. Beyond 200 bytes, the end is replaced by a digest
    of the path.

    >>> tree = {"a.b": np.ones(1), "a": {"b": np.ones(1)}, "mlp/w": np.ones(1)}
    >>> [name for name, _ in leaf_names("params", tree)]
    ['params.a.b', 'params.a%2Eb', 'params.mlp%2Fw']
    """
    seen: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype"):
            continue
        keys = (jax.tree_util.keystr((key,), simple=True) for key in path)
        name = ".".join((prefix, *map(_escaped, keys)))
        if len(name.encode()) > _LONGEST:
            digest = blake2b(name.encode(), digest_size=8).hexdigest()
            kept = name.encode()[: _LONGEST - 20].decode(errors="ignore")
            name = f"{kept}#{digest}"
        # Nodes of other libraries may give two children the same key.
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), leaf


def _escaped(key: str) -> str:
    composed = unicodedata.normalize("NFC", key) == key
    return "".join(
        c
        if c in "-_+@~" or (c.isalnum() and (composed or c.isascii()))
        else "".join(f"%{byte:02X}" for byte in c.encode(errors="surrogatepass"))
        for c in key
    )


def _stored(leaf: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """An array as files can hold it, and the attributes that restore it."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        # Bits, not numbers: signed integers, which all files support.
        bits = np.asarray(jax.random.key_data(leaf)).view(np.int32)
        return bits, {_KEY: str(jax.random.key_impl(leaf))}
    array = np.asarray(leaf)
    name = str(array.dtype)
    if name in _PLAIN:
        return array, {}
    if array.dtype.kind == "V" or name == "float16":
        # Short floats, which files lack, are exact in single precision.
        array = array.astype(np.int8 if "int" in name else np.float32)
    return array, {_DTYPE: name}


class _Writer:
    """The variables of one run, or of the runs of an ensemble."""

    def __init__(self, run: Any):
        self.variables: dict[str, Any] = {}
        self.coords: dict[str, Any] = {}
        self.attrs: dict[str, Any] = {}
        self.lead = ("member",) * np.ndim(run.n_reached)
        ts, about = np.asarray(run.ts), {"long_name": "flow time"}
        if np.ndim(ts) == 2 and (ts == ts[:1]).all():
            ts = ts[0]
        self.step = "time" if np.ndim(ts) == 1 else "output"
        dims = (self.step,) if np.ndim(ts) == 1 else (*self.lead, self.step)
        self.coords["time"] = (dims, ts, about)

    def put(self, name: str, leaf: Any, dims: Any, **attrs: Any) -> None:
        """A variable; axes beyond the named dims are numbered."""
        array, kept = _stored(leaf)
        free = range(array.ndim - len(dims))
        self.variables[name] = (
            (*dims, *(f"{name}_{i}" for i in free)),
            array,
            {**attrs, **kept},
        )

    def run(self, run: Any, prefix: str, parameters: bool) -> None:
        """Everything of a run, under a prefix."""
        labels, times = dict(run.labels), (*self.lead, self.step)
        for name, values in run.observed.items():
            label = labels[name]
            dims = dims_of(label, name, np.ndim(values) - len(times))
            # A dim must not have the name of another observable.
            dims = tuple(f"{d}_" if d in run.observed else d for d in dims)
            about = {"units": label.units, "long_name": label.long_name or name}
            if label.discrete:
                about["discrete"] = 1
            if label.limit is not None:
                about["limit"] = str(label.limit)  # JSON has no number for inf
            self.put(prefix + name, values, (*times, *dims), **about)
            for dim, entries in label.coords:
                self.coords[dim] = (dim, np.asarray(entries))
            if not prefix and run.refined is not None:
                about["long_name"] = f"estimated error of {name}"
                self.put(f"{name}_error", run.error[name], (*times, *dims), **about)
        for name, scale in run.scales.items():
            self.put(f"{prefix}scales.{name}", scale, times)
        for name, t in run.events.items():
            self.put(f"{prefix}events.{name}", t, self.lead)
            if not prefix and run.refined is not None:
                self.put(f"event_errors.{name}", run.event_error[name], self.lead)
            if not (self.lead or prefix) and np.isfinite(t):
                self.attrs[f"event {name}"] = float(t)
        if parameters:
            trees = {"params": run.params, "params_best": run.best, "state": run.state}
            for part, tree in trees.items():
                for name, leaf in leaf_names(prefix + part, tree):
                    self.put(name, leaf, self.lead)
            for name, leaf in leaf_names(f"{prefix}params_path", run.path):
                self.put(name, leaf, times)
        self.bookkeeping(run, prefix)
        if run.refined is not None:
            self.run(run.refined, f"{prefix}finer.", parameters)

    def bookkeeping(self, run: Any, prefix: str) -> None:
        """Outcome and cost of a run: attributes; for many runs, variables."""
        from_run = {"result": run.outcome, "t_end": run.t_end, "saved": run.n_reached}
        from_run |= dict(run.counts)
        for name in ("sharpness", "edge"):
            if getattr(run, name) is not None:
                from_run[name] = getattr(run, name)
        for name, value in from_run.items():
            if name == "result" and self.lead:
                words = sorted(set(value))
                codes = np.array([words.index(word) for word in value], np.int8)
                about = {"flag_meanings": " ".join(words)}
                self.put(f"{prefix}stats.result", codes, self.lead, **about)
            elif self.lead:
                self.put(f"{prefix}stats.{name}", jnp.asarray(value), self.lead)
            else:
                self.attrs[prefix + name] = _attribute(value)
        self.attrs[f"{prefix}solver"] = run.solver
        self.attrs[f"{prefix}methods"] = json.dumps(run.methods)
        if run.solver_log is not None:
            self.attrs[f"{prefix}choices"] = json.dumps(run.solver_log)


def _attribute(value: Any) -> Any:
    """A word or a number that JSON and NetCDF support; non-finite values as a word."""
    value = value if isinstance(value, str) else np.asarray(value).item()
    finite = isinstance(value, str | int) or math.isfinite(value)
    return value if finite else str(value)


def to_dataset(run: Any, parameters: bool) -> "xr.Dataset":
    """The data set of a trajectory; see `Trajectory.to_dataset`."""
    import xarray as xr

    writer = _Writer(run)
    writer.run(run, "", parameters)
    origin = run.provenance or json.dumps(provenance(np.asarray(run.ts).dtype))
    attrs = {**writer.attrs, "format": _FORMAT, "provenance": origin}
    return xr.Dataset(writer.variables, writer.coords, attrs)


def from_dataset(
    dataset: Any, like: PyTree, state: PyTree, words: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of the trajectory in a data set, `result` as indices in `words`; see
    `Trajectory.from_dataset`.
    """
    import xarray as xr

    if not isinstance(dataset, xr.Dataset):
        raise InputError(
            "from_dataset needs an xarray data set, as xarray.open_zarr returns it, "
            f"got {type(dataset).__name__}"
        )
    if dataset.attrs.get("format") != _FORMAT:
        raise InputError(
            "this data set holds no run: it was not written by Trajectory.to_dataset "
            f"(its format is not {_FORMAT!r}); a sweep keeps what its cells observed, "
            "and no runs"
        )
    try:
        return _Reader(dataset, words).run("", like, state)
    except InputError:
        raise
    except Exception as error:
        # Data sets come from anywhere: whatever is wrong with one, it holds no run.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"this data set holds no sound run: {reason}") from None


class _Reader:
    """The run described by a data set, with every part checked."""

    def __init__(self, dataset: "xr.Dataset", words: tuple[str, ...]):
        self.dataset, self.words = dataset, words
        self.lead = ("member",) if "member" in dataset.dims else ()
        self.step = "output" if "output" in dataset.dims else "time"
        self.times = (*self.lead, self.step)
        ts = self.array("time")
        real = ts.dtype.kind == "f" and ts.shape[-1:] > (1,)
        sound = real and bool(np.isfinite(ts).all())
        _require(sound, "its times are not two or more finite numbers")
        _require(bool((np.diff(ts) > 0).all()), "its times do not increase")
        shape = tuple(dataset.sizes[dim] for dim in self.times)
        self.ts = np.broadcast_to(ts, shape)

    def array(self, name: str) -> np.ndarray:
        """A variable as numbers, in this machine's byte order."""
        _require(name in self.dataset.variables, f"it has no variable {name!r}")
        array = np.asarray(self.dataset[name].values)
        _require(array.dtype.kind in "fciub", f"{name!r} holds no numbers")
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def leaf(self, name: str) -> Any:
        """A variable as the array that was stored."""
        array, attrs = self.array(name), self.dataset[name].attrs
        if _KEY in attrs:
            bits = array.astype(np.int32).view(np.uint32)
            return jax.random.wrap_key_data(jnp.asarray(bits), impl=str(attrs[_KEY]))
        dtype = jnp.dtype(str(attrs.get(_DTYPE, array.dtype)))
        back = array.astype(dtype)
        same = np.array_equal(back.astype(array.dtype), array, equal_nan=True)
        _require(same, f"{name!r} does not fit its dtype {dtype}")
        return _in_jax(name, back)

    def named(self, part: str) -> Iterator[tuple[str, str]]:
        """The variables of a part: the rest of their names, and their full names."""
        for name in self.dataset.data_vars:
            if isinstance(name, str) and name.startswith(part):
                yield name[len(part) :], name

    def run(self, prefix: str, like: PyTree, state: PyTree) -> dict[str, Any]:
        """The fields of a run, under a prefix."""
        parts = ("params", "params_path", "params_best", "events", "scales", "stats")
        parts = (*parts, "event_errors", "finer", "state")
        seen = {k: v for k, v in self.named(prefix) if k.split(".")[0] not in parts}
        finer = {k for k, _ in self.named(f"{prefix}finer.")}
        seen = {
            k: v
            for k, v in seen.items()
            if not (k.endswith("_error") and k.removesuffix("_error") in finer)
        }
        observed = {k: self._over(self.times, v) for k, v in seen.items()}
        ts = _in_jax("time", self.ts)
        fields = {
            "ts": ts,
            "observed": observed,
            "scales": self._part(f"{prefix}scales.", self.times),
            "events": self._part(f"{prefix}events.", self.lead),
            "labels": tuple((k, self._label(k, v)) for k, v in seen.items()),
            "params": self._tree(f"{prefix}params", like, self.lead),
            "best": self._tree(f"{prefix}params_best", like, self.lead, optional=True),
            "state": self._tree(f"{prefix}state", state, self.lead, optional=True),
            "path": self._tree(f"{prefix}params_path", like, self.times, optional=True),
            **self._bookkeeping(prefix, ts.dtype),
        }
        has_finer = any(self.named(f"{prefix}finer.")) or (
            f"{prefix}finer.solver" in self.dataset.attrs
        )
        _require(not (has_finer and prefix), "a finer run has no finer one")
        fields["refined"] = self.run("finer.", like, state) if has_finer else None
        return fields

    def _over(self, dims: tuple[str, ...], name: str) -> Any:
        found = self.dataset[name].dims[: len(dims)]
        _require(found == dims, f"{name!r} has dims {found}, not {dims}")
        return self.leaf(name)

    def _part(self, part: str, dims: tuple[str, ...]) -> dict[str, Any]:
        return {key: self._over(dims, name) for key, name in self.named(part)}

    def _label(self, key: str, name: str) -> Label:
        variable = self.dataset[name]
        own = tuple(str(dim) for dim in variable.dims[len(self.times) :])
        numbered = all(d.rstrip("_") == f"{key}_{i}" for i, d in enumerate(own))
        coords = tuple(
            (dim, tuple(str(x) for x in self.dataset[dim].values))
            for dim in own
            if dim in self.dataset.coords
        )
        attrs = variable.attrs
        return Label(
            None if own and numbered else own,
            str(attrs.get("units", "1")),
            str(attrs.get("long_name", "")),
            coords,
            bool(attrs.get("discrete", 0)),
            float(attrs["limit"]) if "limit" in attrs else None,
        )

    def _tree(
        self, part: str, like: PyTree, dims: tuple[str, ...], optional: bool = False
    ) -> PyTree:
        """Parameters, shaped like the given ones, or as the names imply."""
        there = {name for key, name in self.named(part) if key[:1] in ("", ".")}
        if not there and (optional or like is None):
            return None
        if like is None:
            return _nested(
                {name[len(part) :]: self._over(dims, name) for name in there}
            )
        over_time = len(dims) > len(self.lead)
        if over_time:
            like = eqx.filter(like, lambda x: _inexact(x))
        found = []
        for name, leaf in leaf_names(part, like):
            _require(name in there, f"it has no {name!r}, which the parameters have")
            there.discard(name)
            value, at = self._over(dims, name), len(self.lead)
            shape = value.shape[:at] + value.shape[at + over_time :]
            fits = shape == leaf.shape and value.dtype == leaf.dtype
            _require(
                fits,
                f"{name!r} is {value.dtype} of shape {shape}, and the parameters have "
                f"{leaf.dtype} of shape {leaf.shape}",
            )
            found.append(value)
        _require(not there, f"it has {', '.join(sorted(there))} beyond the parameters")
        arrays = iter(found)
        return jax.tree.map(lambda x: next(arrays) if hasattr(x, "dtype") else x, like)

    def _bookkeeping(self, prefix: str, dtype: Any) -> dict[str, Any]:
        attrs = self.dataset.attrs
        numbers = {}
        if self.lead:
            numbers = self._part(f"{prefix}stats.", self.lead)
        else:
            names = ("t_end", "saved", "steps", "rejected", "gradient_evaluations")
            names = (*names, "hessian_vector_products", "sharpness", "edge")
            for name in names:
                if prefix + name in attrs:
                    value = np.asarray(attrs[prefix + name])
                    _require(value.size == 1, f"its attribute {name!r} is not a number")
                    real = name in ("t_end", "sharpness", "edge")
                    value = float(value.item()) if real else int(value.item())
                    numbers[name] = jnp.asarray(value, dtype if real else None)
        for name in ("t_end", "saved"):
            _require(name in numbers, f"it has no attribute {prefix}{name}")
        saved = np.asarray(numbers.pop("saved"))
        inside = saved.dtype.kind in "iu" and np.all(saved >= 0)
        inside = inside and np.all(saved <= self.ts.shape[-1])
        _require(bool(inside), "its number of saved times is out of range")
        methods = json.loads(str(attrs.get(f"{prefix}methods", "[]")))
        choices = json.loads(str(attrs.get(f"{prefix}choices", "[]")))
        since = [float(one["since"]) for one in choices[1:]]
        numbers.pop("result", None)
        reals = ("t_end", "sharpness", "edge")
        return {
            **{name: numbers.pop(name, None) for name in reals},
            "n_reached": jnp.asarray(saved),
            "counts": numbers,
            "result": self._result(prefix),
            "solver": str(attrs.get(f"{prefix}solver", "")),
            "methods": tuple(str(method) for method in methods),
            "switches": jnp.asarray([*since, math.inf], dtype) if choices else None,
        }

    def _result(self, prefix: str) -> np.ndarray:
        """How runs ended, as indices in `words`."""
        if not self.lead:
            named = [str(self.dataset.attrs.get(f"{prefix}result"))]
        else:
            name = f"{prefix}stats.result"
            codes = self.array(name)
            meanings = str(self.dataset[name].attrs.get("flag_meanings")).split()
            _require(
                bool(np.all((codes >= 0) & (codes < len(meanings)))),
                "it does not record how its runs ended",
            )
            named = [meanings[int(code)] for code in codes]
        for word in named:
            _require(word in self.words, f"its result {word[:40]!r} is unknown")
        places = np.array([self.words.index(word) for word in named])
        return places if self.lead else places.reshape(())


def _require(sound: bool, problem: str) -> None:
    if not sound:
        raise InputError(f"this data set holds no sound run: {problem}")


def _inexact(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _in_jax(name: str, array: np.ndarray) -> jax.Array:
    """An array in JAX, if its dtype is supported."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise InputError(
            f"{name!r} is {array.dtype}, and JAX is set to single precision: "
            "fa.set_precision('float64') first"
        )
    # Placed without a computation, which `jax_debug_nans` would check.
    return jax.device_put(array)


def _nested(named: dict[str, Any]) -> Any:
    """Arrays by their paths, as nested dicts; one without a path is itself."""
    if list(named) == [""]:
        return named[""]
    tree: dict[str, Any] = {}
    for path, array in sorted(named.items()):
        *keys, last = (
            urllib.parse.unquote(key, errors="surrogatepass")
            for key in path.split(".")[1:]
        )
        at = tree
        for key in keys:
            at = at.setdefault(key, {})
        _require(
            isinstance(at, dict) and last not in at, f"params{path} is there twice"
        )
        at[last] = array
    return tree
