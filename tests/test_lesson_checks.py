"The checks of the lessons accept what is right and say what is wrong with the rest."
import json, math
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_images

from beit_lab.codebook.autoencode import VQVAE
from beit_lab.core import samples

LESSONS = Path(__file__).resolve().parents[1]/'nbs/lessons'


def cells_of(lesson): return [''.join(cell['source']) for cell in json.loads((LESSONS/f'{lesson}.ipynb').read_text(encoding='utf-8'))['cells']]


CELLS, CELLS_2, CELLS_3 = (cells_of(name) for name in ('01_image_as_a_foreign_language', '02_reading_images_and_text_together', '03_touch_the_model'))
CELLS_5, CELLS_6, CELLS_7, CELLS_8 = (cells_of(name) for name in ('05_which_choices_matter', '06_what_minutes_buy', '07_what_makes_words_meet_pictures', '08_which_tokenizer'))


def check(name, **known):
    "A check function of a lesson, as its cell defines it."
    source, = [cell for cell in CELLS + CELLS_2 + CELLS_3 + CELLS_5 + CELLS_6 + CELLS_7 + CELLS_8 if f'def {name}(' in cell]
    space = dict(math=math, torch=torch, **known)
    exec(source[:source.index('\nprint(')], space)
    return space[name]


@pytest.mark.parametrize('cells', [CELLS, CELLS_2, CELLS_3, CELLS_5, CELLS_6, CELLS_7, CELLS_8], ids=['first', 'second', 'third', 'fifth', 'sixth', 'seventh', 'eighth'])
def test_exercises_have_a_blank_a_check_and_a_folded_solution(cells):
    assert sum(cell.rstrip().endswith('= ...') for cell in cells) == 3 and sum('<details><summary>Solution' in cell for cell in cells) == 3
    assert sum('prediction = ...' in cell for cell in cells[3:]) + sum('**' in cell and '?**' in cell for cell in cells) >= 3


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), (32*32*3/64, 'not a byte'), (0.75, 'not 512 bits'), (128/3, 'Right.'), (42.7, 'Right.'), (10, 'is not it')])
def test_compression(answer, word): assert word in check('check_compression')(answer)


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), (9, 'in bits'), (1/512, 'the probability'), (math.log(512), 'Right.'), (6.24, 'Right.'), (5, 'is not it')])
def test_ignorance(answer, word): assert word in check('check_ignorance')(answer)


def test_words():
    tokenizer, photos = VQVAE.from_pretrained(samples('weights/emoji/tokenizer')), load_sample_images().images
    words = tokenizer(photos[1], image_size=64).unique()
    answer = check('check_words', tokenizer=tokenizer, photos=photos, tokens=torch.arange(256).view(4, 8, 8))
    assert 'No answer yet' in answer(...) and 'how many are they' in answer(words) and 'all tokens' in answer(256)
    assert 'is not it' in answer(len(words) + 1) and answer(len(words)) == 'Right. Four emoji use 256.'


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), (3, 'in bits'), (2.079, 'Right.'), (1/8, 'is not it')])
def test_eyes_closed(answer, word): assert word in check('check_eyes_closed')(answer)


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), ('accuracy without the picture', 'Right'), ('number of parameters', 'talker')])
def test_ask_for(answer, word): assert word in check('check_ask')(answer)


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), (1., 'in nats'), (math.e, 'Right.'), (3.5, 'is not it')])
def test_factor(answer, word): assert word in check('check_factor', figures=dict(patches_ahead=dict(attributes_hidden=dict(gap=1.))))(answer)


@pytest.mark.parametrize('name, right, wrong', [('check_by_chance', 2, 0.05), ('check_steps', 429, 840), ('check_error', 0.679, 0.0068), ('check_epochs', 43.008, 336), ('check_asked', 144, 288), ('check_likelier', 4.953, 1.6), ('check_bits', 7.055, 133), ('check_numbers', 9, 16)])
def test_numbers(name, right, wrong):
    assert 'No answer yet' in check(name)(...) and check(name)(right).startswith('Right') and 'is not it' in check(name)(wrong)


def test_clear_and_gained():
    study = dict(arms=dict(base=0, other=0))
    clear = check('check_clear', sets=dict(emoji=0), study=study, gain=lambda data, arm, what: (None, 2., 1. if what == 'probe' else 3.))
    assert 'No answer yet' in clear(...) and clear(1).startswith('Right') and 'is not it' in clear(2)
    rows = {(arm, seed): dict(finetune=[dict(labels=100, score=score)]) for arm, score in (('minutes_5', 0.3), ('scratch', 0.2)) for seed in (0, 1)}
    gained = check('check_gained', rows=rows, seeds=[0, 1])
    assert 'No answer yet' in gained(...) and gained(10.) == 'Right.' and 'is not it' in gained(0.1)


def test_better():
    runs = {('base', 0): dict(mdm=(1., 0.5)), ('near', 0): dict(mdm=(2., 0.6)), ('far', 0): dict(mdm=(3., 0.5)), ('behind', 0): dict(mdm=(0., 0.1))}
    better = check('check_better', found=runs, connection=lambda mdm, what: mdm)
    assert 'No answer yet' in better(...) and better(1) == 'Right.' and 'is not it' in better(2)


def test_agreeing():
    rows = dict(a=(1., 0.1), b=(2., 0.2), c=(3., 0.15))                                    # decibels and probe: a<b and a<c agree, b<c does not
    agreeing = check('check_agreeing', tokenizers=list(rows), values=lambda data, arm, key: torch.tensor([rows[arm][key == 'probe']]))
    assert 'No answer yet' in agreeing(...) and agreeing(2/3) == 'Right, of 3 pairs.' and 'is not it' in agreeing(1/3)


# The third lesson

CORNERS = torch.zeros(8, 8, dtype=torch.bool)
CORNERS[[0, 0, 7, 7, 0, 0, 7, 7, 1, 1, 6, 6], [0, 1, 0, 1, 7, 6, 7, 6, 0, 7, 0, 7]] = True


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), (torch.ones(4, 4), '8 rows'), (torch.eye(8), 'at least 12'), (torch.ones(8, 8), 'less than three quarters'), (CORNERS, 'Right: 12 of 12'), (CORNERS.tolist(), 'Right')])
def test_flattering(answer, word):
    from beit_lab.show import masks
    from beit_lab.show.patch_grid import any_picture, load_weights, sample_picture
    assert word in check('check_flattering', load_weights=load_weights, answer_mask=masks.answer_mask, any_picture=any_picture, sample_picture=sample_picture)(answer)
    if answer is CORNERS: assert any('flattering_mask[[0, 0, 7, 7, 0, 0, 7, 7, 1, 1, 6, 6], [0, 1, 0, 1, 7, 6, 7, 6, 0, 7, 0, 7]] = True' in cell for cell in CELLS_3)


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), (0.25, 'now in per cent'), (50, 'now divide'), (25, 'Right.'), (25.2, 'Right.'), (30, 'is not it')])
def test_share(answer, word):
    from types import SimpleNamespace
    explorer = SimpleNamespace(held=dict(index=SimpleNamespace(counts=torch.tensor([50, 49, 49, 26, 26]))))
    assert word in check('check_share', explorer=explorer)(answer)


@pytest.mark.parametrize('answer, word', [(..., 'No answer yet'), (137, 'begin anew'), (50, 'Not the whole piece'), (37, 'Right,'), (100, 'is not it')])
def test_computed_twice(answer, word): assert word in check('check_twice')(answer)


# The fourth lesson, whose checks stand in one hidden cell

def test_codes_that_live():
    source, = [cell for cell in cells_of('04_codes_live_and_die') if 'def check_dim(' in cell]
    grown = []
    space = dict(math=math, K=256, base=dict(steps=100), grow=lambda **choices: grown.append(choices) or [None], judge=lambda model: dict(used=200))
    exec(source, space)
    assert space['check_dim'](...) == space['check_memory'](...) == 'write down your guess first' and not grown
    assert space['check_dim'](90) == '200 of 256; you said 90' and grown == [dict(code_dim=128)]
    assert space['check_memory'](80) == '80 steps; you said 80'
    assert space['check_cure'](lambda: None) == 'not yet written' and len(grown) == 1
    assert space['check_cure'](lambda: dict(start='k-means')) == '200 of 256 codes used' and grown[1] == dict(steps=100, start='k-means')
