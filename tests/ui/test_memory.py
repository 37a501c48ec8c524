"All five widgets on one page: they do not disturb each other, two hundred interactions leave no memory behind, and closing frees."
import pytest

CELLS = ['''import warnings; warnings.simplefilter('ignore')
import gc, ipywidgets, torch
from beit_lab.codebook.autoencode import tokenizer_config, tokenizer_learner
from beit_lab.data.sources import split_source
from beit_lab.show.attention import explore_attention
from beit_lab.show.codes import explore_codes
from beit_lab.show.dashboard import dashboard
from beit_lab.show.masks import paint_mask
from beit_lab.show.playground import playground
torch.set_num_threads(1)
before = len(ipywidgets.widgets.widget._instances)
images = split_source('emoji')[0].images(32)[:64]''',
         'painter = paint_mask()\npainter', 'explorer = explore_codes()\nexplorer', 'looker = explore_attention()\nlooker', 'ground = playground()\nground',
         "board = dashboard(tokenizer_learner(images, tokenizer_config('nano'), 30, batch_size=8)).start().wait()\nboard"]
# What each of them shows, and the grid that a hand presses in it; the dashboard has none, it redraws itself.
STATES = dict(painter='painter.paint.mask', explorer='explorer.code', looker='looker.query', ground='(ground.hidden.mask, ground.sentence.value)', board='(board.step, board.state)')
GRIDS = dict(painter=1, explorer=1, looker=0, ground=1)
LIMIT, WARM, TIMES = 10, 20, 200 # megabytes; interactions before counting begins, and counted ones


@pytest.fixture
def book(notebook):
    book = notebook(CELLS, own=True).run(400)
    book.panel.locator('.lab-charts').wait_for()
    return book


def interact(book, name, times):
    "Press the widget so often, and let Python answer."
    if name == 'board':
        for _ in range(times//10):
            book.python('[board._paint() for _ in range(10)] and None')
            book.page.wait_for_timeout(50)
        return
    canvas = book.panel.locator('.jp-OutputArea .bl-widget').nth(list(GRIDS).index(name)).locator('canvas').nth(GRIDS[name])
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for i in range(times):
        place = (7*i + 3) % 64
        book.page.mouse.click(box['x'] + (place % 8 + 0.5)*box['width']/8, box['y'] + (place//8 + 0.5)*box['height']/8)
        if i % 5 == 4: book.python('None')                  # it waits its turn behind what was pressed
    book.page.mouse.move(2, 2)
    book.page.wait_for_timeout(300)
    book.python('None')


def test_five_widgets_on_a_page(book):
    grown = {}
    for name in STATES:
        others = [state for other, state in STATES.items() if other != name]
        seen, own = [book.python(state) for state in others], book.python(STATES[name])
        interact(book, name, WARM)
        before = book.memory()
        interact(book, name, TIMES)
        after = book.memory()
        assert [book.python(state) for state in others] == seen, f'{name} disturbed another widget'
        if name != 'board': assert book.python(STATES[name]) != own, f'{name} did not hear'
        grown[name] = tuple(round(b - a, 1) for a, b in zip(before, after))
    print('megabytes of (kernel, page):', grown)
    book.shot('five_widgets', of=book.panel.locator('.jp-OutputArea .bl-widget').first, themes=('light',))
    assert all(kernel < LIMIT and page < LIMIT for kernel, page in grown.values()), grown
    for name in STATES: book.python(f'{name}.close()')
    book.python('gc.collect() and None')
    assert book.python('len(ipywidgets.widgets.widget._instances)') == book.python('before')
    book.page.wait_for_function("() => !document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) :is(.bl-widget, .lab-board)')")
