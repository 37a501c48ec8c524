"The house keeps its order: who may import whom, what the star import brings, what the folders weigh."
import ast, importlib, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a module may import from its own room and from rooms to the left of it
ORDER = ['core', 'training', 'data', 'masking', 'masking_text', 'trunk', 'codebook', 'pretrain', 'heads', 'scale', 'show', 'main_job', 'pairs_job', 'cli']
MODULES = sorted(p for p in (ROOT/'beit_lab').rglob('*.py') if not p.name.startswith('_') and p.name not in ('all.py',))


def room(path): return path.relative_to(ROOT/'beit_lab').with_suffix('').parts[0]


def imported_rooms(path):
    "Rooms of the lab that a module imports from, wherever in the file."
    package = ('beit_lab', *path.relative_to(ROOT/'beit_lab').parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom): continue
        base = package[:len(package) - node.level + 1] if node.level else ()
        full = (*base, *(node.module or '').split('.'))
        if full[0] == 'beit_lab' and len(full) > 1 and full[1]: yield full[1]


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(ROOT/'beit_lab')))
def test_no_arrow_points_back(path):
    own = ORDER.index(room(path))
    backwards = [other for other in imported_rooms(path) if ORDER.index(other) > own]
    assert not backwards, f'{path.name} imports from {backwards}, which come later'


def lab_modules():
    "The modules that the star import names, in its order."
    tree = ast.parse((ROOT/'beit_lab/all.py').read_text(encoding='utf-8'))
    return [f'beit_lab.{n.module}' for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1]


def test_star_import_names_every_module():
    named = set(lab_modules())
    there = {'beit_lab.' + '.'.join(p.relative_to(ROOT/'beit_lab').with_suffix('').parts) for p in MODULES} - {'beit_lab.cli'}
    assert named == there


def test_star_import_hides_no_name_of_fastai():
    import fastai.vision.all as fastai
    public = {name for name in vars(fastai) if not name.startswith('_')}
    for module in lab_modules():
        clash = [n for n in importlib.import_module(module).__all__ if n in public and getattr(fastai, n) is not vars(importlib.import_module(module))[n]]
        assert not clash, f'{module} hides {clash} of fastai'


def test_no_name_means_two_things():
    "A module may pass a name on, but no two modules may give the same name to different things."
    meanings = {}
    for module in map(importlib.import_module, lab_modules()):
        for name in module.__all__: meanings.setdefault(name, {})[id(vars(module)[name])] = module.__name__
    assert not {name: list(where.values()) for name, where in meanings.items() if len(where) > 1}


def test_star_import_has_no_side_effects():
    code = ('import random, numpy, torch, matplotlib as m, fastai.vision.all, warnings\n'
            'state = lambda: (random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), torch.get_num_threads(), '
            'dict(m.rcParams), list(warnings.filters), torch.get_default_dtype())\n'
            'before = state()\nimport sys\nfrom beit_lab.all import *\nassert state() == before\n'
            'assert not {"transformers", "datasets", "sklearn.linear_model"} & (set(sys.modules) - set()), "heavy imports"')
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_weights_are_never_unpickled():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ('torch.load', 'pickle.load', 'pickle.loads', 'load_learner'):
                assert any(k.arg == 'weights_only' and ast.unparse(k.value) == 'True' for k in node.keywords), f'{path}:{node.lineno}'


def test_notebooks_are_clean():
    import json
    for path in (ROOT/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in path.parts: continue
        book = json.loads(path.read_text(encoding='utf-8'))
        text = json.dumps([c.get('outputs', []) for c in book['cells']])
        assert path.stat().st_size < 500_000, f'{path.name} is larger than 500 KB'
        assert 'widgets' not in book['metadata'] and 'widget-view' not in text, f'{path.name} keeps widget state'
        assert str(ROOT) not in text and '/home/' not in text and '/root/' not in text and '/tmp/' not in text, f'{path.name} shows a path of this machine'


def test_folders_stay_small():
    size = lambda folder: sum(p.stat().st_size for p in folder.rglob('*') if p.is_file() and '.ipynb_checkpoints' not in p.parts)
    assert size(ROOT/'nbs') < 12e6
    assert size(ROOT/'data_samples') < 30e6
