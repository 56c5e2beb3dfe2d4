"""One owner of a store: of many that try at once, dead ones, suspended ones."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import flowattn as fa
from flowattn.disk import owner
from flowattn.disk.folders import folder_at
from flowattn.disk.owner import CLAIM, Owner, owned, require_owned
from flowattn.errors import InputError


def places(tmp_path):
    """A folder of this machine, and one that fsspec knows."""
    return folder_at(tmp_path / "store"), folder_at(f"memory:/{tmp_path}/store")


def dead(**changes) -> Owner:
    """The owner that a process was which has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    fields = dict(host="here", machine=owner._machine(), pid=process.pid)
    return Owner(**{**fields, "started": "1", "token": "gone", **changes})


@pytest.fixture(params=[0, 1], ids=["path", "url"])
def folder(request, tmp_path):
    return places(tmp_path)[request.param]


def test_a_second_is_refused_while_the_first_lives(folder):
    with owned(folder) as first:
        require_owned(folder, first)
        with pytest.raises(
            InputError, match=f"is being written by process {os.getpid()}"
        ):
            with owned(folder):
                raise AssertionError
        require_owned(folder, first)
    assert folder.names() == []
    with owned(folder) as second:
        assert second.token != first.token


def test_a_dead_owner_is_taken_over_and_not_a_living_one(folder):
    folder.create(CLAIM, dead().content)
    with owned(folder) as mine:
        require_owned(folder, mine)
        assert folder.names() == [CLAIM]
    # Processes of other machines are unknown: until the lease has run out.
    folder.create(CLAIM, dead(machine="another").content)
    with pytest.raises(InputError, match="is being written by"), owned(folder):
        raise AssertionError
    # A number that another process has by now.
    folder.write(CLAIM, dead(pid=os.getpid()).content)
    with owned(folder):
        pass


def test_a_lease_that_has_run_out_is_taken_over_and_its_owner_ends(tmp_path):
    """As of a process that was suspended."""
    folder = folder_at(tmp_path)
    with owned(folder) as first:
        past = time.time() - owner.LEASE - 5
        os.utime(tmp_path / CLAIM, (past, past))
        with owned(folder) as second:
            require_owned(folder, second)
            with pytest.raises(InputError, match="was taken over by process"):
                require_owned(folder, first)
        with pytest.raises(InputError, match="was moved or removed"):
            require_owned(folder, first)
    assert folder.names() == []


def test_signs_of_life_renew_a_lease(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(folder, "refresh", lambda *claim: seen.append(claim))
    with owned(folder, beat=0.01) as mine:
        while not seen:
            time.sleep(0.01)
    assert seen[0] == (CLAIM, mine.content)


def test_to_renew_a_lease_touches_no_other_claim(folder):
    folder.create(CLAIM, dead().content)
    if folder.path is not None:
        os.utime(folder.path / CLAIM, (1, 1))
        folder.refresh(CLAIM, b"mine")
        assert (folder.path / CLAIM).stat().st_mtime == 1
        folder.refresh(CLAIM, folder.read(CLAIM))
        assert folder.age(CLAIM) < 60
    folder.refresh(CLAIM, b"mine")
    assert json.loads(folder.read(CLAIM))["token"] == "gone"


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"pid": "x"}', b"\xff", b"[" * 9999]
)
def test_claims_of_any_content(tmp_path, content):
    """Alive while they are young, and then taken over."""
    folder = folder_at(tmp_path)
    folder.create(CLAIM, content)
    with pytest.raises(InputError, match="is being written by another"), owned(folder):
        raise AssertionError
    os.utime(tmp_path / CLAIM, (1, 1))
    with owned(folder) as mine:
        require_owned(folder, mine)
    assert folder.names() == []


def test_of_many_that_take_over_at_once_one_owns(tmp_path):
    """Every time that one has it, no other has."""
    folder, at_once, most, done = folder_at(tmp_path), [], [], []
    barrier = threading.Barrier(8)

    def try_it():
        for _ in range(25):
            barrier.wait(60)
            try:
                with owned(folder) as mine:
                    at_once.append(mine)
                    most.append(len(at_once))
                    require_owned(folder, mine)
                    time.sleep(0.001)
                    at_once.remove(mine)
                    done.append(mine)
            except InputError:
                pass
            # The next round begins with a dead one again.
            if barrier.wait(60) == 0:
                folder.write(CLAIM, ended.content)
            barrier.wait(60)

    ended = dead()
    folder.create(CLAIM, ended.content)
    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) >= 25 and max(most) == 1
    assert folder.names() == [CLAIM]


def test_an_heir_that_died_in_taking_over_stops_nobody(folder):
    folder.create(CLAIM, dead().content)
    folder.create(f"{CLAIM}.gone", dead(token="gone too").content)
    with owned(folder) as mine:
        require_owned(folder, mine)
        assert folder.names() == [CLAIM]


def test_file_systems_where_a_file_has_one_name(tmp_path, monkeypatch):
    def no_link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    folder = folder_at(tmp_path)
    with owned(folder) as mine:
        require_owned(folder, mine)
        with pytest.raises(InputError, match="is being written"), owned(folder):
            raise AssertionError
    assert folder.names() == []


PROGRAM = """
import sys, time
from flowattn.disk.folders import folder_at
from flowattn.disk.owner import owned
with owned(folder_at(sys.argv[1])):
    print("owns", flush=True)
    time.sleep(600)
"""


def test_the_owner_of_a_killed_process(tmp_path):
    """Killed, and not even waited for by its parent."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"owns\n"
        with pytest.raises(InputError, match=f"process {process.pid} on"):
            with owned(folder_at(tmp_path)):
                raise AssertionError
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        with owned(folder_at(tmp_path)):
            pass


def test_folders_are_homes_and_empty_places_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_at("~/a.zarr").path == tmp_path / "a.zarr"
    with pytest.raises(InputError, match="no home folder ~nobody-at-all"):
        folder_at("~nobody-at-all/a.zarr")
    with pytest.raises(InputError, match="needs a place"):
        folder_at("")
    with pytest.raises(InputError, match="cannot open nosuch://x"):
        folder_at("nosuch://x")


def test_names_are_no_patterns():
    """fsspec would take them for some, and remove what they match."""
    folder = folder_at("memory://store[1]")
    for name in ("a*/x", "ab/x", "a[b]/x", "c?", "cd"):
        folder.write(name, b"")
    for name in ("a*", "a[b]", "c?", "none*"):
        folder.remove(name)
    assert sorted(folder.names()) == ["ab", "cd"]


def test_what_is_left_in_a_complete_store_is_cleared(tmp_path):
    """By a process that was killed after its last chunk."""
    place, axes = tmp_path / "s.zarr", {"start_mu": "0:1:3"}
    system, how = fa.systems.Focus(reduced=True), dict(t1=10.0, out=place)
    found = fa.sweep(system, axes, **how)
    left = place / CLAIM
    left.write_bytes(dead(machine=owner._machine()).content)
    assert fa.sweep(system, axes, **how).equals(found) and not left.exists()
    # One who lives keeps it.
    with owned(folder_at(place)):
        assert fa.sweep(system, axes, **how).equals(found) and left.exists()
    assert not left.exists()
