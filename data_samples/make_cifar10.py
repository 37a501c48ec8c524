"""Make data_samples/runs/cifar10_minutes/ : what 5, 20 and 60 minutes of pretraining on two cores buy, on CIFAR-10.

    python data_samples/make_cifar10.py                                   # everything: about seven hours on two cores
    python data_samples/make_cifar10.py --minutes 5 20 --seeds 0 1        # some of it
    python data_samples/make_cifar10.py --gather                          # only collect what is there

Needs BEIT_LAB_DATA. An interrupted study continues where it stopped, and figures of several machines add up: each replaces only its own rows. Minutes are those of pretraining, turned into steps at the rate
measured on two cores of a server processor (280 a minute), so that the steps are the same on every machine, and a GPU gives the same figures sooner; the tokenizer
(one minute) is the same for all minutes of a seed. Only figures are kept.
"""
import argparse, math, os, sys
from pathlib import Path

import torch

from beit_lab.core import read_json, write_json
from beit_lab.heads.finetune import finetune
from beit_lab.main_job import Job

HERE = Path(__file__).parent
WORK = Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'cifar10_minutes'
STEPS = {5: 1_400, 20: 5_600, 60: 16_800}                        # 280 steps of 128 pictures a minute
LABELS = {100: 200, 1_000: 400, 10_000: 1_000}                   # labels of fine-tuning -> its steps of 64 pictures
FINETUNE = dict(lr=1e-3, layer_decay=0.8)
SCRATCH = dict(lr=1e-3)


def pretrained(minutes, seed):
    "The main job on CIFAR-10 with so many minutes of pretraining; minutes of one seed share its tokenizer."
    path, first = f"{os.environ['BEIT_LAB_DATA']}/cifar10", WORK/f'seed_{seed}'/f'minutes_{min(STEPS)}'
    Job(path, first, seed, pretrain_steps=STEPS[min(STEPS)]).tokenizer(limit=math.inf)
    job = Job(path, WORK/f'seed_{seed}'/f'minutes_{minutes}', seed, tokenizer_folder=first/'tokenizer', pretrain_steps=STEPS[minutes])
    job.pretrain(limit=math.inf)
    job.probe()
    return job


def few_labels(job, folder, scratch=False):
    "Fine-tuning with few labels, from this job's trunk or from its starting weights drawn anew; one file a number of labels."
    for labels, steps in LABELS.items():
        file = folder/f'finetune_{labels}.json'
        if file.exists(): continue
        job.open()
        learnt, tested = (source.images(job.recipe.image_size) for source in (job.train_source, job.test_source))
        classes = torch.cat([job.train_source.labels(), job.test_source.labels()])
        rows = torch.arange(len(classes))
        found = finetune(job._trunk(), torch.cat([learnt, tested]), classes, rows[:len(learnt)], rows[len(learnt):], labels, steps,
                         scratch=scratch, seed=job.seed, **(SCRATCH if scratch else FINETUNE))
        print(f'{folder}: {labels} labels {100*found.score:.1f} %', flush=True)
        write_json(file, dict(labels=labels, steps=steps, score=found.score, error=found.error))


def gather():
    "Everything that is there, in one file; what was gathered before and is not here stays."
    kept = HERE/'runs/cifar10_minutes'
    kept.mkdir(parents=True, exist_ok=True)
    rows = {(row['seed'], row['arm']): row for row in (read_json(kept/'metrics.json')['rows'] if (kept/'metrics.json').exists() else [])}
    for folder in sorted(WORK.glob('seed_*/*')):
        row = dict(seed=int(folder.parent.name.split('_')[1]), arm=folder.name)
        if (folder/'metrics.json').exists(): row |= {k: v for k, v in read_json(folder/'metrics.json').items() if k not in ('seconds', 'finished')}
        row['finetune'] = [read_json(file) for file in sorted(folder.glob('finetune_*.json'))]
        if 'probe' in row or row['finetune']: rows[row['seed'], row['arm']] = row
        if 'probe' in row: (kept/f'curve_{folder.parent.name}_{folder.name}.csv').write_text((folder/'curve.csv').read_text())
    write_json(kept/'metrics.json', dict(steps=STEPS, finetune_steps=LABELS, rows=[rows[key] for key in sorted(rows)]))
    (kept/'command.txt').write_text('python data_samples/make_cifar10.py\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', nargs='+', type=int, choices=STEPS, default=list(STEPS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--gather', action='store_true', help='only collect what is there')
    given = parser.parse_args()
    if not given.gather and 'BEIT_LAB_DATA' not in os.environ: sys.exit('BEIT_LAB_DATA is not set: name the folder in which cifar10 lies')
    for minutes in [] if given.gather else given.minutes:
        for seed in given.seeds:
            job = pretrained(minutes, seed)
            few_labels(job, job.out)
            few_labels(job, WORK/f'seed_{seed}'/'scratch', scratch=True)
    gather()


if __name__ == '__main__': main()
