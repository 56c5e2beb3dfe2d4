"""Training dynamics of attention models as flows, beside gradient descent."""

import contextlib
import dataclasses
import io
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ..disk.paths import is_there, path_of, require_folder
from ..disk.provenance import provenance, version
from ..disk.store import staged, write_json
from ..errors import InputError
from ..figures import FIGURES, Runs, missing
from ..figures import Figure as FigureOf
from ..numerics.programs import let_programs_go
from ..panels import Picture, numbers
from ..plotting import draw
from ..precision import set_precision
from ..runs.options import Options
from ..runs.outcomes import finished, status, unfinished
from ..runs.plan import Plan, plan
from ..runs.run import execute
from ..runs.saved import earlier_files, write_run
from ..runs.table import heading, law_table, table
from ..systems import SYSTEMS, AbstractSystem
from . import process
from .console import (
    PathText,
    RunChoice,
    SystemChoice,
    number_rule,
    require_known,
    watch,
)
from .flags import OptimizerFlags, flag
from .sweeps import Plot, Sweep

# Where a run in a folder keeps what it needs to resume.
_CHECKPOINT = "checkpoint"
_UNFINISHED = "the run is unfinished: the same command with --resume resumes it"


_Options = Annotated[Options, tyro.conf.arg(name="")]
_OptimizerFlags = Annotated[OptimizerFlags, tyro.conf.arg(name="")]
Precision = Literal["float64", "float32"] | None


def _planned(
    system: AbstractSystem, options: Options, flags: OptimizerFlags, precision: Any
) -> Plan:
    """What the flags ask for, settled, in the precision that they ask for.

    Raises `InputError` for flags that make no sense.
    """
    set_precision(precision)
    defaults = system.defaults
    t1 = defaults.t1 if options.t1 is None else options.t1
    steps = defaults.steps if options.t1 is None else None
    steps = options.steps or steps or None
    optimizer = flags.chosen(defaults.optimizer, t1, steps)
    given = {"optimizer": ", ".join(flags.given)}
    return plan(
        system, optimizer, options, called=lambda name: given.get(name) or flag(name)
    )


@dataclasses.dataclass(frozen=True)
class List:
    """The systems that can be run, with their fields, and the figures.

    Example: flowattn list
    """

    def __call__(self) -> int:
        for name, system in SYSTEMS.items():
            print(f"{name}: {system.citation}")
            for field in dataclasses.fields(system):
                print(f"    --{field.name.replace('_', '-'):17} {field.default}")
        print("\nfigures:")
        for figure in FIGURES.values():
            print(f"    {figure.name:26}{figure.title} ({figure.source})")
        return 0


@dataclasses.dataclass(frozen=True)
class Run:
    """The flow and gradient descent of one system, and the gap between them.

    Prints a table of observables and laws. With --out, writes summary.json,
    trajectory.zarr and figures there.

    Example: flowattn run topic-words --classifier linear --out results
    """

    system: RunChoice  # pyright: ignore[reportInvalidTypeForm]
    """Which system; SYSTEM --help lists its fields."""
    options: _Options
    optimizer: _OptimizerFlags
    precision: Precision = None
    """Precision of everything; None: float64, on a TPU float32."""
    out: PathText | None = None
    """Folder for results; files of ours are replaced, others stay."""
    resume: bool = False
    """Go on with what an unfinished run of the same settings left in the folder."""
    anew: bool = False
    """Begin anew, whatever an unfinished run left in the folder."""

    def __call__(self) -> int:
        if self.resume and self.anew:
            raise InputError(
                "--resume resumes and --anew starts afresh: give one of them"
            )
        if self.out is None and (self.resume or self.anew):
            given = "--resume" if self.resume else "--anew"
            raise InputError(f"{given} needs --out, the folder of the run")
        planned = _planned(self.system, self.options, self.optimizer, self.precision)
        if self.out is None:
            result = execute(planned, watch)
            print(table(result.summary))
            return status(result.outcomes)
        out = path_of("--out", self.out)
        checkpoint = out / _CHECKPOINT
        if self.anew:
            shutil.rmtree(checkpoint, ignore_errors=True)
        elif is_there(checkpoint) and not self.resume:
            raise InputError(
                f"{out} holds an unfinished run: --resume continues it, "
                "--anew begins anew"
            )
        elif self.resume and not is_there(checkpoint):
            done = finished(planned.config, out)
            if done is not None and not done.lost:
                print(done.text)
                print(f"\nnothing to resume: the run in {out} is complete")
                return status(done.outcomes)
            if done is not None:
                lost = ", ".join(done.lost)
                process.say(f"{out} has lost {lost}: the run is made again")
        try:
            with staged(out, earlier_files(out)) as stage:
                try:
                    with warnings.catch_warnings():
                        # Of a disk that is full one line is enough, and that is
                        # said where the results cannot be written either.
                        warnings.filterwarnings("ignore", r"cannot write .*\.state")
                        result = execute(planned, watch, checkpoint)
                    write_run(result, stage)
                finally:
                    with contextlib.suppress(OSError):  # unless it holds something
                        checkpoint.rmdir()
        except KeyboardInterrupt:
            if checkpoint.exists():
                process.say(_UNFINISHED)
            raise
        if not unfinished(result.outcomes):
            shutil.rmtree(checkpoint, ignore_errors=True)
        print(table(result.summary))
        print(f"\nsummary.json, trajectory.zarr and figures are in {out}")
        if checkpoint.exists():
            print(_UNFINISHED)
        return status(result.outcomes)


@dataclasses.dataclass(frozen=True)
class Laws:
    """The laws of one system, and how far flow and gradient descent leave them.

    Example: flowattn laws topic-words --classifier linear --t1 100
    """

    system: SystemChoice  # pyright: ignore[reportInvalidTypeForm]
    """Which system; SYSTEM --help lists its fields."""
    options: _Options
    optimizer: _OptimizerFlags
    precision: Precision = None
    """Precision of everything; None: float64, on a TPU float32."""

    def __call__(self) -> int:
        planned = _planned(self.system, self.options, self.optimizer, self.precision)
        result = execute(planned, watch)
        known = {} if result.problem is None else result.problem.laws
        print(heading(result.summary) + "\n")
        if not known:
            print("this system, trained like this, has no known law")
        for law in known.values():
            regime = f"; {law.regime}" if law.regime else ""
            print(f"{law.name}: {law.label.long_name}, {law.kind}{regime}")
            print(f"    {law.citation}")
        print("\n" + law_table(result.summary))
        return status(result.outcomes)


@dataclasses.dataclass(frozen=True)
class Figure:
    """Draw a paper's figure, or all of them: NAME.png and NAME.pdf, and its numbers in
    NAME.json.

    Example: flowattn figure topic-words-sen --out figures
    """

    name: Annotated[Literal[(*FIGURES, "all")], tyro.conf.Positional]  # pyright: ignore
    """Which figure; all: every one whose data are there."""
    out: PathText = "figures"
    """Folder for the pictures; files of ours are replaced, others stay."""
    paper: bool = False
    """The paper's sizes, where the quick ones are smaller."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""

    def __call__(self) -> int:
        out, data = path_of("--out", self.out), self.data
        if data is not None:
            data = str(require_folder("--data", data))
        set_precision(None)
        runs = Runs(self.paper, data, process.say)
        for figure in FIGURES.values() if self.name == "all" else [FIGURES[self.name]]:
            absent = missing(figure, data)
            if absent is not None:
                if self.name != "all":
                    raise InputError(f"{figure.name}: {absent}")
                process.say(f"{figure.name}: skipped, {absent}")
                continue
            pictures = f"{figure.name}.png", f"{figure.name}.pdf"
            data_file = f"{figure.name}.json"
            with staged(out, (*pictures, data_file)) as stage:
                shown = figure.picture(runs)
                drawing = draw(shown)
                for picture in pictures:
                    drawing.save(stage / picture)
                write_json(stage / data_file, _as_data(figure, shown, self.paper))
            print(out / pictures[0], flush=True)
            let_programs_go()
        return 0


def _as_data(figure: FigureOf, shown: Picture, paper: bool) -> dict[str, Any]:
    """The numbers of a figure, and where they come from."""
    curves = {
        name: {"x": _defined(x), "y": _defined(y)}
        for name, (x, y) in numbers(shown.panels).items()
    }
    about = {"name": figure.name, "title": figure.title, "source": figure.source}
    about["caption"] = shown.caption
    precision = "float64" if jax.config.read("jax_enable_x64") else "float32"
    origin = {"paper_size": paper, "provenance": provenance(precision)}
    return {**about, **origin, "curves": curves}


def _defined(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which has none for what is undefined."""
    return [float(value) if np.isfinite(value) else None for value in values]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if "--version" in arguments:
            print(f"flowattn {version()}")
            return 0
        return _command(arguments)()
    except InputError as error:
        return process.refused(str(error))
    except KeyboardInterrupt:
        return process.interrupted()
    except BrokenPipeError:
        return process.closed()
    except OSError as error:
        # What the system refuses of a path or a disk, wherever that is noticed.
        place = "" if error.filename is None else f"{error.filename}: "
        return process.refused(f"{place}{error.strerror or error}")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        signs = "RESOURCE_EXHAUSTED", "Out of memory"
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in signs):
            return process.refused("out of memory; choose smaller sizes")
        if process.was_interrupted(error):
            return process.interrupted()
        raise
    except Exception as error:
        if process.was_interrupted(error):
            return process.interrupted()
        raise


def _command(arguments: Sequence[str]) -> Any:
    """What the arguments ask for, to be called; `SystemExit` where they are wrong."""
    require_known(arguments, COMMANDS, FIGURES)
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(number_rule)
    # A union needs something to begin with.
    commands: Any = Annotated[None, tyro.conf.Suppress]
    for name, command in COMMANDS.items():
        commands = commands | Annotated[command, tyro.conf.subcommand(name)]
    return tyro.cli(
        commands,
        prog="flowattn",
        description=f"{__doc__}\n\nflowattn --version prints the version.",
        args=arguments,
        config=(
            tyro.conf.CascadeSubcommandArgs,
            tyro.conf.DisallowNone,
            tyro.conf.HelptextFromCommentsOff,
            tyro.conf.OmitSubcommandPrefixes,
        ),
        registry=registry,
    )


COMMANDS: dict[str, Any] = {
    "list": List,
    "run": Run,
    "laws": Laws,
    "sweep": Sweep,
    "plot": Plot,
    "figure": Figure,
}


def entry() -> None:
    """The console script."""
    process.raise_interrupts()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack ‖ or ν
    warnings.showwarning = _show_warning
    try:
        code = main()
    except SystemExit as exit:  # the parser's, which has printed why
        code = exit.code if isinstance(exit.code, int) else 0
    process.end(code)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning as one plain line."""
    del category, filename, lineno, file, line
    process.say(f"flowattn: {message}")
