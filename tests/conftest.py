import os, sys
from pathlib import Path

import pytest

os.environ.setdefault('MPLBACKEND', 'Agg')
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser): parser.addoption('--slow', action='store_true', help='also run the long trainings')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow'): return
    for item in items:
        if 'slow' in item.keywords: item.add_marker(pytest.mark.skip(reason='long training: run with --slow'))


@pytest.fixture(autouse=True, scope='session')
def two_threads():
    import torch
    torch.set_num_threads(1 if 'PYTEST_XDIST_WORKER' in os.environ else 2)   # two workers share the two cores


@pytest.fixture(scope='module')
def one_thread():
    "For models so small that they wait for a second thread longer than it helps."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
