"""Lookup and moving averages of a large codebook beside vector-quantize-pytorch: `python benchmarks/bench_codebook.py [--out FILE]`.

16,384 vectors, 8,192 codes of dimension 32; one training step of the quantiser alone: lookup, straight-through, commitment, backward, moving averages. Dead codes are not expired by either; ours also with
revival. The two take turns in one process; figures are medians. Memory is the growth of the resident peak over three steps in a process of its own.
"""
import argparse, os, statistics, subprocess, sys
from pathlib import Path

import torch

from beit_lab.core import generator, write_json
from bench import interleaved, peak

VECTORS, CODES, DIM = 16_384, 8_192, 32


def vectors(): return torch.randn(16, VECTORS//16, DIM, generator=generator('bench', 'codebook'))


def stepping(book):
    "One step of a quantiser, forward and backward."
    def step():
        z = vectors_.detach().requires_grad_()
        out = book(z)
        quantised, loss = (out.vectors, out.loss) if hasattr(out, 'codes') else (out[0], out[2])
        (quantised.square().mean() + loss.sum()).backward()
    vectors_ = vectors()
    return step


def ours(metric, revive):
    from beit_lab.codebook.quantize import EMACodebook
    return stepping(EMACodebook(CODES, DIM, metric, decay=0.99, kmeans_iterations=0, revive_below=0.05 if revive else 0.).train())


def peer(metric):
    from vector_quantize_pytorch import VectorQuantize
    return stepping(VectorQuantize(dim=DIM, codebook_size=CODES, decay=0.99, use_cosine_sim=metric == 'cosine', rotation_trick=False, threshold_ema_dead_code=0).train())


STEPS = {f'{who} {metric}': make for metric in ('cosine', 'euclidean') for who, make in dict(
    ours=lambda metric=metric: ours(metric, False), revival=lambda metric=metric: ours(metric, True), peer=lambda metric=metric: peer(metric)).items()}


def memory_of(name, processes=3):
    "Growth of the resident peak over three steps, MiB: the median of some processes that do nothing else."
    command = [sys.executable, __file__, '--memory', name]
    return statistics.median(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) for _ in range(processes))


def measure_memory(name):
    "What the process of `memory_of` does."
    step = STEPS[name]()
    before = peak()
    for _ in range(3): step()
    print(peak() - before)


def largest_kept(metric):
    "Numbers in the largest tensor that autograd keeps in one of our steps."
    sizes, step = [], ours(metric, True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t): step()
    return max(sizes)


def codebooks_beside_peer(rounds=7):
    "Lookup and update beside vector-quantize-pytorch, both metrics, without and with revival."
    for metric in ('cosine', 'euclidean'):
        names = [f'{who} {metric}' for who in ('ours', 'revival', 'peer')]
        ms, mib = interleaved({name: STEPS[name]() for name in names}, rounds), {name: memory_of(name) for name in names}
        for name in names[:2]:
            yield dict(name=f'{VECTORS:,} vectors, {CODES:,} codes of {DIM}, {metric}' + (', with revival' if name.startswith('revival') else ''), peer='vector-quantize-pytorch',
                       times_faster=ms[names[2]]/ms[name], time_ratio=ms[name]/ms[names[2]], memory_ratio=mib[name]/mib[names[2]], ours_ms=ms[name], peer_ms=ms[names[2]],
                       ours_mib=mib[name], peer_mib=mib[names[2]], largest_kept_for_backward=largest_kept(metric), vectors_times_codes=VECTORS*CODES)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='runs/bench_codebook.json')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--memory', help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count(), int(os.environ.get('OMP_NUM_THREADS', 2))))
    if args.memory: return measure_memory(args.memory)
    rows = []
    for row in codebooks_beside_peer(args.rounds):
        rows.append(row)
        print('{name}: {times_faster:.1f} times as fast, {memory_ratio:.3f} of the memory ({ours_ms:.0f} beside {peer_ms:.0f} ms, {ours_mib:.0f} beside {peer_mib:.0f} MiB)'.format(**row), flush=True)
    write_json(args.out, dict(command=f'python benchmarks/bench_codebook.py --rounds {args.rounds}', threads=torch.get_num_threads(), rounds=args.rounds, rows=rows))
    print(f'written to {args.out}')


if __name__ == '__main__': main()
