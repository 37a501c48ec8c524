"Where no kernel runs: every widget of a committed notebook is a still picture there, with a sentence that says what it shows."
import json, re
from pathlib import Path

import nbformat, pytest
from nbconvert import HTMLExporter

NBS = Path(__file__).resolve().parents[1]/'nbs'
# what a widget says of itself in `text/plain`, by the notebook that shows it
TOLD = dict(masks='mask painter: ', codes='codebook explorer: ', attention='Attention is not attribution', playground=' painted, ', dashboard='Dashboard: step ')
SHOWN = {'08_show/03_masks': ['masks'], '08_show/04_codes': ['codes'], '08_show/05_attention': ['attention'], '08_show/08_playground': ['playground'],
         '08_show/09_dashboard': ['dashboard'], 'lessons/03_touch_the_model': list(TOLD)}


def stills(book, told):
    "The pictures of outputs that say this, as base64."
    datas = [output.get('data', {}) for cell in book.cells if cell.cell_type == 'code' for output in cell.outputs]
    return [data.get('image/png') for data in datas if told in data.get('text/plain', '')]


@pytest.mark.parametrize('name', SHOWN)
def test_a_page_shows_the_still(name):
    book = nbformat.read(NBS/f'{name}.ipynb', as_version=4)
    page = HTMLExporter().from_notebook_node(book)[0]
    for widget in SHOWN[name]:
        pictures = stills(book, TOLD[widget])
        assert pictures and all(pictures), f'{widget} has no still'
        for picture in pictures: assert picture.strip().replace('\n', '') in page.replace('\n', ''), f'the page does not show {widget}'
    assert 'application/vnd.jupyter.widget' not in page and 'Box(children' not in page


def test_stills_hold_no_times():
    for name in SHOWN:
        book = nbformat.read(NBS/f'{name}.ipynb', as_version=4)
        for told in TOLD.values():
            for cell in book.cells:
                for output in cell.get('outputs', []):
                    if told in (text := output.get('data', {}).get('text/plain', '')): assert not re.search(r'\d+:\d\d|\d s\b', text), text


def test_no_class_is_styled_by_two_sheets():
    "All widgets of a page share their styles: a class of two sheets would look one way alone and another way in company."
    sheets = sorted((NBS.parent/'beit_lab/show').glob('*.css'))
    styled = [name for sheet in sheets for name in set(re.findall(r'(?m)^[.](bl-[a-z-]+)', sheet.read_text(encoding='utf-8')))]
    assert len(sheets) >= 2 and len(styled) == len(set(styled)), sorted(name for name in styled if styled.count(name) > 1)
