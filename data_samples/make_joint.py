"""Make data_samples/runs/joint/ : a codebook trained together with the trunk, beside one trained before it, at equal compute and over seeds.

    python data_samples/make_joint.py                     # everything, on the CUDA device if there is one (on one core about fifteen minutes for a seed and a data set)
    python data_samples/make_joint.py --device cpu --seeds 0 --arms apart settle
    python data_samples/make_joint.py --plan              # what a step of each stage costs, on this machine
    python data_samples/make_joint.py --dry-run           # the smallest of everything, in a temporary folder, to see that it runs
    python data_samples/make_joint.py --gather            # only collect what is there

The arms cost about the same; COST says how --plan measured it. 'apart' trains the tokenizer for WORDS steps of 64 pictures and then the trunk for READER steps on its finished tokens;
'settle' does TOGETHER steps of both and lets the words rest after WORDS of them. 'moving' never lets them rest and has as many fewer steps as its painting costs;
'pulled' is 'settle' with predictions that shape the words. Apart, the tokenizer has its own recipe (learning rate 3e-3, no weight decay, a cosine to the end of its own steps);
together there is one optimiser, the trunk's (2e-3, weight decay 0.05, one cosine for all). An interrupted study continues where it stopped. Only figures are kept.
"""
import argparse, os, tempfile, time
from pathlib import Path

HERE = Path(__file__).parent
WORDS, READER, BATCH = 500, 1000, 64
COST = dict(words=1., reader=2.4, together=3.51, resting=2.66)    # of a step, in steps of the tokenizer: medians of --plan on one core
TOGETHER, MOVING = 940, 830                                       # as many steps as cost the same, see `cost`
ARMS = dict(apart={}, settle=dict(settle=WORDS/TOGETHER), moving=dict(settle=1.), pulled=dict(settle=WORDS/TOGETHER, pull=0.1), pulled_hard=dict(settle=WORDS/TOGETHER, pull=1.))


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='+', choices=('emoji', 'scenes'), default=['emoji', 'scenes'])
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if there is one')
    parser.add_argument('--dry-run', action='store_true', help='tiny, in a temporary folder')
    parser.add_argument('--plan', action='store_true', help='measure what a step of each stage costs')
    parser.add_argument('--gather', action='store_true', help='only collect what is there')
    return parser.parse_args()


GIVEN = options()
if GIVEN.device == 'cpu': os.environ['CUDA_VISIBLE_DEVICES'] = ''   # before PyTorch looks
import torch

from make_tokenizers import on_device, pace                        # beside this file
from beit_lab.codebook.autoencode import reconstruction_report, tokenizer_config, tokenizer_learner, train_tokenizer
from beit_lab.codebook.cache import cache_tokens
from beit_lab.core import lab_device, read_json, write_json
from beit_lab.main_job import Job, piece_of
from beit_lab.heads.classify import probe_arms
from beit_lab.heads.probes import trunk_features
from beit_lab.pretrain.joint import JointConfig, joint_learner, train_joint
from beit_lab.pretrain.learner import HeldOut, evaluate, mim_learner, tokenize
from beit_lab.pretrain.objectives import Guesses, MaskedImageModel, MIMConfig, score_guesses
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config

if GIVEN.device == 'cuda' and not torch.cuda.is_available(): raise SystemExit('make_joint: there is no CUDA device: leave --device out')
WORK = Path(tempfile.mkdtemp()) if GIVEN.dry_run else Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'joint'
if GIVEN.dry_run: WORDS, READER, BATCH, TOGETHER, MOVING = 20, 40, 8, 40, 30


class Arm:
    "One way of training on one data set with one seed."
    def __init__(self, data, name, seed):
        self.data, self.name, self.seed, self.out = data, name, seed, WORK/data/f'{name}_{seed}'
        self.job = Job(data, WORK/data/f'pictures_{seed}', seed, crops=0., batch_size=BATCH, **(dict(pictures=200, held_out=50, tested=50) if GIVEN.dry_run else {}))
        self.job.open()
        self.pictures, self.held_out, recipe = self.job.pictures, self.job.held_out, self.job.recipe
        self.words = tokenizer_config('nano' if GIVEN.dry_run else 'tiny', patch_size=recipe.patch_size)
        size = dict(embed_dim=32, depth=1, num_heads=2) if GIVEN.dry_run else {}
        self.task = MIMConfig(trunk_config('pico', image_size=recipe.image_size, patch_size=recipe.patch_size, **size), self.words.codebook_size, 'visible', 'random', 0.75)

    def plan(self, steps): return TrainConfig(steps, BATCH, 2e-3, warmup_steps=max(10, steps//20), piece=piece_of(steps), seed=self.seed)

    def apart(self):
        "First the language, then its reading."
        words = train_tokenizer(self.pictures, self.words, WORDS, self.seed, checkpoint=self.out/'words', batch_size=BATCH)
        return words, train(self.reading(words), self.out/'reader')

    def reading(self, words):
        "A Learner that reads finished words."
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            reader = MaskedImageModel(self.task).to(lab_device())
        return mim_learner(reader, self.pictures, self.held_out, words, cache_tokens(words, self.pictures), config=self.plan(READER))

    def together(self):
        "Both in one run."
        steps = MOVING if self.name == 'moving' else TOGETHER
        learn = train_joint(self.pictures, self.held_out, JointConfig(self.words, self.task, **ARMS[self.name]), self.plan(steps), self.out/'state')
        return learn.model.words.finished(), learn

    def run(self):
        "Train, judge, write down; nothing if that was done."
        if (self.out/'found.json').exists(): return
        start = time.monotonic()
        words, learn = self.apart() if self.name == 'apart' else self.together()
        seconds, reader = time.monotonic() - start, getattr(learn.model, 'reader', learn.model).eval()
        write_json(self.out/'found.json', dict(data=self.data, arm=self.name, seed=self.seed, seconds=seconds, device=lab_device().type, **self.judged(words, reader), **self.probed(reader.trunk)))
        print(f'{self.data} {self.name} {self.seed}: done in {seconds/60:.1f} minutes', flush=True)

    def judged(self, words, reader):
        "How well the words paint, and how well they are read; the share of the surprise that reading explains can be compared between languages."
        seen, told = (tokenize(words, images).cpu() for images in (self.pictures, self.held_out))
        held = HeldOut(self.held_out, told, self.task, BATCH, 0, lab_device())
        found, guessed = evaluate(reader, held), score_guesses(Guesses(seen, words.codebook_size), told, held.masks)
        return dict(painting=reconstruction_report(words, self.held_out), **found, **guessed, explained=1 - found['loss']/guessed['unigram_loss'])

    def probed(self, trunk):
        "Linear probe and neighbours of the trunk."
        if GIVEN.dry_run: return {}
        job, labels = self.job, self.job._labels()
        splits, groups, metric, rows = job._splits(labels)
        images = torch.cat([source.images(job.recipe.image_size) for source in (job.train_source, job.test_source)])[rows]
        choosing = dict(held_out=1/3, enough=1000) if len(splits) > 1 else {}
        found = probe_arms(dict(trained=trunk_features(trunk, images)), labels[rows], splits, metric, groups, **choosing).as_metrics()
        return dict(probe=found['probe'], probe_error=found['probe_error'], knn=found['knn'], metric=metric)


def plan():
    "What a step of each stage costs beside one of the tokenizer: interleaved, medians."
    arm = Arm(GIVEN.data[0], 'settle', 0)
    words = tokenizer_learner(arm.pictures, arm.words, WORDS, batch_size=BATCH)
    joint = lambda: on_device(joint_learner(arm.pictures, arm.held_out, JointConfig(arm.words, arm.task), arm.plan(TOGETHER)))
    learners = dict(words=on_device(words), reader=on_device(arm.reading(words.model.finished())), together=joint(), resting=joint())
    for learn in learners.values(): learn.model.train()
    learners['resting'].model.settled = True
    return pace(learners, rounds=15)


def cost(name):
    "Of an arm, in steps of the tokenizer; tokenizing once and judging are left out."
    if name == 'apart': return WORDS*COST['words'] + READER*COST['reader']
    return MOVING*COST['together'] if name == 'moving' else WORDS*COST['together'] + (TOGETHER - WORDS)*COST['resting']


def gather():
    "Everything that is there, in one file; what was gathered before and is not here stays."
    kept = HERE/'runs/joint'
    before = read_json(kept/'metrics.json')['rows'] if (kept/'metrics.json').exists() else []
    rows = {(row['data'], row['arm'], row['seed']): row for row in [*before, *(read_json(file) for file in sorted(WORK.glob('*/*/found.json')))]}
    write_json(kept/'metrics.json', dict(words_steps=WORDS, reader_steps=READER, together_steps=TOGETHER, moving_steps=MOVING, batch_size=BATCH, arms=ARMS, cost_of_a_step=COST, cost={name: round(cost(name)) for name in ARMS}, rows=[rows[key] for key in sorted(rows)]))
    runs = sorted({(data, seed) for data, _, seed in rows})
    names = lambda run: ' '.join(name for name in ARMS if (run[0], name, run[1]) in rows)
    (kept/'command.txt').write_text(''.join(f'python data_samples/make_joint.py --data {run[0]} --seeds {run[1]} --arms {names(run)}\n' for run in runs))


def main():
    if GIVEN.plan: return print(plan())
    for seed in [] if GIVEN.gather else GIVEN.seeds[:1] if GIVEN.dry_run else GIVEN.seeds:
        for data in GIVEN.data[:1] if GIVEN.dry_run else GIVEN.data:
            for name in GIVEN.arms: Arm(data, name, seed).run()
    if GIVEN.dry_run: return print(f'dry run: {len(GIVEN.arms)} arms went through; nothing is kept')
    gather()


if __name__ == '__main__': main()
