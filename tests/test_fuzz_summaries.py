"""What a folder says of a run that was made, fuzzed: it is read or passed over."""

import json

import pytest
from hypothesis import given

from .fuzzing import config, read_summary, try_reader
from .json_values import ODD, anything
from .test_fuzz import few, fuzz, needs_atheris

SUMMARY = {
    "outcomes": {"flow": "successful", "descent": "successful"},
    "flow": {"result": "successful", "final": {"loss": 0.5}, "error_stats": None},
    "descent": None,
    "gap": None,
    "laws": [],
    "reductions": [{"name": "small", "final": {}}],
    "closed_forms": [],
    "files": ["summary.json"],
    "metrics": {},
    "sharpness": None,
    "provenance": {"seconds": {}},
}


SOUND = json.dumps({**SUMMARY, "config": config()}).encode()


def test_summaries(tmp_path):
    for content in ODD:
        try_reader(read_summary, tmp_path, content)

    @few
    @given(anything(SOUND))
    def one(content):
        try_reader(read_summary, tmp_path, content)

    one()


@pytest.mark.slow
@needs_atheris
def test_atheris_on_summaries(tmp_path):
    fuzz("summary", [SOUND], tmp_path)
