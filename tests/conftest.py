"""What all tests share: one thread, a seed, and data sets outside the checkout."""

import gc
import logging
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# The tools are no package that is installed, and are tested all the same.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

# On small tensors more threads cost more than they give, and several test processes share the CPU.
torch.set_num_threads(1)

# The first backward pass starts a thread for each accelerator, and then forked runs can't train.
# It is made here, before torch.export's fake tensors pretend that there is one.
torch.zeros((), requires_grad=True).backward()

# Property tests: a few examples, always the same ones, or with HYPOTHESIS_PROFILE=campaign many,
# HYPOTHESIS_EXAMPLES of each test.
_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=25, derandomize=True, **_COMMON)
_MANY = int(os.environ.get("HYPOTHESIS_EXAMPLES", "1000"))
settings.register_profile("campaign", max_examples=_MANY, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config):
    # Here, not in a fixture: d2ext may look for the folder on import. Worker processes of
    # pytest-xdist inherit it, so that a data set is generated once for all of them.
    os.environ.setdefault("MPLBACKEND", "Agg")
    if not hasattr(config, "workerinput"):
        config.d2ext_data = tempfile.mkdtemp(prefix="d2ext-test-data-")
        os.environ["D2EXT_DATA"] = config.d2ext_data


def pytest_unconfigure(config):
    if hasattr(config, "d2ext_data"):
        shutil.rmtree(config.d2ext_data, ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    """Long tests come first, so that several processes end together; ``gpu`` tests need a GPU."""
    if not torch.cuda.is_available():
        without = [item for item in items if item.get_closest_marker("gpu") is None]
        gone = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=gone)
        items[:] = without
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if processes > 1:
        items[:] = _long_first(items, processes)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection(session):
    """What is imported stays: a search for garbage need not read a million objects of it."""
    gc.disable()
    yield
    gc.collect()
    gc.freeze()
    gc.enable()


def _long_first(items, processes):
    """Each process begins with an equal piece of the list: modules with long tests at its start.

    A module stays together, in its order, for the sake of its fixtures.
    """
    modules = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    share = {path: sum(map(_is_long, group)) / len(group) for path, group in modules.items()}
    paths = sorted(modules, key=share.get, reverse=True)
    long = [path for path in paths if share[path] > 0.05]
    short = [item for path in paths if share[path] <= 0.05 for item in modules[path]]
    pieces = []
    for k in range(processes):
        pieces += [item for path in long[k::processes] for item in modules[path]]
        missing = (k + 1) * len(items) // processes - len(pieces)
        pieces += short[: max(missing, 0)]
        del short[: max(missing, 0)]
    return pieces + short


def _is_long(item):
    return any(item.get_closest_marker(name) is not None for name in ("slow", "dist", "export"))


# Without a GPU, torch.manual_seed notes the whole stack each time, for one that may come.
_seed_torch = (
    torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every test, in whatever order and process it runs."""
    random.seed(0)
    np.random.seed(0)
    _seed_torch(0)


@pytest.fixture(autouse=True)
def own_log_files():
    """What a test logs to, or silences, ends with it; forked runs have log files of their own."""
    from campaigns.runs import all_loggers, forget_log_files

    before = {logger: list(logger.handlers) for logger in all_loggers() if logger.handlers}
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)
    added = False
    for logger in [logger for logger in all_loggers() if logger.handlers]:
        for handler in set(logger.handlers) - set(before.get(logger, [])):
            logger.removeHandler(handler)
            added = True
    if added:
        forget_log_files()


@pytest.fixture(autouse=True)
def own_data_sets():
    """The next test's folder of photographs may have the name of this one's."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        if "own_data" in MetadataCatalog.get(name).as_dict():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def rng():
    """A seeded NumPy generator."""
    return np.random.default_rng(0)


@pytest.fixture
def storage():
    """The EventStorage that Detectron2's models write to in training."""
    from detectron2.utils.events import EventStorage

    with EventStorage() as events:
        yield events


@pytest.fixture(scope="session")
def data_root():
    """The folder that $D2EXT_DATA names during the tests."""
    return os.environ["D2EXT_DATA"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the data sets tiny_train and tiny_val, which are registered here as well.

    Processes that tests start share it.
    """
    from campaigns.toy import draw_tiny

    with draw_tiny(tmp_path_factory.mktemp("tiny")) as root:
        yield root
