"""Make data_samples/runs/choices/ : which choices of masked image modelling matter, at equal minutes and over seeds.

    python data_samples/make_choices.py                       # everything: about four hours on two cores, a quarter of an hour beside one GPU
    python data_samples/make_choices.py --data emoji --seeds 0 --arms base pixels
    python data_samples/make_choices.py --plan                # how long a step of each arm takes beside one of the base
    python data_samples/make_choices.py --gather              # only collect what is there

CIFAR-10 needs BEIT_LAB_DATA. Every arm has the time in which the base does BASE_STEPS steps; how many steps that is follows from --plan, once, and is
written below, so that a run is the same on every machine. An interrupted study continues where it stopped. Only figures are kept.
"""
import argparse, json, math, os, statistics, time
from pathlib import Path

import torch

from beit_lab.codebook.cache import cache_tokens
from beit_lab.core import lab_device, read_json, write_json
from beit_lab.data.loaders import TwoViews
from beit_lab.heads.classify import probe_arms
from beit_lab.heads.probes import trunk_features
from beit_lab.main_job import Job, piece_of
from beit_lab.pretrain.learner import mim_learner
from beit_lab.pretrain.objectives import MaskedImageModel, MIMConfig
from beit_lab.pretrain.rivals import pixel_learner, pixel_task
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config

HERE = Path(__file__).parent
WORK = Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'choices'
BASE_STEPS = 600                                                   # about two minutes on two cores
ARMS = {                                                           # what differs from the base: visible, random, 75 %, 512 codes, 4 blocks of width 128
    'base': {},
    'random_50': dict(mask_ratio=0.5), 'random_90': dict(mask_ratio=0.9), 'block_50': dict(mask_kind='block', mask_ratio=0.5),
    'full_random_75': dict(mode='full'), 'full_block_40': dict(mode='full', mask_kind='block', mask_ratio=0.4),
    'pixels': dict(pixels=True), 'codes_64': dict(codebook_size=64), 'codes_2048': dict(codebook_size=2048),
    'deep': dict(shape=dict(embed_dim=96, depth=8, num_heads=3)), 'wide': dict(shape=dict(embed_dim=192, depth=2, num_heads=3)),
}
PACE = {                                                           # time of a step, in steps of the base: --plan on two cores of a server processor
    'emoji': {'random_50': 1.38, 'random_90': 0.79, 'block_50': 1.45, 'full_random_75': 2.11, 'full_block_40': 1.83, 'pixels': 0.86, 'codes_64': 0.92, 'codes_2048': 1.44,
              'deep': 1.16, 'wide': 0.94},
    'cifar10': {'random_50': 1.41, 'random_90': 0.75, 'block_50': 1.4, 'full_random_75': 2.16, 'full_block_40': 2.08, 'pixels': 0.93, 'codes_64': 0.88, 'codes_2048': 1.34,
                'deep': 1.12, 'wide': 0.89},
}


class Arm:
    "One way of pretraining on one data set with one seed."
    def __init__(self, data, name, seed):
        self.data, self.name, self.seed, self.choice = data, name, seed, ARMS[name]
        path = data if data == 'emoji' else f"{os.environ['BEIT_LAB_DATA']}/{data}"
        codes = self.choice.get('codebook_size', 512)
        self.out = WORK/data/f'{name}_{seed}'
        self.job = Job(path, WORK/data/f'tokenizer_{codes}_{seed}', seed, codebook_size=codes)

    def steps(self): return 10*round(BASE_STEPS/PACE[self.data].get(self.name, 1.)/10)

    def learner(self, steps):
        "A Learner at its starting weights."
        job = self.job
        job.tokenizer(limit=math.inf)
        job.open()
        recipe, c = job.recipe, self.choice
        task = MIMConfig(trunk=trunk_config('pico', image_size=recipe.image_size, patch_size=recipe.patch_size, **c.get('shape', {})), codebook_size=recipe.codebook_size,
                         mode=c.get('mode', 'visible'), mask_kind=c.get('mask_kind', 'random'), mask_ratio=c.get('mask_ratio', 0.75))
        config = TrainConfig(steps, recipe.batch_size, recipe.lr, warmup_steps=max(10, steps//20), piece=piece_of(steps), seed=self.seed)
        views = TwoViews(recipe.image_size, scale=(recipe.crops, 1)) if recipe.crops else None
        originals = job.train_source.images(2*recipe.image_size) if views else None
        torch.manual_seed(self.seed)
        if c.get('pixels'): return pixel_learner(MaskedImageModel(pixel_task(task)).to(lab_device()), job.pictures, job.held_out, config, views, originals)
        tokenizer = job.tokens_of()
        cache = None if views else cache_tokens(tokenizer, job.pictures, job.out/'tokens')
        return mim_learner(MaskedImageModel(task).to(lab_device()), job.pictures, job.held_out, tokenizer, cache, views, config, originals=originals)

    def run(self):
        "Pretrain, probe, write down; nothing if that was done."
        if (self.out/'found.json').exists(): return
        learn, start = self.learner(self.steps()), time.monotonic()
        train(learn, self.out/'state')
        write_json(self.out/'found.json', dict(data=self.data, arm=self.name, seed=self.seed, steps=self.steps(), minutes=learn.run_log.rows[-1]['minutes'],
                                               valid=learn.run_log.rows[-1], **self.probed(learn.model.trunk)))
        print(f'{self.data} {self.name} {self.seed}: done in {(time.monotonic() - start)/60:.1f} minutes', flush=True)

    def probed(self, trunk):
        "Linear probe and neighbours; for the base also layer by layer."
        job, labels = self.job, self.job._labels()
        splits, groups, metric, rows = job._splits(labels)
        images = torch.cat([job.train_source.images(job.recipe.image_size), job.test_source.images(job.recipe.image_size)])[rows]
        choosing = dict(held_out=1/3, enough=1000) if len(splits) > 1 else {}
        features = trunk_features(trunk, images)
        arms = {'trained': features}
        if self.name == 'base': arms |= {f'layer {layer}, {pool}': x for (layer, pool), x in features.items()}
        found = probe_arms(arms, labels[rows], splits, metric, groups, **choosing).as_metrics()
        return dict(probe=found['probe'], probe_error=found['probe_error'], knn=found['knn'], chosen=found['probe_chosen']['trained'], metric=metric)


def plan(data):
    "Time of a step of each arm beside one of the base; run it with two threads and nothing beside it."
    return pace({name: Arm(data, name, 0).learner(10) for name in ARMS})


def pace(learners, rounds=7):
    "Time of a step of each learner beside one of the first: interleaved, medians."
    for learn in learners.values(): learn.create_opt()
    times, base = {name: [] for name in learners}, next(iter(learners))
    for t in range(rounds + 2):
        for name, learn in learners.items():
            start = time.perf_counter()
            *inputs, targets = learn.dls.train.dataset[t]
            learn.loss_func(learn.model(*inputs), targets).backward()
            learn.opt.step(); learn.opt.zero_grad()
            times[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(a/b for a, b in zip(t[2:], times[base][2:])), 2) for name, t in times.items()}


def gather():
    "Everything that is there, in one file; what was gathered before and is not here stays."
    kept = HERE/'runs/choices'
    kept.mkdir(parents=True, exist_ok=True)
    before = read_json(kept/'metrics.json')['rows'] if (kept/'metrics.json').exists() else []
    rows = {(row['data'], row['arm'], row['seed']): row for row in [*before, *(read_json(file) for file in sorted(WORK.glob('*/*/found.json')))]}
    write_json(kept/'metrics.json', dict(base_steps=BASE_STEPS, pace=PACE, arms=ARMS, rows=[rows[key] for key in sorted(rows)]))
    (kept/'command.txt').write_text('python data_samples/make_choices.py\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='+', choices=PACE, default=list(PACE))
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--plan', action='store_true', help='measure the time of a step of each arm')
    parser.add_argument('--gather', action='store_true', help='only collect what is there')
    given = parser.parse_args()
    if given.plan: return print(json.dumps({data: plan(data) for data in given.data}, indent=1))
    for seed in [] if given.gather else given.seeds:
        for data in given.data:
            for name in given.arms: Arm(data, name, seed).run()
    gather()


if __name__ == '__main__': main()
