"The commands about tokenizers and codebooks: what they make, and the sentence that every mistake costs."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from beit_lab import cli
from beit_lab.codebook.autoencode import VQVAE, tokenizer_config, train_tokenizer
from beit_lab.codebook.cache import read_tokenizer
from beit_lab.core import LabError, generator, samples
from beit_lab.show.codebook_report import codebook_verdict, usual_size


def lab(*words, capsys):
    "Run a command in this process; what it prints, or the sentence it costs."
    name, command, rest = cli.find(list(map(str, words)))
    try: cli.run(name, command, rest)
    except LabError as problem: return f'refused: {problem}'
    except SystemExit as problem: return f'refused: {problem.code}'
    return capsys.readouterr().out


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures')/'my picture é.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope='module')
def fsq(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fsq')/'tokenizer'
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=generator('noise'), dtype=torch.uint8)
    train_tokenizer(images, tokenizer_config('nano', kind='fsq'), steps=3, batch_size=4).save_pretrained(folder)
    return folder


def test_tokens_are_printed_drawn_and_painted(picture, fsq, tmp_path, capsys):
    out = lab('tokens', picture, '--tokenizer', fsq, '--out', tmp_path/'t', '--image-size', 32, capsys=capsys)
    rows = [line.split() for line in out.splitlines() if line and all(word.isdigit() for word in line.split())]
    assert [len(row) for row in rows] == [8]*8
    tokenizer = read_tokenizer(fsq)
    assert torch.equal(torch.tensor([[int(word) for word in row] for row in rows]), tokenizer(picture, 32))
    pictures = {file.name: Image.open(file).size for file in (tmp_path/'t').iterdir()}
    assert pictures == {'my picture é_tokens.png': (128, 128), 'my picture é_decoded.png': (128, 128)}


def test_several_pictures_and_the_shipped_tokenizer(picture, tmp_path, capsys):
    other = tmp_path/'other'/picture.name
    other.parent.mkdir()
    other.write_bytes(picture.read_bytes())
    out = lab('tokens', picture, other, '--out', tmp_path/'t', capsys=capsys)
    assert '2 pictures' in out and len(list((tmp_path/'t').iterdir())) == 4      # of the same name, and none is lost


@pytest.mark.parametrize('words, says', [
    (['tokens', 'PICTURE', '--tokenizer', 'nowhere'], 'there is no tokenizer in nowhere'),
    (['tokens', 'nothing.png'], 'no such file'),
    (['tokens'], 'lists the options'),
    (['tokens', 'PICTURE', '--image-size', '30'], 'do not divide'),
    (['tokens', 'PICTURE', '--tokenizer', 'MODEL'], 'names MaskedImageModel'),
    (['codebook', 'nowhere'], 'there is no tokenizer in nowhere'),
    (['codebook', 'SHIPPED'], 'name pictures with --data'),
    (['codebook', 'SHIPPED', '--data', 'nowhere'], 'there is no'),
    (['codebook', 'SHIPPED', '--data', 'digits', '--image-size', '30'], 'do not divide'),
    (['tokenizer', '--kind', 'dvae', '--minutes', 'nan'], 'minutes'),
    (['tokens', 'PICTURE', '--image-size', '-8'], 'at least 1'),
    (['codebook', 'SHIPPED', '--data', 'digits', '--image-size', '-8'], 'at least 1'),
    (['tokenizer', '--kind', 'magic'], 'choose vq, gumbel, fsq, lfq'),
    (['tokenizer', '--kind', 'fsq', '--codebook-size', '500'], 'no levels are known for 500 codes'),
    (['tokenizer', '--kind', 'lfq', '--codebook-size', '500'], 'try 256')])
def test_mistakes_cost_one_sentence(words, says, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = dict(PICTURE=picture, MODEL=samples('weights/emoji/model'), SHIPPED=samples('weights/emoji/tokenizer'))
    answer = lab(*(places.get(word, word) for word in words), capsys=capsys)
    assert answer.startswith('refused') and says in answer and '\n' not in answer, answer
    assert not list(tmp_path.iterdir())


def test_a_kind_makes_a_run_and_a_run_a_report(tmp_path, capsys):
    common = ['--data', 'digits', '--out', tmp_path/'run', '--image-size', 16]
    out = lab('tokenizer', *common, '--kind', 'lfq', '--minutes', 0.01, '--codebook-size', 64, '--patch-size', 4, capsys=capsys)
    tokenizer = VQVAE.from_pretrained(tmp_path/'run/tokenizer')
    assert tokenizer.config.kind == 'lfq' and tokenizer.codebook_size == 64
    assert json.loads((tmp_path/'run/job.json').read_text())['recipe']['kind'] == 'lfq'
    assert usual_size(tmp_path/'run/tokenizer', tokenizer) == 16
    assert 'holds a run with kind lfq, not fsq' in lab('tokenizer', '--data', 'digits', '--out', tmp_path/'run', '--kind', 'fsq', capsys=capsys)
    assert 'done before' in lab('tokenizer', '--data', 'digits', '--out', tmp_path/'run', capsys=capsys)      # without --kind: that of the run
    assert 'a finished tokenizer of kind lfq, not dvae' in lab('tokenizer', '--data', 'digits', '--out', tmp_path/'run', '--kind', 'dvae', capsys=capsys)
    out = lab('codebook', tmp_path/'run', capsys=capsys)
    page = (tmp_path/'run/codebook.html').read_text(encoding='utf-8')
    assert 'codebook.html' in out and page.count('data:image/png') == 4 and '<script' not in page and 'src="http' not in page
    assert 'lfq' in page and '16&times;16 pixels' in page


def test_verdicts():
    health = dict(usage=1., dead_codes=0, top_1_percent=0.1)
    assert 'nearly all' in codebook_verdict(health, 512)
    assert 'collapsed: 400 of 512' in codebook_verdict({**health, 'usage': 112/512, 'dead_codes': 400}, 512)
    assert '60%' in codebook_verdict({**health, 'top_1_percent': 0.6}, 512)
    assert 'another kind' in codebook_verdict({**health, 'usage': 0.8, 'dead_codes': 102}, 512)


def test_help_and_table_name_the_commands():
    for command in ('tokens', 'codebook', 'tokenizer'): assert command in cli.COMMANDS and f'beit-lab {command} ' in cli.HELP


def test_a_run_is_judged_on_what_it_held_out(tmp_path, monkeypatch):
    "What the run opened is opened again, and split as it was."
    from beit_lab.main_job import Job
    from beit_lab.show import codebook_report
    job = Job('scenes', tmp_path/'run', 3, tokenizer_steps=1, pictures=40, held_out=10)
    monkeypatch.setattr(Job, 'sources', dict(scenes='scenes:60'))
    job.tokenizer()
    asked = []
    monkeypatch.setattr(codebook_report, 'write_codebook_report', lambda tokenizer, images, *rest: asked.append(images))
    codebook_report.report_of_folder(tmp_path/'run')
    learnt, held = {p.numpy().tobytes() for p in job.pictures}, [p.numpy().tobytes() for p in asked[0]]
    assert len(held) and not learnt & set(held) and held[:len(job.held_out)] == [p.numpy().tobytes() for p in job.held_out]


def test_a_tokenizer_that_cannot_paint_has_a_report(tmp_path):
    from beit_lab.codebook.dvae import DVAE, dvae_config
    from beit_lab.show.codebook_report import write_codebook_report
    images = (torch.rand(6, 3, 32, 32)*255).byte()
    page = write_codebook_report(DVAE(dvae_config('nano', draws=False)).eval(), images, tmp_path/'codebook.html').read_text(encoding='utf-8')
    assert 'does not paint' in page


@pytest.fixture(params=['vqkd', 'dvae'])
def mute(request, tmp_path):
    "A tokenizer whose words have no pixels: BEiT v2's as it was released, and the encoder of a dVAE."
    from beit_lab.codebook.distill import VQKD, vqkd_config
    from beit_lab.codebook.dvae import DVAE, dvae_config
    torch.manual_seed(0)
    model = VQKD(vqkd_config('nano', teacher_dim=16)).eval() if request.param == 'vqkd' else DVAE(dvae_config('nano', draws=False)).eval()
    model.save_pretrained(tmp_path/'mute')
    return tmp_path/'mute'


def test_words_without_pixels_are_printed_and_drawn(mute, picture, tmp_path, capsys):
    out = lab('tokens', picture, '--tokenizer', mute, '--out', tmp_path/'t', capsys=capsys)
    tokenizer = read_tokenizer(mute)
    size = usual_size(mute, tokenizer)
    rows = [[int(word) for word in line.split()] for line in out.splitlines() if line and all(word.isdigit() for word in line.split())]
    assert torch.equal(torch.tensor(rows), tokenizer(picture, size)) and 'have no pixels' in out
    assert [file.name for file in (tmp_path/'t').iterdir()] == ['my picture é_tokens.png']
    assert lab('codebook', mute, '--data', 'digits', '--out', tmp_path/'page.html', capsys=capsys).startswith('done') and 'does not paint' in (tmp_path/'page.html').read_text(encoding='utf-8')


def test_the_usual_size_of_a_trunk_is_that_of_its_positions():
    from dataclasses import replace
    from beit_lab.codebook.distill import VQKD, vqkd_config
    config = vqkd_config('nano', teacher_dim=16)
    assert usual_size('nowhere', VQKD(replace(config, encoder=replace(config.encoder, image_size=96)))) == 96


@pytest.fixture
def words(tmp_path):
    from beit_lab.codebook.distill import VQKD, vqkd_config
    torch.manual_seed(0)
    VQKD(vqkd_config('nano', teacher_dim=16)).eval().save_pretrained(tmp_path/'words')
    return tmp_path/'words'


def test_finished_words_learn_to_paint(words, picture, tmp_path, capsys):
    lab('tokenizer', '--kind', 'vqkd', '--words', words, '--data', 'digits', '--out', tmp_path/'run', '--minutes', 0.02, capsys=capsys)
    before, after = read_tokenizer(words), read_tokenizer(tmp_path/'run/tokenizer')
    assert before.painter is None and after.painter is not None
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())      # not a word has changed
    assert 'painted again' in lab('tokens', picture, '--tokenizer', tmp_path/'run/tokenizer', '--out', tmp_path/'t', capsys=capsys)


@pytest.mark.parametrize('more, says', [
    (['--kind', 'vqkd', '--words', 'WORDS', '--patch-size', '8'], 'made with a patch_size of 4, not 8'), (['--kind', 'fsq', '--words', 'WORDS'], 'is for --kind vqkd'),
    (['--kind', 'vqkd', '--words', 'WORDS', '--teacher', 'emoji'], 'nothing to teach'), (['--kind', 'vqkd', '--words', 'FSQ'], 'takes a VQ-KD'), (['--kind', 'vqkd', '--words', 'nowhere'], 'no tokenizer in nowhere')])
def test_words_that_cannot_be_painted(more, says, words, fsq, tmp_path, capsys):
    more = [dict(WORDS=words, FSQ=fsq).get(word, word) for word in more]
    assert says in lab('tokenizer', '--data', 'digits', '--out', tmp_path/'run', *more, capsys=capsys) and not (tmp_path/'run').exists()
