"The token cache and the numbers of health: right, found again, never out of date."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from beit_lab.codebook.autoencode import VQVAE, tokenizer_config, tokenizer_learner
from beit_lab.codebook.cache import cache_tokens, content_key
from beit_lab.codebook.health import CodebookStats, code_counts, code_entropy, code_perplexity, codebook_health, position_counts, top_share
from beit_lab.core import ConfigError, generator, read_json


@pytest.fixture
def tokenizer(): return VQVAE(tokenizer_config('nano')).eval()


@pytest.fixture
def images(): return torch.randint(0, 256, (30, 3, 16, 16), generator=generator('pictures'), dtype=torch.uint8)


def test_tokens_of_both_views(tokenizer, images):
    cache = cache_tokens(tokenizer, images, batch_size=7)
    assert cache.tokens.shape == (30, 2, 4, 4) and cache.tokens.dtype == torch.int16 and len(cache) == 30 and cache.grid == (4, 4)
    assert torch.equal(cache.tokens[:, 0].long(), tokenizer.encode(images))
    assert torch.equal(cache.tokens[:, 1].long(), tokenizer.encode(images.flip(-1)))
    indices, mirrored = torch.tensor([3, 3, 29]), torch.tensor([True, False, True])
    assert torch.equal(cache.pick(indices, mirrored), tokenizer.encode(torch.stack([images[3].flip(-1), images[3], images[29].flip(-1)])))


def test_large_codebooks_need_32_bits(images):
    class Large:
        codebook, codebook_size = torch.zeros(40_000, 1), 40_000
        def state_dict(self): return {}
        def encode(self, batch): return torch.full((len(batch), 2, 2), 39_999)
    cache = cache_tokens(Large(), images)
    assert cache.tokens.dtype == torch.int32 and (cache.pick(torch.tensor([0]), torch.tensor([False])) == 39_999).all()


@pytest.fixture
def counted(tokenizer, images, tmp_path):
    "A function that tokenizes with a cache in a folder and says how many batches it computed."
    def run(tokenizer=tokenizer, images=images):
        calls = []
        cache_tokens(tokenizer, images, tmp_path/'tokens', progress=lambda step, steps: calls.append(step))
        return len(calls)
    return run


def test_found_again(counted): assert [counted(), counted()] == [1, 0]


def test_another_picture_or_another_order_counts(counted, images):
    counted()
    other = images.clone()
    other[7, 2, 5, 5] ^= 1
    assert [counted(images=other), counted(images=images[torch.arange(29, -1, -1)]), counted(images=images)] == [1, 1, 1]


def test_other_weights_or_settings_count(counted, tokenizer, capsys):
    counted()
    with torch.no_grad(): tokenizer.decoder.linear.bias[0] += 1e-6
    assert counted() == 1 and 'another tokenizer' in capsys.readouterr().out
    same_weights = VQVAE(tokenizer_config('nano', metric='cosine')).eval()
    same_weights.load_state_dict(tokenizer.state_dict())
    assert counted(tokenizer=same_weights) == 1


@pytest.mark.parametrize('damage', [lambda d: (d/'tokens.safetensors').unlink(), lambda d: (d/'tokens.safetensors').write_bytes(b'{}'),
                                    lambda d: (d/'cache.json').write_text('{'), lambda d: (d/'cache.json').write_text('[]'), lambda d: (d/'cache.json').unlink()])
def test_damaged_caches_are_repaired(counted, tmp_path, damage):
    counted()
    damage(tmp_path/'tokens')
    assert [counted(), counted()] == [1, 0]
    assert read_json(tmp_path/'tokens'/'cache.json')['grid'] == [4, 4]


def test_a_failure_leaves_the_old_cache(counted, tokenizer, tmp_path, images):
    counted()
    before = (tmp_path/'tokens'/'tokens.safetensors').read_bytes()
    def stop(*_): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): cache_tokens(tokenizer, images[:5], tmp_path/'tokens', progress=stop)
    assert (tmp_path/'tokens'/'tokens.safetensors').read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['tokens']


def test_key_depends_on_shape_and_type(tokenizer, images):
    keys = {content_key(tokenizer, x) for x in (images, images.view(30, 3, 32, 8), images.float()/255, images[:15])}
    assert len(keys) == 4
    with pytest.raises(ConfigError, match='no pictures'): cache_tokens(tokenizer, images[:0])


# ---- health

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=200))
def test_numbers_against_brute_force(tokens):
    from scipy.stats import entropy
    counts = code_counts(torch.tensor(tokens), 10)
    assert counts.tolist() == [tokens.count(k) for k in range(10)]
    assert code_entropy(counts) == pytest.approx(entropy(counts.numpy(), base=2), abs=1e-9)
    health = codebook_health(torch.tensor(tokens), 10)
    assert health['dead_codes'] == 10 - len(set(tokens)) and health['usage'] == len(set(tokens))/10
    assert 1 - 1e-9 <= health['perplexity'] <= len(set(tokens)) + 1e-9
    assert top_share(counts, 0.2) == pytest.approx(sum(sorted((tokens.count(k) for k in range(10)), reverse=True)[:2])/len(tokens))


def test_perplexity_of_known_codebooks():
    assert code_perplexity(torch.full((37,), 5)) == pytest.approx(37) and code_perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)
    assert code_entropy(torch.zeros(8, dtype=torch.long)) == 0


def test_position_counts_against_a_loop():
    tokens = torch.randint(0, 5, (20, 3, 2), generator=generator('t'))
    expected = torch.stack([torch.stack([(tokens == k)[:, i, j].sum() for i in range(3) for j in range(2)]).view(3, 2) for k in range(5)])
    assert torch.equal(position_counts(tokens, 5), expected)
    assert torch.equal(position_counts(tokens.to(torch.int16), 5), expected)


def test_stats_count_every_token_of_training(images):
    stats, seen = CodebookStats(every=4), []
    learn = tokenizer_learner(images, tokenizer_config('nano'), 12, batch_size=4, cbs=[stats])
    learn.model.quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output.codes))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert [row['step'] for row in stats.rows] == [4, 8, 12] and len(seen) == 12
    for i, row in enumerate(stats.rows):
        expected = codebook_health(torch.stack(seen[4*i:4*i + 4]), 64)
        assert all(row[k] == pytest.approx(expected[k]) for k in ('usage', 'perplexity', 'dead_codes', 'top_1_percent'))
    assert not [h for h in learn.model.quantizer._forward_hooks.values() if getattr(h, '__self__', None) is stats]
