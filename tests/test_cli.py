"The command line: what it makes, and the sentence that every mistake costs."
import json, shutil, subprocess, sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from beit_lab.core import ConfigError, real_data
from beit_lab.main_job import RECIPES, Job
from commands import lab, refused
from tiny_run import prepare

FEW = replace(RECIPES['small'], pictures=400, held_out=64, tested=64, batch_size=32)


@pytest.fixture(scope='session')
def small_run(tmp_path_factory):
    "A whole demo on little data, a few steps a stage."
    out = prepare(tmp_path_factory.mktemp('runs')/'demo', FEW)
    result = lab('demo', '--data', 'digits', '--out', out, '--minutes', '0.1')
    assert result.returncode == 0, result.stderr[-3000:]
    return out, result


def test_demo_makes_everything(small_run):
    out, result = small_run
    metrics = json.loads((out/'metrics.json').read_text())
    assert set(metrics['tokenizer']) >= {'psnr_db', 'patch_mean_psnr_db', 'codebook_size', 'codebook_usage', 'perplexity'}
    assert set(metrics['pretrain']) >= {'steps', 'images_seen', 'loss', 'token_accuracy', 'unigram_loss', 'guess_most_frequent', 'guess_position', 'guess_neighbour'}
    assert set(metrics['probe']) == {'trained', 'untrained', 'pixels', 'bag_of_codes'}
    assert set(metrics['knn']) == {'trained', 'untrained', 'pixels'}
    assert metrics['seconds'] > 0
    for folder in ('tokenizer', 'trunk'): assert {p.name for p in (out/folder).iterdir()} == {'config.json', 'model.safetensors'}
    report = (out/'report.html').read_text(encoding='utf-8')
    assert report.count('data:image/png') >= 5 and '<script' not in report and 'src="http' not in report and 'href="http' not in report
    assert 'report.html' in result.stdout.splitlines()[-1]


def test_output_to_a_file_has_no_bars(small_run):
    _, result = small_run
    assert '\r' not in result.stdout and 'it/s' not in result.stdout + result.stderr


def test_finished_run_is_not_repeated(small_run):
    out, _ = small_run
    before = (out/'trunk/model.safetensors').read_bytes()
    again = lab('demo', '--data', 'digits', '--out', out, '--minutes', '0.1')
    assert again.returncode == 0 and '--force' in again.stdout
    assert (out/'trunk/model.safetensors').read_bytes() == before


def test_other_settings_do_not_mix(small_run):
    out, _ = small_run
    refused('demo', '--data', 'digits', '--out', out, '--seed', '5', says='holds a run with seed 0, not 5')
    refused('demo', '--data', 'emoji', '--out', out, says='holds a run with data digits')
    refused('demo', '--data', 'digits', '--out', out, '--minutes', '0.2', says='planned for 0.1 minutes')


def test_force_removes_nothing_before_the_new_run_can_begin(small_run, tmp_path):
    out = shutil.copytree(small_run[0], tmp_path/'run')
    weights = (out/'trunk/model.safetensors').read_bytes()
    refused('demo', '--data', tmp_path/'nowhere', '--out', out, '--force', says='there is no')
    refused('pretrain', '--data', 'emoji', '--out', out, '--force', says='holds a run with data digits')
    refused('demo', '--data', 'digits', '--out', out, '--seed', '-1', '--force', says='--seed')
    assert (out/'trunk/model.safetensors').read_bytes() == weights and (out/'report.html').exists()


def test_forced_stages_may_choose_anew(small_run, tmp_path):
    "What belongs to pretraining may change for an old tokenizer; what the tokenizer was made for may not."
    out = shutil.copytree(small_run[0], tmp_path/'run')
    with pytest.raises(ConfigError, match='holds a run with patch_size'): Job('digits', out, force='pretrain', patch_size=8)
    assert (out/'trunk').exists()
    job = Job('digits', out, force='pretrain', mode='full')
    assert job.done('tokenizer') and not job.done('pretrain') and (out/'tokenizer').exists() and not (out/'trunk').exists()
    job.open()
    assert job.recipe.mode == Job('digits', out).state['recipe']['mode'] == 'full' and job.trunk_start().decoder is None
    assert not Job('digits', out, force=True).done('tokenizer') and not (out/'tokenizer').exists()


def test_stages_alone(tmp_path):
    common = ['--data', 'digits', '--out', tmp_path/'run', '--seed', '3']
    assert lab('tokenizer', *common, '--minutes', '0.02', '--codebook-size', '64', '--image-size', '16', '--patch-size', '2').returncode == 0
    assert lab('pretrain', *common, '--minutes', '0.02').returncode == 0
    assert lab('probe', *common).returncode == 0
    metrics = json.loads((tmp_path/'run/metrics.json').read_text())
    assert {'tokenizer', 'pretrain', 'probe', 'knn'} <= set(metrics)
    assert metrics['tokenizer']['codebook_size'] == 64


def test_help_helps():
    assert 'beit-lab demo' in lab('--help').stdout
    for command in ('demo', 'tokenizer', 'pretrain', 'probe'):
        shown = lab(command, '--help')
        assert shown.returncode == 0 and '--data' in shown.stdout and '--out' in shown.stdout


def test_mistakes_cost_one_sentence(tmp_path):
    empty, broken = tmp_path/'empty', tmp_path/'broken pictures'
    empty.mkdir(); broken.mkdir()
    for i in range(3): (broken/f'picture {i}.jpg').write_bytes(b'this is no picture')
    (tmp_path/'notes.txt').write_text('hello')
    out = tmp_path/'run'
    refused('dmeo', says='no command')
    refused('demo', '--data', tmp_path/'nowhere', '--out', out, says='there is no')
    refused('demo', '--data', empty, '--out', out, says='no pictures')
    refused('demo', '--data', broken, '--out', out, says='none of the 3 pictures')
    refused('demo', '--data', tmp_path/'notes.txt', '--out', out, says='is not a picture')
    refused('demo', '--data', 'digits', '--out', tmp_path/'notes.txt', says='is a file')
    refused('demo', '--data', 'digits', '--out', out, '--minutes', '-1', says='leaves no time')
    refused('pretrain', '--data', 'digits', '--out', out, says='beit-lab tokenizer')
    assert not (out/'tokenizer').exists()


def test_tokenizer_that_does_not_fit(small_run, tmp_path):
    out, _ = small_run
    refused('pretrain', '--data', 'digits', '--out', tmp_path/'a', '--tokenizer', out/'tokenizer', '--patch-size', '8', says='use the same patch_size')
    broken = tmp_path/'tokenizer'
    broken.mkdir()
    (broken/'config.json').write_bytes((out/'tokenizer/config.json').read_bytes())
    (broken/'model.safetensors').write_bytes((out/'tokenizer/model.safetensors').read_bytes()[:1000])
    refused('pretrain', '--data', 'digits', '--out', tmp_path/'b', '--tokenizer', broken, says='truncated')
    config = json.loads((out/'tokenizer/config.json').read_text())
    (broken/'config.json').write_text(json.dumps({**config, 'codebook_size': 64}))
    (broken/'model.safetensors').write_bytes((out/'tokenizer/model.safetensors').read_bytes())
    refused('pretrain', '--data', 'digits', '--out', tmp_path/'c', '--tokenizer', broken, says='has shape')


def test_own_folder_of_pictures(tmp_path):
    "Names with spaces, quotes and other letters; one broken picture among good ones is skipped and named."
    draw = np.random.default_rng(0)
    folder = tmp_path/'my "own" Bilder 写真'
    folder.mkdir()
    for i in range(24): Image.fromarray(draw.integers(0, 255, (20 + i, 31, 3), dtype=np.uint8)).save(folder/f'photo {i} é.png')
    (folder/'bad one.png').write_bytes(b'')
    result = lab('demo', '--data', folder, '--out', tmp_path/'out put', '--minutes', '0.05')
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'bad one.png' in result.stdout
    assert 'probe' not in json.loads((tmp_path/'out put/metrics.json').read_text())


def test_interrupt_saves_and_continues(tmp_path):
    "Ctrl-C ends with a sentence; the same command continues and finishes."
    import signal, time
    out = prepare(tmp_path/'run', FEW, tokenizer=10, pretrain=200)
    command = [sys.executable, '-m', 'beit_lab.cli', 'demo', '--data', 'digits', '--out', str(out)]
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler) # what runs in the background may have been told to ignore Ctrl-C
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    state = out/'pretrain_state/state.safetensors'
    deadline = time.time() + 240
    while not state.exists() and time.time() < deadline and process.poll() is None: time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert 'Traceback' not in error and 'continues' in error
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and 'tokenizer: done before' in result.stdout


def test_a_process_of_its_own_says_the_same(tmp_path):
    "What the forks of `commands` cannot see: that loading the libraries says nothing."
    said = [subprocess.run([sys.executable, '-m', 'beit_lab.cli', *words], capture_output=True, text=True) for words in (['demo', '--data', str(tmp_path/'nowhere')], ['--help'])]
    forked = [lab('demo', '--data', tmp_path/'nowhere'), lab('--help')]
    assert [(s.returncode, s.stdout, s.stderr) for s in said] == [(f.returncode, f.stdout, f.stderr) for f in forked]


@pytest.mark.skipif(real_data('cifar10') is None, reason='BEIT_LAB_DATA is not set: no real pictures to learn from')
def test_real_photographs(tmp_path):
    out = tmp_path/'run'
    result = lab('demo', '--data', real_data('flickr8k'), '--out', out, '--minutes', '0.5')
    assert result.returncode == 0, result.stderr[-2000:]
    metrics = json.loads((out/'metrics.json').read_text())
    assert metrics['tokenizer']['psnr_db'] > metrics['tokenizer']['patch_mean_psnr_db'] - 3
    assert metrics['pretrain']['loss'] < metrics['pretrain']['unigram_loss'] + 0.2
