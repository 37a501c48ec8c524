"""The procedural world: what must hold everywhere but teaches nothing new."""
import importlib.util
import random
import time
from io import BytesIO
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from beit_lab.core import ConfigError, samples
from beit_lab.data.drawing import COLOURS, GROUNDS, SHAPES, TEXTURES, TONES
from beit_lab.data.language import ANSWERS, captions, exact_caption, questions, scene_table, statement
from beit_lab.data.scenes import COMBINATIONS, HELD_OUT, largest_shape, scene, scene_images, THING_SIZES

WORLD = [scene(i, 32) for i in range(3000)]


@pytest.mark.parametrize('index, size, seed, combinations, checksum', [
    (0, 64, 0, 'train', 54569999), (17, 64, 0, 'train', 3909085756), (17, 224, 0, 'train', 811194841),
    (5, 50, 3, 'all', 4223711407), (5, 32, 3, 'held_out', 1635273379)])
def test_pixels_are_the_same_everywhere(index, size, seed, combinations, checksum):
    drawn = scene(index, size, seed, combinations)
    assert crc32(drawn.image.tobytes()) == checksum


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(48, 100), st.integers(0, 10**6), st.sampled_from(COMBINATIONS))
def test_truth_agrees_with_itself(index, size, seed, combinations):
    drawn = scene(index, size, seed, combinations)
    assert drawn.image.shape == (size, size, 3) and drawn.image.dtype == drawn.instance_mask.dtype == drawn.semantic_mask.dtype == np.uint8
    assert 1 <= len(drawn.objects) == len(drawn.boxes) == len(drawn.labels) <= 5
    assert len(set(drawn.names)) == len(drawn.objects)
    for number, (thing, box, area) in enumerate(zip(drawn.objects, drawn.boxes, drawn.areas), start=1):
        rows, columns = np.nonzero(drawn.instance_mask == number)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert set(drawn.semantic_mask[rows, columns]) == {1 + SHAPES.index(thing.shape)}
        assert area > 0.3*2.2*(thing.radius*size)**2, 'less than 30 % visible'
        assert thing.colour in COLOURS and thing.texture in TEXTURES and thing.size in THING_SIZES
    assert ((drawn.instance_mask == 0) == (drawn.semantic_mask == 0)).all()
    assert drawn.background.kind in GROUNDS and drawn.background.tone in TONES


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(COMBINATIONS))
def test_same_scene_at_every_size(index, combinations):
    fine, coarse = scene(index, 192, combinations=combinations), scene(index, 64, combinations=combinations)
    averaged = fine.image.reshape(64, 3, 64, 3, 3).astype(float).mean((1, 3))
    assert np.abs(averaged - coarse.image).mean() < 1.5
    assert fine.objects == coarse.objects and largest_shape(fine) == largest_shape(coarse)
    # the middle of a coarse pixel is the middle of the middle one of nine fine pixels, so the masks are equal there up to rounding
    assert (fine.instance_mask[1::3, 1::3] != coarse.instance_mask).sum() <= 1


def test_smallest_size_still_shows_every_thing():
    assert all((scene(i, 16).areas > 0).all() for i in range(1000))


def test_no_global_state():
    before, expected = np.random.get_state()[1].copy(), scene(7).image
    random.seed(1); np.random.seed(1); torch.manual_seed(1)
    scene(8), scene(7, seed=3)
    assert (scene(7).image == expected).all()
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    scene(9)
    assert (np.random.get_state()[1] == state).all() and len(before)


def test_held_out_combinations():
    pairs = lambda drawn: {(t.colour, t.shape) for t in drawn.objects}
    assert not any(pairs(s) & HELD_OUT for s in WORLD)
    assert all(len(pairs(scene(i, 16, combinations='held_out')) & HELD_OUT) == 1 for i in range(1000))
    everything = [pairs(scene(i, 16, combinations='all')) for i in range(2000)]
    assert set.union(*everything) == {(c, s) for c in COLOURS for s in SHAPES}
    expected = 2000*3/64  # scenes with a given pair: three things on average, 64 pairs
    assert all(abs(sum(pair in found for found in everything) - expected) < 5*expected**0.5 for pair in HELD_OUT)


@pytest.mark.parametrize('attribute', ['colour', 'texture', 'size', 'column', 'row', 'depth', 'kind', 'tone', 'count'])
def test_label_is_independent(attribute):
    from scipy.stats import chi2_contingency
    table = {}
    for drawn in WORLD:
        place = int(drawn.areas.argmax())
        thing = drawn.objects[place]
        value = dict(column=int(3*thing.x), row=int(3*thing.y), depth=place, count=len(drawn.objects), kind=drawn.background.kind,
                     tone=drawn.background.tone).get(attribute) if not hasattr(thing, attribute) else getattr(thing, attribute)
        table.setdefault(value, np.zeros(len(SHAPES)))[largest_shape(drawn)] += 1
    counts = np.stack(list(table.values()))
    if attribute == 'colour':  # eight of 64 cells are empty by design, and the rest are even
        assert (counts == 0).sum() == 8
        filled = counts[counts > 0]
        assert ((filled - filled.mean())**2/filled.mean()).sum() < 56 + 5*(2*56)**0.5
    else: assert chi2_contingency(counts).pvalue > 1e-4


def test_speed():
    scene(0)
    start = time.process_time()
    for i in range(200): scene(i)
    assert 200/(time.process_time() - start) > 150, 'fewer than 150 scenes a second of processor time'


def test_images_for_pretraining():
    images = scene_images(5, 48, seed=2, start=10, combinations='held_out')
    assert images.shape == (5, 3, 48, 48) and images.dtype == torch.uint8
    assert (images[3].permute(1, 2, 0).numpy() == scene(13, 48, 2, 'held_out').image).all()


@pytest.mark.parametrize('arguments, words', [
    (dict(index=-1), 'whole numbers'), (dict(index=1.5), 'whole numbers'), (dict(index=0, seed=-2), 'whole numbers'), (dict(index=0, size=4), 'at least 16'), (dict(index=0, combinations='none'), 'held_out')])
def test_wrong_arguments_get_a_sentence(arguments, words):
    with pytest.raises(ConfigError, match=words): scene(**arguments)


def test_exact_captions_are_unique():
    assert len({exact_caption(s) for s in WORLD[:1000]}) == 1000
    assert all(captions(s)[-1] == exact_caption(s) and 3 <= len(captions(s)) <= 5 for s in WORLD[:300])


def test_language_does_not_depend_on_resolution():
    for i in range(60):
        small, large = scene(i, 32), scene(i, 128)
        assert captions(small) == captions(large) and questions(small) == questions(large)
        assert statement(small, scene(i + 1, 32)) == statement(large, scene(i + 1, 128))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 1000), st.sampled_from(COMBINATIONS))
def test_language_is_always_possible(index, seed, combinations):
    drawn, other = scene(index, 16, combinations=combinations), scene(index + 1, 16, combinations=combinations)
    text, truth = statement(drawn, other, seed)
    assert text.endswith('.') and isinstance(truth, bool)
    asked = questions(drawn, seed=seed)
    assert {'total', 'existence'} - {q.kind for q in asked} <= ({'existence'} if combinations != 'train' else set())
    assert all(q.question.endswith('?') and q.answer in ANSWERS[q.kind] for q in asked)


def truth_of(text, left, right):
    "Read a statement again and look it up in the scenes."
    words = text.rstrip('.').split()
    shapes = {s: s for s in SHAPES} | {s + 's': s for s in SHAPES} | {'crosses': 'cross'}
    wanted = {'colour': [w for w in words if w in COLOURS], 'shape': [shapes[w] for w in words if w in shapes]}
    a, b = (sum(all(getattr(t, k) == v for k, vs in wanted.items() for v in vs) for t in s.objects) for s in (left, right))
    if words[0] == 'Both': return a > 0 and b > 0
    if words[0] == 'Only': return (a > 0 and b == 0) if words[2] == 'left' else (b > 0 and a == 0)
    if words[0] == 'Together': return a + b == 'no one two three four five six seven eight nine ten'.split().index(words[4])
    if 'more' in words or 'fewer' in words:
        first, second = (len(left.objects), len(right.objects))[::1 if words[1] == 'left' else -1]
        return first > second if 'more' in words else first < second
    return (a if words[1] == 'left' else b) > 0


def test_statements_are_what_they_say():
    for a, b in zip(WORLD, WORLD[1:1500]):
        text, truth = statement(a, b)
        assert truth_of(text, a, b) == truth, text


def test_attribute_questions_point_at_one_thing():
    for drawn in WORLD[:1000]:
        for q in questions(drawn, kinds=('colour', 'shape', 'texture')):
            said = [w for w in q.question.rstrip('?').split() if w in {*COLOURS, *SHAPES, *TEXTURES, *THING_SIZES}]
            meant = [t for t in drawn.objects if all(w in (t.colour, t.shape, t.texture, t.size) for w in said)]
            assert [getattr(t, q.kind) for t in meant] == [q.answer], q


def blind_accuracy(texts, answers):
    "Logistic regression on words and pairs of words: accuracy on the last third, and how many that are."
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    cut = 2*len(texts)//3
    features = CountVectorizer(ngram_range=(1, 2)).fit(texts[:cut]).transform(texts)
    return LogisticRegression(C=0.3, max_iter=200).fit(features[:cut], answers[:cut]).score(features[cut:], answers[cut:]), len(texts) - cut


@pytest.mark.parametrize('kind', ANSWERS)
def test_questions_do_not_leak(kind):
    asked = [q for s in WORLD for seed in range(2) for q in questions(s, kinds=(kind,), seed=seed)]
    accuracy, count = blind_accuracy([q.question for q in asked], [q.answer for q in asked])
    chance = 1/7 if kind in ('colour', 'shape') else 1/len(ANSWERS[kind])
    assert accuracy < chance + 4*(chance*(1 - chance)/count)**0.5


def test_statements_do_not_leak():
    told = [statement(a, b) for a, b in zip(WORLD, WORLD[1:])]
    accuracy, count = blind_accuracy([text for text, _ in told], [truth for _, truth in told])
    assert accuracy < 0.5 + 4*0.5/count**0.5


def test_the_judge_finds_a_leak():
    told = [statement(a, b) for a, b in zip(WORLD, WORLD[1:])]
    leaky = [(text.replace('shows', 'has') if truth and i % 3 == 0 else text, truth) for i, (text, truth) in enumerate(told)]
    accuracy, count = blind_accuracy([text for text, _ in leaky], [truth for _, truth in leaky])
    assert accuracy > 0.5 + 4*0.5/count**0.5


def make_scenes():
    "The script that writes the shipped files."
    spec = importlib.util.spec_from_file_location('make_scenes', samples('make_scenes.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_shipped_files_are_what_the_script_makes():
    from datasets import Dataset
    script, total = make_scenes(), 0
    for split, (start, count) in script.SPLITS.items():
        file = samples(f'scenes/{split}-00000-of-00001.parquet')
        total += file.stat().st_size
        shipped, built = Dataset.from_parquet(str(file), keep_in_memory=True), script.build(start, 12)
        assert len(shipped) == count and shipped.features == built.features
        for old, new in zip(shipped.select(range(12)), built):
            for name in script.PICTURES: assert (np.array(old.pop(name)) == np.array(new.pop(name))).all()
            assert old == new
    assert total < 4_000_000


def test_table_and_png_hold_the_scene():
    script, table = make_scenes(), scene_table(2, 40, start=3)
    for name in script.PICTURES:
        decoded = np.array(Image.open(BytesIO(script.png(table[name][1])['bytes'])))
        assert (decoded == getattr(scene(4, 40), name)).all()
