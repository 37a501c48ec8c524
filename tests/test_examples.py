"The example scripts do what they say, on a picture of their own and on yours."
import os, re, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from beit_lab.data.scenes import scene

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT/'examples/tokens_and_vectors.py'


def run(folder, *arguments, script=SCRIPT):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, '-W', 'ignore', script, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize('script', sorted((ROOT/'examples').glob('*.py')), ids=lambda script: script.stem)
def test_it_is_short(script): assert len(script.read_text(encoding='utf-8').splitlines()) < 40


@pytest.mark.parametrize('own', [False, True])
def test_tokens_a_reconstruction_and_the_nearest_emoji(tmp_path, own):
    Image.fromarray(load_sample_image('flower.jpg')).save(tmp_path/'flower.png')
    result = run(tmp_path, *(('flower.png', 'redrawn.png') if own else ()))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    tokens = np.array([list(map(int, line.split())) for line in lines[:8]])
    assert tokens.shape == (8, 8) and 0 <= tokens.min() and tokens.max() < 512
    nearest = [re.fullmatch(r'(\d\.\d{3})  (.+)', line).groups() for line in lines[8:]]
    assert len(nearest) == 5 and [value for value, _ in nearest] == sorted((value for value, _ in nearest), reverse=True)
    if not own: assert nearest[0][0] == '1.000'                                            # an emoji finds itself
    redrawn = Image.open(tmp_path/('redrawn.png' if own else 'reconstruction.png'))
    assert redrawn.size == (128, 128) and np.asarray(redrawn).std() > 10


def test_a_wrong_path_is_a_sentence(tmp_path):
    result = run(tmp_path, 'nowhere.png')
    assert result.returncode == 1 and result.stderr.strip() == 'nowhere.png: there is no such file' and not list(tmp_path.iterdir())


def test_a_blank_is_filled_with_what_the_picture_shows(tmp_path):
    result = run(tmp_path, script=ROOT/'examples/fill_the_blank.py')
    assert result.returncode == 0, result.stderr
    truth = scene(20_000_003, most=2, plain=True).objects[0].colour
    seen, blind = re.findall(r'blank 1: (\w+) (\d+) %', result.stdout)
    assert seen[0] == truth and int(seen[1]) > int(blind[1])
    assert run(tmp_path, 'a red star', script=ROOT/'examples/fill_the_blank.py').stderr.strip().endswith('where a word is missing')
