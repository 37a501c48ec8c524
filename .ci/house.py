"""Keeps notebooks, library and README in step.

    house.py execute NB.ipynb ...   run notebooks top to bottom, keep outputs, strip what differs from run to run
    house.py readme                 write README.md from nbs/index.ipynb
    house.py check                  on a temporary copy: would export, clean or readme change, add or orphan anything?
"""
import base64, filecmp, io, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIP = {'.git', '.venv', '__pycache__', '_proc', 'runs', '.ipynb_checkpoints', '.pytest_cache', '.hypothesis', 'build', 'beit_lab.egg-info'}
WIDGET = 'application/vnd.jupyter.widget-view+json'
NOISE = re.compile(r'<progress|\d+%\|.*it/s|UserWarning|FutureWarning|DeprecationWarning')
TIMES = [(re.compile(r'<td>\d\d:\d\d</td>'), '<td></td>'), (re.compile(r'\b\d+(\.\d+)? ?(ms|µs|seconds|s) (±|per|left)'), r'… \2 \3')]


def run(*command, cwd=ROOT, **kwargs):
    "Run a command of this environment and stop with its exit code if it fails."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    return subprocess.run(command, cwd=cwd, check=True, env={**os.environ, 'PATH': path}, **kwargs)


def plain(text):
    "Text without paths of this machine and without durations."
    for place, name in [(str(ROOT), '.'), (str(Path.home()), '~'), (tempfile.gettempdir(), 'tmp')]: text = text.replace(place, name)
    for pattern, word in TIMES: text = pattern.sub(word, text)
    return text


def smaller(png):
    "A picture (base64) in 256 colours where no eye sees the difference (at least 40 dB), else as it is; whichever is the smaller file."
    import numpy as np
    from PIL import Image
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    few = picture.quantize(256, dither=Image.Dither.NONE)
    error = ((np.asarray(few.convert('RGB'), float) - np.asarray(picture, float))**2).mean()
    packed = io.BytesIO()
    (few if error <= 255**2/10**4 else picture).save(packed, 'PNG', optimize=True)
    made = base64.b64encode(packed.getvalue()).decode()
    return min(made, png.replace('\n', ''), key=len)


def strip_output(output):
    "One output as it is committed, or None if it is only noise."
    if output['output_type'] == 'stream':
        output['text'] = plain(output['text'])
        return None if output['name'] == 'stderr' or NOISE.search(output['text']) else output
    data = output.get('data', {})
    data.pop(WIDGET, None)
    for kind in ('text/plain', 'text/html'):
        if kind in data: data[kind] = plain(data[kind])
    if 'image/png' in data: data['image/png'] = smaller(data['image/png'])
    if NOISE.search(data.get('text/html', '')): return None
    return output if data else None


def execute(path):
    "Run one notebook and store its outputs."
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    path = Path(path).resolve()
    book = nbformat.read(path, as_version=4)
    flags = re.compile(r'^#\|\s*(slow|cuda|net|notest|eval:\s*false)\b', re.M)
    todo = [c for c in book.cells if c.cell_type == 'code' and not flags.search(c.source)]
    kept = nbformat.NotebookNode({**book, 'cells': [c for c in book.cells if c.cell_type != 'code' or c in todo]})
    os.environ.setdefault('OMP_NUM_THREADS', '2')
    os.environ['IN_TEST'] = '1'  # the export cell does nothing
    try: NotebookClient(kept, timeout=900, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    except CellExecutionError as e: sys.exit(f'{path}: ' + re.sub(r'\x1b\[[0-9;]*m', '', str(e))[-4000:])
    for cell in todo:
        cell.outputs = [o for o in map(strip_output, cell.outputs) if o is not None]
        cell.execution_count, cell.metadata = None, {}
    book.metadata.pop('widgets', None)
    temporary = path.with_suffix('.tmp')
    nbformat.write(book, temporary)
    os.replace(temporary, path)
    run('nbdev-clean', '--fname', str(path))
    print(f'{path.relative_to(ROOT)}: {path.stat().st_size/1000:.0f} KB')


def readme(root=ROOT):
    "README.md from the committed outputs of nbs/index.ipynb: hidden cells and directives dropped, pictures in nbs/images."
    import nbformat
    from nbconvert import MarkdownExporter
    book = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    book.cells = [c for c in book.cells if not re.search(r'^#\|\s*(hide|default_exp)', c.source, re.M)]
    for cell in book.cells: _readme_cell(cell)
    book.metadata['language_info'] = {'name': 'python'}
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(book, {'unique_key': 'index', 'output_files_dir': 'nbs/images'})
    (root/'nbs/images').mkdir(exist_ok=True)
    for name, content in resources['outputs'].items(): (root/name).write_bytes(content)
    text = text.replace('](images/', '](nbs/images/').replace('src="images/', 'src="nbs/images/')
    text = re.sub(r'!\[png\]\((.*?)\)', r'![output of the cell above](\1)', text)
    (root/'README.md').write_text(re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', encoding='utf-8')


def _readme_cell(cell):
    "Drop directive lines; hide the source of cells marked echo: false."
    if cell.cell_type != 'code': return
    if re.search(r'^#\|\s*echo:\s*false', cell.source, re.M): cell.metadata['transient'], cell.source = {'remove_source': True}, ''
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip()


def files(root):
    "Every file of a tree that the project owns, by relative path."
    return {str(p.relative_to(root)): p for p in root.rglob('*') if p.is_file() and not SKIP & set(p.relative_to(root).parts)}


def check():
    "Fail with a list if notebooks, library and README are not in step."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)/'copy'
        shutil.copytree(ROOT, copy, ignore=lambda d, names: [n for n in names if n in SKIP or n.endswith('.parquet')])
        for module in (copy/'beit_lab').rglob('*.py'):
            if '# AUTOGENERATED!' in module.read_text(encoding='utf-8')[:200]: module.unlink()  # export must bring it back
        environment = {**os.environ, 'PATH': os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])}
        for command in (['nbdev-export'], ['nbdev-clean']): subprocess.run(command, cwd=copy, check=True, env=environment)
        readme(copy)
        before = {k: v for k, v in files(ROOT).items() if not k.endswith('.parquet')}
        after = files(copy)
        changed = [f'orphaned: {k}' for k in before.keys() - after.keys()] + [f'new: {k}' for k in after.keys() - before.keys()]
        changed += [f'changed: {k}' for k in before.keys() & after.keys() if not filecmp.cmp(before[k], after[k], shallow=False)]
    if changed: sys.exit('Notebooks, library and README are not in step (run `make export`):\n  ' + '\n  '.join(sorted(changed)))
    print('notebooks, library and README are in step')


if __name__ == '__main__':
    command, *arguments = sys.argv[1:] or ['help']
    if command == 'execute': [execute(a) for a in arguments]
    elif command in ('readme', 'check'): globals()[command]()
    else: print(__doc__)
