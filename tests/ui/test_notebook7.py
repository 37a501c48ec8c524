"The five widgets in Jupyter Notebook 7: each is there, hears a press, and answers."
import re
from importlib.util import find_spec

import pytest
from playwright.sync_api import expect

import labkit
from labkit import until
from test_attention import click_patch
from test_dashboard import LEARNER, button, status
from test_playground import at

pytestmark = pytest.mark.skipif(not find_spec('notebook'), reason="no Jupyter Notebook here: pip install -e '.[test]' brings it")
CELLS = [LEARNER, "from beit_lab.show.masks import paint_mask\npainter = paint_mask(kind='block', mask_ratio=0.4)\npainter", "from beit_lab.show.codes import explore_codes\ncodes = explore_codes()\ncodes",
         "from beit_lab.show.attention import explore_attention\nattention = explore_attention()\nattention", "from beit_lab.show.playground import playground\nground = playground()\nground",
         "board = dashboard(learner(20))\nboard"]


@pytest.fixture(scope='module')
def book(tmp_path_factory, chromium):
    "One notebook with all five, in a server and a browser of their own."
    lab = labkit.Notebook7(tmp_path_factory.mktemp('notebook7')/'lab')
    try:
        lab.wait()
        labkit.write_book(lab.books/'five.ipynb', CELLS)
        with labkit.browser(chromium, lab.folder/'profile', lab) as page: yield labkit.Book(lab, page, 'five.ipynb').run(400)
        assert not page.refused, f'the page asked for {page.refused}'
    finally: lab.stop()


def widget(book, number): return book.panel.locator('.jp-OutputArea .bl-widget').nth(number)


def canvas(book, number, which=0):
    found = widget(book, number).locator('canvas').nth(which)
    found.scroll_into_view_if_needed()
    return found


def test_a_mask_is_painted(book):
    widget(book, 0).get_by_role('button', name='show all').click()
    book.until('sum(painter.paint.mask)', 0)
    canvas(book, 0, 1).click(position=at(canvas(book, 0, 1), 3, 3))
    book.until("painter.held['answer'].mask.flatten().nonzero().flatten().tolist()", [27])
    book.panel.get_by_text('1 of 64 patches hidden').wait_for()
    book.shot('notebook7_painter', of=widget(book, 0), themes=['light'])


def test_a_code_is_looked_at(book):
    place = canvas(book, 1, 1)
    place.click(position=at(place, 4, 4))
    book.until('codes.words.locked', 36)
    book.until('codes.code == codes._code_at(36)')
    book.shot('notebook7_codes', of=widget(book, 1), themes=['light'])


def test_a_patch_is_asked_where_it_looks(book):
    click_patch(book, canvas(book, 2), 3, 5)
    book.until('attention.query', ('vision', (3, 5)))
    book.shot('notebook7_attention', of=widget(book, 2), themes=['light'])


def test_a_sentence_is_sent(book):
    field = widget(book, 3).locator('input[type=text]')
    field.fill('a large ___ moon in the middle')
    field.press('Enter')
    book.until('ground.sentence.value', 'a large ___ moon in the middle')
    until(lambda: widget(book, 3).locator('.bl-blank td').nth(4).inner_text(), book.python('ground.played.choices[0][0].word'))
    book.shot('notebook7_playground', of=widget(book, 3), themes=['light'])


def test_a_training_is_started(book):
    button(book, 'Start').click()
    book.until('board.state', 'finished', 120)
    expect(status(book)).to_have_text(re.compile('Finished'))
    book.shot('notebook7_dashboard', of=book.panel.locator('.lab-board'), themes=['light'])
