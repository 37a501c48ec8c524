"The mask painter in a real JupyterLab: hand, keyboard, the model's answer, and how long it takes."
MAKE = ['import ipykernel\nfrom beit_lab.show.masks import paint_mask\npainter = paint_mask(kind="block", mask_ratio=0.4)\npainter']
HIDDEN = '[i for i, hidden in enumerate(painter.paint.mask) if hidden]'


def canvases(book): return book.panel.locator('.bl-canvas')


def painted(book):
    canvas = canvases(book).nth(1)                       # truth, hidden, predicted, decoded, confidence
    canvas.wait_for()
    return canvas


def centre(book, place, canvas=None, grid=8):
    box = (canvas or painted(book)).bounding_box()
    return box['x'] + (place % grid + 0.5)*box['width']/grid, box['y'] + (place//grid + 0.5)*box['height']/grid


def test_click_hides_and_the_model_answers(notebook):
    book = notebook(MAKE).run()
    canvas = painted(book)
    before = canvases(book).nth(2).screenshot()
    book.panel.get_by_role('button', name='show all').click()
    book.until(HIDDEN, [])
    for i, place in enumerate((18, 27, 36)):
        book.page.mouse.click(*centre(book, place))
        assert canvas.get_attribute('data-hidden') == str(i + 1)      # drawn in the page, whatever Python does
    book.until(HIDDEN, [18, 27, 36])
    book.until("painter.held['answer'].mask.flatten().nonzero().flatten().tolist()", [18, 27, 36])
    assert canvases(book).nth(2).screenshot() != before
    book.page.mouse.click(*centre(book, 27))                          # a second click shows it again
    book.until(HIDDEN, [18, 36])
    book.panel.get_by_text('2 of 64 patches hidden').wait_for()


def test_hover_of_a_hidden_patch_shows_what_was_weighed(notebook):
    book = notebook(MAKE).run()
    place = book.python(HIDDEN)[3]
    book.page.mouse.move(*centre(book, place))
    book.until('painter.paint.hover', place)
    table = book.panel.locator('.bl-table')
    table.wait_for()
    assert table.locator('tr').count() in (6, 7) and '✓ true' in table.inner_text()
    for i in range(5): assert canvases(book).nth(i).get_attribute('data-hover') == str(place)
    book.shot('masks', of=book.panel.locator('.bl-widget').first)
    book.page.mouse.move(5, 5)
    book.until('painter.paint.hover', -1)


def test_drag_hides_all_on_the_way_however_fast(notebook):
    book = notebook(MAKE).run()
    painted(book)
    book.panel.get_by_role('button', name='show all').click()
    book.until(HIDDEN, [])
    book.page.mouse.move(*centre(book, 16)); book.page.mouse.down()
    book.page.mouse.move(*centre(book, 23), steps=2); book.page.mouse.up()
    book.until(HIDDEN, list(range(16, 24)))


def test_keyboard_alone(notebook):
    book = notebook(MAKE).run()
    canvas, press = painted(book), book.page.keyboard.press
    book.panel.get_by_role('button', name='show all').click()
    book.until(HIDDEN, [])
    canvas.focus()
    for key in ('ArrowRight', 'ArrowRight', 'ArrowDown', ' ', 'Shift+ArrowRight', 'Shift+ArrowDown'): press(key)
    book.until(HIDDEN, [10, 11, 19])
    assert 'row 3, column 4: hidden; 3 of 64 hidden' in canvas.locator('xpath=../div[contains(@class, "bl-live")]').inner_text()
    book.shot('masks_keyboard', of=book.panel.locator('.bl-widget').first)
    cells = book.page.evaluate("() => document.querySelectorAll('.jp-Notebook .jp-Cell').length")
    for key in ('a', 'b', 'd', 'd', 'x', 'Escape', '0', '0'): press(key)                      # commands of JupyterLab
    assert book.page.evaluate("() => document.querySelectorAll('.jp-Notebook .jp-Cell').length") == cells
    press('Tab')
    assert not canvas.evaluate('canvas => canvas === document.activeElement')


def test_keys_for_buttons_are_not_for_the_notebook(notebook):
    book = notebook([*MAKE, 'after = 1']).run()
    painted(book)
    cells = lambda: book.page.evaluate("() => document.querySelectorAll('.jp-Notebook .jp-Cell').length")
    active = lambda: book.page.evaluate("() => [...document.querySelectorAll('.jp-Notebook .jp-Cell')].findIndex(cell => cell.classList.contains('jp-mod-active'))")
    book.panel.get_by_role('button', name='show all').focus()
    before = cells(), active()
    for key in ('d', 'd', 'a', 'x'): book.page.keyboard.press(key)
    book.page.keyboard.press('Enter')
    book.until(HIDDEN, [])
    book.panel.locator('.noUi-handle').focus()
    book.page.keyboard.press('ArrowRight')
    book.until('round(painter.ratio.value, 2)', 0.45)
    assert (cells(), active()) == before


def test_samples_are_drawn_anew(notebook):
    book = notebook(MAKE).run()
    painted(book)
    first = book.python(HIDDEN)
    book.panel.get_by_role('button', name='new sample').click()
    book.until('painter.seed.value', 1)
    second = book.python(HIDDEN)
    assert len(first) == len(second) == 26 and first != second
    book.panel.get_by_role('button', name='grid').click()
    book.until('painter.kind.value', 'grid')
    book.until(f'len({HIDDEN})', 26)


def test_first_click_at_the_fold_hits_its_patch(notebook):
    book = notebook(['print("line\\n"*26)', *MAKE]).run()
    painted(book)
    book.panel.get_by_role('button', name='show all').click()
    book.until(HIDDEN, [])
    scroll = "y => { document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer').scrollTop = y; }"
    book.page.evaluate(scroll, 0)
    height, box = book.page.viewport_size['height'], painted(book).bounding_box()
    book.page.evaluate(scroll, box['y'] - height + 60)                # only the first rows can be seen
    book.page.wait_for_timeout(300)
    book.page.mouse.click(*centre(book, 3))
    book.until(HIDDEN, [3])


def test_two_painters_do_not_disturb_each_other_and_close(notebook):
    book = notebook([*MAKE, 'other = paint_mask(weights="scenes", kind="random", mask_ratio=0.5)\nother']).run()
    painted(book)
    mine, theirs = book.python(HIDDEN), '[i for i, hidden in enumerate(other.paint.mask) if hidden]'
    before, place = book.python(theirs), 0
    canvas = canvases(book).nth(6)
    canvas.scroll_into_view_if_needed()
    canvas.click(position=dict(x=3, y=3))
    book.until(theirs, sorted(set(before) ^ {place}))
    assert book.python(HIDDEN) == mine
    book.python('painter.close()')
    book.page.wait_for_function("() => document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .bl-canvas').length === 5")
    assert book.python('painter.held == {} and len(other.held) > 2')


def test_bad_input_is_a_sentence(notebook):
    book = notebook(['from beit_lab.show.masks import paint_mask\nfrom pathlib import Path\nPath("broken.png").write_bytes(b"no picture")\npaint_mask("broken.png")',
                     'paint_mask(weights="nowhere")', 'import torch\npaint_mask(mask=torch.ones(3, 3))']).run()
    said = book.panel.locator('.bl-message')
    said.nth(2).wait_for()
    for i, words in enumerate(('not a picture that can be read', 'no tokenizer in', 'does not fit')): assert words in said.nth(i).inner_text()
    assert 'Traceback' not in book.panel.inner_text()
    book.shot('masks_sentences')


def test_the_notebook_itself(notebook):
    book = notebook('nbs/08_show/03_masks.ipynb')
    assert book.panel.locator('img').count() >= 4                    # stills, before anything has run
    book.shot('masks_notebook_before_running', themes=('light',))


def test_latency(notebook):
    book = notebook(MAKE).run()
    painted(book)
    book.panel.get_by_role('button', name='show all').click()
    book.until(HIDDEN, [])
    press = lambda i: book.page.mouse.click(*centre(book, (7*i + 3) % 64))
    local = book.latency('masks: click to hatch', press, "panel.querySelectorAll('.bl-canvas')[1].dataset.hidden", times=30)
    book.page.wait_for_timeout(500)
    answer = book.latency('masks: click to prediction', press, "panel.querySelectorAll('.bl-soft')[0].textContent", times=30)
    assert local['unseen'] == answer['unseen'] == 0
