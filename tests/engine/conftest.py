"""A tiny data set that all tests of the engine, and the processes they start, share."""

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the data sets tiny_train and tiny_val, which are registered here as well."""
    from tiny_project import draw_tiny

    with draw_tiny(tmp_path_factory.mktemp("tiny")) as root:
        yield root
