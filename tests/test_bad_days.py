"Full disks, closed folders, two runs in one folder, files that are broken or malicious: one sentence each, and what was there before is still whole."
import json, os, pickle, shutil, subprocess, sys, time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from beit_lab import cli
from beit_lab.core import read_tensors
from beit_lab.main_job import alone_in
from beit_lab.training import STATE, read_about
from tiny_run import prepare, sentence, start


@pytest.fixture
def lab(monkeypatch):
    "The command line in this process: None, or the sentence that it ends with."
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['beit-lab', *map(str, arguments)])
        try: return cli.main()
        except SystemExit as end:
            assert isinstance(end.code, str) and end.code.startswith('beit-lab: ') and len(end.code.splitlines()) == 1
            return end.code # Python prints it and exits with 1
    return run


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A tokenizer and a pretraining of ten steps."
    out = prepare(tmp_path_factory.mktemp('bad days')/'run', tokenizer=10, pretrain=10)
    with pytest.MonkeyPatch.context() as patch:
        for stage in ('tokenizer', 'pretrain'):
            patch.setattr(sys, 'argv', ['beit-lab', stage, '--data', 'digits', '--out', str(out)])
            cli.main()
    return out


@pytest.fixture
def unfinished(finished, tmp_path):
    "The same, with the end of pretraining still to come."
    out = tmp_path/'run'
    shutil.copytree(finished, out)
    state = json.loads((out/'job.json').read_text())
    del state['stages']['pretrain']['done']
    (out/'job.json').write_text(json.dumps(state))
    return out


@pytest.fixture
def disk(tmp_path):
    "A small disk of its own: `disk(size)` mounts or changes it."
    place, mounted = tmp_path/'disk', []
    place.mkdir()
    def mount(options):
        command = ['mount', '-t', 'tmpfs', '-o', ('remount,' if mounted else '') + options, 'tmpfs', str(place)]
        try: subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError): pytest.skip('no right to mount a small disk here')
        mounted.append(place)
        return place
    yield mount
    if mounted: subprocess.run(['umount', '-l', str(place)], check=True)


# ---- disks ---------------------------------------------------------------------------------------

def check_kept(out):
    "One piece was done, its checkpoint is whole, nothing lies about."
    assert read_about(out/'tokenizer_state'/STATE)[1] == 1 and read_tensors(out/'tokenizer_state'/STATE)
    assert os.listdir(out/'tokenizer_state') == [STATE]


def check_goes_on(lab, out):
    assert lab('tokenizer', '--data', 'digits', '--out', out) is None
    assert [row['step'] for row in read_about(out/'tokenizer_state'/STATE)[2]] == [10, 20, 30]
    assert json.loads((out/'job.json').read_text())['stages']['tokenizer'] == dict(done=True, steps=30)


def test_full_disk(disk, lab):
    "Five megabytes hold one checkpoint, but not a second one beside it."
    out = prepare(disk('size=5m')/'run', tokenizer=30)
    assert f'the disk that holds {out}/tokenizer_state/{STATE} is full: free some space' in sentence(start('tokenizer', out))
    check_kept(out)
    disk('size=50m')
    check_goes_on(lab, out)


def test_limit_on_the_size_of_files(tmp_path, lab):
    "Two megabytes hold the weights, but not the state of the optimiser as well."
    resource = pytest.importorskip('resource', reason='this system has no limits on files')
    out, (soft, hard) = prepare(tmp_path/'run', tokenizer=30), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try: assert 'larger than this system lets a file be' in lab('tokenizer', '--data', 'digits', '--out', out)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_about(out/'tokenizer_state'/STATE)[1] == 0
    check_goes_on(lab, out)


def test_renaming_that_fails(tmp_path, lab, monkeypatch):
    "As where a virus scanner or a synchronising folder holds the file."
    out, rename, asked = prepare(tmp_path/'run', tokenizer=30), os.replace, []
    def stubborn(source, target):
        asked.extend([target] if Path(target).name == STATE else [])
        if len(asked) == 3: raise PermissionError(13, 'Permission denied')
        rename(source, target)
    monkeypatch.setattr(os, 'replace', stubborn)
    assert 'cannot be written because you have no permission' in lab('tokenizer', '--data', 'digits', '--out', out)
    check_kept(out)
    monkeypatch.setattr(os, 'replace', rename)
    check_goes_on(lab, out)


def test_read_only_disk(disk, lab):
    out = prepare(disk('size=5m')/'run', tokenizer=30)
    disk('ro')
    assert 'its disk is read-only: choose another folder' in lab('tokenizer', '--data', 'digits', '--out', out)
    assert 'its disk is read-only: choose another folder' in lab('demo', '--data', 'digits', '--out', out.parent/'new')
    assert 'its disk is read-only' in lab('demo', '--data', 'digits', '--out', out, '--force')
    assert (out/'job.json').exists()


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='nothing is closed to root')
def test_folder_of_somebody_else(tmp_path, lab):
    out = prepare(tmp_path/'run', tokenizer=30)
    out.chmod(0o500)
    assert 'you have no permission' in lab('tokenizer', '--data', 'digits', '--out', out)
    out.chmod(0o700)


def test_places_that_cannot_be(tmp_path, lab):
    (tmp_path/'notes.txt').write_text('mine')
    assert 'is a file: give --out a folder' in lab('demo', '--data', 'digits', '--out', tmp_path/'notes.txt')
    assert 'a part of its path is a file' in lab('demo', '--data', 'digits', '--out', tmp_path/'notes.txt/run')
    if Path('/proc/self').exists(): assert 'cannot be written' in lab('demo', '--data', 'digits', '--out', '/proc/nowhere/run')
    assert (tmp_path/'notes.txt').read_text() == 'mine'
    with alone_in(tmp_path/'parents/that/do not/exist'): assert (tmp_path/'parents/that/do not/exist').is_dir() # they are made


def test_somebodys_folder_is_not_replaced(tmp_path, unfinished, lab):
    (unfinished/'trunk/diary.txt').write_text('mine')
    assert 'holds other files, such as diary.txt' in lab('pretrain', '--data', 'digits', '--out', unfinished)
    assert (unfinished/'trunk/diary.txt').read_text() == 'mine'


# ---- two runs in one folder ----------------------------------------------------------------------

@pytest.mark.skipif(sys.platform == 'win32', reason='written for flock')
def test_second_run_is_refused_and_the_lock_dies_with_its_process(tmp_path, lab):
    out = prepare(tmp_path/'run', tokenizer=300)
    first = start('tokenizer', out)
    try:
        while not (out/'tokenizer_state'/STATE).exists() and first.poll() is None: time.sleep(0.05)
        began = time.monotonic()
        for more in ([], ['--force']): assert f'another beit-lab is at work in {out}: wait for it, or choose another --out' in lab('tokenizer', '--data', 'digits', '--out', out, *more)
        assert time.monotonic() - began < 30 and first.poll() is None
        assert (out/'tokenizer_state'/STATE).exists() and (out/'job.json').exists()
    finally: first.kill()
    first.communicate()
    with alone_in(out): pass


# ---- broken and malicious files ------------------------------------------------------------------

class Trap:
    "Opening this with pickle makes a file."
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return open, (str(self.marker), 'w')


def truncated(file, marker): file.write_bytes(file.read_bytes()[:len(file.read_bytes())//2])
def emptied(file, marker): file.write_bytes(b'')
def pickled(file, marker): file.write_bytes(pickle.dumps(Trap(marker)))
def pickled_by_torch(file, marker): torch.save(Trap(marker), file)
def of_another_shape(file, marker):
    about, tensors = dict(about=json.dumps(dict(zip(('plan', 'pieces', 'log'), read_about(file))))) if file.name == STATE else None, read_tensors(file)
    name = max((name for name in tensors if tensors[name].ndim == 2), key=len)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, file, about)


BREAKS = {truncated: 'truncated', emptied: 'truncated', pickled: 'not a whole safetensors file', pickled_by_torch: 'not a whole safetensors file', of_another_shape: ('has shape', 'do not fit this model')}


@pytest.mark.parametrize('breaks', BREAKS, ids=lambda breaks: breaks.__name__)
@pytest.mark.parametrize('stage, name', [('pretrain', f'pretrain_state/{STATE}'), ('pretrain', 'tokenizer/model.safetensors'), ('probe', 'trunk/model.safetensors')])
def test_broken_files(breaks, stage, name, unfinished, tmp_path, lab):
    marker, file = tmp_path/'marker', unfinished/name
    breaks(file, marker)
    broken, others = file.read_bytes(), (unfinished/'model/model.safetensors').read_bytes()
    says, expected = lab(stage, '--data', 'digits', '--out', unfinished), BREAKS[breaks]
    assert any(words in says for words in ([expected] if isinstance(expected, str) else expected)), says
    assert not marker.exists(), 'opening a file has run what was in it'
    assert file.read_bytes() == broken and (unfinished/'model/model.safetensors').read_bytes() == others


def test_the_trap_works(tmp_path):
    "What the test above fears does happen where pickle is used."
    pickle.loads(pickle.dumps(Trap(tmp_path/'marker'))).close()
    assert (tmp_path/'marker').exists()


def test_checkpoint_without_its_story(unfinished, lab):
    "As an earlier version wrote it, or another program."
    file = unfinished/'pretrain_state'/STATE
    save_file(read_tensors(file), file)
    assert 'is no checkpoint of this version' in lab('pretrain', '--data', 'digits', '--out', unfinished)
    save_file(read_tensors(file), file, dict(about='{"plan": 1'))
    assert 'is no checkpoint of this version' in lab('pretrain', '--data', 'digits', '--out', unfinished)


def test_checkpoint_whose_optimiser_does_not_fit(unfinished, lab):
    file = unfinished/'pretrain_state'/STATE
    about, tensors = dict(about=json.dumps(dict(zip(('plan', 'pieces', 'log'), read_about(file))))), read_tensors(file)
    save_file({**tensors, 'optimiser.0.exp_avg': torch.zeros(3, 5)}, file, about)
    assert 'do not fit this model' in lab('pretrain', '--data', 'digits', '--out', unfinished)
