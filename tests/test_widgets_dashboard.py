"The training dashboard without a browser: it watches without a trace, stops, goes on to the same weights, and says what went wrong."
import time
from io import BytesIO

import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image

from beit_lab.codebook.autoencode import VQVAE, tokenizer_config, tokenizer_learner
from beit_lab.codebook.cache import cache_tokens
from beit_lab.core import ConfigError, LabError, generator
from beit_lab.pretrain.learner import mim_learner
from beit_lab.pretrain.masked_learner import mdm_learner
from beit_lab.pretrain.objectives import MaskedImageModel, MIMConfig
from beit_lab.pretrain.rivals import pixel_learner
from beit_lab.show import dashboard as module
from beit_lab.show.charts import PicturesView, RunView, TokenizerView
from beit_lab.show.dashboard import Dashboard, NoDashboard, dashboard
from beit_lab.training import STATE, TrainConfig, train
from beit_lab.trunk.sizes import trunk_config
from test_pretrain_masked_data import model_of, world

IMAGES = torch.randint(0, 256, (48, 3, 16, 16), dtype=torch.uint8, generator=generator('dashboard'))
PLAN = TrainConfig(steps=30, batch_size=8, lr=1e-3, warmup_steps=3, piece=10)


def tokenizer(**kwargs): return tokenizer_learner(IMAGES, tokenizer_config('nano', codebook_size=16, width=8), 30, batch_size=8, **kwargs)


def pictures(cls=mim_learner, **kwargs):
    torch.manual_seed(0)
    codes = VQVAE(tokenizer_config('nano', codebook_size=16, width=8)).eval()
    trunk = trunk_config('pico', image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, drop_path=0.2)
    model = MaskedImageModel(MIMConfig(trunk=trunk, codebook_size=16))
    return mim_learner(model, IMAGES, IMAGES[:16], codes, cache_tokens(codes, IMAGES), config=PLAN, **kwargs)


def mixture(**kwargs):
    task, kinds = world(trunk=dict(drop_path=0.2))
    return mdm_learner(model_of(task), kinds, kinds, dict.fromkeys(kinds, 4), PLAN, judged=1, **kwargs)


LEARNERS = pytest.mark.parametrize('build', [tokenizer, pictures, mixture])


class At(Callback):
    "Does something once, after the training step of this number."
    order = 80
    def __init__(self, step, do): self.when, self.do = step, do
    def after_batch(self):
        if self.training and self.epoch*self.n_iter + self.iter + 1 == self.when: self.when = None; self.do()


def interrupt(): raise KeyboardInterrupt


def same(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    assert a.keys() == b.keys()
    for name in a: assert torch.equal(a[name], b[name]), name


@pytest.fixture
def busy(monkeypatch):
    "Look and draw after every step."
    monkeypatch.setattr(module, '_LOOK_EVERY', 0)
    monkeypatch.setattr(module, '_SHARE', 1e9)


def has_its_view(board):
    "No chart is empty, and each task has the charts that it needs."
    seen = {panel.live for panel in board.panels if panel.live} | {panel.judged for panel in board.panels if panel.judged}
    assert seen <= set(board.live) | set(board.learn.run_log.rows[0])
    if isinstance(board.view, TokenizerView): assert len(board.live['psnr']) > 10 and 0 < board.live['codes'][-1][1] <= 16
    elif isinstance(board.view, PicturesView): assert len(board.rows[0]) == 4 and board.panels[1].level is not None
    else: assert [panel.title for panel in board.panels] == ['patches of pictures, nats', 'words of texts, nats', 'patches of pairs, nats', 'words of pairs, nats']
    assert type(board.view) is not RunView


@LEARNERS
def test_stopped_and_continued_is_undisturbed(build, busy):
    "Looked at after every step, stopped in the middle of a piece, continued: to the last bit the run that nobody watched."
    board = dashboard(build(), every=0)
    board.learn.add_cb(At(14, board.stop))
    assert board.start().wait().state == 'stopped' and 14 <= board.step < 20
    said = board.sentence()
    assert f'Stopped at step {board.step}' in said and 'saved up to step 10' in said
    assert board.start().wait().state == 'finished'
    same(train(build()), board.learn)
    assert [step for step, _ in board._seen()['loss']] == list(range(1, 31)), 'each step is drawn once, also those that were done twice'
    has_its_view(board)


@LEARNERS
def test_the_interrupt_is_a_clean_stop(build):
    board = dashboard(build())
    board.learn.add_cb(At(14, interrupt))
    board.fit()
    assert board.state == 'stopped' and board.error is None
    board.fit()
    assert board.state == 'finished'
    same(train(build()), board.learn)


def test_a_model_of_pixels_has_the_plain_view():
    from beit_lab.pretrain.rivals import pixel_task
    torch.manual_seed(0)
    trunk = trunk_config('pico', image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    learn = pixel_learner(MaskedImageModel(pixel_task(MIMConfig(trunk=trunk, codebook_size=16))), IMAGES, IMAGES[:16], config=PLAN)
    board = dashboard(learn)
    assert type(board.view) is RunView and [panel.title for panel in board.panels] == ['loss', 'explained']
    board.start().wait()
    assert board.state == 'finished' and board.rows == []
    assert Image.open(BytesIO(board.snapshot().png())).width > 800


def test_what_goes_wrong_is_said_in_a_sentence():
    board = dashboard(pictures())
    board.learn.add_cb(At(5, lambda: 1/0))
    with pytest.raises(ZeroDivisionError): board.start().wait()
    assert board.sentence() == 'Training broke off at step 5: ZeroDivisionError: division by zero'
    assert '▲' in (board.widget and board.told.value)
    board.start().wait()                                     # the callback does it once
    assert board.state == 'finished'
    ruined = dashboard(pictures())
    ruined.learn.add_cb(At(5, lambda: next(ruined.learn.model.parameters()).data.fill_(float('nan'))))
    with pytest.raises(LabError): ruined.start().wait()
    assert ruined.sentence().startswith('Training broke off at step 5: the loss is not finite at piece 0, step 5 because')


def test_a_learner_has_one_trainer_at_a_time():
    learn = pictures()
    first = dashboard(learn)
    hold = At(3, lambda: [time.sleep(0.01) for _ in range(10_000) if not first.asked.is_set()])
    learn.add_cb(hold)
    first.start()
    with pytest.raises(ConfigError, match='another dashboard'): Dashboard(learn)
    with pytest.raises(ConfigError, match='already'): first.fit()
    assert first.start() is first                            # pressed twice: once
    first.stop(); first.wait()
    second = dashboard(learn)                                # the cell is run again: the same run goes on
    assert second.start().wait().state == 'finished'
    same(train(pictures()), learn)


def test_another_day_goes_on_with_the_curve(tmp_path):
    board = dashboard(pictures(), checkpoint=tmp_path/'state')
    board.learn.add_cb(At(14, board.stop))
    board.start().wait()
    later = dashboard(pictures(), checkpoint=tmp_path/'state')
    assert later.step == 10 and 'go on from step 10' in later.sentence() and [step for step, _ in later.live['loss']] == [10]
    assert later.start().wait().state == 'finished'
    same(train(pictures()), later.learn)
    board.close()
    assert (tmp_path/'state'/STATE).exists(), 'a folder of the user stays'


def test_half_a_run_without_its_folder_is_refused():
    learn = pictures()
    learn.run_log.rows = [dict(step=10)]
    with pytest.raises(ConfigError, match='in the middle of a run'): Dashboard(learn)
    with pytest.raises(ConfigError, match='a Learner with a plan'): Dashboard(object())
    with pytest.raises(ConfigError, match='not as live.gif'): Dashboard(pictures(), file='live.gif')


def test_a_mistake_is_a_sentence_in_the_page_and_an_error_for_who_goes_on():
    refused = dashboard(object())
    assert isinstance(refused, NoDashboard) and 'a Learner with a plan' in refused.message.value and 'a Learner with a plan' in refused.told()
    assert len(refused._repr_mimebundle_()[0]['image/png']) > 1000
    for go_on in (refused.start, refused.fit, refused.wait):
        with pytest.raises(ConfigError, match='a Learner with a plan'): go_on()


@pytest.mark.parametrize('name', ['live.png', 'live.html'])
def test_the_file_is_whole_at_any_time(tmp_path, name):
    file, seen = tmp_path/name, []
    def read():
        if name.endswith('png'): seen.append(Image.open(file).convert('RGB').size)
        else: seen.append(file.read_text().count('</html>') == file.read_text().count('http-equiv="refresh"') == 1)
    board = dashboard(pictures(), file=file, every=0)
    for step in (2, 11, 25): board.learn.add_cb(At(step, read))
    board.fit()
    assert len(seen) == 3 and len(set(seen)) == 1 and seen[0]
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name.endswith('html'): assert 'Finished.' in file.read_text() and 'http-equiv' not in file.read_text() and 'src="http' not in file.read_text()


def test_a_disk_that_refuses_ends_the_file_not_the_run(tmp_path, capsys):
    (tmp_path/'taken').write_text('')
    board = dashboard(pictures(), file=tmp_path/'taken'/'live.png')
    assert board.start().wait().state == 'finished'
    assert 'not written any more' in capsys.readouterr().out


def test_buttons_say_what_can_be_done():
    board, seen = dashboard(pictures()), {}
    look = lambda name: lambda: seen.update({name: (board.begin.description, board.begin.disabled, board.end.disabled, board.end.layout.visibility)})
    assert board.widget is board.widget
    look('ready')()
    for name in ('thread', 'cell'):
        at = At(14, lambda name=name: (board._tell(), look(name)(), board.stop() if name == 'thread' else interrupt()))
        board.learn.add_cb(at)
        board.start().wait() if name == 'thread' else board.fit()
        board.learn.remove_cb(at)
        look(f'{name} stopped')()
    assert 'interrupt' not in board.told.value
    assert seen == {'ready': ('Start', False, True, 'visible'), 'thread': ('Continue', True, False, 'visible'), 'thread stopped': ('Continue', False, True, 'visible'),
                    'cell': ('Continue', True, True, 'hidden'), 'cell stopped': ('Continue', False, True, 'visible')}


def test_in_a_cell_the_interrupt_is_named():
    board, said = dashboard(pictures()), []
    board.learn.add_cb(At(5, lambda: said.append(board.sentence())))
    board.fit()
    assert "the kernel's interrupt" in said[0] and 'Finished' in board.sentence()


def test_a_saved_notebook_keeps_a_still():
    board = dashboard(pictures()).start().wait()
    data, _ = board._repr_mimebundle_()
    assert data['text/plain'] == 'Dashboard: step 30 of 30, finished' and len(data['image/png']) > 10_000
    assert 'application/vnd.jupyter.widget-view+json' in data


def test_drawing_leaves_pyplot_alone():
    import matplotlib.pyplot as plt
    before, settings = plt.get_fignums(), dict(plt.rcParams)
    board = dashboard(pictures())
    board.widget
    board.start().wait().snapshot()
    assert plt.get_fignums() == before and dict(plt.rcParams) == settings


def test_closing_frees():
    from ipywidgets import Widget
    board = dashboard(tokenizer())
    board.widget
    parts, folder = [board.charts, board.samples, board.begin, board.bar], board.checkpoint
    board.learn.add_cb(At(5, lambda: time.sleep(0.2)))
    board.start()
    board.close()
    assert not board.thread.is_alive() and not folder.exists()
    assert all(part.comm is None for part in parts)
