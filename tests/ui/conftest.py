import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import labkit


def pytest_collection_modifyitems(items):
    missing = None if labkit.find_chromium() else 'no Chromium here: sh .ci/setup_ui.sh installs it, or CHROMIUM=path names one'
    if not find_spec('playwright'): missing = "no playwright here: pip install -e '.[test]' brings it"
    if not missing: return
    for item in items:
        if Path(__file__).parent in item.path.parents: item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    lab = labkit.Lab(tmp_path_factory.mktemp('ui')/'lab')
    try:
        lab.wait()
        yield lab
    finally: lab.stop()


@pytest.fixture(scope='session')
def chromium():
    with labkit.driver() as chromium: yield chromium


@pytest.fixture(scope='session')
def page(lab, chromium):
    with labkit.browser(chromium, lab.folder/'profile', lab) as page: yield page


@pytest.fixture
def notebook(lab, page, request):
    """`notebook(cells)` or `notebook('nbs/08_show/01_tokens.ipynb')`: a `Book`, not yet run. Afterwards nothing may have been asked from elsewhere.

    Cells share a kernel that forgets after each test; with `own` they have one to themselves, as notebooks of the lab do."""
    books = []
    def open_book(what, own=False):
        name = f'{request.node.name.split("[")[0]}_{len(books)}.ipynb'
        if isinstance(what, str): (lab.books/name).write_bytes((labkit.ROOT/what).read_bytes())
        else: labkit.write_book(lab.books/name, what)
        books.append(labkit.Book(lab, page, name, shared=not own and not isinstance(what, str)))
        return books[-1]
    yield open_book
    if getattr(request.node, 'failed', False):
        labkit.SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=labkit.SHOTS/f'failed_{request.node.name}.png')
    complaints = page.complaints[:]
    for book in books: book.close()
    complaints += [said for said in page.complaints[len(complaints):] if labkit.UNANSWERED not in said]
    refused = page.refused[:]
    page.refused.clear(); page.complaints.clear()
    assert not refused, f'the page asked for {refused}'
    assert not complaints, f'the page complained: {complaints}'


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == 'call': item.failed = outcome.get_result().failed
