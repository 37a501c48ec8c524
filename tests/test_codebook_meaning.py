"What codes mean: patches that share one, marks, neighbours, ways between pictures, edits, places; each against a plain loop."
import itertools, math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from beit_lab.codebook.autoencode import VQVAE
from beit_lab.codebook.meaning import between, chance_bits, explained_by_codes, mark_code, nearest_neighbours, patches_of, place_bits, replace_words
from beit_lab.core import ConfigError, generator, samples
from beit_lab.data.sources import split_source


@pytest.fixture(scope='module')
def tokenizer(): return VQVAE.from_pretrained(samples('weights/emoji/tokenizer'))


@pytest.fixture(scope='module')
def pictures(): return split_source('emoji')[1].images(32)[:40]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), size=st.integers(1, 4), codes=st.integers(1, 6), around=st.integers(0, 2), seed=st.integers(0, 999))
def test_patches_of_a_code(count, size, codes, around, seed):
    rng, p = generator(seed), 3
    images = torch.rand(count, 3, size*p, size*p, generator=rng)
    tokens = torch.randint(codes, (count, size, size), generator=rng)
    found = patches_of(images, tokens, 0, most=10**6, around=around)
    plain = [images[n, :, p*r:p*r + p, p*c:p*c + p] for n in range(count) for r in range(size) for c in range(size) if tokens[n, r, c] == 0]
    assert len(found) == len(plain) and found.shape[2:] == (p*(2*around + 1),)*2
    for patch, centre in zip(found, plain): assert torch.allclose(patch[:, p*around:p*around + p, p*around:p*around + p], centre)
    assert len(patches_of(images, tokens, 0, most=2)) == min(2, len(plain))


def test_marks_leave_their_patches_and_fade_the_rest(pictures, tokenizer):
    tokens = tokenizer.encode(pictures[:1])[0]
    code = tokens[4, 4]
    marked, truth = mark_code(pictures[0], tokens, code), pictures[0]/255
    here = (tokens == code).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(marked[:, here], truth[:, here]) and torch.allclose(marked[:, ~here], 0.2*truth[:, ~here] + 0.8*0.6)


def test_neighbours_by_a_plain_loop():
    book = torch.randn(20, 4, generator=generator('book'))
    for code, row in zip(range(20), nearest_neighbours(book, torch.arange(20), 5)):
        assert row.tolist() == sorted((k for k in range(20) if k != code), key=lambda k: (book[k] - book[code]).norm().item())[:5]
    with pytest.raises(ConfigError, match='19 neighbours'): nearest_neighbours(book, torch.arange(2), 20)


@pytest.mark.parametrize('spoken', [False, True])
def test_ways_begin_and_end_at_the_pictures(tokenizer, pictures, spoken):
    first, second = tokenizer.encode(pictures[:2])
    way = between(tokenizer, first, second, 5, spoken)
    assert way.shape == (5, 3, 32, 32) and torch.allclose(way[[0, -1]], tokenizer.decode(torch.stack([first, second])), atol=1e-5)
    assert 0 <= way.min() and way.max() <= 1


def test_words_are_replaced_all_at_once():
    tokens = torch.tensor([[1, 2], [3, 1]])
    assert torch.equal(replace_words(tokens, {1: 2, 2: 3, 3: 1}), torch.tensor([[2, 3], [1, 2]])) and torch.equal(tokens, torch.tensor([[1, 2], [3, 1]]))


def test_codes_explain_patches(tokenizer, pictures):
    tokens = tokenizer.encode(pictures)
    assert 0.7 < explained_by_codes(pictures, tokens, 512) < 1
    assert explained_by_codes(pictures, torch.zeros_like(tokens), 512) == pytest.approx(0, abs=1e-5)
    assert explained_by_codes(pictures, torch.arange(tokens.numel()).view_as(tokens), tokens.numel()) == pytest.approx(1, abs=1e-5)


def test_places():
    tokens = torch.tensor([[[0, 1], [2, 2]], [[0, 1], [1, 2]]])
    bits = place_bits(tokens, 4)
    entropy = lambda *shares: -sum(s*math.log2(s) for s in shares)
    by_hand = [2 - chance_by_hand(2, 4), 2 - entropy(2/3, 1/3) - chance_by_hand(3, 4), 2 - entropy(1/3, 2/3) - chance_by_hand(3, 4)]
    assert bits[:3].tolist() == pytest.approx(by_hand, abs=1e-6) and torch.isnan(bits[3])


def chance_by_hand(uses, places):
    "All ways to put so many uses at places, each as likely as any other."
    found = []
    for way in itertools.product(range(places), repeat=uses):
        shares = [way.count(place)/uses for place in set(way)]
        found.append(math.log2(places) + sum(s*math.log2(s) for s in shares))
    return sum(found)/len(found)


@pytest.mark.parametrize('uses, places', [(1, 4), (2, 4), (5, 3), (6, 4)])
def test_what_chance_shows(uses, places): assert chance_bits(uses, places) == pytest.approx(chance_by_hand(uses, places), abs=1e-9)


def test_random_places_tell_nothing():
    tokens = torch.randint(40, (60, 14, 14), generator=generator('nowhere'))             # 294 uses of each code at 196 places: the naive figure is about half a bit
    bits = place_bits(tokens, 40)
    assert abs(bits.mean()) < 0.02 and bits.abs().max() < 0.2 and chance_bits(294, 196) > 0.4


@pytest.mark.parametrize('kind', ['fsq', 'gumbel', 'lfq', 'vq'])
def test_a_way_in_words_begins_and_ends_where_it_should(kind):
    "Whatever the codebook, a picture's own codes are the nearest to themselves."
    from beit_lab.codebook.autoencode import tokenizer_config
    torch.manual_seed(0)
    model = VQVAE(tokenizer_config('nano', kind=kind)).eval()
    first, second = torch.randint(model.codebook_size, (2, 3, 3), generator=generator('ways', kind))
    way = between(model, first, second, 3, spoken=True)
    assert torch.allclose(way[0], model.decode(first[None])[0], atol=1e-6) and torch.allclose(way[-1], model.decode(second[None])[0], atol=1e-6)
