"Probes, splits, error bars and few-label fine-tuning, where a notebook would not teach by it."
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from beit_lab.core import ConfigError, DataError, generator, real_data
from beit_lab.heads.classify import ProbeResult, fixed_splits, grouped_splits, mean_and_error, probe_arms, thin
from beit_lab.heads.finetune import PatchClassifier, finetune, layer_multipliers, layer_parts
from beit_lab.heads.probes import (PENALTIES, code_features, fit_logistic, knn_predict, linear_predict, pixel_features, read_out, row_shares,
                                   standardise, trunk_features)
from beit_lab.training import decay_groups
from beit_lab.trunk.multiway import Trunk, TrunkConfig

SMALL = TrunkConfig(image_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=3, positions='sincos', relative='none', layer_scale=0., init='xavier')


def blobs(count=300, classes=4, features=12, noise=1.0, seed=0):
    "Points around a centre per class, and their classes."
    draw = generator(seed, 'blobs')
    labels = torch.arange(count) % classes
    return torch.randn(classes, features, generator=draw)[labels] + noise*torch.randn(count, features, generator=draw), labels


def objective(theta, x, y, penalty, weights):
    return float(weights@F.cross_entropy(x@theta[:-1] + theta[-1], y, reduction='none') + penalty/2*theta[:-1].square().sum())


@pytest.mark.parametrize('metric', ['accuracy', 'balanced_accuracy'])
@pytest.mark.parametrize('count,features', [(400, 12), (60, 40)])
def test_logistic_matches_sklearn(metric, count, features):
    from sklearn.linear_model import LogisticRegression
    x, y = blobs(count, 3, features)
    keep = (y != 2) | (torch.arange(count) % 5 == 0)                                     # one rare class
    x, y = standardise(x[keep])[0], y[keep]
    weights = row_shares(y, metric)
    for penalty, theta in zip(PENALTIES, fit_logistic(x, y, 3, row_weights=weights)):
        peer = LogisticRegression(C=1/(penalty*len(x)), max_iter=5000, tol=1e-7, class_weight='balanced' if metric == 'balanced_accuracy' else None).fit(x, y)
        theirs = torch.tensor(np.vstack([peer.coef_.T, peer.intercept_])).float()
        assert objective(theta, x, y, penalty, weights) <= objective(theirs, x, y, penalty, weights) + 1e-4
        answers = (x@theta[:-1] + theta[-1]).argmax(1)
        assert (answers == torch.tensor(peer.predict(x))).float().mean() > 0.98


def test_wide_features_take_both_roads_to_the_same_answers(monkeypatch):
    import beit_lab.heads.probes as probes
    x, y = blobs(200, 4, 30)
    dense = fit_logistic(standardise(x)[0], y, 4)
    monkeypatch.setattr(probes, '_WIDE', 8)
    diagonal = fit_logistic(standardise(x)[0], y, 4)
    z = standardise(x)[0]
    for a, b, penalty in zip(dense, diagonal, PENALTIES):
        assert abs(objective(a, z, y, penalty, row_shares(y)) - objective(b, z, y, penalty, row_shares(y))) < 1e-4


def test_more_features_than_rows_is_the_same_regression():
    x, y = blobs(40, 2, 100)
    z, other = standardise(x[:30], x[30:])
    theta = fit_logistic(z, y[:30], 2, penalties=(0.1,))[0]
    assert torch.equal(linear_predict(x[:30], y[:30], x[30:], 2, (0.1,), tolerance=1e-6)[0], (other@theta[:-1] + theta[-1]).argmax(1))


def test_statistics_come_from_training_rows():
    x, y = blobs()
    assert torch.equal(standardise(x[:100], x[100:200])[1], standardise(x[:100], torch.cat([x[100:200], 1000 + x[200:]]))[1][:100])
    constant = torch.cat([x[:, :2], torch.full((300, 1), 7.)], 1)
    assert torch.isfinite(standardise(constant)[0]).all()
    a = linear_predict(x[:100], y[:100], x[100:], 4)
    b = linear_predict(x[:100]*torch.logspace(-3, 3, 12), y[:100], x[100:]*torch.logspace(-3, 3, 12), 4)
    assert (a == b).float().mean() > 0.99


def test_knn_ignores_shift_scale_and_chunks():
    x, y = blobs()
    plain = knn_predict(x[:200], y[:200], x[200:], 4)
    assert torch.equal(plain, knn_predict(3*x[:200] + 50, y[:200], 3*x[200:] + 50, 4))
    assert torch.equal(plain, knn_predict(x[:200], y[:200], x[200:], 4, chunk=7))
    assert knn_predict(x[:5], y[:5], x[200:], 4, neighbours=(1, 20)).shape == (2, 100)


def test_read_outs_of_odd_and_flat_grids():
    states = torch.randn(2, 15, 4, generator=generator('states'))
    for grid in [(3, 5), (5, 3), (1, 15)]: assert read_out(states, grid, '2x2').shape == (2, 16)
    assert torch.allclose(read_out(states[:, :12], (2, 6), '2x2').view(2, 4, 4).mean(1), read_out(states[:, :12], (2, 6)), atol=1e-6)
    with pytest.raises(ConfigError, match='unknown'): read_out(states, (3, 5), 'max')


def test_trunk_features_are_the_states_of_the_layers():
    torch.manual_seed(0)
    trunk, images = Trunk(SMALL).train(), torch.randint(0, 256, (5, 3, 8, 8)).byte()
    features = trunk_features(trunk, images, layers=(1, 2), batch_size=2)
    assert set(features) == {(layer, pool) for layer in (1, 2) for pool in ('mean', '2x2')}
    with torch.no_grad(): expected = trunk.eval().vectors(images.float()/255, layer=1, pool='mean')
    assert torch.allclose(features[1, 'mean'], expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), codes=st.integers(1, 20))
def test_bag_of_codes_counts_every_token(h, w, codes):
    tokens = torch.randint(0, codes, (3, h, w), generator=generator(h, w, codes))
    bags = code_features(tokens, codes)
    assert bags.shape == (3, 4*codes) and bags.sum(1).tolist() == [h*w]*3
    assert torch.equal(bags.view(3, 4, codes).sum(1), F.one_hot(tokens, codes).sum((1, 2)).float())


def test_large_pixels_are_averaged():
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator('images')).byte()
    assert torch.allclose(pixel_features(images).view(2, 3, 32, 32)[0, 0, 0, 0], images[0, 0, :2, :2].float().mean()/255)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), groups=st.integers(8, 60), classes=st.integers(2, 4), share=st.sampled_from([0.1, 0.25, 0.5, 0.75]))
def test_groups_never_leak(seed, groups, classes, share):
    draw = generator(seed, groups)
    group = torch.cat([torch.arange(groups), torch.randint(0, groups, (100,), generator=draw)])
    labels = (torch.arange(groups) % classes)[group]
    for train, test in grouped_splits(labels, group, count=2, test_share=share, seed=seed):
        assert len(train) + len(test) == len(group) and len(train) and len(test)
        assert not set(group[train].tolist()) & set(group[test].tolist())


def test_splits_are_stratified_reproducible_and_different():
    labels = torch.tensor([0]*80 + [1]*16 + [2]*4)
    splits = grouped_splits(labels, count=4, seed=1)
    for train, test in splits: assert torch.bincount(labels[test]).tolist() == [20, 4, 1]
    assert torch.equal(splits[2][1], grouped_splits(labels, count=4, seed=1)[2][1])
    assert not torch.equal(splits[0][1], splits[1][1])


def test_rows_without_a_class_take_no_part():
    x, y = blobs(200)
    y = torch.where(torch.arange(200) % 5 == 0, -1, y)
    for train, test in [*grouped_splits(y), *fixed_splits(y, torch.arange(150), torch.arange(150, 200))]:
        assert (y[train] >= 0).all() and (y[test] >= 0).all()
    assert probe_arms(dict(points=x), y, grouped_splits(y, count=2)).score('probe', 'points')[0] > 0.8


def test_thinning_keeps_shares():
    labels = torch.tensor([0]*900 + [1]*90 + [2]*10)
    assert torch.bincount(labels[thin(labels, torch.arange(1000), 100)]).tolist() == [90, 9, 1]


@pytest.mark.parametrize('labels,groups,sentence', [
    (None, None, 'no labels'), ([1, 1, 1], None, 'at least two classes'), ([0, 0, 1], None, 'one row only'), ([0, 0, 1, 1], [0, 1, 2, 2], 'one group only'),
    ([0., 1.], None, 'whole number'), ([0, 1, -2], None, 'is no class'), ([], None, 'whole number'), ([-1, -1], None, 'at least two classes')])
def test_labels_that_cannot_be_probed(labels, groups, sentence):
    groups = None if groups is None else torch.tensor(groups)
    with pytest.raises(DataError, match=sentence): grouped_splits(None if labels is None else torch.tensor(labels), groups)


def test_bad_features_are_named():
    x, y = blobs(80)
    splits = grouped_splits(y, count=1)
    with pytest.raises(DataError, match="'trained'.*NaN"): probe_arms(dict(trained={(3, 'mean'): x*float('nan')}), y, splits)
    with pytest.raises(ConfigError, match='do not belong to 80'): probe_arms(dict(trained=x[:10]), y, splits)
    with pytest.raises(ConfigError, match='do not fit a codebook'): code_features(torch.full((1, 2, 2), 5), 5)


def test_test_rows_do_not_take_part_in_the_choice():
    "Whatever the test rows contain, the same option and penalty are chosen."
    x, y = blobs(200, noise=2.)
    splits = [(torch.arange(150), torch.arange(150, 200))]
    options = {(i, 'mean'): x + torch.randn(x.shape, generator=generator(i)) for i in range(4)}
    spoiled = {k: torch.cat([v[:150], 100*torch.randn(50, 12, generator=generator('spoil'))]) for k, v in options.items()}
    a, b = (probe_arms(dict(trained=o), torch.cat([y[:150], last]), splits) for o, last in ((options, y[150:]), (spoiled, y[150:].flip(0))))
    assert a.chosen == b.chosen


def test_error_of_splits_is_honest():
    "Nadeau and Bengio's correction covers what a plain standard error does not: the mean over splits differs from data set to data set."
    plain, corrected, means = [], [], []
    for seed in range(60):
        x, y = blobs(80, 2, 4, noise=3., seed=0)
        x = x + 3*torch.randn(x.shape, generator=generator('again', seed))
        splits = grouped_splits(y, count=5, seed=seed)
        hits = [knn_predict(x[a], y[a], x[b], 2, (5,))[0] == y[b] for a, b in splits]
        mean, error = mean_and_error(hits, [y[b] for _, b in splits], splits)
        means.append(mean); corrected.append(error)
        plain.append(float(torch.tensor([h.float().mean() for h in hits]).std()/5**0.5))
    truth, naive, ours = np.std(means), np.mean(plain), np.mean(corrected)
    assert naive < 0.75*truth and 0.75*truth < ours < 1.4*truth


def test_paired_differences_are_better_known():
    x, y = blobs(600, noise=3.)
    result = probe_arms(dict(trained=x, nearly=x + 0.3*torch.randn(x.shape, generator=generator('nearly'))), y, fixed_splits(y, torch.arange(300), torch.arange(300, 600)))
    gain, error = result.gain('probe', 'nearly')
    assert error < result.score('probe', 'nearly')[1]
    assert gain == pytest.approx(result.score('probe', 'trained')[0] - result.score('probe', 'nearly')[0], abs=1e-6)


def test_result_shows_itself_and_is_json(tmp_path):
    from beit_lab.core import read_json, write_json
    x, y = blobs(120)
    result = probe_arms(dict(trained=x, untrained=x[:, :3], bag_of_codes=x[:, :2]), y, grouped_splits(y, count=2), metric='balanced_accuracy')
    assert isinstance(result, ProbeResult) and result.guess == pytest.approx(0.25)
    write_json(tmp_path/'metrics.json', result.as_metrics())
    stored = read_json(tmp_path/'metrics.json')
    assert set(stored['probe']) == set(stored['probe_error']) == {'trained', 'untrained', 'bag_of_codes'}
    assert set(stored['knn']) == {'trained', 'untrained'} and 0 <= stored['probe']['trained'] <= 1
    for text in (result.table(), result.table(html=True)): assert 'bag of codes' in text and 'balanced accuracy' in text
    import matplotlib.pyplot as plt
    figure = result.plot()
    assert figure.axes[0].get_xlim()[0] == 0
    plt.close(figure)


def test_layer_decay_multipliers_and_parts():
    rates = layer_multipliers(12, 0.65)                                                   # BEiT's scripts
    assert rates[0] == pytest.approx(0.0037, abs=1e-4) and rates[12] == pytest.approx(0.65) and rates[13] == 1
    for relative in ('none', 'shared', 'per_layer'):
        model = PatchClassifier(Trunk(TrunkConfig(image_size=8, patch_size=2, embed_dim=24, depth=3, num_heads=3, relative=relative)), 5)
        parts = layer_parts(model)
        assert len(parts) == 5
        placed = [id(p) for part in parts for group in decay_groups(part) for p in group]
        assert sorted(placed) == sorted(id(p) for p in model.parameters())


def test_finetune_learns_repeats_and_leaves_the_trunk_alone():
    torch.manual_seed(0)
    trunk, labels = Trunk(SMALL), torch.arange(200) % 2
    images = (torch.randint(0, 100, (200, 3, 8, 8)) + 120*labels[:, None, None, None]).byte()
    before = [p.clone() for p in trunk.parameters()]
    seen = []
    runs = [finetune(trunk, images, labels, torch.arange(100), torch.arange(100, 200), labels_per_run=20, steps=30, batch_size=16, seed=1, scratch=scratch,
                     progress=lambda step, steps: seen.append(step)) for scratch in (False, False, True)]
    assert runs[0].score > 0.95 and runs[2].score > 0.95
    assert torch.equal(runs[0].learn.model.head.weight, runs[1].learn.model.head.weight)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk.parameters()))
    assert len(runs[0].train) == 20 and torch.bincount(labels[runs[0].train]).tolist() == [10, 10]
    assert seen[:30] == list(range(1, 31))


def test_first_step_rates_follow_the_layers():
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    run = finetune(Trunk(SMALL), torch.randint(0, 256, (40, 3, 8, 8)).byte(), labels, torch.arange(20), torch.arange(20, 40), steps=4, batch_size=8, layer_decay=0.5)
    rates = [h['lr'] for h in run.learn.opt.hypers]
    assert [r/rates[-1] for r in rates[::2]] == pytest.approx(layer_multipliers(2, 0.5))
    assert [h['wd'] for h in run.learn.opt.hypers] == [0.05, 0.]*4


@pytest.mark.skipif(real_data('cifar10') is None, reason='needs BEIT_LAB_DATA with cifar10')
def test_pixels_of_cifar():
    "Raw pixels of 2,000 CIFAR-10 pictures carry a known amount."
    from beit_lab.data.sources import open_source
    source = open_source(real_data('cifar10'), 'test').subset(np.arange(3000))
    labels, x = source.labels(), pixel_features(source.images(32), size=16)
    result = probe_arms(dict(pixels=x), labels, fixed_splits(labels, torch.arange(2000), torch.arange(2000, 3000)))
    assert 0.28 < result.score('probe', 'pixels')[0] < 0.42 and 0.25 < result.score('knn', 'pixels')[0] < 0.42
