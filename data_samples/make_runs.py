"""Make data_samples/runs/ and data_samples/weights/ : the figures, curves and weights that notebooks and README show.

    python data_samples/make_runs.py                      # everything that this machine has data for
    python data_samples/make_runs.py emoji_0 scenes_0     # some of it

Every run is the main job with the command written beside its results (`command.txt`). Runs on CIFAR-10 and Flickr8k need BEIT_LAB_DATA;
of them only figures and curves are kept, no pictures and no weights.
"""
import argparse, math, os, shutil
from pathlib import Path

from beit_lab.main_job import Job

HERE = Path(__file__).parent
ROOT = HERE.parent
SHIPPED = {'emoji_0': 'emoji', 'scenes_0': 'scenes'}                     # runs whose weights are shipped, and under which name
RUNS = {**{f'{data}_{seed}': ['--data', data, '--seed', str(seed)] for data in ('emoji', 'scenes') for seed in range(3)},
        'cifar10_0': ['--data', '$BEIT_LAB_DATA/cifar10'], 'flickr8k_0': ['--data', '$BEIT_LAB_DATA/flickr8k']}


def possible(arguments):
    "Is the data of this run at hand?"
    return not any('$BEIT_LAB_DATA' in a for a in arguments) or 'BEIT_LAB_DATA' in os.environ


def run(name, arguments):
    "Run the main job, and keep its figures; pictures and weights only of what may be shipped."
    work = ROOT/'runs/made'/name
    options = dict(zip((a.removeprefix('--') for a in arguments[::2]), map(os.path.expandvars, arguments[1::2])))
    Job(options['data'], work, int(options.get('seed', 0)), force=True).demo(limit=math.inf) # the recipe's steps, however long they take
    command = ['beit-lab', 'demo', *arguments]
    kept = HERE/'runs'/name
    kept.mkdir(parents=True, exist_ok=True)
    for file in ('metrics.json', 'curve.csv'): shutil.copy(work/file, kept/file)
    (kept/'command.txt').write_text(' '.join(command) + '\n')
    if name in SHIPPED: ship(work, HERE/'weights'/SHIPPED[name])


def ship(work, place):
    "The tokenizer, and the model with its trunk inside."
    for part in ('tokenizer', 'model'): shutil.copytree(work/part, place/part, dirs_exist_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help=f'which runs; default: all of {", ".join(RUNS)}')
    for name in parser.parse_args().names or RUNS:
        if possible(RUNS[name]): run(name, RUNS[name])
        else: print(f'{name}: left out, because BEIT_LAB_DATA is not set')


if __name__ == '__main__': main()
