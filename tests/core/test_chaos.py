"""The short form of scripts/chaos.py: what goes wrong with a run, its settings and its files is seen."""

import logging

import pytest

from scripts.campaigns import GOOD
from scripts.campaigns.files import try_files
from scripts.campaigns.runs import try_disk, try_kills, try_stops
from scripts.campaigns.settings import try_settings
from scripts.campaigns.tools import try_tools
from scripts.mutate import read_mutants


@pytest.mark.parametrize(
    "campaign",
    [
        try_files,
        try_settings,
        try_tools,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (try_disk, try_kills, try_stops)),
    ],
)
def test_nothing_goes_wrong_unseen(tmp_path, campaign):
    cases = list(campaign(tmp_path, False))
    assert len(cases) > 0 and [case for case in cases if case.verdict not in GOOD] == []
    assert logging.root.manager.disable == logging.NOTSET


def test_every_mutant_fits_the_code():
    assert len(read_mutants([])) > 200
