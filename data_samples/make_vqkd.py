"""Make data_samples/runs/vqkd/ : what a teacher's knowledge does to the words of VQ-KD, over seeds.

    python data_samples/make_vqkd.py                 # everything, on the CUDA device if there is one; without one it takes many hours (not a language of 300 steps in seven minutes of one core)
    python data_samples/make_vqkd.py --device cpu --seeds 0 --steps 300
    python data_samples/make_vqkd.py --dry-run       # a few steps of each, to see that it runs

On 8,000 scenes four languages of 512 words are learnt: 'painted' (the VQ-VAE of 03_autoencode), and VQ-KD with three teachers: 'untrained' (random weights),
'self' (the shipped trunk of scenes) and 'knowing' (the same trunk, trained further with the true shape in each patch). How often does the most likely shape of a
token's code name what is in its patch, on held-out pictures? And what is left of the pixels? Only figures are kept.
"""
import argparse, os
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
parser.add_argument('--steps', type=int, default=2000, help='of 64 pictures, for each language and for the further training of the teacher')
parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if there is one')
parser.add_argument('--dry-run', action='store_true', help='a few steps, nothing is kept')
parser.add_argument('--gather', action='store_true', help='only collect what is there')
GIVEN = parser.parse_args()
if GIVEN.device == 'cpu': os.environ['CUDA_VISIBLE_DEVICES'] = '' # before PyTorch looks
import torch
from einops import rearrange, reduce
from torch import nn
from torch.nn import functional as F

from beit_lab.codebook.autoencode import reconstruction_report, tokenizer_config, train_tokenizer
from beit_lab.codebook.distill import distill_report, train_painter, train_vqkd, vqkd_config
from beit_lab.codebook.teachers import trunk_teacher
from beit_lab.core import generator, lab_device, read_json, samples, write_json
from beit_lab.data.sources import split_source
from beit_lab.trunk.multiway import Trunk
from beit_lab.trunk.released import import_trunk

if GIVEN.device == 'cuda' and not torch.cuda.is_available(): raise SystemExit('make_vqkd: there is no CUDA device: leave --device out')
STEPS, COUNT, DEVICE = (3, 100, lab_device()) if GIVEN.dry_run else (GIVEN.steps, 8000, lab_device())
WORK = Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'vqkd'
SHAPE = dict(encoder=replace(vqkd_config('small').encoder, depth=4))


def patch_shapes(source):
    "What covers most of each patch, (N, 8, 8): 0 for the background, else a shape."
    masks = torch.stack([torch.as_tensor(source[i]['mask']) for i in range(len(source))]).long()
    return torch.cat([reduce(F.one_hot(part, 9).float(), 'n (h p) (w q) c -> n h w c', 'mean', p=8, q=8).argmax(-1) for part in masks.split(500)])


def look(trunk, pixels):
    "States of the patches, (B, 8, 8, D)."
    return rearrange(trunk.encode(trunk.embed({'vision': {'pixels': pixels}}))['vision'][:, 1:], 'b (h w) d -> b h w d', h=8)


def informed(trunk, images, shapes, seed):
    "The trunk, trained further to name the shape in each patch; shapes count as much as grounds."
    torch.manual_seed(seed)
    trunk, head, rng = trunk.train().requires_grad_(True), nn.Linear(trunk.config.embed_dim, 9).to(DEVICE), generator(seed, 'informed')
    optimiser = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (64,), generator=rng)
        logits = head(look(trunk, images[rows].to(DEVICE).float()/255))
        loss = F.cross_entropy(rearrange(logits, 'b h w c -> (b h w) c'), shapes[rows].flatten().to(DEVICE))
        loss.backward()
        optimiser.step(); schedule.step(); optimiser.zero_grad()
    return trunk.eval(), head


@torch.no_grad()
def naming(tokenizer, images, shapes, held_images, held_shapes):
    "How often the most likely shape of the token's code is the right one, on held-out patches that show a shape."
    seen, told = (torch.cat([tokenizer.encode(part.to(DEVICE)).cpu() for part in parts.split(256)]) for parts in (images, held_images))
    counts = torch.zeros(tokenizer.codebook_size, 9).index_put_((seen.flatten(), shapes.flatten()), torch.tensor(1.), accumulate=True)
    guess, there = counts[:, 1:].argmax(1)[told] + 1, held_shapes > 0
    return (guess == held_shapes)[there].float().mean().item()


def run(seed, pictures):
    "All four languages of a seed."
    images, shapes, held_images, held_shapes = pictures
    shipped = lambda: import_trunk(samples('weights/scenes/model'))[0].to(DEVICE)
    torch.manual_seed(seed)
    fresh = Trunk(shipped().config).to(DEVICE)
    knowing, head = informed(shipped(), images, shapes, seed)
    with torch.no_grad(): named = torch.cat([head(look(knowing, part.to(DEVICE).float()/255))[..., 1:].argmax(-1).cpu() + 1 for part in held_images.split(256)])
    itself = (named == held_shapes)[held_shapes > 0].float().mean().item()
    painted = train_tokenizer(images, tokenizer_config('small'), STEPS, seed)
    rows = [dict(language='painted', seed=seed, named=naming(painted, *pictures), **reconstruction_report(painted, held_images))]
    for name, trunk in dict(untrained=fresh, self=shipped(), knowing=knowing).items():
        teacher = trunk_teacher(trunk).to(DEVICE)
        words = train_vqkd(images, teacher, vqkd_config('small', **SHAPE), STEPS, seed)
        drawing = train_painter(words, images, max(3, STEPS//3), seed=seed)
        rows.append(dict(language=name, seed=seed, named=naming(words, *pictures), **distill_report(words, teacher, held_images), psnr_db=reconstruction_report(drawing, held_images)['psnr_db'],
                         **(dict(teacher_names=itself) if name == 'knowing' else {})))
        print(rows[-1], flush=True)
    return rows


def gather():
    "Everything that is there, in one file."
    rows = [row for file in sorted(WORK.glob('seed_*.json')) for row in read_json(file)['rows']]
    write_json(HERE/'runs/vqkd/metrics.json', dict(steps=STEPS, pictures=COUNT*9//10, held_out=COUNT//10, codebook_size=512, rows=rows))
    (HERE/'runs/vqkd/command.txt').write_text(f'python data_samples/make_vqkd.py --steps {STEPS} --seeds {" ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))}\n')


def main():
    if GIVEN.gather: return gather()
    learnt, held = split_source(f'scenes:{COUNT}')
    pictures = (learnt.images(64), patch_shapes(learnt), held.images(64), patch_shapes(held))
    for seed in GIVEN.seeds[:1] if GIVEN.dry_run else GIVEN.seeds:
        if (WORK/f'seed_{seed}.json').exists(): continue
        rows = run(seed, pictures)
        if not GIVEN.dry_run: write_json(WORK/f'seed_{seed}.json', dict(rows=rows))
    if GIVEN.dry_run: return print('dry run: four languages went through; nothing is kept')
    gather()


if __name__ == '__main__': main()
