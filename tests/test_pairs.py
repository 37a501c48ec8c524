"Pictures with captions, from the command line and from Python: what it makes, what it answers, and the sentence that every mistake costs."
import json, math, shutil

import pytest, torch
from PIL import Image
from safetensors.torch import load_file

from beit_lab.codebook.cache import content_key, read_tokenizer
from beit_lab.core import ConfigError, DataError
from beit_lab.data.language import exact_caption
from beit_lab.data.scenes import scene
from beit_lab.main_job import Job
from beit_lab.pairs_job import PairJob
from beit_lab.pretrain.reader import Reader
from commands import lab, refused

SMALL = dict(held_out=40, batch_size=8, alone=4, tokenizer_steps=20, pretrain_steps=20)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A whole run, far too short to learn anything."
    folder = tmp_path_factory.mktemp('pairs')/'run'
    PairJob('scenes:300:2', folder, **SMALL).demo()
    return folder


def test_what_a_run_leaves(run):
    metrics = json.loads((run/'metrics.json').read_text())
    assert {'tokenizer', 'pretrain', 'mdm', 'finished'} <= set(metrics)
    assert set(metrics['mdm']['word_accuracy']) == {'right_image', 'wrong_image', 'no_image', 'text_only_twin'}
    assert set(metrics['mdm']['patch_loss']) == {'right_caption', 'attributes_hidden', 'wrong_caption', 'no_caption'}
    assert 0 < metrics['mdm']['attention_chance'] < 1 and 0 < metrics['mdm']['attention_in_box'] < 1
    assert set(metrics['pretrain']['parts']) == {'pictures_vision', 'texts_language', 'pairs_vision', 'pairs_language'}
    page = (run/'report.html').read_text()
    assert 'Two languages, one reader' in page and 'has not run yet' not in page and page.count('data:image/png') == 6


def test_a_run_is_the_same_run_again(run, tmp_path):
    "Stopped after each stage and taken up by another process's job, the weights and figures are those of one go."
    for stage in ('tokenizer', 'pretrain', 'twin', 'look'): getattr(PairJob('scenes:300:2', tmp_path/'again', **SMALL), stage)()
    for name in ('tokenizer', 'model', 'twin'):
        a, b = (load_file(folder/name/'model.safetensors') for folder in (run, tmp_path/'again'))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = (json.loads((folder/'metrics.json').read_text())['mdm'] for folder in (run, tmp_path/'again'))
    assert a == b


def test_one_line_each(run, tmp_path):
    reader, seen = Reader.from_run(run), scene(5, most=2)
    Image.fromarray(seen.image).save(tmp_path/'seen.png')
    assert reader.tokens(tmp_path/'seen.png').shape == (8, 8) and torch.equal(reader.tokens(seen.image), reader.tokens(tmp_path/'seen.png'))
    long, short = 'a red star on the left and a small blue ring on the right', 'a red star'
    torch.testing.assert_close(reader.embed(texts=[long, short])[1], reader.embed(texts=short), atol=1e-5, rtol=1e-4)          # padding changes nothing
    torch.testing.assert_close(reader.embed([seen.image]*2, [long, short])[1], reader.embed(seen.image, short), atol=1e-5, rtol=1e-4)
    filled = reader.fill('a ___ star, in front of a [MASK] wall', seen.image, best=4)
    assert len(filled.choices) == 2 and all(len(c) == 4 and c[0][1] >= c[3][1] for c in filled.choices)
    assert ' star, in front of a ' in filled.text and filled.text.startswith('a ')
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 3:5] = True
    painted, before = reader.paint(seen.image, mask, short), reader.pixels([seen.image])[0]
    where = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(painted[:, ~where], before[:, ~where]) and not torch.equal(painted[:, where], before[:, where])


def test_blanks_are_where_they_were_written(run):
    "A text without its blanks' words has the ids of the whole text everywhere else, commas and all."
    reader = Reader.from_run(run)
    text = exact_caption(scene(7, most=2))
    ids = torch.tensor(reader.words.encode(text))
    for word in ('in', 'front', text.split()[1]):
        one_piece = len(reader.words.encode(word)) == 3
        blanked = reader._with_blanks(text.replace(f' {word} ', ' ___ ', 1))[0].cpu()
        if one_piece: assert len(blanked) == len(ids) and torch.equal(blanked[blanked != reader.words.mask_id], ids[blanked != reader.words.mask_id])
    assert reader._with_blanks('a ___, and')[0].tolist()[-3:-1] == reader.words.encode('a x, and')[-3:-1]


def test_from_the_command_line(run, tmp_path):
    Image.fromarray(scene(5, most=2).image).save(tmp_path/'a.png')
    found = lab('fill', 'a ___ star', '--image', tmp_path/'a.png', '--model', run, '--best', '2')
    assert found.returncode == 0 and 'blank 1:' in found.stdout and found.stderr == ''
    found = lab('fill', 'a red star', '--image', tmp_path/'a.png', '--hide', '2-5:3', '--out', tmp_path/'b.png', '--model', run)
    assert found.returncode == 0 and Image.open(tmp_path/'b.png').size[0] % 64 == 0
    found = lab('embed', '--image', f"{tmp_path/'a.png'},{tmp_path/'a.png'}", '--out', tmp_path/'v.safetensors', '--model', run)
    assert found.returncode == 0 and load_file(tmp_path/'v.safetensors')['vectors'].shape == (2, 128)
    found = lab('demo', '--objective', 'mdm', '--data', 'scenes:300:2', '--out', run)
    assert found.returncode == 0 and 'finished before' in found.stdout


def test_mistakes_cost_a_sentence(run, tmp_path):
    refused('fill', 'a red star', '--model', run, says='has no blank')
    refused('fill', 'a ___ star', '--model', tmp_path, says='has no tokenizer/')
    refused('fill', 'a ___ star', '--image', tmp_path/'none.png', '--model', run, says='none.png')
    refused('fill', 'a red star', '--hide', '2-5:3-6', '--model', run, says='give --image')
    refused('fill', 'a red star', '--image', tmp_path/'none.png', '--hide', '2-9:3-6', '--model', run, says='names no patches of a grid of 8 rows')
    refused('fill', 'a ___ star', '--best', '0', '--model', run, says='best must lie between 1 and')
    refused('embed', '--model', run, says='nothing to embed')
    (tmp_path/'old.txt').write_bytes('été'.encode('latin-1'))
    refused('embed', '--text', tmp_path/'old.txt', '--model', run, says='is no text in UTF-8')
    refused('pretrain', '--objective', 'mdm', '--data', 'emoji', '--pairs', 'scenes:50:2', '--out', tmp_path/'x', says='give one of them')
    refused('demo', '--objective', 'both', says="objective 'both' is unknown")
    refused('pretrain', '--objective', 'mdm', '--mode', 'visible', '--out', tmp_path/'x', says='--mode is not for --objective mdm')
    refused('pretrain', '--images', 'emoji', '--out', tmp_path/'x', says='--images is not for --objective mim')
    refused('pretrain', '--objective', 'mdm', '--data', 'scenes:50:2', '--text', tmp_path/'no.txt', '--out', tmp_path/'x', says='there is no text in')
    refused('demo', '--data', 'scenes:300:2', '--out', run, says='objective mdm, not mim')
    refused('pretrain', '--objective', 'mdm', '--data', 'scenes:50:2', '--images', tmp_path/'none', '--out', tmp_path/'x', says='there is no')
    refused('demo', '--data', tmp_path/'nowhere', '--out', tmp_path/'x', says='there is no')
    assert not (tmp_path/'x').exists()


def test_a_job_says_what_it_lacks(run, tmp_path):
    for i in range(4): Image.fromarray(scene(i).image).save(tmp_path/f'{i}.png')
    with pytest.raises(DataError, match='has no captions'): PairJob(tmp_path, tmp_path/'run').demo()
    with pytest.raises(ConfigError, match='to have a twin'): PairJob('scenes:300:2', tmp_path/'run2', **SMALL).twin()
    with pytest.raises(ConfigError, match='objective mdm, not mim'): Job('scenes:300:2', run)
    mixed = shutil.copytree(run, tmp_path/'mixed')
    other = PairJob('scenes:60:2', tmp_path/'other', vocab_size=300, **SMALL)
    other.open()
    other.words().save_pretrained(mixed/'words')
    with pytest.raises(ConfigError, match='not from one run'): Reader.from_run(mixed)


def test_more_text_and_pictures(run, tmp_path):
    "Text from a file and pictures from a folder stand beside the pairs, and the run can be taken up."
    (tmp_path/'book.txt').write_text('a red star\n\na blue ring and a green moon\n'*40)
    (tmp_path/'pictures').mkdir()
    for i in range(12): Image.fromarray(scene(i).image).save(tmp_path/'pictures'/f'{i}.png')
    make = lambda: PairJob('scenes:60:2', tmp_path/'run', tokenizer_folder=run/'tokenizer', text=str(tmp_path/'book.txt'), images=str(tmp_path/'pictures'), **SMALL)
    make().pretrain()
    assert 'guess_nats' in json.loads((tmp_path/'run/metrics.json').read_text())['pretrain']['parts']['texts_language']
    with pytest.raises(ConfigError, match='holds a run with'): PairJob('scenes:60:2', tmp_path/'run', text=str(tmp_path), **SMALL)
    assert content_key(read_tokenizer(tmp_path/'run/tokenizer')) == content_key(read_tokenizer(run/'tokenizer'))  # the one that was named is the run's own now
    assert 'psnr_db' in json.loads((tmp_path/'run/metrics.json').read_text())['tokenizer'] and make().done('tokenizer')


def test_another_tokenizer_is_not_slipped_in(run, tmp_path):
    own = PairJob('scenes:60:2', tmp_path/'run', **SMALL)
    own.tokenizer(limit=math.inf)
    with pytest.raises(ConfigError, match='a tokenizer of its own'): PairJob('scenes:60:2', tmp_path/'run', tokenizer_folder=run/'tokenizer', **SMALL).pretrain()


def test_a_tokenizer_that_cannot_paint_is_refused_before_anything_is_kept(tmp_path):
    from beit_lab.codebook.dvae import DVAE, dvae_config
    DVAE(dvae_config('small', draws=False)).save_pretrained(tmp_path/'mute')
    with pytest.raises(ConfigError, match='cannot draw'): PairJob('scenes:60:2', tmp_path/'run', tokenizer_folder=tmp_path/'mute', **SMALL).pretrain()
    assert not (tmp_path/'run/tokenizer').exists()


@pytest.mark.parametrize('alone, weight', [(4, 0.5), (0, 1.)])
def test_a_twin_learns_whatever_the_mixture(run, tmp_path, monkeypatch, alone, weight):
    from beit_lab import pairs_job
    made, real = [], pairs_job.mdm_learner
    monkeypatch.setattr(pairs_job, 'mdm_learner', lambda *args, **how: made.append(real(*args, **how)) or made[-1])
    job = PairJob('scenes:60:2', tmp_path/'run', tokenizer_folder=run/'tokenizer', **{**SMALL, 'alone': alone})
    job.pretrain()
    job.twin()
    assert made[-1].loss_func.weights['texts', 'language'] == weight
