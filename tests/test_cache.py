"""Compiled programs on disk: kept by commands, unless the user has said otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowattn.cli.main import _Warnings

COMMAND = [sys.executable, "-m", "flowattn", "run", "focus", "--reduced", "--t1", "9"]


ASKED = """
import jax, flowattn as fa
place = fa.use_cache()
print(place and jax.config.jax_persistent_cache_min_compile_time_secs)
"""


def run(tmp_path: Path, *more: str, command=COMMAND, **variables: str):
    """A command as in a shell: without the cache that tests have."""
    own = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    return subprocess.run(
        [*command, *more],
        env={**own, "HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
    )


def files(folder: Path) -> set[str]:
    return {str(x.relative_to(folder)) for x in folder.rglob("*-cache")}


@pytest.mark.slow
def test_a_second_command_finds_what_the_first_has_compiled(tmp_path):
    held = tmp_path / "held"
    one, two = (run(tmp_path, FLOWATTN_CACHE=str(held)) for _ in range(2))
    assert one.returncode == 0 and one.stdout == two.stdout, one.stderr
    kept = files(held)
    (machine,) = held.iterdir()
    assert len(kept) > 10 and machine.stat().st_mode & 0o077 == 0
    run(tmp_path, FLOWATTN_CACHE=str(held))
    # The solve is among them: a program with host callbacks would not be.
    assert files(held) == kept and any("_advance" in name for name in kept)


@pytest.mark.slow
def test_without_a_word_it_is_among_the_users_caches(tmp_path):
    done = run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "caches"))
    assert done.returncode == 0 and files(tmp_path / "caches"), done.stderr


@pytest.mark.slow
def test_the_users_choice_stays(tmp_path):
    theirs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs")}
    theirs |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = run(tmp_path, FLOWATTN_CACHE=str(tmp_path / "ours"), **theirs)
    assert done.returncode == 0 and files(tmp_path / "theirs"), done.stderr
    assert not (tmp_path / "ours").exists()
    done = run(tmp_path, FLOWATTN_CACHE="off")
    assert done.returncode == 0 and not files(tmp_path / ".cache")
    for off in ("OFF", " off "):
        done = run(tmp_path, command=[sys.executable, "-c", ASKED], FLOWATTN_CACHE=off)
        assert done.stdout == "None\n", done.stderr
    done = run(
        tmp_path,
        command=[sys.executable, "-c", ASKED],
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="7",
    )
    assert done.stdout.endswith("7.0\n"), done.stderr


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path, FLOWATTN_CACHE=str(tmp_path / "file" / "held"))
    assert done.returncode == 0
    lines = [x for x in done.stderr.splitlines() if "cannot be kept" in x]
    assert len(lines) == 1 and "Not a directory" in lines[0], done.stderr
    assert "FLOWATTN_CACHE=off" in lines[0]
    done = run(tmp_path, FLOWATTN_CACHE="~nosuchuser/held")
    assert done.returncode == 0 and "cannot be kept in '~nosuch" in done.stderr


def test_python_is_left_alone(tmp_path):
    text = """
import jax, flowattn as fa
assert jax.config.jax_compilation_cache_dir is None
place = fa.use_cache("held")
assert place.exists() and jax.config.jax_compilation_cache_dir == str(place)
assert fa.use_cache() == fa.use_cache("other") == place
"""
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}){text}"]
    done = run(tmp_path, command=command)
    assert done.returncode == 0, done.stderr
    text = """
import flowattn as fa
try:
    fa.use_cache("/dev/null/held")
except fa.InputError as error:
    print(error)
"""
    done = run(tmp_path, command=[sys.executable, "-c", text])
    assert "cannot be kept in '/dev/null/held'" in done.stdout, done.stderr


def test_of_many_failures_to_keep_a_program_one_is_shown(capsys):
    show = _Warnings()
    for name in ("jit_add", "jit_mul"):
        show(
            f"Error writing persistent compilation cache entry for '{name}': OSError: "
            "[Errno 28] No space left on device",
            UserWarning,
            "",
            0,
        )
    show("another", UserWarning, "", 0)
    assert capsys.readouterr().err.splitlines() == [
        "flowattn: compiled programs are not kept on disk: OSError: [Errno 28] No "
        "space left on device",
        "flowattn: another",
    ]
