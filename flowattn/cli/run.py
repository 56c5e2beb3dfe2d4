"""The commands for single runs: run, and laws."""

import contextlib
import dataclasses
import json
import shutil
import warnings
from typing import Annotated, Any

import tyro

from ..disk.paths import is_there, path_of
from ..disk.store import staged
from ..errors import InputError
from ..flows import Kind
from ..report.tables import columns
from ..runs.discovered import discovered, discovered_table, small_instance
from ..runs.options import Options
from ..runs.outcomes import finished, status, unfinished
from ..runs.pages import laws_section
from ..runs.plan import Plan, plan
from ..runs.run import execute
from ..runs.saved import CHECKPOINT, earlier_files, write_run
from ..runs.summary import undefined_to_none
from ..runs.table import heading, law_rows, table
from ..systems import AbstractSetting
from . import process
from .config import ConfigFlags
from .console import PathText, Precision, page_path, set_up, write_page
from .flags import OptimizerFlags, flag
from .progress import Voice

_UNFINISHED = "the run is unfinished: the same command with --resume resumes it"


@dataclasses.dataclass(frozen=True)
class RunFlags(Options):
    """The options of a run as flags."""

    flow: Kind | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Flow: of the loss, of the loss modified for the optimiser, of the optimiser's own
    steps, or of its steps at the edge of stability; None: the system's, usually
    gradient."""
    no_flow: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run no flow."""

    @property
    def options(self) -> Options:
        """The options that they stand for.

        Raises `InputError` for a flow that is not to be run.
        """
        if self.no_flow and self.flow is not None:
            raise InputError(f"--flow {self.flow} and --no-flow: give one of them")
        names = [field.name for field in dataclasses.fields(Options)]
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given["flow"] = False if self.no_flow else self.flow or True
        return Options(**given)


_Options = Annotated[RunFlags, tyro.conf.arg(name="")]
_OptimizerFlags = Annotated[OptimizerFlags, tyro.conf.arg(name="")]


def _planned(
    system: AbstractSetting,
    given: RunFlags,
    flags: OptimizerFlags,
    precision: Any,
) -> Plan:
    """The plan that the flags ask for, in the precision that they ask for.

    Raises `InputError` for flags that make no sense.
    """
    set_up(precision)
    options, defaults = given.options, system.defaults
    t1 = defaults.t1 if options.t1 is None else options.t1
    steps = defaults.steps if options.t1 is None else None
    steps = options.steps or steps or None
    optimizer = flags.chosen(defaults.optimizer, t1, steps)
    names = {"optimizer": ", ".join(flags.given)}
    names |= {} if given.flow is None else {"flow": "--flow"}
    return plan(
        system, optimizer, options, called=lambda name: names.get(name) or flag(name)
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """The flow and gradient descent of one system, and the gap between them.

    Prints a table of observables and laws. With --out, writes summary.json,
    trajectory.zarr and figures there.

    Example: flowattn run topic-words --classifier linear --out results
    """

    system: AbstractSetting
    """Which system; SYSTEM --help lists its fields."""
    options: _Options
    optimizer: _OptimizerFlags
    precision: Precision = None
    """Precision of everything; None: float64, on a TPU float32."""
    out: PathText | None = None
    """Folder for results; those of an earlier run are replaced, other files stay."""
    resume: bool = False
    """Resume the unfinished run of the same settings in the folder."""
    anew: bool = False
    """Start afresh, discarding an unfinished run in the folder."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the summary as JSON in place of the table."""
    voice: Annotated[Voice, tyro.conf.arg(name="")] = Voice()
    file: Annotated[ConfigFlags, tyro.conf.arg(name="")] = ConfigFlags()

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
            result = execute(planned, self.voice.watch)
            print(self._shown(result.summary))
            return status(result.outcomes)
        out = path_of("--out", self.out)
        checkpoint = out / CHECKPOINT
        if self.anew:
            shutil.rmtree(checkpoint, ignore_errors=True)
        elif is_there(checkpoint) and not self.resume:
            raise InputError(
                f"{out} holds an unfinished run: --resume continues it, "
                "--anew starts afresh"
            )
        elif self.resume and not is_there(checkpoint):
            done = finished(planned.config, out)
            if done is not None and not done.lost:
                print(self._shown(done.summary))
                self._say(f"nothing to resume: the run in {out} is complete")
                return status(done.outcomes)
            if done is not None:
                lost = ", ".join(done.lost)
                process.say(f"{out} has lost {lost}: the run is made again")
        try:
            with staged(out, earlier_files(out)) as stage:
                try:
                    with warnings.catch_warnings():
                        # For a full disk one line is enough, and it is printed when
                        # the results cannot be written either.
                        warnings.filterwarnings("ignore", r"cannot write .*\.state")
                        result = execute(planned, self.voice.watch, checkpoint)
                    write_run(result, stage)
                finally:
                    with contextlib.suppress(OSError):  # unless it is not empty
                        checkpoint.rmdir()
        except KeyboardInterrupt:
            if checkpoint.exists():
                process.say(_UNFINISHED)
            raise
        if not unfinished(result.outcomes):
            shutil.rmtree(checkpoint, ignore_errors=True)
        print(self._shown(result.summary))
        self._say(f"report.html, summary.json, trajectory.zarr, figures are in {out}")
        if checkpoint.exists():
            self._say(_UNFINISHED)
        return status(result.outcomes)

    def _shown(self, summary: dict[str, Any]) -> str:
        return json.dumps(summary, indent=2) if self.json else f"{table(summary)}\n"

    def _say(self, line: str) -> None:
        """Print a line where it is no part of JSON."""
        process.say(line) if self.json else print(line)


@dataclasses.dataclass(frozen=True)
class Laws:
    """The laws of one system, and how far flow and gradient descent leave them.

    Example: flowattn laws topic-words --classifier linear --t1 100
    """

    system: AbstractSetting
    """Which system; SYSTEM --help lists its fields."""
    options: _Options
    optimizer: _OptimizerFlags
    precision: Precision = None
    """Precision of everything; None: float64, on a TPU float32."""
    discover: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also discover the laws of a small instance, and name the known ones."""
    html: PathText | None = None
    """A page with the findings, pictures and tables, .html; None: none."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the summary, and what was discovered, as JSON in place of the table."""
    voice: Annotated[Voice, tyro.conf.arg(name="")] = Voice()
    file: Annotated[ConfigFlags, tyro.conf.arg(name="")] = ConfigFlags()

    def __call__(self) -> int:
        html = None if self.html is None else page_path("--html", self.html)
        planned = _planned(self.system, self.options, self.optimizer, self.precision)
        small = found = None
        if self.discover:
            options = self.options
            small = small_instance(self.system, options.seed, options.data)
        result = execute(planned, self.voice.watch)
        known = {} if result.problem is None else result.problem.laws
        if not self.json:
            _print_laws(result.summary, known)
        if small is not None:
            if not self.voice.quiet:
                process.say("discovering laws: most of the time goes into compiling")
            found = discovered(small)
            if not self.json:
                print("\n" + discovered_table(found))
        if self.json:
            summary = found and undefined_to_none(found.discovery.summary)
            print(json.dumps({**result.summary, "discovery": summary}, indent=2))
        if html is not None:
            page = result.page()
            if found is not None:
                section, verdict = laws_section(found)
                page = dataclasses.replace(
                    page,
                    verdicts=[verdict, *page.verdicts],
                    sections=[section, *page.sections],
                )
            write_page(page, html, process.say if self.json else print)
        return status(result.outcomes)


def _print_laws(summary: dict[str, Any], known: Any) -> None:
    print(heading(summary) + "\n")
    if not known:
        print("this system, with this training, has no known law")
    for law in known.values():
        regime = f"; {law.regime}" if law.regime else ""
        print(f"{law.name}: {law.label.long_name}, {law.kind}{regime}")
        print(f"    {law.citation}")
    print("\n" + columns(law_rows(summary)), flush=True)
