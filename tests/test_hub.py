"Weights go to a hub and come back, without a network: what would be uploaded is a whole folder, and what fails says why."
import os, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, ModelHubMixin, RepoUrl

from beit_lab import core
from beit_lab.codebook.autoencode import VQVAE, tokenizer_config
from beit_lab.core import WeightsError
from beit_lab.pretrain.objectives import MIMConfig, MaskedImageModel
from beit_lab.trunk.multiway import Trunk
from beit_lab.trunk.sizes import trunk_config

MODELS = dict(tokenizer=lambda: VQVAE(tokenizer_config('nano')), trunk=lambda: Trunk(trunk_config('pico')),
              model=lambda: MaskedImageModel(MIMConfig(trunk_config('pico'), codebook_size=16)))


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return a.config == b.config and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(params=MODELS)
def model(request): return MODELS[request.param]()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A hub that is a folder; returns what it was asked."
    asked = {}
    def create_repo(self, repo_id, **kwargs):
        asked['create'] = dict(repo_id=repo_id, **kwargs)
        return RepoUrl(f'https://huggingface.co/{repo_id}')
    def upload_folder(self, *, repo_id, folder_path, **kwargs):
        asked['upload'] = dict(repo_id=repo_id, **kwargs)
        shutil.copytree(folder_path, tmp_path/'hub'/repo_id)
        return f'https://huggingface.co/{repo_id}/commit/1'
    monkeypatch.setattr(HfApi, 'create_repo', create_repo)
    monkeypatch.setattr(HfApi, 'upload_folder', upload_folder)
    monkeypatch.setattr(core, 'snapshot_download', lambda name, allow_patterns: str(tmp_path/'hub'/name))
    return asked


def test_saved_and_read(model, tmp_path):
    model.save_pretrained(tmp_path/'w')
    back = type(model).from_pretrained(tmp_path/'w')
    assert same(model, back) and not back.training
    assert {path.name for path in (tmp_path/'w').iterdir()} == {'config.json', 'model.safetensors'}


def test_pushed_and_fetched(model, hub, tmp_path, monkeypatch):
    through, mixin = [], ModelHubMixin.push_to_hub
    monkeypatch.setattr(ModelHubMixin, 'push_to_hub', lambda self, *a, **k: through.append(1) or mixin(self, *a, **k))
    where = model.push_to_hub('somebody/something', private=True, commit_message='a first try')
    assert through and where.endswith('/commit/1')
    assert hub['create']['private'] is True and hub['upload']['commit_message'] == 'a first try' and hub['upload']['repo_type'] == 'model'
    place = tmp_path/'hub/somebody/something'
    assert {path.name for path in place.iterdir()} == {'config.json', 'model.safetensors', 'README.md'}
    assert same(model, type(model).from_pretrained(place))
    assert same(model, type(model).from_pretrained('somebody/something', download=True))


def test_the_card_says_how_to_load_it(hub, tmp_path):
    MODELS['tokenizer']().push_to_hub('somebody/something')
    card = ModelCard.load(tmp_path/'hub/somebody/something/README.md')
    assert card.data.library_name == 'beit_lab' and {'beit', 'model_hub_mixin'} <= set(card.data.tags)
    assert "VQVAE.from_pretrained('somebody/something', download=True)" in card.text


def test_other_words_for_the_card(hub, tmp_path):
    MODELS['tokenizer']().push_to_hub('somebody/something', model_card_kwargs=dict(repo='elsewhere/else'))
    assert 'elsewhere/else' in (tmp_path/'hub/somebody/something/README.md').read_text()


@pytest.mark.parametrize('setting', ['HF_HUB_OFFLINE=1', 'HF_ENDPOINT=http://127.0.0.1:9'])
def test_no_network_is_a_sentence(setting, tmp_path):
    code = ('from beit_lab.codebook.autoencode import *; from beit_lab.core import WeightsError\n'
            'model = VQVAE(tokenizer_config("nano"))\n'
            'for attempt in (lambda: model.push_to_hub("me/x"), lambda: VQVAE.from_pretrained("me/x", download=True)):\n'
            '    try: attempt()\n'
            '    except WeightsError as problem: print(problem)')
    name, value = setting.split('=', 1)
    environment = {**os.environ, name: value, 'HF_HOME': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    lines = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1]).stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith('me/x could not be uploaded (') and lines[1].startswith('me/x could not be fetched (')
    assert all('check the network' in line for line in lines)


def test_without_download_a_name_is_a_folder():
    with pytest.raises(WeightsError, match='no VQVAE in somebody/something'): VQVAE.from_pretrained('somebody/something')
