"kill -9 at any moment, also while a checkpoint is being written: the same command continues, and ends with the same bits."
import csv, json, os, random, shutil, signal, subprocess, sys, time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from beit_lab import core
from beit_lab.core import atomic_path, read_tensors, remove_leftovers
from beit_lab.training import STATE, Checkpoints, read_about
from tiny_run import finish, prepare, start

needs_kill = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='this system has no SIGKILL')


def killed(process, moment=lambda: False):
    "Wait for a process that kills itself, or kill it at a moment; was it still at work?"
    while not moment() and process.poll() is None: time.sleep(0.01)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def leftovers(out): return [path for folder in [out, *out.glob('*_state')] for path in folder.glob('.*-????????')]


def whole(state):
    "The last checkpoint can be read, if there was one."
    return not (state/STATE).exists() or (read_tensors(state/STATE) and read_about(state/STATE)[1] >= 0)


def curve(out):
    "The log of pretraining without what the clock says."
    with open(out/'curve.csv', newline='') as file: return [{k: v for k, v in row.items() if k != 'minutes'} for row in csv.DictReader(file)]


def same(stage, a, b):
    "Two runs have the same weights, the same log, the same figures, to the last bit."
    for name in dict(tokenizer=['tokenizer'], pretrain=['trunk', 'model'])[stage]:
        assert (a/name/'model.safetensors').read_bytes() == (b/name/'model.safetensors').read_bytes(), name
    first, second = read_tensors(a/f'{stage}_state'/STATE), read_tensors(b/f'{stage}_state'/STATE)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    if stage == 'pretrain': assert curve(a) == curve(b)
    logs = [[{**row, 'minutes': 0} for row in read_about(out/f'{stage}_state'/STATE)[2]] for out in (a, b)]
    assert logs[0] == logs[1]
    assert json.loads((a/'metrics.json').read_text())[stage] == json.loads((b/'metrics.json').read_text())[stage]


@needs_kill
def test_killed_twice(tmp_path):
    "Tokenizer training and pretraining, each killed once while it saves."
    disturbed, undisturbed = (prepare(tmp_path/name, tokenizer=30, pretrain=30) for name in ('disturbed', 'undisturbed'))
    for stage in ('tokenizer', 'pretrain'):
        assert killed(start(stage, disturbed, while_saving=(random.randint(2, 4), random.uniform(0, 0.005))))
        assert whole(disturbed/f'{stage}_state') and leftovers(disturbed), 'the kill was to come while a checkpoint was written'
        finish(start(stage, disturbed))
        assert leftovers(disturbed) == []
    both = f"from beit_lab.main_job import Job; job = Job('digits', {str(undisturbed)!r}); job.tokenizer(); job.pretrain()"
    subprocess.run([sys.executable, '-c', both], env={**os.environ, 'OMP_NUM_THREADS': '1'}, check=True)
    for stage in ('tokenizer', 'pretrain'): same(stage, disturbed, undisturbed)


@needs_kill
@pytest.mark.slow
@pytest.mark.parametrize('stage', ['tokenizer', 'pretrain'])
def test_killed_ten_times(stage, tmp_path):
    "Half of the kills hit a checkpoint that is being written, half come when they come."
    disturbed, undisturbed = (prepare(tmp_path/name, tokenizer=150, pretrain=150) for name in ('disturbed', 'undisturbed'))
    if stage == 'pretrain': finish(start('tokenizer', undisturbed)); shutil.copytree(undisturbed, disturbed, dirs_exist_ok=True)
    finish(start(stage, undisturbed))
    state, hits = disturbed/f'{stage}_state', 0
    for k in range(5):
        assert killed(start(stage, disturbed, while_saving=(random.randint(1, 2), random.uniform(0, 0.02))))
        hits += bool(leftovers(disturbed))
        assert whole(state)
        moment = Later(state, random.uniform(0, 1))
        assert killed(start(stage, disturbed), moment), 'it was done before it was killed'
        assert whole(state) and len(leftovers(disturbed)) <= 1
    assert hits >= 2, 'too few kills hit a checkpoint that was being written'
    finish(start(stage, disturbed))
    assert leftovers(disturbed) == []
    same(stage, disturbed, undisturbed)


class Later:
    "Some seconds after the last checkpoint changed, or a minute after the start."
    def __init__(self, state, seconds): self.file, self.seconds, self.before, self.end = state/STATE, seconds, self.written(state/STATE), time.monotonic() + 60
    def written(self, file): return file.stat().st_mtime_ns if file.exists() else None
    def __call__(self):
        if self.before != self.written(self.file): self.before, self.end = self.written(self.file), min(self.end, time.monotonic() + self.seconds)
        return time.monotonic() > self.end


@needs_kill
@pytest.mark.slow
def test_killed_between_plan_and_first_checkpoint(tmp_path):
    "Minutes become steps once; a run that is killed right after that keeps to them."
    disturbed, noted = prepare(tmp_path/'disturbed'), lambda: json.loads((disturbed/'job.json').read_text())['stages']
    assert killed(start('tokenizer', disturbed, '--minutes', '0.05'), lambda: 'tokenizer' in noted())
    steps = noted()['tokenizer']['steps']
    finish(start('tokenizer', disturbed, '--minutes', '0.05'))
    assert noted()['tokenizer'] == dict(done=True, steps=steps)
    undisturbed = prepare(tmp_path/'undisturbed', tokenizer=steps)
    finish(start('tokenizer', undisturbed))
    same('tokenizer', disturbed, undisturbed)


# ---- every instant -------------------------------------------------------------------------------

def killed_at(write, number):
    "A copy of this process runs `write` and is killed just before its `number`-th request to the file system; False if it had none left."
    child = os.fork()
    if not child:
        left = [number]
        def count(event, _):
            if not event.startswith(('os.', 'open', 'ctypes.', 'shutil.', 'tempfile.')): return
            left[0] -= 1
            if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        write()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def every_instant(write, check):
    "Kill `write` at each of its instants, one after the other, and look each time."
    number = 1
    while killed_at(write, number):
        check()
        number += 1
    check()
    return number


needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')


@needs_fork
def test_checkpoint_is_whole_at_every_instant(tmp_path):
    def save(pieces):
        model = nn.Linear(3, 3)
        nn.init.constant_(model.weight, pieces)
        saver = Checkpoints(tmp_path/'state', dict(data='x'))
        saver.learn = SimpleNamespace(model=model, opt=SimpleNamespace(opt=torch.optim.AdamW(model.parameters())), run_log=SimpleNamespace(rows=[1]*pieces))
        saver._save(pieces)

    def check():
        plan, pieces, log = read_about(tmp_path/'state'/STATE)
        assert pieces in (3, 4) and len(log) == pieces and (read_tensors(tmp_path/'state'/STATE)['model.weight'] == pieces).all()

    save(3)
    assert every_instant(lambda: save(4), check) > 5
    remove_leftovers(tmp_path/'state'/STATE)
    assert os.listdir(tmp_path/'state') == [STATE] and read_about(tmp_path/'state'/STATE)[1] == 4


@needs_fork
@pytest.mark.parametrize('swap', [True, False])
def test_folder_is_whole_at_every_instant(swap, tmp_path, monkeypatch):
    "Where two names cannot be swapped in one step, the old folder waits beside its place until it is asked for."
    if not swap: monkeypatch.setattr(core, '_swap', lambda a, b: False)
    folder, lost = tmp_path/'tokenizer', []
    if swap and sys.platform != 'linux': pytest.skip('swapping two names is a call of Linux')

    def save(word):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name in ('a', 'b'): (temporary/name).write_text(word)

    def check():
        lost.append(not folder.exists())
        remove_leftovers(folder)
        words = {path.name: path.read_text() for path in folder.iterdir()}
        assert words.keys() == {'a', 'b'} and words['a'] == words['b']
        assert os.listdir(tmp_path) == ['tokenizer']

    save('old')
    assert every_instant(lambda: save('new'), check) > 5
    assert any(lost) == (not swap) # without the swap there is such an instant, and it was survived


def test_renaming_that_fails_keeps_the_old_folder(tmp_path, monkeypatch):
    "As on Windows, when another program has a file of the new folder open."
    monkeypatch.setattr(core, '_swap', lambda a, b: False)
    rename = os.replace
    def stubborn(source, target):
        if source.name == 'notes' and source.parent != tmp_path: raise PermissionError(13, 'Permission denied')
        rename(source, target)
    with atomic_path(tmp_path/'notes') as temporary: temporary.mkdir(); (temporary/'word').write_text('old')
    monkeypatch.setattr(os, 'replace', stubborn)
    with pytest.raises(core.DiskError, match='no permission'):
        with atomic_path(tmp_path/'notes') as temporary: temporary.mkdir(); (temporary/'word').write_text('new')
    assert (tmp_path/'notes/word').read_text() == 'old' and os.listdir(tmp_path) == ['notes']


def test_only_own_leftovers_are_removed(tmp_path):
    for name in ('.model-abcdefgh', '.model-short', '.models-abcdefgh', 'model-abcdefgh', '.git'): (tmp_path/name).mkdir()
    remove_leftovers(tmp_path/'model')
    assert sorted(os.listdir(tmp_path)) == ['.git', '.model-short', '.models-abcdefgh', 'model-abcdefgh']
