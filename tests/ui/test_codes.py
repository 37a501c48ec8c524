"The codebook explorer in a real JupyterLab: pointing, picking, swapping, leafing, and how long it takes."
MAKE = ['from beit_lab.show.codes import explore_codes\nexplorer = explore_codes()\nexplorer']


def ready(book):
    book.panel.locator('.bl-canvas').nth(4).wait_for()                # picture, tokens, decoded, gallery, uses
    return book


def grid(book, which): return book.panel.locator('.bl-canvas').nth(which)


def centre(book, which, place, rows, columns):
    grid(book, which).scroll_into_view_if_needed()
    box = grid(book, which).bounding_box()
    return box['x'] + (place % columns + 0.5)*box['width']/columns, box['y'] + (place//columns + 0.5)*box['height']/rows


def test_pointing_and_picking(notebook):
    book = ready(notebook(MAKE).run())
    book.page.mouse.move(*centre(book, 1, 27, 8, 8))                  # over the tokens
    book.until('explorer.code == explorer._code_at(27)')
    for which in (0, 1, 2): assert grid(book, which).get_attribute('data-hover') == '27'
    code = book.python('explorer.code')
    book.panel.get_by_text(f'code {code} in other pictures').wait_for()
    book.page.mouse.click(*centre(book, 0, 36, 8, 8))                 # picked in the picture, marked in all three
    book.until('explorer.words.locked', 36)
    book.page.mouse.move(5, 5)
    book.until('explorer.code == explorer._code_at(36)')
    assert grid(book, 1).get_attribute('data-locked') == '36'
    book.shot('codes', of=book.panel.locator('.bl-widget').first)


def test_a_token_is_swapped_and_taken_back(notebook):
    book = ready(notebook(MAKE).run())
    before = grid(book, 2).screenshot()
    swap = book.panel.get_by_role('button', name='put')
    assert swap.is_disabled()
    book.page.mouse.click(*centre(book, 1, 27, 8, 8))
    book.until('explorer.words.locked', 27)
    book.page.mouse.click(*centre(book, 3, 5, 8, 16))                 # the sixth code of the page
    book.until('explorer.gallery.locked', 5)
    book.until('explorer.code == explorer.shown[5]')
    swap.click()
    book.until("len(explorer.held['history'])", 2)
    book.until("int(explorer.held['history'][-1].flatten()[27]) == explorer.shown[5]")
    book.panel.get_by_text('decoded: 1 swapped').wait_for()
    book.page.mouse.move(5, 5)
    book.page.wait_for_timeout(400)
    assert grid(book, 2).screenshot() != before
    book.shot('codes_swapped', of=book.panel.locator('.bl-widget').first)
    book.panel.get_by_role('button', name='undo').click()
    book.until("len(explorer.held['history'])", 1)


def test_leafing_by_keyboard(notebook):
    book = ready(notebook(MAKE).run())
    book.panel.get_by_role('button', name='›').focus()
    book.page.keyboard.press('Enter')
    book.until('explorer.page', 1)
    grid(book, 3).focus()
    for key in ('ArrowRight', 'ArrowDown', 'Enter'): book.page.keyboard.press(key)
    book.until('explorer.gallery.locked', 17)
    book.until('explorer.code == explorer.shown[17]')
    book.panel.locator('input[type="number"]').fill('300')
    book.page.keyboard.press('Enter')
    book.until('explorer.code', 300)
    assert book.python('300 in explorer.shown')
    book.panel.locator('.widget-dropdown select').select_option('by lightness')
    book.until('explorer.page', 0)
    book.shot('codes_keyboard', of=book.panel.locator('.bl-widget').first)


def test_nothing_jumps(notebook):
    book = ready(notebook(MAKE).run())
    places = lambda: [grid(book, which).bounding_box() for which in range(5)]
    book.page.mouse.move(*centre(book, 1, 0, 8, 8))
    book.page.wait_for_timeout(400)
    before = places()
    for place in (9, 27, 50, 63):
        book.page.mouse.move(*centre(book, 1, place, 8, 8))
        book.until('explorer.words.hover', place)
        book.page.wait_for_timeout(200)
        assert places() == before


def test_sentences_and_close(notebook):
    book = notebook([*MAKE, 'explore_codes(data="nowhere")', 'explore_codes(image_size=33)']).run()
    said = book.panel.locator('.bl-message')
    said.nth(1).wait_for()
    told = [said.nth(i).inner_text() for i in range(said.count())]
    assert any("there is no 'nowhere'" in text for text in told) and 'Traceback' not in book.panel.inner_text()
    book.python('explorer.close()')
    book.page.wait_for_function("() => !document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .bl-canvas')")
    assert book.python('explorer.held') == {}


def test_latency(notebook):
    book = ready(notebook(MAKE).run())
    press = lambda i: book.page.mouse.click(*centre(book, 1, (9*i + 3) % 64, 8, 8))
    local = book.latency('codes: click to ring', press, "panel.querySelectorAll('.bl-canvas')[1].dataset.locked", times=30)
    book.page.wait_for_timeout(500)
    book.page.mouse.click(*centre(book, 1, 27, 8, 8)), book.page.mouse.click(*centre(book, 3, 5, 8, 16))
    book.until('explorer.swap.disabled', False)
    for button in (book.panel.get_by_role('button', name='put'), book.panel.get_by_role('button', name='undo')): button.scroll_into_view_if_needed()
    turns = (book.panel.get_by_role('button', name='put'), book.panel.get_by_role('button', name='undo'))
    swap = book.latency('codes: press to decoded', lambda i: turns[i % 2].click(), "panel.querySelectorAll('.bl-canvas')[2].dataset.pictures", times=30)
    assert local['unseen'] == swap['unseen'] == 0
