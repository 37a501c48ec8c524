"""Make data_samples/runs/ and data_samples/weights/ : the figures, curves and weights that notebooks and README show.

    python data_samples/make_runs.py                      # everything that this machine has data for
    python data_samples/make_runs.py emoji_0 scenes_0     # some of it

Every run is the main job, or the one of pairs, with the command written beside its results (`command.txt`). Runs on CIFAR-10 and Flickr8k need BEIT_LAB_DATA;
of them only figures and curves are kept, no pictures and no weights.
"""
import argparse, math, os, shutil
from pathlib import Path

from beit_lab.core import read_json, write_json
from beit_lab.main_job import Job
from beit_lab.pairs_job import PairJob
from beit_lab.pretrain.masked_data import MaskedDataModel
from beit_lab.pretrain.objectives import MaskedImageModel

HERE = Path(__file__).parent
ROOT = HERE.parent
SHIPPED = {name + '_0': name for name in ('emoji', 'scenes', 'emoji_pairs', 'scenes_pairs')}   # runs whose weights are shipped, and under which name
MDM = ['--objective', 'mdm', '--data']
RUNS = {**{f'{data}_{seed}': ['--data', data, '--seed', str(seed)] for data in ('emoji', 'scenes') for seed in range(3)},
        'cifar10_0': ['--data', '$BEIT_LAB_DATA/cifar10'], 'flickr8k_0': ['--data', '$BEIT_LAB_DATA/flickr8k'],
        'emoji_pairs_0': [*MDM, 'emoji'], 'scenes_pairs_0': [*MDM, 'scenes'], 'flickr8k_pairs_0': [*MDM, '$BEIT_LAB_DATA/flickr8k']}
LONGER = dict(flickr8k_pairs_longer=dict(pretrain_steps=6000, vocab_size=4096, seed=0))   # runs that ask for more than their command can say
RUNS |= {name: RUNS['flickr8k_pairs_0'] for name in LONGER}


def possible(arguments):
    "Is the data of this run at hand?"
    return not any('$BEIT_LAB_DATA' in a for a in arguments) or 'BEIT_LAB_DATA' in os.environ


def run(name, arguments, again=False):
    "Run it, anew or from where it was stopped, and keep its figures; pictures and weights only of what may be shipped."
    work = ROOT/'runs/made'/name
    options = dict(zip((a.removeprefix('--') for a in arguments[::2]), map(os.path.expandvars, arguments[1::2])))
    job = PairJob if options.get('objective') == 'mdm' else Job
    more = dict(LONGER.get(name, {}))
    job(options['data'], work, more.pop('seed', int(options.get('seed', 0))), force=not again, **more).demo(limit=math.inf) # the recipe's steps, however long they take
    command = ['python', 'data_samples/make_runs.py', name] if name in LONGER else ['beit-lab', 'demo', *arguments]
    kept = HERE/'runs'/name
    kept.mkdir(parents=True, exist_ok=True)
    for file in ('metrics.json', 'curve.csv'): shutil.copy(work/file, kept/file)
    (kept/'command.txt').write_text(' '.join(command) + '\n')
    if name not in SHIPPED: figures_only(kept/'metrics.json')
    if name in SHIPPED: ship(work, HERE/'weights'/SHIPPED[name])


def figures_only(file):
    "Leave out what quotes the data."
    found = read_json(file)
    if 'mdm' in found: write_json(file, {**found, 'mdm': {k: v for k, v in found['mdm'].items() if k != 'examples'}})


def ship(work, place):
    "Tokenizers as they are, and the model with its trunk inside, in half precision so that it stays small; reading makes it float32 again."
    parts = [part for part in ('tokenizer', 'words', 'model') if (work/part).is_dir()]
    for part in parts: shutil.copytree(work/part, place/part, dirs_exist_ok=True)
    (MaskedDataModel if 'words' in parts else MaskedImageModel).from_pretrained(work/'model').half().save_pretrained(place/'model')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help=f'which runs; default: all of {", ".join(RUNS)}')
    parser.add_argument('--again', action='store_true', help='go on with runs that were stopped, instead of starting anew')
    given = parser.parse_args()
    for name in given.names or RUNS:
        if possible(RUNS[name]): run(name, RUNS[name], given.again)
        else: print(f'{name}: left out, because BEIT_LAB_DATA is not set')


if __name__ == '__main__': main()
