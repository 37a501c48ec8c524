"""Make data_samples/runs/tokenizers/ : which tokenizer? Kinds of codebook at equal time and equal tokens, over seeds.

    python data_samples/make_tokenizers.py                                   # everything: about four hours on two cores
    python data_samples/make_tokenizers.py --data emoji --seeds 0 --kinds vq fsq
    python data_samples/make_tokenizers.py --plan                            # how long a step of each kind takes beside one of vq, on this machine
    python data_samples/make_tokenizers.py --gather                          # only collect what is there
    python data_samples/make_tokenizers.py --quick                           # a few steps of everything, into a folder of their own: does it run here?

CIFAR-10 needs BEIT_LAB_DATA. Every tokenizer makes the same grid of tokens from about as many codes (fsq and lfq as near as they come), and has the time in which vq does
TOKENIZER_STEPS steps; how many steps that is follows from --plan, once for processors and once for GPUs, and is written below. Then a trunk of the same size is pretrained on each one's tokens
for the same number of steps, and probed. An interrupted study continues where it stopped; figures of several machines add up. Only figures are kept.

The perceptual distance is the lab's own: one minus the cosine between patch states of the shipped emoji trunk, a mean over layers and patches. That trunk was pretrained on tokens of a vq tokenizer, on emoji:
use it to compare, with that in mind.
"""
import argparse, json, os, statistics, time
from dataclasses import replace
from pathlib import Path

import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from beit_lab.codebook.autoencode import reconstruction_report, tokenizer_config, tokenizer_learner, train_tokenizer
from beit_lab.codebook.cache import cache_tokens, read_tokenizer
from beit_lab.codebook.distill import distill_learner, train_painter, train_vqkd, vqkd_config
from beit_lab.codebook.dvae import dvae_config, dvae_learner, train_dvae
from beit_lab.codebook.health import codebook_health, position_bits
from beit_lab.codebook.teachers import open_teacher
from beit_lab.core import ConfigError, as_floats, generator, lab_device, read_json, samples, save_figure, show_grid, write_json
from beit_lab.data.loaders import TwoViews
from beit_lab.data.sources import split_source
from beit_lab.heads.classify import probe_arms
from beit_lab.heads.probes import code_features, linear_predict, row_shares, trunk_features
from beit_lab.main_job import Job, piece_of
from beit_lab.pretrain.learner import evaluate, mim_learner, tokenize
from beit_lab.pretrain.objectives import MaskedImageModel, MIMConfig
from beit_lab.pretrain.rivals import pixel_learner, pixel_task
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config

HERE = Path(__file__).parent
WORK = Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'tokenizers'
TOKENIZER_STEPS, PRETRAIN_STEPS = 1000, 600
FEW, DRAWS = (5, 20), 5                                            # labels a class, and how often they are drawn


def learn_codebook(arm, steps):
    "A tokenizer of this lab's small network with a codebook of some kind."
    config = tokenizer_config('tiny', patch_size=arm.job.recipe.patch_size, **arm.choice)
    return train_tokenizer(arm.job.pictures, config, steps, arm.seed, checkpoint=arm.out/'tokenizer_state')


def codebook_step(arm):
    "What --plan measures: a Learner of the tokenizer."
    return tokenizer_learner(arm.job.pictures, tokenizer_config('tiny', patch_size=arm.job.recipe.patch_size, **arm.choice), 10, arm.seed)


def dvae_shape(arm): return dvae_config('tiny', blocks=1, width=16)  # slim, so that it has some hundred steps; its patches have 4 pixels


def learn_dvae(arm, steps):
    "DALL-E's dVAE at lab size."
    return train_dvae(arm.job.pictures, dvae_shape(arm), steps, arm.seed, checkpoint=arm.out/'tokenizer_state')


def dvae_step(arm): return dvae_learner(arm.job.pictures, dvae_shape(arm), 10, arm.seed)


def vqkd_shape(arm):
    "BEiT v2's tokenizer, slim for the same reason."
    slim = dict(embed_dim=64, num_heads=2, image_size=arm.job.recipe.image_size, patch_size=arm.job.recipe.patch_size)
    return vqkd_config('tiny', encoder=replace(vqkd_config('tiny').encoder, **slim))


def learn_vqkd(arm, steps):
    "Taught by the shipped trunk of emoji; the painter that its tokens have no need for comes on top, for half as many steps."
    words = train_vqkd(arm.job.pictures, open_teacher('emoji'), vqkd_shape(arm), steps, arm.seed, checkpoint=arm.out/'tokenizer_state')
    return train_painter(words, arm.job.pictures, max(10, steps//2), seed=arm.seed)


def vqkd_step(arm): return distill_learner(arm.job.pictures, open_teacher('emoji'), vqkd_shape(arm), 10, arm.seed)


# A family says how its tokenizers are learnt (function of arm and steps), how one is read again (folder), and what --plan measures (function of arm that gives a Learner).
FAMILIES = dict(codebook=dict(learn=learn_codebook, read=read_tokenizer, step=codebook_step), dvae=dict(learn=learn_dvae, read=read_tokenizer, step=dvae_step),
                vqkd=dict(learn=learn_vqkd, read=read_tokenizer, step=vqkd_step))
# kind -> family, and what differs from the base: 512 codes of dimension 16, Euclidean, patch 4
KINDS = {
    'vq': ('codebook', {}), 'vq_cosine': ('codebook', dict(metric='cosine')), 'vq_dim_64': ('codebook', dict(code_dim=64)), 'vq_unrevived': ('codebook', dict(revive_below=0.)),
    'gumbel': ('codebook', dict(kind='gumbel')), 'fsq': ('codebook', dict(kind='fsq')), 'fsq_1000': ('codebook', dict(kind='fsq', codebook_size=1000)), 'lfq': ('codebook', dict(kind='lfq')),
    'dvae': ('dvae', {}), 'vqkd': ('vqkd', {}),
}
REFERENCES = ('untrained', 'pixels')                               # the trunk as it starts, and a trunk that predicts pixels: no tokenizer at all
PACE = dict(cpu=dict(vq_cosine=1.03, vq_dim_64=1.05, vq_unrevived=0.9, gumbel=1.9, fsq=0.87, fsq_1000=0.82, lfq=0.94, dvae=3.36, vqkd=3.17), cuda={}) # time of a step, in steps of vq (from --plan); what is missing has to be measured first
QUICK = dict(tokenizer_steps=10, pretrain_steps=10, pictures=300, held_out=64)


class Arm:
    "One tokenizer on one data set with one seed: learnt, judged, and a trunk pretrained on its tokens."
    def __init__(self, data, name, seed, quick=False):
        self.data, self.name, self.seed, self.quick = data, name, seed, quick
        self.family, self.choice = (None, {}) if name in REFERENCES else (FAMILIES[KINDS[name][0]], KINDS[name][1])
        path = data if data == 'emoji' else f"{os.environ['BEIT_LAB_DATA']}/{data}"
        self.out = (WORK/'quick' if quick else WORK)/data/f'{name}_{seed}'
        self.job = Job(path, self.out, seed)

    def open(self):
        self.job.open()
        if self.quick: self.job.pictures, self.job.held_out = self.job.pictures[:QUICK['pictures']], self.job.held_out[:QUICK['held_out']]

    def tokenizer_steps(self):
        if self.quick: return QUICK['tokenizer_steps']
        pace = {'vq': 1., **PACE[lab_device().type]}
        if self.name not in pace: raise ConfigError(f'no pace is known of {self.name} on {lab_device().type}: measure it with --plan, and write it into PACE')
        return 10*max(1, round(TOKENIZER_STEPS/pace[self.name]/10))

    def tokenizer(self):
        "Learnt, or read where it was learnt before."
        folder = self.out/'tokenizer'
        start = time.monotonic()
        if not folder.exists():
            self.family['learn'](self, self.tokenizer_steps()).save_pretrained(folder)
            write_json(self.out/'tokenizer_time.json', dict(tokenizer_seconds=time.monotonic() - start))
        return self.family['read'](folder).to(lab_device())

    def time_taken(self):
        "How long the tokenizer alone took, where that was written down."
        return read_json(self.out/'tokenizer_time.json') if (self.out/'tokenizer_time.json').exists() else {}

    def judged(self, tokenizer):
        "How well held-out pictures survive, and how alive the codebook is."
        held, tokens = self.job.held_out, tokenize(tokenizer, self.job.held_out)
        alive = codebook_health(tokens, tokenizer.codebook_size) | dict(position_bits=position_bits(tokens, tokenizer.codebook_size))
        about = dict(codebook_size=tokenizer.codebook_size, tokenizer_parameters=sum(p.numel() for p in tokenizer.parameters()), **alive)
        if not hasattr(tokenizer, 'decode'): return about
        return about | {k: v for k, v in reconstruction_report(tokenizer, held).items() if k.endswith('_db')} | seen_alike(tokenizer, held, tokens)

    def learner(self, tokenizer):
        "Masked image modelling on the tokens, the same for all."
        job, recipe, steps = self.job, self.job.recipe, QUICK['pretrain_steps'] if self.quick else PRETRAIN_STEPS
        task = MIMConfig(trunk=trunk_config('pico', image_size=recipe.image_size, patch_size=recipe.patch_size), codebook_size=tokenizer.codebook_size if tokenizer else 512,
                         mode='visible', mask_kind='random', mask_ratio=0.75)
        config = TrainConfig(steps, recipe.batch_size, recipe.lr, warmup_steps=max(10, steps//20), piece=piece_of(steps), seed=self.seed)
        views = TwoViews(recipe.image_size, scale=(recipe.crops, 1)) if recipe.crops else None
        originals = job.train_source.images(2*recipe.image_size)[:len(job.pictures)] if views else None
        torch.manual_seed(self.seed)
        if self.name == 'pixels': return pixel_learner(MaskedImageModel(pixel_task(task)).to(lab_device()), job.pictures, job.held_out, config, views, originals)
        model = MaskedImageModel(task).to(lab_device())
        if tokenizer is None: return model
        cache = None if views else cache_tokens(tokenizer, job.pictures, self.out/'tokens')
        return mim_learner(model, job.pictures, job.held_out, tokenizer, cache, views, config, originals=originals)

    def run(self):
        "Learn, judge, pretrain, probe, write down; nothing if that was done."
        if (self.out/'found.json').exists(): return
        self.open()
        start, about = time.monotonic(), dict(data=self.data, arm=self.name, seed=self.seed, device=lab_device().type)
        tokenizer = None if self.name in REFERENCES else self.tokenizer()
        if tokenizer is not None: about |= dict(tokenizer_steps=self.tokenizer_steps(), **self.time_taken(), **self.judged(tokenizer))
        learn = self.learner(tokenizer)
        if self.name == 'untrained': trunk = learn.trunk
        else:
            train(learn, self.out/'state')
            trunk = learn.model.trunk
            about |= dict(pretrain_steps=learn.plan.steps, valid=learn.run_log.rows[-1])
            if tokenizer is not None: about |= evaluate(learn.model, learn.dls.valid.dataset)
        write_json(self.out/'found.json', {**about, **self.probed(trunk, tokenizer), 'minutes': (time.monotonic() - start)/60})
        print(f'{self.data} {self.name} {self.seed}: done in {(time.monotonic() - start)/60:.1f} minutes', flush=True)

    def probed(self, trunk, tokenizer):
        "Linear probe, neighbours, a bag of the codes themselves, and few labels."
        job, labels = self.job, self.job._labels()
        splits, groups, metric, rows = job._splits(labels)
        if self.quick and len(splits) == 1: splits, rows = [(torch.arange(1000), torch.arange(1000, 1500))], torch.cat([rows[:1000], rows[-500:]])
        images = torch.cat([job.train_source.images(job.recipe.image_size), job.test_source.images(job.recipe.image_size)])[rows]
        choosing = dict(held_out=1/3, enough=1000) if len(splits) > 1 else {}
        arms = dict(trained=trunk_features(trunk, images))
        if tokenizer is not None: arms['bag_of_codes'] = code_features(tokenize(tokenizer, images), tokenizer.codebook_size)
        found = probe_arms(arms, labels[rows], splits, metric, groups, **choosing).as_metrics()
        last = max(layer for layer, _ in arms['trained'])
        few = {f'few_{count}': few_labels(arms['trained'][last, '2x2'], labels[rows], splits, count, metric, self.seed) for count in FEW}
        return dict(probe=found['probe'], probe_error=found['probe_error'], knn=found['knn'], guess=found['guess'], chosen=found['probe_chosen']['trained'], metric=metric, **few)


@torch.no_grad()
def seen_alike(tokenizer, images, tokens, batch_size=128):
    "SSIM, and the distance between states of the shipped emoji trunk, of pictures and their reconstructions."
    device = lab_device()
    trunk = MaskedImageModel.from_pretrained(samples('weights/emoji/model')).trunk.to(device).eval()
    structure, distance = 0., 0.
    for part, words in zip(images.split(batch_size), tokens.split(batch_size)):
        truth, painted = as_floats(part.to(device)), tokenizer.decode(words.to(device)).float()
        structure += ssim(painted, truth, data_range=1.).item()*len(part)
        if part.shape[-1] != trunk.config.image_size: continue
        states = [trunk.encode(trunk.embed(dict(vision=dict(pixels=x))), layers=tuple(range(1, trunk.config.depth + 1))).layers for x in (truth, painted)]
        apart = [1 - torch.cosine_similarity(a['vision'][:, 1:], states[1][layer]['vision'][:, 1:], dim=-1).mean() for layer, a in states[0].items()]
        distance += torch.stack(apart).mean().item()*len(part)
    return dict(ssim=structure/len(images)) | (dict(perceptual=distance/len(images)) if distance else {})


def few_labels(features, labels, splits, count, metric, seed):
    "A linear probe of the last layer on so many labels a class, at a fixed penalty: a mean over draws and splits."
    scores = []
    for draw in range(DRAWS):
        train, test = splits[draw % len(splits)]
        order = train[torch.randperm(len(train), generator=generator(seed, 'few', count, draw))]
        chosen = torch.cat([order[labels[order] == c][:count] for c in labels.unique()])
        answers = linear_predict(features[chosen], labels[chosen], features[test], int(labels.max()) + 1, (0.1,), metric)[0]
        scores.append(float(row_shares(labels[test], metric)@(answers == labels[test]).float()))
    return sum(scores)/len(scores)


def plan(data, names):
    "Time of a step of each kind beside one of vq."
    learners = {}
    for name in ('vq', *(name for name in names if name in KINDS and name != 'vq')):
        family, _ = KINDS[name]
        arm = Arm(data, name, 0, quick=True)
        arm.open()
        learners[name] = on_device(FAMILIES[family]['step'](arm))
    return pace(learners)


def pace(learners, rounds=7):
    "Time of a step of each learner beside one of the first: interleaved, medians."
    wait = torch.cuda.synchronize if lab_device().type == 'cuda' else lambda: None
    times, base = {name: [] for name in learners}, next(iter(learners))
    for learn in learners.values(): learn.create_opt()
    for t in range(rounds + 2):
        for name, learn in learners.items():
            wait()
            start = time.perf_counter()
            *inputs, targets = [x.to(lab_device()) for x in learn.dls.train.dataset[t]]     # with what a teacher sees
            learn.loss_func(learn.model(*inputs), targets).backward()
            learn.opt.step(); learn.opt.zero_grad()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(a/b for a, b in zip(t[2:], times[base][2:])), 2) for name, t in times.items()}


def on_device(learn):
    "The Learner with its model and batches on the device and its codebook started: what a fit would do first."
    learn.model.to(lab_device()).train()
    for callback in learn.cbs:
        if hasattr(callback, 'per_step'): callback.before_fit()
    return learn


def gather():
    "Everything that is there, in one file; what was gathered before and is not here stays."
    kept = HERE/'runs/tokenizers'
    kept.mkdir(parents=True, exist_ok=True)
    before = read_json(kept/'metrics.json')['rows'] if (kept/'metrics.json').exists() else []
    found = [read_json(file) for file in sorted(WORK.glob('*/*/found.json')) if file.parts[-3] != 'quick']
    rows = {(row['data'], row['arm'], row['seed']): row for row in [*before, *found]}
    write_json(kept/'metrics.json', dict(tokenizer_steps=TOKENIZER_STEPS, pretrain_steps=PRETRAIN_STEPS, pace=PACE, kinds=KINDS, few=FEW, rows=[rows[key] for key in sorted(rows)]))
    runs = sorted({(data, seed) for data, _, seed in rows})
    names = lambda run: ' '.join(name for name in (*REFERENCES, *KINDS) if (run[0], name, run[1]) in rows)
    (kept/'command.txt').write_text(''.join(f'python data_samples/make_tokenizers.py --data {run[0]} --seeds {run[1]} --kinds {names(run)}\n' for run in runs))
    gallery()
    print(table(list(rows.values())))


def gallery(kinds=('vq', 'gumbel', 'fsq', 'lfq', 'vqkd', 'dvae'), shown=(3, 77, 150, 203, 262, 318)):
    "The same held-out emoji in all languages, seed 0, as one picture; nothing where their tokenizers are not there."
    homes = {kind: WORK/f'emoji/{kind}_0/tokenizer' for kind in kinds}
    if not all(home.exists() for home in homes.values()): return
    pictures = split_source('emoji')[1].images(32)[list(shown)]
    tokenizers = {kind: read_tokenizer(home) for kind, home in homes.items()}
    painted = [list(tokenizer.decode(tokenizer.encode(pictures)).detach()) for tokenizer in tokenizers.values()]
    save_figure(show_grid([list(pictures), *painted], names=['truth', *kinds], cell=0.95), HERE/'runs/tokenizers/emoji.png')


def table(rows):
    "Means over seeds as lines of text."
    columns = dict(psnr_db='.2f', ssim='.3f', perceptual='.3f', usage='.0%', perplexity='.0f', token_accuracy='.1%', probe='.1%', knn='.1%', **{f'few_{count}': '.1%' for count in FEW})
    lines = [f"{'':24} seeds " + ' '.join(f'{name[:10]:>10}' for name in columns)]
    for data, arm in sorted({(row['data'], row['arm']) for row in rows}):
        same = [{**row, 'probe': row['probe']['trained'], 'knn': row['knn']['trained']} for row in rows if (row['data'], row['arm']) == (data, arm)]
        cells = [[row[name] for row in same if row.get(name) is not None] for name in columns]
        lines.append(f'{data + " " + arm:24} {len(same):5} ' + ' '.join(f'{format(sum(c)/len(c), form) if c else "":>10}' for c, form in zip(cells, columns.values())))
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='+', choices=['emoji', 'cifar10'], default=['emoji', 'cifar10'])
    parser.add_argument('--kinds', nargs='+', choices=[*REFERENCES, *KINDS], default=[*REFERENCES, *KINDS])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--plan', action='store_true', help='measure the time of a step of each kind')
    parser.add_argument('--gather', action='store_true', help='only collect what is there')
    parser.add_argument('--quick', action='store_true', help='a few steps of everything, into a folder of their own')
    given = parser.parse_args()
    if given.plan: return print(json.dumps({lab_device().type: plan(given.data[0], given.kinds)}, indent=1))
    for seed in [] if given.gather else given.seeds:
        for data in given.data:
            for name in given.kinds: Arm(data, name, seed, given.quick).run()
    if given.quick: print(table([read_json(file) for file in sorted((WORK/'quick').glob('*/*/found.json'))]))
    else: gather()


if __name__ == '__main__': main()
