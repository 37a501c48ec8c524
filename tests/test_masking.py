"Masks: promised counts, the distribution of the paper's loop, reproducibility, bad input."
import math
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from beit_lab.core import ConfigError, generator
from beit_lab.masking import MASKS, _throw, block_masks, draw_masks, grid_masks, hidden_positions, mask_count, random_masks, visible_positions

PAPER = dict(grid=(14, 14), mask_ratio=75/196, min_block=16)


def loop_mask(rng, h=14, w=14, count=75, min_block=16):
    "BEiT v1's loop for one mask: at most ten tries for each rectangle, and an end when none fits."
    mask = np.zeros((h, w), bool)
    while mask.sum() < count:
        room = count - mask.sum()
        for _ in range(10):
            area, aspect = rng.uniform(min_block, room), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area*aspect)), round(math.sqrt(area/aspect))
            if height >= h or width >= w: continue
            top, left = rng.randint(0, h - height), rng.randint(0, w - width)
            block = mask[top:top + height, left:left + width]
            if 0 < height*width - block.sum() <= room: break
        else: return mask
        block[:] = True
    return mask


def chi_square(a, b):
    "Two-sample statistic over the bins that are filled, and its degrees of freedom."
    a, b = np.asarray(a, float), np.asarray(b, float)
    filled = a + b >= 10
    a, b = (np.append(x[filled], x[~filled].sum()) for x in (a, b))
    expected = (a + b)/(a.sum() + b.sum())
    terms = sum(((x - x.sum()*expected)**2/np.maximum(x.sum()*expected, 1e-9)).sum() for x in (a, b))
    return terms, len(a) - 1


@pytest.fixture(scope='module')
def loop(): return np.stack([loop_mask(rng) for rng in [random.Random(0)] for _ in range(3000)])


@pytest.fixture(scope='module')
def in_step(): return block_masks(12_000, generator=generator('v1'), exact=False, **PAPER).numpy()


@pytest.fixture(scope='module')
def exact(): return block_masks(12_000, generator=generator('v2'), **PAPER).numpy()


def test_counts_have_the_distribution_of_the_loop(loop, in_step):
    statistic, freedom = chi_square(*(np.bincount(m.sum((1, 2)), minlength=76) for m in (loop, in_step)))
    assert statistic < freedom + 4*math.sqrt(2*freedom)


def test_places_have_the_distribution_of_the_loop(loop, in_step):
    a, b = loop.mean(0), in_step.mean(0)
    error = np.sqrt(a*(1 - a)/len(loop) + b*(1 - b)/len(in_step)) + 1e-9
    z = (a - b)/error
    assert np.abs(z).max() < 4.5
    assert np.sqrt((z**2).mean()) < 1.5


def test_numbers_of_the_reference_code(in_step, exact):
    counts = in_step.sum((1, 2))
    assert abs(counts.mean() - 74.49) < 0.05 and counts.max() == 75 and counts.min() >= 60
    assert abs((counts < 75).mean() - 0.325) < 0.015
    assert np.percentile(counts, 5) == 72
    assert (exact.sum((1, 2)) == 75).all()
    place = exact.mean(0)
    assert abs(place[np.ix_([0, -1], [0, -1])].mean() - 0.046) < 0.008
    assert abs(place[6:8, 6:8].mean() - 0.721) < 0.015
    assert abs((exact[:, :, 1:] == exact[:, :, :-1]).mean() - 0.886) < 0.005


def test_the_map_is_symmetric(exact):
    place = exact.mean(0)
    assert np.abs(place - place[::-1]).max() < 0.03 and np.abs(place - place[:, ::-1]).max() < 0.03 and np.abs(place - place.T).max() < 0.03


def test_no_rectangle_spans_the_grid():
    "After one round each mask holds one full rectangle, or none if ten did not fit, and never a whole row or column."
    masks = torch.zeros(4000, 6, 6, dtype=torch.bool)
    _throw(masks, 30, 8, generator('one'))
    assert masks.any((1, 2)).float().mean() > 0.8
    assert not masks.all(2).any() and not masks.all(1).any()
    assert torch.equal(masks, masks.any(2, keepdim=True) & masks.any(1, keepdim=True))
    assert masks.any(1).sum(1).max() == masks.any(2).sum(1).max() == 5


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MASKS)), st.integers(3, 20), st.integers(3, 20), st.floats(0.15, 0.85), st.integers(1, 5), st.integers(0, 99))
def test_every_kind_hides_exactly_its_count(kind, h, w, ratio, batch, seed):
    masks = draw_masks(kind, batch, (h, w), ratio, generator(seed))
    assert masks.shape == (batch, h, w) and masks.dtype == torch.bool
    assert (masks.sum((1, 2)) == round(ratio*(h*w))).all()
    assert torch.equal(masks, draw_masks(kind, batch, (h, w), ratio, generator(seed)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 9999))
def test_positions_give_the_mask_back(batch, h, w, seed):
    mask = torch.rand(batch, h, w, generator=generator(seed)) < 0.5
    for positions, wanted in ((hidden_positions, mask), (visible_positions, ~mask)):
        indices, valid = positions(mask)
        assert indices.shape == valid.shape and indices.dtype == torch.long and valid.dtype == torch.bool
        back = torch.zeros(batch, h*w, dtype=torch.bool)
        for b in range(batch):
            own = indices[b][valid[b]]
            assert torch.equal(own, own.sort().values)
            back[b, own] = True
        assert torch.equal(back, wanted.flatten(1))
        assert (indices[~valid] == 0).all()


def test_positions_of_nothing():
    indices, valid = hidden_positions(torch.zeros(2, 3, 3, dtype=torch.bool))
    assert indices.shape == valid.shape == (2, 0)


def test_random_places_are_uniform():
    place = random_masks(8000, (7, 7), 0.5, generator('uniform')).float().mean(0)
    wanted = round(0.5*49)/49
    assert (place - wanted).abs().max() < 4.5*math.sqrt(wanted*(1 - wanted)/8000)


def test_grid_masks_repeat_and_shift():
    masks = grid_masks(400, (8, 8), 0.25, generator('grid'))
    assert torch.equal(masks[:, :-2, :-2], masks[:, 2:, 2:])
    patterns = {tuple(m[:2, :2].flatten().tolist()) for m in masks}
    assert len(patterns) == 4


def test_masks_of_one_batch_differ():
    for kind in MASKS: assert len({tuple(m.flatten().tolist()) for m in draw_masks(kind, 64, (8, 8), 0.4, generator(kind))}) > (30 if kind != 'grid' else 3)


def test_without_a_generator_torch_decides():
    torch.manual_seed(3)
    first = block_masks(4, (8, 8))
    torch.manual_seed(3)
    assert torch.equal(first, block_masks(4, (8, 8)))


@pytest.mark.parametrize('call, words', [
    (lambda: mask_count((8, 8), 0), 'between 0 and 1'), (lambda: mask_count((8, 8), 1.), 'between 0 and 1'),
    (lambda: mask_count((2, 2), 0.05), 'no patch hidden'), (lambda: random_masks(1, (2, 2), 0.95), 'no patch visible'),
    (lambda: block_masks(1, (8, 8), 0.4, min_block=0), 'min_block'), (lambda: block_masks(1, (8, 8), 0.1, min_block=16), 'min_block'),
    (lambda: block_masks(1, (2, 2), 0.5), 'too small for blocks'), (lambda: block_masks(1, (1, 30), 0.4), 'too small for blocks'),
    (lambda: draw_masks('dots', 1, (8, 8)), 'choose')])
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ConfigError, match=words) as caught: call()
    assert '\n' not in str(caught.value)


def processor_time(work, rounds):
    "Least processor seconds of some rounds, so that other programs on the machine do not count."
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def test_masks_cost_little():
    "A training step of 64 small pictures takes some 400 ms; its masks may take 2 % of that. A large batch beats the loop clearly."
    rng, threads = random.Random(0), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert processor_time(lambda: block_masks(64, (8, 8)), 10) < 0.008
        loop = processor_time(lambda: [loop_mask(rng) for _ in range(500)], 3)/500
        assert processor_time(lambda: block_masks(1000, **PAPER), 3)/1000 < loop/1.5
    finally: torch.set_num_threads(threads)
