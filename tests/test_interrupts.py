"""Ctrl-C in each part of a run, and what --resume makes of it."""

import json
import signal

import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.numerics import segments

# All parts: a descent, a flow, a reduction (both with their error estimates) and a
# sharpness.
RUN = "run copying --length 3 --vocabulary 3 --t1 3 --steps 5 --learning-rate 0.1"
RUN += " --start 0.5 --solver tsit5 --rtol 1e-10"
PARTS = (
    "descent",
    "flow",
    "flow, error estimate",
    "reduction copying",
    "reduction copying, error estimate",
)
ALL = (*PARTS, "sharpness")


def run(out, *more):
    return main([*RUN.split(), "--out", str(out), *more])


def summary(out):
    return json.loads((out / "summary.json").read_text())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_MOST", 4)  # what a run is, too, to the last digit
        assert run(out) == 0
    return out


@pytest.fixture
def interrupted_at(monkeypatch):
    """Ctrl-C as a part begins, the first being number 0, or after some segments of it,
    which are of 4 steps. What is begun is counted.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun, enter, advance = [], segments._Interrupt.__enter__, segments._advance

    def arrange(number, after=0, signals=1):
        begun.clear()

        def entered(self):
            enter(self)
            begun.append(0)
            if len(begun) == number + 1 and after == 0:
                signal.raise_signal(signal.SIGINT)

        def advanced(*arguments):
            begun[-1] += 1
            if len(begun) == number + 1 and begun[-1] == after:
                for _ in range(signals):
                    signal.raise_signal(signal.SIGINT)
            return advance(*arguments)

        monkeypatch.setattr(segments, "_MOST", 4)
        monkeypatch.setattr(segments._Interrupt, "__enter__", entered)
        monkeypatch.setattr(segments, "_advance", advanced)
        return begun

    yield arrange
    signal.signal(signal.SIGINT, handler)


def same(one, other):
    """Whether two folders hold the same numbers."""
    left, right = summary(one), summary(other)
    for name in ("provenance", "files"):
        for found in (left, right):
            del found[name]
    assert left == right
    trees = [
        xr.open_datatree(f / "trajectory.zarr", engine="zarr") for f in (one, other)
    ]
    assert set(trees[0].children) == set(trees[1].children)
    for name in trees[0].children:
        xr.testing.assert_identical(
            trees[0][name].to_dataset().load(), trees[1][name].to_dataset().load()
        )


@pytest.mark.parametrize(
    "number, after", [(0, 1), (1, 0), (2, 1), (3, 0), (3, 1), (4, 0)]
)
def test_each_part_has_its_outcome_and_is_resumed(
    number, after, unbroken, interrupted_at, tmp_path, capsys
):
    begun = interrupted_at(number, after)
    assert run(tmp_path) == 1
    ends = summary(tmp_path)["outcomes"]
    before, rest = PARTS[:number], ALL[number + 1 :]
    assert list(ends) == list(ALL)
    assert {ends[part] for part in before} <= {"successful"}
    assert ends[PARTS[number]] == "interrupted"
    assert {ends[part] for part in rest} == {"not begun"}
    shown = capsys.readouterr().out
    assert "; interrupted" in shown and "the same command with --resume" in shown
    named = "; ".join(rest).replace(", error estimate", "'s error estimate")
    assert f"not run  {named}" in shown

    begun = interrupted_at(len(PARTS))
    assert run(tmp_path, "--resume") == 0
    # Parts that were done are read, not advanced.
    assert [advances == 0 for advances in begun[:number]] == [True] * number
    assert not (tmp_path / "checkpoint").exists()
    same(tmp_path, unbroken)


def test_a_second_one_is_immediate(interrupted_at, tmp_path, capsys):
    """Nothing half-written, and what was done before is kept."""
    interrupted_at(1, after=1, signals=2)
    out = tmp_path / "out"
    assert run(out) == 130
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "the run is unfinished: the same command with --resume resumes it",
        "flowattn: interrupted",
    ]
    assert [path.name for path in out.iterdir()] == ["checkpoint"]
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["descent.state"]


def test_one_before_anything_is_done_leaves_nothing(monkeypatch, tmp_path, capsys):
    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("flowattn.problem.descend", interrupt)
    assert run(tmp_path / "deep" / "out") == 130
    assert capsys.readouterr().err == "flowattn: interrupted\n"
    assert not (tmp_path / "deep").exists()


def test_a_reduction_that_fails_is_no_success(monkeypatch, tmp_path, capsys):
    """A reduction that runs out of steps while its flow does not."""

    def solved(flow, params, **how):
        return fa.solve(flow, params, **how | {"max_steps": 2})

    monkeypatch.setattr("flowattn.reductions.solve", solved)
    assert run(tmp_path) == 1
    ends = summary(tmp_path)["outcomes"]
    assert ends["flow"] == "successful"
    assert ends["reduction copying"] == "max_steps_reached"
    assert summary(tmp_path)["reductions"][0]["t_end"] < 3
    assert "out of steps" in capsys.readouterr().out


def test_one_in_the_last_segment_is_not_lost(interrupted_at, tmp_path, capsys):
    """The part is done, and kept; what follows it is not begun."""
    begun = interrupted_at(0, after=2)
    assert run(tmp_path) == 1
    assert len(begun) == 1
    assert "the same command with --resume" in capsys.readouterr().out
    assert summary(tmp_path)["outcomes"]["flow"] == "not begun"
    assert [f.name for f in (tmp_path / "checkpoint").iterdir()] == ["descent.state"]
    begun = interrupted_at(len(PARTS))
    assert run(tmp_path, "--resume") == 0
    assert begun[0] == 0 and min(begun[1:]) > 0
