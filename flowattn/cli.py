"""Training dynamics of attention models as flows, beside gradient descent."""

import contextlib
import dataclasses
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, SupportsFloat, Union

import jax
import jax.random as jr
import numpy as np
import tyro
from tqdm import tqdm

from .compare import Gap, compare
from .descend import descend
from .errors import InputError, require_positive
from .flows import GradientFlow
from .provenance import provenance, version
from .report import law_table, summarise, table
from .sharpness import sharpness
from .solve import SOLVERS, solve
from .store import staged, write_json, write_runs
from .systems import SYSTEMS, AbstractSystem, Problem
from .trajectory import Trajectory

_OUTPUT_TIMES = 100
_MOST_STEPS = 10**9


# What a run writes: from an earlier run they would be out of date.
_FILES = (
    "summary.json",
    "trajectory.zarr",
    *(f"{name}.png" for name in ("training", "sen", "gap", "laws")),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a system is run."""

    t1: float | None = None
    """End of the flow; None: the paper's."""
    rtol: float = 1e-6
    """Relative tolerance of the flow's local error."""
    atol: float | None = None
    """Absolute tolerance; None: rtol / 1000."""
    solver: Literal[tuple(SOLVERS)] = "tsit5"  # pyright: ignore
    """Solver of the flow."""
    max_steps: int = 5000
    """Largest number of steps the flow may try before it is given up as stuck."""
    seed: int = 0
    """Seed of the data and of the start."""
    precision: Literal["float64", "float32"] | None = None
    """Precision of everything; None: float64, on a TPU float32."""
    learning_rate: float | None = None
    """Learning rate of gradient descent; None: the paper's."""
    steps: int | None = None
    """Steps of gradient descent; None: t1 / learning rate."""
    patience: int | None = None
    """Stop after so many steps without a lower validation loss; None: never."""
    flow: bool = True
    """Run the flow."""
    descent: bool = True
    """Run gradient descent."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One run of a system from the command line."""

    problem: Problem
    flow: Trajectory | None
    descent: Trajectory | None
    gap: Gap | None
    summary: dict[str, Any]


def execute(system: AbstractSystem, options: Options) -> Result:
    """Run the flow and gradient descent of a system, and put the numbers together."""
    t1 = system.t1 if options.t1 is None else options.t1
    rate = options.learning_rate
    rate = system.learning_rate if rate is None else rate
    require_positive(t1=t1, learning_rate=rate, rtol=options.rtol)
    require_positive(max_steps=options.max_steps)
    if options.atol is not None:
        require_positive(atol=options.atol)
    if options.patience is not None:
        require_positive(patience=options.patience)
    if not (options.flow or options.descent):
        raise InputError("--no-flow and --no-descent together leave nothing to run")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"seed must be from 0 to {2**32 - 1}, got {options.seed}")
    steps = round(min(t1 / rate, 1e18)) if options.steps is None else options.steps
    if options.descent and steps == 0 and options.steps is None:
        raise InputError(f"t1 {t1} is shorter than a step of learning rate {rate}")
    steps = steps if options.descent else max(1, steps)
    require_positive(steps=steps)
    if options.descent and steps > _MOST_STEPS:
        raise InputError(f"steps must be at most {_MOST_STEPS}, got {steps}")
    precision = _set_precision(options.precision)
    problem = system.problem(jr.key(options.seed), options.data)
    observe = {**problem.observables, **problem.laws}
    # Enough of the records lie on the time that flow and descent have in common.
    common = int(min(steps, t1 / rate)) if options.flow else steps
    every = max(1, common // _OUTPUT_TIMES, steps // (100 * _OUTPUT_TIMES))

    run = traj = gap = None
    seconds = {}
    if options.descent:
        with _progress("gradient descent", seconds) as progress:
            run = descend(
                problem.loss,
                problem.params,
                learning_rate=rate,
                steps=steps,
                every=every,
                observe=observe,
                validation=problem.validation if options.patience else None,
                patience=options.patience,
                throw=False,
                progress=progress,
            )
    if options.flow:
        with _progress("flow", seconds) as progress:
            traj = solve(
                GradientFlow(problem.loss),
                problem.params,
                ts=_output_times(t1, run),
                rtol=options.rtol,
                atol=options.atol,
                solver=options.solver,
                max_steps=options.max_steps,
                observe=observe,
                error=True,
                throw=False,
                progress=progress,
            )
    if traj is not None and run is not None and min(traj.saved, run.saved) > 1:
        if run.ts[1] <= t1 * (1 + 1e-6):
            gap = compare(traj, run)
    top = float(sharpness(problem.loss)(problem.params)[0])
    summary = summarise(system, problem, traj, run, gap, top, rate)
    config = {**_fields(system), **_fields(options), "t1": t1, "learning_rate": rate}
    atol = options.rtol / 1000 if options.atol is None else options.atol
    config |= {"steps": steps, "atol": atol, "precision": precision}
    origin = {**provenance(precision), "seconds": seconds, "command": sys.argv[1:]}
    summary = {**summary, "config": config, "provenance": origin}
    return Result(problem, traj, run, gap, summary)


def _fields(instance: Any) -> dict[str, Any]:
    """The fields of a system or of options, ready for JSON."""
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _set_precision(precision: str | None) -> str:
    if precision is None:
        precision = "float32" if jax.default_backend() == "tpu" else "float64"
    jax.config.update("jax_enable_x64", precision == "float64")
    return precision


def _output_times(t1: float, run: Trajectory | None) -> np.ndarray:
    """The flow's output times: the descent's, and its own beyond them."""
    own = np.linspace(0, t1, _OUTPUT_TIMES + 1)
    if run is None:
        return own
    shared = np.asarray(run.ts, np.float64)
    spacing = 1e-6 * t1
    shared = shared[shared <= t1 + spacing]
    if abs(shared[-1] - t1) <= spacing:
        shared[-1] = t1
    beyond = own[own > shared[-1] + spacing]
    return np.concatenate([shared, beyond])


@contextlib.contextmanager
def _progress(
    label: str, seconds: dict[str, float]
) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, a line each quarter elsewhere; on standard error.

    What runs under it is waited for; `seconds[label]` is the time it took.
    """
    start = time.perf_counter()
    terminal = sys.stderr.isatty()
    bar = tqdm(total=100, leave=False, bar_format=_BAR, disable=not terminal)
    bar.set_description(label)
    last, text = 0.0, label

    def update(done: float) -> None:
        nonlocal last, text
        percent = 100 * float(done)
        if percent < last:  # the second, finer solve
            last, text = 0.0, f"{label}, error estimate"
            bar.reset()
            bar.set_description(text)
        bar.update(percent - last)
        quarters = int(percent / 25 + 1e-6)
        if quarters > int(last / 25 + 1e-6) and not terminal:
            print(f"{text}: {25 * quarters} %", file=sys.stderr, flush=True)
        last = percent

    try:
        yield update
        jax.effects_barrier()
    finally:
        bar.close()
        seconds[label] = time.perf_counter() - start


_BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed} < {remaining}"


def _about(system: type[AbstractSystem]) -> str:
    """The first line of a system's docstring, and where it comes from."""
    return f"{(system.__doc__ or '').splitlines()[0]}\n\n{system.citation}"


def _choice() -> Any:
    """One system as a subcommand of the command that has it as a field."""
    # A union of one would be no choice to tyro; the suppressed None makes two.
    union: Any = Annotated[None, tyro.conf.Suppress]
    for name, system in SYSTEMS.items():
        subcommand = tyro.conf.subcommand(name, description=_about(system))
        union = union | Annotated[system, subcommand]
    return Annotated[union, tyro.conf.arg(name="")]


_SystemChoice = _choice()
_Options = Annotated[Options, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True)
class List:
    """The systems that can be run, with their fields.

    Example: flowattn list
    """

    def __call__(self) -> int:
        for name, system in SYSTEMS.items():
            print(f"{name}: {system.citation}")
            for field in dataclasses.fields(system):
                print(f"    --{field.name.replace('_', '-'):17} {field.default}")
        return 0


@dataclasses.dataclass(frozen=True)
class Run:
    """The flow and gradient descent of one system, and the gap between them.

    Prints a table of observables and laws. With --out, writes summary.json,
    trajectory.zarr and figures there.

    Example: flowattn run topic-words --classifier linear --out results
    """

    system: _SystemChoice  # pyright: ignore[reportInvalidTypeForm]
    options: _Options
    out: Path | None = None
    """Folder for results; files of ours are replaced, others stay."""

    def __call__(self) -> int:
        if self.out is None:
            result = execute(self.system, self.options)
        else:
            with staged(self.out, _FILES) as stage:
                result = execute(self.system, self.options)
                _write(stage, result)
        print(table(result.summary))
        if self.out is not None:
            print(f"\nsummary.json, trajectory.zarr and figures are in {self.out}")
        return _status(result)


@dataclasses.dataclass(frozen=True)
class Laws:
    """The laws of one system, and how far flow and gradient descent leave them.

    Example: flowattn laws topic-words --classifier two-layer --t1 50
    """

    system: _SystemChoice  # pyright: ignore[reportInvalidTypeForm]
    options: _Options

    def __call__(self) -> int:
        result = execute(self.system, self.options)
        if not result.problem.laws:
            print("this system, trained like this, has no known law")
        for law in result.problem.laws.values():
            regime = f"; {law.regime}" if law.regime else ""
            print(f"{law.name}: {law.label.long_name}, {law.kind}{regime}")
            print(f"    {law.citation}")
        print("\n" + law_table(result.summary))
        return _status(result)


def _write(stage: Path, result: Result) -> None:
    from .plotting import plot_topic_words

    runs = {"flow": result.flow, "descent": result.descent}
    datasets = {k: run.to_dataset() for k, run in runs.items() if run is not None}
    summary = result.summary
    write_runs(
        stage / "trajectory.zarr",
        datasets,
        {"system": summary["system"], "config": summary["config"]}
        | {"provenance": summary["provenance"]},
    )
    if any(run is not None and run.saved > 1 for run in runs.values()):
        drawings = plot_topic_words(
            result.flow, result.descent, result.gap, result.problem.laws
        )
        for name, drawing in drawings.items():
            drawing.save(stage / f"{name}.png")
    write_json(stage / "summary.json", summary)


def _status(result: Result) -> int:
    """0, or 1 where a run ended before it should have."""
    runs = (result.flow, result.descent)
    ends = [run.outcome for run in runs if run is not None]
    return int(any(end not in ("successful", "out_of_patience") for end in ends))


def _number_rule(info: tyro.constructors.PrimitiveTypeInfo):
    """Fields that in Python may be arrays are plain numbers here."""
    if info.type is not SupportsFloat:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda args: float(args[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_number_rule)
    commands = Union[  # noqa: UP007
        Annotated[List, tyro.conf.subcommand("list")],
        Annotated[Run, tyro.conf.subcommand("run")],
        Annotated[Laws, tyro.conf.subcommand("laws")],
    ]
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "--version" in arguments:
        print(f"flowattn {version()}")
        return 0
    try:
        command = tyro.cli(
            commands,  # pyright: ignore[reportArgumentType]
            prog="flowattn",
            description=__doc__,
            args=arguments,
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.DisallowNone,
                tyro.conf.HelptextFromCommentsOff,
                tyro.conf.OmitSubcommandPrefixes,
            ),
            registry=registry,
        )
        return command()
    except InputError as error:
        print(f"flowattn: {error}", file=sys.stderr)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            print("flowattn: out of memory; choose smaller sizes", file=sys.stderr)
        else:
            raise
    return 2


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack ‖ or ν
    # So that what was begun is cleaned up: an exception, as Ctrl-C is one.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
