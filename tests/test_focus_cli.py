"""Focus on the command line: what a run leaves, and what is refused."""

import json

import numpy as np
import pytest

from flowattn.cli.main import main

from .focus_theory import mu_velocity, oracle, share

SIZES = ("--segments", 4, "--classes", 4)
SMALL = (*SIZES, "--t1", 20, "--solver", "tsit5")


def run(*arguments, system="focus"):
    return main(["run", system, *map(str, arguments)])


def summary(out):
    text = (out / "summary.json").read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.slow
def test_a_hybrid_run_beside_its_theory(tmp_path):
    hybrid = ("--loss", "hybrid", "--then", "marginal", "--switch-time", 5)
    assert run(*SMALL, "--noise", 0, *hybrid, "--out", tmp_path) == 0
    found = summary(tmp_path)
    assert found["system"] == "focus" and found["config"]["then"] == "marginal"
    middle = oracle("soft", 4, 4, (0, 0), (0, 5))[:, -1]
    mu, nu = oracle("marginal", 4, 4, middle, (5, 20))[:, -1]
    alpha, beta = share(nu, 4), share(mu, 4)
    loss = -np.log(alpha * beta + (1 - alpha) / 4)
    expected = dict(mu=mu, nu=nu, alpha=alpha, beta=beta, loss=loss, accuracy=1.0)
    final = found["flow"]["final"]
    assert set(final) == set(expected)
    for name, value in expected.items():
        # Ten steps, with local errors of 1e-6.
        np.testing.assert_allclose(final[name], value, rtol=1e-5)
        np.testing.assert_allclose(found["descent"]["final"][name], value, rtol=0.1)
    (reduction,) = found["reductions"]
    assert reduction["name"] == "focus" and reduction["kind"] == "exact"
    assert reduction["defect"] < 1e-12 and reduction["max_relative"] < 1e-5
    np.testing.assert_allclose(reduction["final"]["mu"], mu, rtol=1e-5)
    laws = {law["name"]: law for law in found["laws"]}
    assert laws["soft_focus"]["regime"] == "before the switch"
    assert laws["marginal_focus"]["regime"] == "from the switch on"
    for law in laws.values():
        assert law["kind"] == "exact" and law["max_drift"] < 1e-5
        assert law["descent_drift"] > 1e-3
    assert found["closed_forms"] == []
    assert {p.name for p in tmp_path.iterdir()} >= {"trajectory.zarr", "training.png"}


@pytest.mark.slow
def test_a_held_focus_beside_its_closed_form(tmp_path):
    held = ("--fixed-focus", 0.4, "--loss", "hard", "--noise", 0)
    assert run(*SMALL, *held, "--out", tmp_path) == 0
    found = summary(tmp_path)
    (form,) = found["closed_forms"]
    assert form["name"] == "mu" and form["flow"] < 1e-5
    # Descent is off by half its rate times how fast the velocity changes.
    assert 1e-5 < form["descent"] < 0.05
    final, (reduction,) = found["flow"]["final"], found["reductions"]
    assert reduction["max_relative"] < 1e-5 and found["laws"] == []
    for name, value in dict(alpha=0.4, nu=np.log(3 * 0.4 / 0.6)).items():
        np.testing.assert_allclose(final[name], value, rtol=1e-12)
    mu = final["mu"]
    np.testing.assert_allclose(np.expm1(mu) + 3 * mu, 0.4 * 20, rtol=1e-5)


def test_the_reduced_equations_alone(tmp_path):
    assert run(*SMALL, "--reduced", "--out", tmp_path / "flow") == 0
    found = summary(tmp_path / "flow")
    assert found["descent"] is None and found["reductions"] == []
    mu, nu = oracle("soft", 4, 4, (0, 0), (0, 20))[:, -1]
    for name, value in dict(mu=mu, nu=nu, alpha=share(nu, 4)).items():
        np.testing.assert_allclose(found["flow"]["final"][name], value, rtol=1e-5)
    # A descent where it is asked for.
    arguments = ("--reduced", "--no-flow", "--steps", 1, "--learning-rate", 0.5)
    assert run(*SIZES, *arguments, "--out", tmp_path / "descent") == 0
    found = summary(tmp_path / "descent")
    assert found["flow"] is None and found["descent"]["t_end"] == 0.5
    step = 0.5 * mu_velocity("soft", 4, share(0, 4), 0.0)
    np.testing.assert_allclose(found["descent"]["final"]["mu"], step, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.computes
def test_digits(tmp_path, capsys):
    sizes = ("--segments", 5, "--mosaics", 30, "--batch", 8, "--steps", 20)
    assert run(*sizes, "--out", tmp_path, system="focus-images") == 0
    found = summary(tmp_path)
    assert found["flow"] is None and found["gap"] is None and found["laws"] == []
    assert found["descent"]["t_end"] == pytest.approx(20 * 0.05 / (1 - 0.9))
    final = found["descent"]["final"]
    parts = ("ftpt", "ffpt", "ftpf", "ffpf")
    assert set(final) == {"loss", "accuracy", "alpha", *parts}
    for split in ("train", "validation", "test"):
        shares = [final[name][split] for name in parts]
        np.testing.assert_allclose(sum(shares), 1, rtol=1e-12)
        np.testing.assert_allclose(final["accuracy"][split], sum(shares[:2]))
    assert "ftpt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--segments", 1], "segments must be at least 2, got 1"),
        (["--classes", 1], "classes must be at least 2, got 1"),
        (["--fixed-focus", 0], "fixed_focus must be in (0, 1], got 0.0"),
        (["--fixed-focus", 1.5], "fixed_focus must be in (0, 1], got 1.5"),
    ],
)
def test_values_that_no_system_has(arguments, message, tmp_path, capsys):
    assert run(*arguments, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    captured = capsys.readouterr()
    assert captured.err == f"flowattn: {message}\n" and captured.out == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["focus", "--loss", "hybrid", "--switch-time", 30, "--t1", 20],
            "switch_time must be before the end, t = 20, got 30",
        ),
        (
            ["focus", "--loss", "hybrid", "--t1", 200],
            "before the end, t = 200, got 200",
        ),
        (
            ["focus-images", "--images", "cifar10"],
            "CIFAR-10 needs --data DATA, the folder of its files",
        ),
        (
            ["focus-images", "--images", "cifar10", "--data", "{empty}"],
            "no CIFAR-10 in {empty}",
        ),
        (
            ["focus-images", "--images", "cifar10", "--data", "{damaged}"],
            "{damaged}/cifar10.npz is not a CIFAR-10 file",
        ),
        (["focus-images", "--segments", 400], "segments must be at most"),
        (["focus-images", "--no-descent"], "has no flow unless --t1 is given"),
        (["focus", "--reduced", "--no-flow"], "has no descent unless --steps is given"),
        (["focus-images", "--images", "cifar100"], "'cifar100' is unknown"),
        (["focus", "--momentum", 1], "momentum must be from 0 to below 1, got 1.0"),
    ],
)
def test_wrong_values(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FLOWATTN_DATA", raising=False)
    folders = {name: str(tmp_path / name) for name in ("empty", "damaged")}
    for folder in folders:
        (tmp_path / folder).mkdir()
    (tmp_path / "damaged" / "cifar10.npz").write_bytes(b"damaged")
    system, *given = (str(argument).format(**folders) for argument in arguments)
    assert run(*given, "--out", tmp_path / "deep" / "out", system=system) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("flowattn: ") and message.format(**folders) in line
    assert captured.out == "" and not (tmp_path / "deep").exists()
