"The grid of patches and the frame of all widgets, without a browser."
import gc, io, re, threading, weakref
from importlib.resources import files

import matplotlib, numpy as np, pytest, torch
from PIL import Image

from beit_lab.core import ConfigError, DataError, WeightsError
from beit_lab.show.patch_grid import (LabWidget, LoadedWeights, Notice, PatchGrid, any_picture, draw_patches, load_weights, lock_of, picture_bytes,
                                      safe_widget, sample_picture, shown_size)

PICTURE = torch.linspace(0, 1, 3*16*16).view(3, 16, 16)
SCRIPT, STYLE = ((files('beit_lab')/'show'/f'patch_grid.{kind}').read_text(encoding='utf-8') for kind in ('js', 'css'))


class Small(LabWidget):
    "The smallest widget: one grid, and an answer that can fail."
    def __init__(self):
        self.grid, self.heard = PatchGrid(PICTURE, (4, 4), mode='paint'), []
        super().__init__([self.grid])
        self.on(self.grid, 'mask', self.answer)

    def answer(self, mask):
        if sum(mask) == 16: raise ConfigError('everything is hidden')
        if sum(mask) == 15: raise ZeroDivisionError('secret')
        self.heard.append(sum(mask))

    def snapshot(self): return self.grid.snapshot()
    def told(self): return self.grid.told()


@pytest.mark.parametrize('wrap', [lambda p: p, lambda p: p[None], lambda p: (p, 3), lambda p: dict(image=p), lambda p: dict(label=3, img=p), lambda p: dict(image=dict(bytes=picture_bytes(p))),
                                  lambda p: picture_bytes(p), lambda p: Image.open(io.BytesIO(picture_bytes(p)))])
def test_any_picture(wrap): assert (any_picture(wrap(PICTURE)) - PICTURE).abs().max() <= 0.5/255 + 1e-6


def test_a_path_and_a_size(tmp_path):
    (tmp_path/'a.png').write_bytes(picture_bytes(PICTURE))
    assert any_picture(tmp_path/'a.png', 32).shape == (3, 32, 32)


@pytest.mark.parametrize('bad,words', [(dict(label=3), 'no picture'), ((), 'tuple'), (None, 'NoneType'), (3, 'int'), (PICTURE*2, 'divide bytes'), (b'', 'empty'), ('nowhere.png', 'no such file')])
def test_what_is_no_picture(bad, words):
    with pytest.raises(DataError, match=words): any_picture(bad)


def test_samples_are_held_out(): assert sample_picture('scenes', 3).size == (64, 64) and sample_picture('emoji_pairs').mode == 'RGB'


def test_weights_are_shared_and_let_go():
    first = load_weights('scenes')
    assert load_weights('scenes') is first and load_weights(first) is first
    assert lock_of(first.model) is first.lock and lock_of(load_weights('emoji').model) is not first.lock
    watch = weakref.ref(first.model)
    del first
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize('bad', ['nowhere', 3, '.'])
def test_no_weights(bad):
    with pytest.raises(WeightsError): load_weights(bad)


def test_weights_of_two_runs():
    with pytest.raises(ConfigError, match='not from one run'): LoadedWeights('mixed', load_weights('emoji').tokenizer, load_weights('scenes').model)


def test_grid_checks_what_it_is_given():
    grid = PatchGrid(PICTURE, (4, 4))
    for name, value in dict(mask=[True], heat=[0.]*17, labels=['a'], details=[]*3 + ['b']).items():
        with pytest.raises(ConfigError, match=f'{name} has'): setattr(grid, name, value)
    with pytest.raises(ConfigError, match='does not fit'): PatchGrid(PICTURE, (4, 0))
    grid.heat = []


def test_another_picture_and_grid_in_one_step():
    grid = PatchGrid(PICTURE, (4, 4), labels=['x']*16, locked=12)
    grid.show(torch.zeros(3, 8, 16), (2, 8))
    assert (grid.rows, grid.columns, len(grid.mask), grid.labels, grid.locked) == (2, 8, 16, [], -1)
    assert (grid.width, grid.height) == (256, 128)


def test_mask_there_and_back():
    grid, mask = PatchGrid(PICTURE, (4, 4)), torch.rand(4, 4) < 0.5
    grid.set_mask(mask)
    assert torch.equal(grid.get_mask(), mask) and grid.told().endswith(f'{int(mask.sum())} hidden')*bool(mask.any())


@pytest.mark.parametrize('size,side,shown', [((32, 32), 192, (192, 192)), ((32, 32), 200, (192, 192)), ((64, 32), 256, (256, 128)), ((224, 224), 192, (192, 192)), ((400, 300), 200, (200, 150))])
def test_whole_factors(size, side, shown): assert shown_size(*size, side) == shown


def test_layers_of_the_still():
    plain = np.asarray(draw_patches(PICTURE, (4, 4), side=64, lines=False)).astype(int)
    inside = lambda image, i: image[16*(i//4) + 3:16*(i//4) + 13, 16*(i % 4) + 3:16*(i % 4) + 13]
    for layer, place in (dict(mask=[i == 5 for i in range(16)]), 5), (dict(heat=[1. if i == 6 else -1. for i in range(16)], heat_alpha=1.), 6), (dict(labels=['888' if i == 7 else '' for i in range(16)]), 7):
        drawn = np.asarray(draw_patches(PICTURE, (4, 4), side=64, lines=False, **layer)).astype(int)
        changed = [i for i in range(16) if (inside(drawn, i) != inside(plain, i)).any()]
        assert changed == [place], layer
    hidden = inside(np.asarray(draw_patches(PICTURE, (4, 4), mask=[True]*16, side=64, lines=False)), 5)
    assert hidden.min() > 100 and len(np.unique(hidden)) == 2                                       # hatched, and never black
    assert tuple(inside(np.asarray(draw_patches(PICTURE, (4, 4), heat=[1.]*16, heat_alpha=1., side=64)), 5)[0, 0]) == (254, 232, 56)


def test_page_and_still_use_the_same_colours():
    stops = [[round(255*c) for c in matplotlib.colormaps['cividis'](i/8)[:3]] for i in range(9)]
    told = re.search(r'const HEAT = (\[\[.*?\]\]);', SCRIPT, re.S)[1]
    assert eval(re.sub(r'/\*.*?\*/', '', told)) == stops
    assert [[int(c) for c in found] for found in re.findall(r'rgb\((\d+), (\d+), (\d+)\)', STYLE)] == stops


def test_front_end_asks_nobody():
    for text in (SCRIPT, STYLE): assert not re.search(r'https?:|//\w|@import|url\(|\bimport\b|fetch\(', text)


def test_bundle_has_the_still():
    grid = PatchGrid(PICTURE, (4, 4), name='a test')
    data, _ = grid._repr_mimebundle_()
    assert data['text/plain'] == 'a test, 4x4 patches' and {'image/png', 'application/vnd.jupyter.widget-view+json'} <= set(data)


def test_problems_become_sentences_and_pass():
    small = Small()
    small.grid.mask = [True]*16
    assert 'everything is hidden' in small.message.value and small.message.layout.display is None
    small.grid.mask = [True]*15 + [False]
    assert 'ZeroDivisionError' in small.message.value and 'Traceback' not in small.message.value
    small.grid.mask = [True] + [False]*15
    assert small.message.value == '' and small.heard == [1] and small.problem is None


def test_sentences_are_escaped(): assert '<script>' not in Notice('<script>alert(1)</script>').message.value


def test_safe_widget():
    def broken(): raise DataError('no such thing')
    notice = safe_widget(broken)
    assert isinstance(notice, Notice) and notice.told() == 'no such thing' and isinstance(notice.problem, DataError)
    assert notice.snapshot().size[0] > 100 and notice._repr_mimebundle_()['text/plain' if isinstance(notice._repr_mimebundle_(), dict) else 0]


def test_close_frees_and_silences():
    import ipywidgets
    before = set(ipywidgets.Widget._instances if hasattr(ipywidgets.Widget, '_instances') else ipywidgets.widgets.widget._instances)
    small = Small()
    small.held['heavy'] = torch.zeros(10)
    watch, grid = weakref.ref(small.held['heavy']), small.grid
    small.close()
    small.close()
    gc.collect()
    after = set(ipywidgets.widgets.widget._instances)
    assert watch() is None and grid.comm is None and not after - before
    grid.mask = [True]*16
    assert small.heard == []


def test_one_answer_at_a_time():
    small, inside, most = Small(), [], []
    def slow(mask):
        inside.append(1); most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
    small.on(small.grid, 'locked', slow)
    threads = [threading.Thread(target=setattr, args=(small.grid, 'locked', i)) for i in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert max(most) == 1


def test_two_widgets_keep_apart():
    one, two = Small(), Small()
    one.grid.mask = [True] + [False]*15
    assert two.heard == [] and not any(two.grid.mask)
