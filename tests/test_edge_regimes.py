"""The experiments at the edge of stability, shortened: who is near, and who warns."""

import dataclasses

import numpy as np
import pytest

from scripts.edge.experiments import EXPERIMENTS
from scripts.edge.measure import measured, reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*this flow may be far from its descent"),
]


def distances(name, steps, rows):
    """The numbers of some rows of an experiment, over fewer steps."""
    experiment = dataclasses.replace(EXPERIMENTS[name], steps=steps)
    descent = reference(experiment)
    return {row: measured(row, experiment, descent) for row in rows}


@pytest.mark.paper
def test_an_established_oscillation():
    """Reference A, whose start depends on rounding: the orders of size are its own."""
    found = distances("A", 300, ("gradient", "even1", "even3", "rod", "central1"))
    ends = {row: one["distance_end"] for row, one in found.items()}
    assert ends["gradient"] > 0.3
    assert ends["even3"] < 0.006 < ends["even1"] < 0.06
    assert ends["rod"] < 0.06 and ends["central1"] < 0.06
    assert found["even3"]["loss_rms"] < 0.05 and found["central1"]["loss_rms"] < 0.3
    assert found["gradient"]["loss_rms"] > 0.3
    assert found["even3"]["warns_max"] < 0.3
    assert found["even3"]["error_end"] < 0.1 * ends["even3"]
    work = {row: one["gradients_per_step"] for row, one in found.items()}
    assert work["even1"] < 4 < work["even3"] < 20 < work["central1"] < 300


@pytest.mark.paper
def test_two_unstable_directions():
    """Two directions that beat: the flow of every second step follows the beats."""
    found = distances("beating", 200, ("gradient", "even3", "central2"))
    assert found["even3"]["distance_end"] < 1e-3
    assert found["even3"]["iterates_max"] < 3e-3
    assert found["even3"]["warns_max"] < 0.3
    assert found["central2"]["distance_end"] < 0.2 < found["gradient"]["distance_end"]
    for one in found.values():
        assert np.isfinite(one["error_end"])


def test_violent_catapults_are_warned_of():
    """Beyond the series' end order 1 is nearer, at a fraction of the work."""
    found = distances("violent", 200, ("even1", "even3"))
    assert found["even3"]["warns_max"] > 0.3 and found["even1"]["warns_max"] > 0.2
    assert found["even1"]["distance_end"] < found["even3"]["distance_end"]
    assert found["even1"]["gradients_per_step"] < found["even3"]["gradients_per_step"]
