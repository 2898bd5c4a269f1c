"""Bad input gives a clean error that names it, a counted skip, or the right result, and leaves nothing anywhere."""

import pytest
from tests.hostile.campaign import KINDS, run_cases
from tests.hostile.judging import Report
from tests.hostile.running import Runner

NUMBER = 36
"""Of cases of each kind in the default tests."""
MANY = 500
"""Of cases of each kind in the slow tests, which have other seeds."""
MAX_UNNAMED_SHARE = 0.01


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("campaign"))


@pytest.fixture(scope="module")
def report(campaign_reports):
    campaign_reports.append(Report())
    return campaign_reports[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_ends_well(runner, report, kind):
    before = len(report.faults)
    run_cases(runner, kind, 0, range(NUMBER), report)
    assert not report.faults[before:], "\n\n".join(report.faults[before:])


def test_errors_name_their_input(report):
    assert len(report.unnamed) <= MAX_UNNAMED_SHARE * report.num_errors, "\n\n".join(report.unnamed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_much_bad_input_ends_well(runner, report, kind, seed):
    before = len(report.faults), len(report.unnamed), report.num_errors
    run_cases(runner, kind, seed, range(MANY), report)
    assert not report.faults[before[0] :], "\n\n".join(report.faults[before[0] :])
    unnamed, number = report.unnamed[before[1] :], report.num_errors - before[2]
    assert len(unnamed) <= MAX_UNNAMED_SHARE * number, "\n\n".join(unnamed)
