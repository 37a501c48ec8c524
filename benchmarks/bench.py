"""Speed and memory beside the peers: `make bench`, or `python benchmarks/bench.py [--quick] [--only multiway ...] [--out runs/bench.json]`.

Ours and the peer's take turns in one process with the same shapes, inputs and targets; figures are medians and ratios, ours over the peer's.
Memory is the growth of the resident peak over three steps in a fresh process of its own. Single figures are milliseconds on this machine.
"""
import argparse, importlib.util, json, os, resource, statistics, subprocess, sys, time
from pathlib import Path

import torch
import torch.nn.functional as F

from beit_lab.core import generator, write_json

# width, depth, heads, image, patch, codes, batch: the sizes at which the peers were measured
SIZES = dict(nano=(192, 4, 3, 32, 4, 512, 64), tiny=(192, 12, 3, 64, 8, 1024, 32),
             small=(384, 12, 6, 224, 16, 8192, 8), base=(768, 12, 12, 224, 16, 8192, 4))
ROUNDS = dict(nano=9, tiny=7, small=5, base=3)
HIDDEN = 0.4
# width, depth, heads, image, patch, batch: pictures of 64 patches with 24 words, 4 of them padding
MULTIWAY = dict(nano=(192, 4, 3, 32, 4, 16), small=(384, 12, 6, 32, 4, 8))
WORDS, PADDED, VOCAB = 24, 4, 1000


def problem(size):
    "The same pictures, masks and targets for everybody."
    from beit_lab.masking import random_masks
    _, _, _, image, patch, codes, batch = SIZES[size]
    grid = (image//patch,)*2
    draw = generator('bench', size)
    pixels = torch.rand(batch, 3, image, image, generator=draw)
    mask = random_masks(batch, grid, HIDDEN, draw)
    return pixels, mask, torch.randint(codes, (batch, *grid), generator=draw)


def optimiser(model): return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)


def ours(size, mode):
    "One training step of beit_lab: forward, backward, AdamW."
    from beit_lab.pretrain.objectives import MIMConfig, MaskedImageModel, hidden_targets, masked_cross_entropy
    from beit_lab.trunk.multiway import TrunkConfig
    width, depth, heads, image, patch, codes, _ = SIZES[size]
    trunk = TrunkConfig(image_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads,
                        **({} if mode == 'full' else dict(relative='none', positions='sincos')))
    model = MaskedImageModel(MIMConfig(trunk=trunk, codebook_size=codes, mode=mode, mask_ratio=HIDDEN,
                                       decoder_dim=width//2, decoder_depth=2, decoder_heads=heads)).train()
    pixels, mask, tokens = problem(size)
    targets, opt = hidden_targets(tokens, mask), optimiser(model)
    def step():
        masked_cross_entropy(model(pixels, mask), targets).backward()
        opt.step(); opt.zero_grad()
    return step


def transformers_beit(size):
    "One training step of transformers' BEiT at the same shapes and targets."
    from transformers import BeitConfig, BeitForMaskedImageModeling
    width, depth, heads, image, patch, codes, _ = SIZES[size]
    config = BeitConfig(vocab_size=codes, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4*width,
                        image_size=image, patch_size=patch, use_mask_token=True, use_shared_relative_position_bias=True, layer_norm_eps=1e-6,
                        drop_path_rate=0., attn_implementation='sdpa')
    model = BeitForMaskedImageModeling(config).train()
    pixels, mask, tokens = problem(size)
    flat, labels, opt = mask.flatten(1), tokens.flatten(1)[mask.flatten(1)], optimiser(model)
    def step():
        logits = model(pixels*2 - 1, bool_masked_pos=flat).logits
        F.cross_entropy(logits[flat], labels).backward()
        opt.step(); opt.zero_grad()
    return step


def multiway_problem(size):
    "Pictures and padded texts."
    *_, image, _, batch = MULTIWAY[size]
    draw = generator('bench', 'multiway', size)
    pad = (torch.arange(WORDS) >= WORDS - PADDED).expand(batch, -1)
    return torch.rand(batch, 3, image, image, generator=draw), torch.randint(VOCAB, (batch, WORDS), generator=draw), pad


def our_multiway(size, attention):
    "One training step of the multiway trunk on pictures with texts: forward, backward, AdamW."
    from beit_lab.trunk.sizes import trunk
    width, depth, heads, image, patch, _ = MULTIWAY[size]
    model = trunk('beit3_base', image_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, vocab_size=VOCAB, drop_path=0., attention=attention).train()
    pixels, tokens, pad = multiway_problem(size)
    opt = optimiser(model)
    def step():
        segments = model.embed({'vision': dict(pixels=pixels), 'language': dict(tokens=tokens, pad_mask=pad)})
        torch.cat(list(model.encode(segments).states.values()), 1).square().mean().backward()
        opt.step(); opt.zero_grad()
    return step


def torchscale_multiway(size):
    "One training step of torchscale's BEiT-3 on the same."
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tests'))
    from beit3_peer import torchscale_beit3
    width, depth, heads, image, patch, _ = MULTIWAY[size]
    model = torchscale_beit3(width, depth, heads, 4*width, image, patch, VOCAB, 1022).train()
    pixels, tokens, pad = multiway_problem(size)
    opt = optimiser(model)
    def step():
        model(tokens, 2*pixels - 1, pad)['encoder_out'].square().mean().backward()
        opt.step(); opt.zero_grad()
    return step


MULTIWAY_STEPS = dict(decoupled=lambda size: our_multiway(size, 'decoupled'), shared=lambda size: our_multiway(size, 'shared'), torchscale=torchscale_multiway)
STEPS = dict(full=lambda size: ours(size, 'full'), visible=lambda size: ours(size, 'visible'), transformers=transformers_beit)


def interleaved(steps, rounds):
    "Median milliseconds of each, taking turns."
    for step in steps.values(): step()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter(); step()
            times[name].append(1000*(time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def peak():
    "Resident peak in MiB. On Linux from /proc, because there getrusage also counts the process that started this one."
    status = Path('/proc/self/status')
    if status.exists(): return int(next(l for l in status.read_text().splitlines() if l.startswith('VmHWM')).split()[1])/1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024**2


def memory_of(name, size):
    "Growth of the resident peak over three steps, MiB: the median of three processes that do nothing else."
    command = [sys.executable, __file__, '--memory', name, size]
    return statistics.median(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) for _ in range(3))


def measure_memory(name, size):
    "What the process of `memory_of` does."
    step = {**STEPS, **MULTIWAY_STEPS}[name](size)
    before = peak()
    for _ in range(3): step()
    print(peak() - before)


def steps_beside_transformers(sizes):
    "Masked image modelling in both modes beside transformers."
    for size in sizes:
        ms = interleaved({name: make(size) for name, make in STEPS.items()}, ROUNDS[size])
        mib = {name: memory_of(name, size) for name in STEPS}
        for mode in ('full', 'visible'):
            yield dict(name=f'masked image modelling step, {mode}, {size}', peer='transformers BeitForMaskedImageModeling',
                       time_ratio=ms[mode]/ms['transformers'], memory_ratio=mib[mode]/mib['transformers'], ours_ms=ms[mode],
                       peer_ms=ms['transformers'], ours_mib=mib[mode], peer_mib=mib['transformers'])


def multiway_beside_torchscale():
    "Pictures with texts, attention decoupled (the same parameters) and shared, beside torchscale's BEiT-3 where that is installed."
    if importlib.util.find_spec('torchscale') is None: return print('no multiway comparison: torchscale is not installed')
    for size in MULTIWAY:
        ms = interleaved({name: make(size) for name, make in MULTIWAY_STEPS.items()}, ROUNDS[size])
        mib = {name: memory_of(name, size) for name in MULTIWAY_STEPS}
        for kind in ('decoupled', 'shared'):
            yield dict(name=f'multiway step, {kind}, {size}', peer='torchscale BEiT3', time_ratio=ms[kind]/ms['torchscale'], memory_ratio=mib[kind]/mib['torchscale'],
                       ours_ms=ms[kind], peer_ms=ms['torchscale'], ours_mib=mib[kind], peer_mib=mib['torchscale'])


def masks():
    "Block-wise masks of a 14x14 grid beside transformers' generator, and their share of a training step."
    from transformers.models.flava.image_processing_flava import FlavaMaskingGenerator
    from beit_lab.masking import block_masks
    peer, draw = FlavaMaskingGenerator(input_size=(14, 14), total_mask_patches=75, mask_group_min_patches=16, mask_group_max_patches=75), generator(0)
    ms = interleaved(dict(ours=lambda: block_masks(256, (14, 14), 75/196, draw), peer=lambda: [peer() for _ in range(256)]), 7)
    yield dict(name='256 block-wise masks, 14x14', peer='transformers FlavaMaskingGenerator', time_ratio=ms['ours']/ms['peer'],
               ours_ms=ms['ours'], peer_ms=ms['peer'], per_second=256_000/ms['ours'])
    small = interleaved(dict(mask=lambda: block_masks(64, (8, 8), HIDDEN, draw), step=STEPS['full']('nano')), 7)
    yield dict(name='64 block-wise masks, 8x8, beside a nano step', peer='beit_lab step', time_ratio=small['mask']/small['step'],
               ours_ms=small['mask'], peer_ms=small['step'])


def scenes():
    "Scenes a second on one core, 64 pixels."
    from beit_lab.data.scenes import scene
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scene(0)
    start = time.perf_counter()
    for i in range(300): scene(i)
    rate = 300/(time.perf_counter() - start)
    torch.set_num_threads(threads)
    yield dict(name='scenes of 64 pixels, one core', peer=None, time_ratio=None, ours_ms=1000/rate, per_second=rate)


def imports(rounds=3):
    "The star import beside fastai's, each in a fresh process."
    def seconds(module):
        start = time.perf_counter()
        subprocess.run([sys.executable, '-c', f'from {module} import *'], check=True, capture_output=True)
        return time.perf_counter() - start
    times = [(seconds('beit_lab.all'), seconds('fastai.vision.all')) for _ in range(rounds + 1)][1:] # the first fills the disk cache
    lab, fastai = (statistics.median(t)*1000 for t in zip(*times))
    yield dict(name='from beit_lab.all import *', peer='from fastai.vision.all import *', time_ratio=lab/fastai, ours_ms=lab, peer_ms=fastai)


def table(rows):
    "The results as lines of text."
    number = lambda value, form, unit: '' if value is None else format(value, form) + unit
    print(f"{'':48} {'time':>8} {'memory':>8} {'ours':>11} {'peer':>11}   peer")
    for r in rows:
        print(f"{r['name']:48} {number(r.get('time_ratio'), '.2f', 'x'):>8} {number(r.get('memory_ratio'), '.2f', 'x'):>8} "
              f"{number(r.get('ours_ms'), '.1f', ' ms'):>11} {number(r.get('peer_ms'), '.1f', ' ms'):>11}   {r['peer'] or ''}", flush=True)


def codebooks():
    "Lookup and update at 8,192 codes beside vector-quantize-pytorch."
    from bench_codebook import codebooks_beside_peer
    yield from codebooks_beside_peer()


PARTS = dict(pictures=lambda quick: steps_beside_transformers(['nano', 'tiny'] if quick else SIZES), multiway=lambda quick: multiway_beside_torchscale(),
             codebooks=lambda quick: codebooks(), masks=lambda quick: masks(), scenes=lambda quick: scenes(), imports=lambda quick: imports())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='of the steps on pictures the two smallest sizes only')
    parser.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS), help='some of the parts')
    parser.add_argument('--out', default='runs/bench.json')
    parser.add_argument('--memory', nargs=2, metavar=('WHAT', 'SIZE'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count()))
    if args.memory: return measure_memory(*args.memory)
    rows = []
    for part in args.only:
        for row in PARTS[part](args.quick):
            rows.append(row)
            print(f"measured: {row['name']}", flush=True)
    table(rows)
    asked = ''.join(f' --{name}' for name in ['quick'] if args.quick) + (' --only ' + ' '.join(args.only) if args.only != list(PARTS) else '')
    write_json(args.out, dict(command=f'python benchmarks/bench.py{asked}', threads=torch.get_num_threads(), rows=rows))
    print(f'written to {args.out}')


if __name__ == '__main__': main()
