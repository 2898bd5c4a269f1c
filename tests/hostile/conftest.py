"""Counts of the campaign, at the end of a run of the tests."""

import pytest

_REPORTS: list = []


@pytest.fixture(scope="session")
def campaign_reports() -> list:
    """What is said at the end."""
    return _REPORTS


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what came of the cases, by kind."""
    for report in _REPORTS:
        terminalreporter.section("bad input")
        terminalreporter.write_line(report.table())
