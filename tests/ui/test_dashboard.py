"The training dashboard in a browser: start, see the figures change, stop, continue, interrupt."
import re

from playwright.sync_api import expect

LEARNER = '''import torch, time
from beit_lab.codebook.autoencode import VQVAE
from beit_lab.codebook.cache import cache_tokens
from beit_lab.core import samples
from beit_lab.data.sources import split_source
from beit_lab.pretrain.learner import mim_learner
from beit_lab.pretrain.objectives import MIMConfig, MaskedImageModel
from beit_lab.show.dashboard import dashboard
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config
tokenizer = VQVAE.from_pretrained(samples('weights/emoji/tokenizer'))
images, held_out = (source.images(32)[::8] for source in split_source('emoji'))
cache = cache_tokens(tokenizer, images)
def learner(steps):
    torch.manual_seed(0)
    task = MIMConfig(trunk=trunk_config('pico', depth=2), codebook_size=tokenizer.codebook_size, mode='visible', mask_kind='random', mask_ratio=0.75)
    return mim_learner(MaskedImageModel(task), images, held_out, tokenizer, cache, config=TrainConfig(steps=steps, batch_size=16, warmup_steps=5, piece=20))
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))'''

button = lambda book, word: book.panel.get_by_role('button', name=word, exact=True)
status = lambda book: book.panel.locator('.lab-board [role=status]')


def places(book):
    "Where the pictures stand, measured from the dashboard's own corner, for the page may scroll."
    corner, *parts = (book.panel.locator(f'.lab-board{part}').bounding_box() for part in ('', ' .lab-charts', ' .lab-samples', ' .lab-words'))
    return [(part['x'] - corner['x'], part['y'] - corner['y'], part['width'], part['height']) for part in parts]


def test_start_see_stop_continue(notebook, page):
    book = notebook([LEARNER, 'board = dashboard(learner(60))\nboard']).run(300)
    charts = book.panel.locator('.lab-charts')
    expect(button(book, 'Start')).to_be_enabled()
    expect(button(book, 'Stop')).to_be_disabled()
    page.wait_for_timeout(300)
    still, where = charts.get_attribute('src'), places(book)
    button(book, 'Start').click()
    expect(button(book, 'Stop')).to_be_enabled()
    page.wait_for_function('([selector, old]) => document.querySelector(selector).src !== old', arg=['.jp-NotebookPanel:not(.lm-mod-hidden) .lab-charts', still])
    book.until('board.step > 5')
    assert book.python('board.state') == 'training', 'the kernel is free while the thread trains'
    assert places(book) == where, 'nothing moved'
    button(book, 'Stop').focus()
    page.keyboard.press('Enter')                                # by keyboard alone
    book.until('board.state', 'stopped')
    expect(status(book)).to_have_text(re.compile('Stopped at step'))
    assert book.python('board.error is None and board.step < 60')
    book.shot('dashboard_stopped', of=book.panel.locator('.lab-board'))
    expect(button(book, 'Continue')).to_be_enabled()
    button(book, 'Continue').click()
    book.until('board.state', 'finished', 120)
    expect(status(book)).to_have_text('✓ Finished.')
    assert places(book) == where
    book.shot('dashboard_finished', of=book.panel.locator('.lab-board'))
    assert book.python('same(train(learner(60)), board.learn)', 120), 'the weights of a run that nobody disturbed'


def test_interrupt_of_the_kernel_is_a_clean_stop(notebook, page):
    book = notebook([LEARNER, 'board = dashboard(learner(400), every=0.1)\nboard.fit()\nafterwards = True']).start()
    expect(status(book)).to_have_text(re.compile("kernel's interrupt"), timeout=300_000)
    page.wait_for_function("() => /step [1-9]/.test(document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .lab-board').innerText)", timeout=60_000)
    assert not button(book, 'Stop').is_visible(), 'no button that may not be heard'
    book.shot('dashboard_in_cell', of=book.panel.locator('.lab-board'), themes=['light'])
    book.interrupt()
    book.wait()
    expect(status(book)).to_have_text(re.compile('Stopped at step'))
    assert book.python('(board.state, board.error, afterwards)') == ('stopped', None, True), 'the cell went on'
    button(book, 'Continue').click()                             # in a thread now
    book.until('board.state', 'training')
    button(book, 'Stop').click()
    book.until('board.state', 'stopped')


def test_stop_is_heard_soon_and_a_dead_thread_says_so(notebook):
    book = notebook([LEARNER, 'board = dashboard(learner(2000))\nboard']).run(300)
    button(book, 'Start').click()
    expect(button(book, 'Stop')).to_be_enabled()
    book.until('board.step > 3')
    row = book.latency('dashboard: Stop', lambda i: button(book, 'Stop').click(), "panel.querySelector('.lab-board [role=status]').textContent", times=1)
    assert row['unseen'] == 0
    book.until('board.state', 'stopped')
    book.python('setattr(board.learn, "loss_func", None)')                # nothing can be learnt any more
    button(book, 'Continue').click()
    expect(status(book)).to_have_text(re.compile("▲ Training broke off at step .*: TypeError: 'NoneType' object is not callable"))
    book.until('board.begin.disabled', False)
    book.shot('dashboard_broken', of=book.panel.locator('.lab-board'))


def test_notebook_of_the_lab(notebook):
    "In the lesson: stopped by a press while it learns, continued by another."
    book = notebook('nbs/lessons/03_touch_the_model.ipynb').run_above('board.wait()', 300)
    charts = book.panel.locator('.lab-charts')
    charts.scroll_into_view_if_needed()
    still = charts.get_attribute('src')
    button(book, 'Stop').click()
    book.until('board.state', 'stopped')
    expect(status(book)).to_have_text(re.compile('Stopped at step'))
    assert book.python('0 < board.step < board.steps')
    button(book, 'Continue').click()
    book.until('board.state', 'finished', 120)
    expect(status(book)).to_have_text('✓ Finished.')
    assert charts.get_attribute('src') != still and book.python('board.live["psnr"][-1][1] > board.view.plain')
    book.shot('dashboard', of=book.panel.locator('.lab-board'))


def test_mistake_is_a_sentence(notebook):
    book = notebook(['from beit_lab.show.dashboard import dashboard\ndashboard(object())']).run()
    assert 'a Learner with a plan' in book.panel.locator('.bl-message').inner_text()
    assert 'Traceback' not in book.panel.inner_text()
