"The checks of the lessons accept what is right and say what is wrong with the rest."
import json, math
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_images

from beit_lab.codebook.autoencode import VQVAE
from beit_lab.core import samples

LESSON = Path(__file__).resolve().parents[1]/'nbs/lessons/01_image_as_a_foreign_language.ipynb'
CELLS = [''.join(cell['source']) for cell in json.loads(LESSON.read_text(encoding='utf-8'))['cells']]


def check(name, **known):
    "A check function of the lesson, as its cell defines it."
    source, = [cell for cell in CELLS if f'def {name}(' in cell]
    space = dict(math=math, torch=torch, **known)
    exec(source[:source.index('\nprint(')], space)
    return space[name]


def test_exercises_have_a_blank_a_check_and_a_folded_solution():
    assert sum(cell.rstrip().endswith('= ...') for cell in CELLS) == 3 and sum('<details><summary>Solution' in cell for cell in CELLS) == 3
    assert sum('prediction = ...' in cell for cell in CELLS[3:]) >= 3


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
