"""Make data_samples/runs/kinds/ : every kind of tokenizer, learnt by the command `beit-lab tokenizer`, on emoji, scenes and photographs.

    python data_samples/make_kinds.py                                # everything: about an hour and a half on one core
    python data_samples/make_kinds.py --data flickr8k --kinds vq fsq lfq
    python data_samples/make_kinds.py --gather                       # only collect what is there

Flickr8k needs BEIT_LAB_DATA; its photographs are taken at 112 pixels, 14 by 14 tokens each. Every command has MINUTES, which it turns into steps at the pace of this machine.
Kept are figures only: decibels, usage and perplexity on held-out pictures, and what the codes mean in numbers (as in the notebook `02_codebook/09_meaning`).
"""
import argparse, os, subprocess, sys
from pathlib import Path

import torch

from beit_lab.codebook.cache import read_tokenizer
from beit_lab.codebook.health import code_counts, code_perplexity, position_bits
from beit_lab.codebook.meaning import explained_by_codes, nearest_neighbours, place_bits
from beit_lab.core import as_floats, generator, read_json, write_json
from beit_lab.main_job import Job
from beit_lab.pretrain.learner import tokenize

HERE = Path(__file__).parent
WORK = Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'kinds'
MINUTES = 4
KINDS = ('vq', 'fsq', 'lfq', 'gumbel', 'dvae', 'vqkd')
SETS = dict(flickr8k=('$BEIT_LAB_DATA/flickr8k', '--image-size', '112', '--patch-size', '8'), emoji=('emoji',), scenes=('scenes',))


def command(data, kind, out, minutes):
    "What is run."
    source, *more = SETS[data]
    return ['tokenizer', '--kind', kind, '--data', source, '--out', str(out), '--minutes', f'{minutes:g}', *more]


def run(data, kind, minutes):
    "Learn, judge, write down; what was done is not done again."
    out = WORK/data/kind
    if (out/'found.json').exists(): return
    words = command(data, kind, out, minutes)
    if not (out/'metrics.json').exists(): subprocess.run([sys.executable, '-m', 'beit_lab.cli', *map(os.path.expandvars, words)], check=True)
    about = dict(data=data, kind=kind, minutes=minutes, threads=torch.get_num_threads(), command='beit-lab ' + ' '.join(command(data, kind, f'runs/{kind}', minutes)))
    write_json(out/'found.json', judged(data, out) | about)


def judged(data, out):
    "Figures of the run, and what its codes mean, on pictures that were held out."
    found = read_json(out/'metrics.json')['tokenizer']
    job = Job(os.path.expandvars(SETS[data][0]), out)
    job.open()
    tokenizer = read_tokenizer(out/'tokenizer')
    size, tokens = tokenizer.codebook_size, tokenize(tokenizer, job.held_out)
    shuffled = tokens.flatten()[torch.randperm(tokens.numel(), generator=generator('shuffled'))].view_as(tokens)
    counts, bits = code_counts(tokens, size), place_bits(tokens, size)
    meaning = dict(explained=explained_by_codes(job.held_out, tokens, size), explained_shuffled=explained_by_codes(job.held_out, shuffled, size), position_bits=position_bits(tokens, size),
                   most_bound_to_place=float(bits[counts >= 50].nan_to_num(0).max()) if (counts >= 50).any() else 0.)
    return dict(steps=read_json(out/'job.json')['stages']['tokenizer']['steps'], grid=list(tokens.shape[1:]), used=int((counts > 0).sum()), perplexity_share=float(code_perplexity(counts))/size,
                **found, meaning=meaning | swapped(tokenizer, tokens, job.held_out))


@torch.inference_mode()
def swapped(tokenizer, tokens, images, most=256):
    "How much it costs to say each token by the code nearest to it in the space of codes, and by any other code."
    tokens, truth = tokens[:most], as_floats(images[:most])
    near = nearest_neighbours(tokenizer.codebook, torch.arange(tokenizer.codebook_size), 1)[:, 0]
    far = torch.randperm(tokenizer.codebook_size, generator=generator('any code'))
    decibels = lambda painted: float(-10*(painted.clamp(0, 1) - truth).square().mean().log10())
    return {f'psnr_db_{name}': decibels(tokenizer.decode(said)) for name, said in dict(as_said=tokens, nearest_code=near[tokens], any_code=far[tokens]).items()}


def gather():
    "Everything that is there, in one file; what was gathered before and is not here stays."
    kept = HERE/'runs/kinds'
    kept.mkdir(parents=True, exist_ok=True)
    rows = {(row['data'], row['kind']): row for row in (read_json(kept/'metrics.json')['rows'] if (kept/'metrics.json').exists() else [])}
    rows |= {(row['data'], row['kind']): row for row in map(read_json, sorted(WORK.glob('*/*/found.json')))}
    write_json(kept/'metrics.json', dict(rows=[rows[key] for key in sorted(rows)]))
    ways = sorted({(data, row['minutes']) for (data, _), row in rows.items()})
    kinds = lambda way: ' '.join(kind for kind in KINDS if (way[0], kind) in rows and rows[way[0], kind]['minutes'] == way[1])
    (kept/'command.txt').write_text(''.join(f'python data_samples/make_kinds.py --data {way[0]} --kinds {kinds(way)} --minutes {way[1]:g}\n' for way in ways))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', nargs='+', choices=SETS, default=list(SETS))
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS))
    parser.add_argument('--minutes', type=float, default=MINUTES)
    parser.add_argument('--gather', action='store_true', help='only collect what is there')
    given = parser.parse_args()
    for data in [] if given.gather else given.data:
        if '$BEIT_LAB_DATA' in SETS[data][0] and 'BEIT_LAB_DATA' not in os.environ: print(f'{data}: left out, because BEIT_LAB_DATA is not set')
        else:
            for kind in given.kinds: run(data, kind, given.minutes)
    gather()


if __name__ == '__main__': main()
