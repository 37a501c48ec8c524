"The attention explorer under a mouse and a keyboard: the page and Python must agree on who looks, and where."
import pytest

from labkit import layout, until

CELLS = ["import warnings; warnings.simplefilter('ignore')\nfrom beit_lab.show.attention import *\n"
         "said = 'a large turquoise heart at the top left and a medium ___ circle on the right, in front of an azure gradient'",
         'w = explore_attention(caption=said)\nw', 'v = explore_attention(caption=said, layer=1)\nv']


def click_patch(book, canvas, row, column, grid=8):
    box = canvas.bounding_box()
    canvas.click(position=dict(x=(column + 0.5)*box['width']/grid, y=(row + 0.5)*box['height']/grid))


def widget(book, number=0): return book.panel.locator('.jp-OutputArea .bl-widget').nth(number)


@pytest.fixture
def book(notebook):
    book = notebook(CELLS).run()
    widget(book).locator('canvas').first.wait_for()
    return book


def test_patch_word_head_and_block_by_click(book):
    first = widget(book)
    canvas, tiles, heads = first.locator('canvas').first, first.locator('.bl-tiles').nth(1), first.locator('.bl-tiles').first
    before = first.locator('canvas').nth(1).screenshot()
    click_patch(book, canvas, 3, 5)
    book.until('w.query', ('vision', (3, 5)))
    until(lambda: first.locator('canvas').nth(1).get_attribute('data-locked'), '29')
    assert first.locator('canvas').nth(1).screenshot() != before
    tiles.locator('.bl-pick', has_text='turquoise').click()
    book.until('w.query', ('language', 3))
    first.get_by_text("word 3, 'turquoise': picture").wait_for()
    until(lambda: canvas.get_attribute('data-locked'), '-1')
    heads.locator('.bl-pick', has_text='head 2').click()
    book.until('w.head', 2)
    first.locator('select').select_option('block 2')
    book.until('w.layer.value', 2)
    assert book.python('w.problem is None')
    told = book.python("[t['note'] for t in w.words.tiles]")
    until(lambda: tiles.locator('.bl-pick-note').all_inner_texts(), told)
    first.locator('select').select_option('rollout through all blocks')
    book.until('len(w.heads.tiles)', 1)
    until(lambda: heads.locator('.bl-pick').count(), 1)
    book.shot('attention_rollout', of=first)


def test_keyboard_alone(book):
    first = widget(book)
    canvas, tiles = first.locator('canvas').first, first.locator('.bl-tiles').nth(1)
    canvas.focus()
    for key in ('ArrowDown', 'ArrowRight', 'ArrowRight', ' '): book.page.keyboard.press(key)
    book.until('w.query', ('vision', (1, 2)))
    tiles.locator('.bl-pick').first.focus()
    for key in ('ArrowRight', 'ArrowRight', 'd', 'd', 'Enter'): book.page.keyboard.press(key)             # "d d" would delete the cell
    book.until('w.query', ('language', 1))
    assert book.panel.locator('.jp-CodeCell').count() == 3
    until(lambda: tiles.locator('.bl-pick[aria-selected=true]').get_attribute('aria-label')[:3], 'a, ')
    book.shot('attention_keyboard', of=first)
    canvas.focus()
    book.page.keyboard.press(' ')
    book.until('w.query[0]', 'vision')
    book.page.keyboard.press('Escape')
    book.until('w.query', ('vision', 0))


def test_hover_reads_the_share(book):
    first = widget(book)
    heat = first.locator('canvas').nth(1)
    box = heat.bounding_box()
    book.page.mouse.move(box['x'] + 2.5*box['width']/8, box['y'] + 1.5*box['height']/8)
    book.until('w.heat.hover', 10)
    book.until("w.heat.caption.startswith('row 2, column 3: ')")
    until(lambda: first.locator('.bl-caption').nth(1).inner_text(), book.python('w.heat.caption'))
    assert first.locator('canvas').first.get_attribute('data-hover') == '10'                              # both grids point at it


def test_two_do_not_disturb_each_other_and_one_closes(book):
    click_patch(book, widget(book, 1).locator('canvas').first, 0, 1)
    book.until('v.query', ('vision', (0, 1)))
    assert book.python('w.query[0]') == 'language' and book.python('w.layer.value') == 4
    book.python('w.close()')
    until(lambda: book.panel.locator('.jp-OutputArea .bl-widget').count(), 1)
    click_patch(book, widget(book, 0).locator('canvas').first, 7, 7)                                      # the first one is gone from the page
    book.until('v.query', ('vision', (7, 7)))


def test_nothing_jumps(book):
    "Another query changes no place on the page."
    first = widget(book)
    places = lambda: layout(first, (first.locator('canvas').nth(1), first.locator('.bl-shares'), first.locator('.bl-experts')))
    before = places()
    for row in (0, 4): click_patch(book, first.locator('canvas').first, row, 3); book.until('w.query', ('vision', (row, 3)))
    first.locator('.bl-tiles').nth(1).locator('.bl-pick', has_text='gradient').click()
    book.until('w.query[0]', 'language')
    assert places() == before


def test_mistake_is_a_sentence(notebook):
    book = notebook([CELLS[0], "explore_attention('nowhere.png')"]).run()
    assert 'nowhere.png: there is no such file' in book.panel.locator('.bl-message').inner_text()
    assert 'Traceback' not in book.panel.inner_text()


def test_latency(book):
    first = widget(book)
    canvas = first.locator('canvas').first
    row = book.latency('attention: click a patch', lambda i: click_patch(book, canvas, i % 8, (3*i + 1) % 8), "panel.querySelector('.bl-shares').parentElement.innerText", times=30)
    assert row['unseen'] == 0


def test_notebook_of_the_lab(notebook):
    book = notebook('nbs/08_show/05_attention.ipynb').run()
    canvas = widget(book).locator('canvas').first
    canvas.scroll_into_view_if_needed()
    book.page.wait_for_timeout(1000)                                                                      # until everything above has found its place
    click_patch(book, canvas, 2, 2)
    book.until('explorer.query', ('vision', (2, 2)))
    book.shot('attention', of=widget(book))
    book.shot('attention_emoji', of=widget(book, 1))
