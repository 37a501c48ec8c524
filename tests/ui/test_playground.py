"The playground under a mouse and a keyboard: what is typed and painted reaches the model, and its answer reaches the page."
import pytest

from labkit import layout, until

CELLS = ["import warnings; warnings.simplefilter('ignore')\nfrom beit_lab.show.playground import *", 'w = playground()\nw', "v = playground(weights='emoji_pairs')\nv"]


def widget(book, number=0): return book.panel.locator('.jp-OutputArea .bl-widget').nth(number)
def hidden(first): return first.locator('canvas').nth(1)
def at(canvas, row, column, grid=8): return dict(x=(column + 0.5)*canvas.bounding_box()['width']/grid, y=(row + 0.5)*canvas.bounding_box()['height']/grid)


@pytest.fixture
def book(notebook):
    book = notebook(CELLS).run()
    hidden(widget(book)).wait_for()
    return book


def test_sentence_is_sent_by_enter_and_button_and_not_per_key(book):
    first = widget(book)
    field = first.locator('input[type=text]')
    field.fill('a large ___ moon in the middle')
    book.page.wait_for_timeout(400)
    assert 'rosy' in book.python('w.played.filled') and book.python('w.sentence.value') == 'a large red moon in the middle, in front of a ___ gradient'
    field.press('Enter')
    book.until('w.sentence.value', 'a large ___ moon in the middle')
    until(lambda: first.locator('.bl-blank td').nth(4).inner_text(), book.python('w.played.choices[0][0].word'))
    field.fill('a large red ___ in the middle')
    first.get_by_role('button', name='Fill').click()
    book.until('w.sentence.value', 'a large red ___ in the middle')
    field.fill(' ')
    field.press('Enter')
    until(lambda: 'the sentence is empty' in first.locator('.bl-message').inner_text())
    field.fill('a zebra')
    field.press('Enter')
    first.get_by_text("'zebra' is no word of the vocabulary").wait_for()
    until(lambda: first.locator('.bl-message').count(), 0)
    assert 'Traceback' not in book.panel.inner_text()
    book.shot('playground_unknown_word', of=first)


def test_patches_are_shown_and_hidden_by_hand(book):
    first = widget(book)
    canvas, predicted = hidden(first), first.locator('canvas').nth(2)
    first.get_by_role('button', name='Show all').click()
    book.until('w.played.painted.hidden', 0)
    until(lambda: canvas.get_attribute('data-hidden'), '0')
    before = predicted.screenshot()
    box, place = canvas.bounding_box(), at(canvas, 3, 2)
    book.page.mouse.move(box['x'] + place['x'], box['y'] + place['y'])
    book.page.mouse.down()
    book.page.mouse.move(box['x'] + at(canvas, 3, 5)['x'], box['y'] + place['y'], steps=12)
    book.page.mouse.up()
    book.until('[i for i, bit in enumerate(w.hidden.mask) if bit]', [26, 27, 28, 29])
    until(lambda: first.locator('.bl-caption').nth(2).inner_text()[:9], 'predicted')
    until(lambda: predicted.screenshot() != before)
    canvas.focus()
    for key in ('Home', 'ArrowDown', ' '): book.page.keyboard.press(key)
    book.until('sum(w.hidden.mask)', 5)
    first.get_by_role('button', name='Hide a block').click()
    book.until('w.played.painted.hidden', 26)
    first.get_by_role('button', name='Start again').click()
    book.until('w.played.painted.hidden', 30)
    assert book.python('w.problem is None')


def test_another_colour_word_changes_sentence_and_patches(book):
    first = widget(book)
    predicted, tiles = first.locator('canvas').nth(2), first.locator('.bl-pick')
    before = predicted.screenshot()
    tiles.filter(has_text='blue').click()
    book.until('w.sentence.value', 'a large blue moon in the middle, in front of a ___ gradient')
    until(lambda: first.locator('input[type=text]').input_value(), 'a large blue moon in the middle, in front of a ___ gradient')
    until(lambda: predicted.screenshot() != before)
    until(lambda: tiles.filter(has_text='as it is').inner_text().split()[0], 'blue')
    tiles.filter(has_text='blue').focus()
    for key in ('ArrowLeft', 'ArrowLeft', 'Enter'): book.page.keyboard.press(key)
    book.until("'large green moon' in w.sentence.value")
    book.shot('playground_green', of=first)


def test_two_do_not_disturb_each_other_and_one_closes(book):
    second = widget(book, 1)
    second.get_by_role('button', name='Hide a block').click()
    book.until('v.played.painted.hidden > 0')
    assert book.python('w.played.painted.hidden') == 30
    book.shot('playground_emoji', of=second)
    book.python('w.close()')
    until(lambda: book.panel.locator('.jp-OutputArea .bl-widget').count(), 1)
    widget(book).get_by_role('button', name='Show all').click()
    book.until('v.played.painted.hidden', 0)


def test_nothing_jumps(book):
    first = widget(book)
    places = lambda: layout(first, (first.locator('canvas').nth(2), first.get_by_role('button', name='Start again'), first.locator('select')))
    before = places()
    first.get_by_role('button', name='Show all').click()
    book.until('w.played.painted.hidden', 0)
    field = first.locator('input[type=text]')
    field.fill('a large red moon in the middle')
    field.press('Enter')
    book.until('len(w.played.choices)', 0)
    assert places() == before


def test_latency(book):
    canvas = hidden(widget(book))
    row = book.latency('playground: hide a patch', lambda i: canvas.click(position=at(canvas, 0, i % 8)), "panel.querySelectorAll('.bl-caption')[1].innerText", times=30)
    assert row['unseen'] == 0


def test_notebook_of_the_lab(notebook):
    book = notebook('nbs/08_show/08_playground.ipynb').run()
    first = widget(book)
    hidden(first).scroll_into_view_if_needed()
    book.page.wait_for_timeout(1000)
    first.get_by_role('button', name='Show all').click()
    book.until('ground.played.painted.hidden', 0)
    first.get_by_role('button', name='Start again').click()
    book.until('ground.played.painted.hidden', 30)
    book.page.wait_for_timeout(300)
    book.shot('playground', of=first)
