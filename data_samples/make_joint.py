"""Make data_samples/runs/joint/ : a codebook trained together with the trunk, beside one trained before it, at equal compute and over seeds.

    python data_samples/make_joint.py                     # everything, on the CUDA device if there is one (on one core about fifteen minutes for a seed and a data set)
    python data_samples/make_joint.py --device cpu --seeds 0 --arms apart settle
    python data_samples/make_joint.py --dry-run           # the smallest of everything, in a temporary folder, to see that it runs
    python data_samples/make_joint.py --gather            # only collect what is there

All arms take the same number of steps of the tokenizer and of the trunk, on the same batches of 64 pictures: 'apart' trains the tokenizer for WORDS steps and
then the trunk for READER steps on its finished tokens; 'settle' does READER steps of both and lets the words rest after WORDS of them. 'moving' never lets
them rest and has as many fewer steps as its painting costs, measured here; 'pulled' is 'settle' with predictions that shape the words.
An interrupted study continues where it stopped. Only figures are kept.
"""
import argparse, os, tempfile, time
from pathlib import Path

HERE = Path(__file__).parent
WORDS, READER, BATCH, MOVING = 500, 1000, 64, 700                 # 'moving': from the measured cost of a step, see `steps`
ARMS = dict(apart={}, settle=dict(settle=WORDS/READER), moving=dict(settle=1.), pulled=dict(settle=WORDS/READER, pull=0.1), pulled_hard=dict(settle=WORDS/READER, pull=1.))


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='+', choices=('emoji', 'scenes'), default=['emoji', 'scenes'])
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if there is one')
    parser.add_argument('--dry-run', action='store_true', help='tiny, in a temporary folder')
    parser.add_argument('--gather', action='store_true', help='only collect what is there')
    return parser.parse_args()


GIVEN = options()
if GIVEN.device == 'cpu': os.environ['CUDA_VISIBLE_DEVICES'] = ''   # before PyTorch looks
import torch

from beit_lab.codebook.autoencode import reconstruction_report, tokenizer_config, train_tokenizer
from beit_lab.codebook.cache import cache_tokens
from beit_lab.core import lab_device, read_json, write_json
from beit_lab.main_job import Job, piece_of
from beit_lab.heads.classify import probe_arms
from beit_lab.heads.probes import trunk_features
from beit_lab.pretrain.joint import JointConfig, train_joint
from beit_lab.pretrain.learner import HeldOut, evaluate, mim_learner, tokenize
from beit_lab.pretrain.objectives import Guesses, MaskedImageModel, MIMConfig, score_guesses
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config

if GIVEN.device == 'cuda' and not torch.cuda.is_available(): raise SystemExit('make_joint: there is no CUDA device: leave --device out')
WORK = Path(tempfile.mkdtemp()) if GIVEN.dry_run else Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'joint'
if GIVEN.dry_run: WORDS, READER, BATCH, MOVING = 20, 40, 8, 30


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
        cache = cache_tokens(words, self.pictures)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            reader = MaskedImageModel(self.task).to(lab_device())
        learn = train(mim_learner(reader, self.pictures, self.held_out, words, cache, config=self.plan(READER)), self.out/'reader')
        return words, learn

    def together(self):
        "Both in one run."
        steps = MOVING if self.name == 'moving' else READER
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


def gather():
    "Everything that is there, in one file; what was gathered before and is not here stays."
    kept = HERE/'runs/joint'
    before = read_json(kept/'metrics.json')['rows'] if (kept/'metrics.json').exists() else []
    rows = {(row['data'], row['arm'], row['seed']): row for row in [*before, *(read_json(file) for file in sorted(WORK.glob('*/*/found.json')))]}
    write_json(kept/'metrics.json', dict(words_steps=WORDS, reader_steps=READER, moving_steps=MOVING, batch_size=BATCH, arms=ARMS, rows=[rows[key] for key in sorted(rows)]))
    (kept/'command.txt').write_text('python data_samples/make_joint.py\n')


def main():
    for seed in [] if GIVEN.gather else GIVEN.seeds[:1] if GIVEN.dry_run else GIVEN.seeds:
        for data in GIVEN.data[:1] if GIVEN.dry_run else GIVEN.data:
            for name in GIVEN.arms: Arm(data, name, seed).run()
    if GIVEN.dry_run: return print(f'dry run: {len(GIVEN.arms)} arms went through; nothing is kept')
    gather()


if __name__ == '__main__': main()
