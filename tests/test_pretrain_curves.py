"Is my run normal? The band of the shipped runs, and where a run lies in it."
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from beit_lab.core import DataError, samples
from beit_lab.pretrain.learner import compare_with_shipped, read_log, write_log


def curve(loss, steps=(50, 100, 150), batch=128):
    return [dict(step=step, images=step*batch, minutes=step/100, train_loss=loss, lr=1e-3, valid_loss=loss - step/100, token_accuracy=0.3) for step in steps]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    "Two seeds, one of them shorter: 4.0 and 4.4 nats at the start, less a hundredth at each step; two errors are 0.1."
    for seed, loss, steps in ((0, 4.0, (50, 100, 150)), (1, 4.4, (50, 100, 150, 200))):
        folder = tmp_path/f'runs/things_{seed}'
        folder.mkdir(parents=True)
        write_log(folder/'curve.csv', curve(loss, steps))
        (folder/'metrics.json').write_text(json.dumps(dict(pretrain=dict(loss_error=0.05, unigram_loss=3.5))))
    monkeypatch.setenv('BEIT_LAB_SAMPLES', str(tmp_path))
    yield tmp_path
    plt.close('all')


def verdict(rows, name='things'): return compare_with_shipped(rows, name)[1]


@pytest.mark.parametrize('loss, word', [(3.89, 'below'), (3.91, 'inside'), (4.2, 'inside'), (4.49, 'inside'), (4.51, 'above'), (9, 'above')])
@pytest.mark.parametrize('steps', [(50, 100), (50, 75), (20, 120)])
def test_verdict_at_the_last_step(shipped, loss, word, steps):
    text = verdict(curve(loss, steps))
    assert f'At step {steps[-1]} this run is {word} the band' in text and f'the band is {3.9 - steps[-1]/100:.2f} to {4.5 - steps[-1]/100:.2f}' in text
    assert 'Mind' not in text


def test_only_steps_that_both_have_count(shipped):
    late = curve(4.2, (50, 100)) + curve(9, (180, 250))                                  # what lies behind the shortest shipped run is not judged
    assert 'At step 100 this run is inside' in verdict(late)
    for steps in ((10, 20), (151, 400)): assert 'cannot be compared yet' in verdict(curve(4.2, steps))


def test_other_batches_are_mentioned(shipped): assert 'its batches have 64 pictures, those of the shipped runs 128' in verdict(curve(4.2, batch=64))


def test_the_figure_shows_band_run_and_guess(shipped):
    figure, _ = compare_with_shipped(curve(4.2, (10, 60)), 'things')
    ax, = figure.axes
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 0].min() == 50 and band[:, 0].max() == 150 and np.isclose(band[:, 1].min(), 2.4) and np.isclose(band[:, 1].max(), 4.0)
    assert list(ax.lines[0].get_xdata()) == [10, 60] and {'shipped runs', 'this run', 'unigram'} == {text.get_text() for text in ax.texts}


def test_unknown_names_list_the_known(shipped):
    with pytest.raises(DataError, match='choose things'): compare_with_shipped(curve(4), 'clouds')


def test_logs_come_back(tmp_path):
    rows = curve(4.25)
    assert read_log(write_log(tmp_path/'curve.csv', rows)) == rows
    (tmp_path/'other.csv').write_text('a,b\n1,two\n')
    for wrong in ('other.csv', 'nowhere.csv'):
        with pytest.raises(DataError, match='is not the log'): read_log(tmp_path/wrong)


def test_every_shipped_run_is_normal_by_its_own_measure():
    for folder in [f for f in samples('runs').glob('*_[0-9]') if '_pairs_' not in f.name]: # of pairs another curve is kept
        assert 'inside the band' in verdict(read_log(folder/'curve.csv'), folder.name.rpartition('_')[0])
    plt.close('all')
