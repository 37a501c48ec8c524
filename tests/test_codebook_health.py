"The health of a codebook: by brute force, over a frozen pass, live, and over several processes."
import math
from collections import Counter

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given, settings, strategies as st

from beit_lab.codebook.autoencode import VQVAE, tokenizer_config, tokenizer_learner
from beit_lab.codebook.health import (CodebookStats, code_counts, code_perplexity, codebook_health, counts_health, held_out_tokens, plot_frequencies, position_bits, position_counts,
                                      usage_by_process)
from beit_lab.core import ConfigError, generator
from beit_lab.training import TrainConfig, train


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 40), shape=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5)), seed=st.integers(0, 10**6))
def test_all_figures_by_brute_force(size, shape, seed):
    tokens = torch.randint(size, shape, generator=generator(seed))
    seen, total = Counter(tokens.flatten().tolist()), tokens.numel()
    entropy = -sum(n/total*math.log2(n/total) for n in seen.values())
    top = sum(n for _, n in seen.most_common(max(1, round(size/100))))/total
    assert codebook_health(tokens, size) == pytest.approx(dict(usage=len(seen)/size, dead_codes=size - len(seen), entropy_bits=entropy, perplexity=2**entropy, top_1_percent=top), abs=1e-6)
    places = position_counts(tokens, size)
    for picture in tokens.tolist():
        for row, line in enumerate(picture):
            for column, token in enumerate(line): places[token, row, column] -= 1
    assert (places == 0).all()


def test_a_place_that_tells_everything_and_one_that_tells_nothing():
    place_only = torch.arange(16).view(1, 4, 4).expand(100, 4, 4)
    assert position_bits(place_only, 16) == pytest.approx(4, abs=0.02)
    random = torch.randint(64, (500, 4, 4), generator=generator('tokens'))
    assert position_bits(random, 64) < 0.01                     # without the correction: 0.085
    half = torch.where(torch.arange(16).view(4, 4) < 8, random % 32, random % 32 + 32)
    assert position_bits(half, 64) == pytest.approx(1, abs=0.03)


def test_the_pass_over_held_out_pictures_is_frozen():
    images = torch.randint(0, 256, (30, 3, 8, 8), generator=generator('pictures'), dtype=torch.uint8)
    model = VQVAE(tokenizer_config('nano')).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(held_out_tokens(model, images, batch_size=7), model.encode(images))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    class Learning(VQVAE):
        def encode(self, images):
            self.quantizer.vectors += 1
            return VQVAE.encode(self, images)
    with pytest.raises(ConfigError, match='moved while it was judged'): held_out_tokens(Learning(tokenizer_config('nano')), images)


def test_stats_of_intervals_and_live(monkeypatch):
    import IPython.display
    shown = []
    class Handle:
        def update(self, figure): shown.append('again')
    monkeypatch.setattr(IPython.display, 'display', lambda figure, display_id: shown.append('first') or Handle())
    images, seen = torch.randint(0, 256, (40, 3, 8, 8), generator=generator('pictures'), dtype=torch.uint8), []
    stats = CodebookStats(every=2, live=True)
    learn = tokenizer_learner(images, tokenizer_config('nano', kind='lfq'), 6, batch_size=4, cbs=[stats])
    learn.model.quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output.codes.flatten()))
    train(learn)
    assert [row['step'] for row in stats.rows] == [2, 4, 6] and shown == ['first', 'again', 'again'] and not plt.get_fignums()
    for row, codes in zip(stats.rows, torch.cat(seen).view(3, -1)):
        assert {k: row[k] for k in ('usage', 'perplexity', 'dead_codes')} == {k: v for k, v in counts_health(code_counts(codes, 64)).items() if k in row and k in ('usage', 'perplexity', 'dead_codes')}
        assert row['usage_by_process'] == [row['usage']]


def test_frequencies_are_drawn_for_dead_and_live_codes():
    figure = plot_frequencies(dict(alive=torch.full((16,), 5), dead=torch.tensor([9] + [0]*15)))
    lengths = [len(line.get_xdata()) for line in figure.axes[0].lines]
    assert lengths == [16, 1, 16]
    plt.close(figure)


def _worker(rank, world, file, out):
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=world)
    counts, usage = usage_by_process(torch.tensor([4, 0, 0, 0]) if rank else torch.tensor([1, 2, 0, 1]))
    torch.save([counts, torch.tensor(usage)], f'{out}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_usage_of_every_process_and_of_all(tmp_path):
    torch.multiprocessing.spawn(_worker, (2, tmp_path/'store', tmp_path), nprocs=2)
    for rank in (0, 1):
        counts, usage = torch.load(tmp_path/f'{rank}.pt', weights_only=True)
        assert counts.tolist() == [5, 2, 0, 1] and usage.tolist() == [0.75, 0.25]
    assert code_perplexity(counts) > code_perplexity(torch.tensor([4, 0, 0, 0]))


@pytest.mark.parametrize('which', ['dvae', 'joint'])
def test_other_learners_can_be_watched(which, one_thread):
    "A dVAE, which has no layer of its own for its words, and words that are learnt together with a trunk."
    from beit_lab.codebook.dvae import dvae_config, dvae_learner
    from beit_lab.pretrain.joint import JointConfig, joint_learner
    from beit_lab.pretrain.objectives import MIMConfig
    from beit_lab.trunk.sizes import trunk_config
    images, stats = (torch.rand(16, 3, 32, 32, generator=generator('watched'))*255).byte(), CodebookStats(every=2)
    if which == 'dvae': learn = dvae_learner(images, dvae_config('nano'), 4, batch_size=4, cbs=[stats])
    else:
        task = MIMConfig(trunk_config('pico', embed_dim=32, depth=1, num_heads=2), 64, 'visible', 'random', 0.75, decoder_dim=32)
        learn = joint_learner(images, images, JointConfig(tokenizer_config('nano'), task), TrainConfig(4, 4, 1e-3, warmup_steps=1, piece=4), cbs=[stats])
    train(learn)
    assert [row['step'] for row in stats.rows] == ([2, 4] if which == 'dvae' else [2]) and all(0 < row['usage'] <= 1 for row in stats.rows)
