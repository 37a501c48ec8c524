"The kit itself: a slider of ipywidgets is pulled, a foreign request is refused, a failing cell is heard of."
import pytest

from labkit import until

SLIDER = ['import ipywidgets as W\nslider = W.IntSlider(value=3, max=10, description="so many")\nword = W.Label("3")\n'
          'slider.observe(lambda change: setattr(word, "value", str(change["new"])), "value")\nW.VBox([slider, word])']


def test_slider(notebook):
    book = notebook(SLIDER).run()
    handle = book.panel.locator('.noUi-handle')
    handle.focus()
    book.page.keyboard.press('ArrowRight')
    book.until('slider.value', 4)
    until(lambda: book.panel.locator('.widget-label').last.inner_text(), '4') # the answer has a way to go
    book.shot('kit', of=book.panel.locator('.jp-OutputArea').first)
    row = book.latency('kit: slider', lambda i: book.page.keyboard.press('ArrowRight' if i % 2 else 'ArrowLeft'),
                       "panel.querySelectorAll('.widget-label')[1].textContent", times=4)
    assert row['unseen'] == 0
    kernel, script = book.memory()
    assert 10 < kernel < 2000 and 1 < script < 500


def test_kernel_that_waits_is_interrupted(notebook):
    book = notebook(['seen = []\ntry:\n    while True: seen.append(0); __import__("time").sleep(0.01)\nexcept KeyboardInterrupt: stopped = True']).start()
    book.page.wait_for_timeout(1500)
    book.interrupt()
    book.wait()
    assert book.python('stopped and len(seen) > 0')


def test_foreign_requests_are_refused_and_noted(notebook, page):
    book = notebook(['from IPython.display import HTML\nHTML("<img src=\'https://example.org/a.png\'>")']).run()
    book.page.wait_for_timeout(300)
    assert set(page.refused) == {'https://example.org/a.png'}
    page.refused.clear(); page.complaints.clear()


def test_failing_cell_is_heard_of(notebook):
    with pytest.raises(AssertionError, match='division'): notebook(['1/0']).run()
