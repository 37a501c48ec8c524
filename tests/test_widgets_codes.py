"The codebook explorer, without a browser."
import matplotlib.pyplot as plt
import pytest, torch

from beit_lab.codebook.autoencode import VQVAE, tokenizer_config
from beit_lab.core import ConfigError, DataError
from beit_lab.data.sources import open_source
from beit_lab.show.codes import (CodeExplorer, CodeIndex, changed_patches, code_atlas, explore_codes, index_codes, nearest_to_code, paint_codes, show_explore_codes, swap_token, usage_chart,
                                 uses_atlas)
from beit_lab.show.patch_grid import Notice, load_weights


@pytest.fixture(scope='module')
def tokenizer(): return load_weights('emoji').tokenizer


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    return VQVAE(tokenizer_config('nano')).eval()


@pytest.fixture
def tiny():
    "Three pictures of 2x2 tokens; code 3 is dead."
    tokens = torch.tensor([[[0, 0], [1, 2]], [[0, 1], [1, 1]], [[2, 2], [2, 0]]])
    return CodeIndex(torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8), tokens, 4)


def test_index_by_hand(tiny):
    assert tiny.counts.tolist() == [4, 4, 4, 0] and tiny.ranked.tolist() == [0, 1, 2, 3] and tiny.rank(3) == 4
    assert tiny.places(0) == [(0, 0, 0), (1, 0, 0), (2, 1, 1)] and tiny.places(1) == [(0, 1, 0), (1, 0, 1)] and tiny.places(2, 1) == [(0, 1, 1)]
    assert tiny.places(3) == []


def test_places_are_where_the_code_is(tokenizer):
    index = index_codes(tokenizer, open_source('emoji', 'test'), 32, at_most=60)
    assert index.tokens.shape == (60, 8, 8) and torch.equal(index.tokens, tokenizer.encode(index.images))
    for code in index.ranked[:200].tolist():
        places = index.places(code)
        assert all(int(index.tokens[place]) == code for place in places) and len({n for n, _, _ in places}) == len(places) <= 12
        assert bool(places) == bool(index.counts[code])


@pytest.mark.parametrize('data', [torch.rand(5, 3, 40, 40), torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8), [torch.rand(3, 9, 9)]*5, [dict(image=torch.rand(3, 32, 32))]*5, 'scenes:5', open_source('scenes:7')])
def test_any_data(small, data): assert len(index_codes(small, data, 32, at_most=5).images) == 5


@pytest.mark.parametrize('data,error', [([], DataError), ('nowhere', DataError), (torch.rand(2, 3, 8, 8)*9, DataError)])
def test_no_data(small, data, error):
    with pytest.raises(error): index_codes(small, data, 32)


def test_tiles_and_neighbours(small):
    assert torch.allclose(paint_codes(small), small.code_tiles(), atol=1e-5)
    found = nearest_to_code(small, 5, best=63)
    distance = (small.codebook - small.codebook[5]).norm(dim=-1)
    assert [k for k, _ in found] == [k for k in distance.argsort().tolist() if k != 5]
    with pytest.raises(ConfigError): nearest_to_code(small, 64)


def test_atlas_is_in_reading_order(small):
    tiles, p = paint_codes(small), small.patch_size
    atlas = code_atlas(tiles, [7, 3, 9], (2, 2))
    assert torch.equal(atlas[:, :p, :p], tiles[7]) and torch.equal(atlas[:, :p, p:], tiles[3]) and torch.equal(atlas[:, p:, :p], tiles[9]) and (atlas[:, p:, p:] == 1).all()


def test_uses_show_the_patch_in_the_middle(tiny):
    tiny.images.zero_()
    tiny.images[0, :, 4:, 4:] = 200                                              # the patch at row 1, column 1 of picture 0
    atlas = uses_atlas(tiny, [(0, 1, 1)], (1, 2))
    side = atlas.shape[-2]
    assert atlas.shape == (3, side, 2*side) and atlas[0, side//2, side//2] == pytest.approx(200/255) and (atlas[:, :, side:] == 1).all()
    assert uses_atlas(tiny, [], (1, 2)).shape == atlas.shape


def test_chart_tells_dead_codes_and_perplexity(tiny):
    chart = usage_chart(tiny, 2)
    assert '1 dead' in chart and 'perplexity 3' in chart and '3 of 4 codes are used' in chart and chart.count('<circle') == 1
    alone = CodeIndex(tiny.images, torch.zeros(3, 2, 2, dtype=torch.long), 1)
    assert '0 dead' in usage_chart(alone) and 'perplexity 1' in usage_chart(alone, 0)


def test_swapping():
    tokens = torch.tensor([[1, 2], [1, 3]])
    assert swap_token(tokens, 0, 9).tolist() == [[9, 2], [1, 3]] and swap_token(tokens, 0, 9, everywhere=True).tolist() == [[9, 2], [9, 3]] and tokens[0, 0] == 1
    with pytest.raises(ConfigError): swap_token(tokens, 4, 9)
    before, after = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    after[1, 3, 0] = 0.5
    assert changed_patches(before, after, (2, 2)) == [2] and changed_patches(before, before, (2, 2)) == []


@pytest.fixture(scope='module')
def explorer(tokenizer):
    explorer = explore_codes(data='scenes:30')
    assert isinstance(explorer, CodeExplorer), explorer.told()
    yield explorer
    explorer.close()
    assert explorer.held == {}


def test_pointer_beats_pick_and_leaving_returns(explorer):
    explorer.words.locked = 20
    chosen = explorer.code
    assert chosen == int(explorer.held['tokens'].flatten()[20]) and 20 in explorer.words.outlined and explorer.words.outlined == explorer.picture.outlined
    explorer.gallery.hover = 7
    assert explorer.code == explorer.shown[7] and explorer.gallery.outlined == [7]
    explorer.gallery.hover = -1
    assert explorer.code == chosen and f'code {chosen}' in explorer.about.value and f'code {chosen}' in explorer.uses_words.value


def test_pages_hold_every_code_once(explorer):
    for order in explorer.order.options:
        explorer.order.value = order
        seen = []
        for page in range(4):
            explorer.turn(page)
            seen += explorer.shown
        assert sorted(seen) == list(range(512)) and explorer.after.disabled and not explorer.before.disabled
    explorer.turn(99)
    assert explorer.page == 3
    explorer.order.value = 'most used first'
    dead = [label for label in explorer.gallery.labels]
    assert explorer.page == 0
    explorer.turn(3)
    assert explorer.gallery.labels[-1] == '×' and '×' not in dead[:8]
    explorer.find.value = 300
    assert explorer.code == 300 and 300 in explorer.shown


def test_put_and_take_back(explorer):
    explorer.turn(0)
    explorer.words.locked, explorer.gallery.locked = 27, -1
    assert explorer.swap.disabled
    place_for = next(i for i, code in enumerate(explorer.shown) if code != explorer._code_at(27))
    explorer.gallery.locked = place_for
    assert not explorer.swap.disabled
    before, code = explorer.decoded.image, explorer.shown[place_for]
    explorer.swap.click()
    assert explorer._code_at(27) == code and explorer.decoded.image != before and explorer.words.labels[27] == f'{code}*' and explorer.decoded.outlined == [27]
    assert explorer.swap.disabled and not explorer.undo.disabled
    expected = explorer.held['tokenizer'].decode(swap_token(explorer.held['tokens'], 27, code)[None])[0]
    from beit_lab.show.patch_grid import picture_bytes
    assert explorer.decoded.image == picture_bytes(expected)
    explorer.undo.click()
    assert explorer.decoded.image == before and explorer.undo.disabled


def test_blank_tiles_of_the_last_page_are_nothing(tokenizer):
    explorer = explore_codes(data='scenes:5', page=(5, 15))
    explorer.turn(99)
    assert len(explorer.shown) == 512 % 75
    code = explorer.code
    explorer.gallery.hover = 74
    explorer.gallery.locked = 74
    assert explorer.code == code and explorer.swap.disabled and explorer.problem is None


@pytest.mark.parametrize('arguments,words', [(dict(image='nowhere.png'), 'no such file'), (dict(data='nowhere'), "no 'nowhere'"), (dict(weights='nowhere'), 'no tokenizer'), (dict(image_size=33), '33'), (dict(data=[]), 'empty')])
def test_bad_input_is_a_sentence(arguments, words):
    notice = explore_codes(**arguments)
    assert isinstance(notice, Notice) and words in notice.told()


def test_any_tokenizer_and_the_twin(small):
    explorer = explore_codes(torch.rand(3, 40, 60), data=torch.rand(6, 3, 32, 32), weights=small)
    assert isinstance(explorer, CodeExplorer) and explorer.held['tokens'].shape == (8, 8)
    open_before = plt.get_fignums()
    assert explorer.snapshot().width > 600 and plt.get_fignums() == open_before
    figure = show_explore_codes(torch.rand(3, 32, 32), data=torch.rand(6, 3, 32, 32), weights=small, code=3)
    assert [ax.get_xlabel() for ax in figure.axes][:5] == ['picture', 'tokens', 'decoded', 'the most used codes', 'code 3 in other pictures']
    plt.close(figure)
