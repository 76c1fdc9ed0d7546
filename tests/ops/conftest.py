"""Prints how many examples each function got, where the campaign's profile asks for many."""

import os


def pytest_terminal_summary(terminalreporter):
    if os.environ.get("HYPOTHESIS_PROFILE") != "campaign":
        return
    from numerics_kit import EXAMPLES

    if EXAMPLES:
        terminalreporter.section("examples of each public function of d2ext.ops")
        for name, count in sorted(EXAMPLES.items()):
            terminalreporter.write_line(f"{count:8d}  {name}")
        terminalreporter.write_line(f"{sum(EXAMPLES.values()):8d}  in all")
