"The attention explorer without a browser: rows against the tables, experts against what really runs, rollout against paper and pencil."
import gc, json, weakref

import numpy as np
import pytest
import torch

from beit_lab.core import ConfigError, DataError, WeightsError
from beit_lab.data.language import exact_caption
from beit_lab.data.scenes import scene
from beit_lab.data.sources import open_source
from beit_lab.show.attention import (AttentionExplorer, PickTiles, caption_of, experts_svg, explore_attention, head_tiles, heat_fill, shares_html, word_tiles)
from beit_lab.show.pair_maps import (_flowed, _position, _runs, expert_letters, load_reader, NOT_ATTRIBUTION, pair_maps, sentence_ids, show_pair_attention,
                                     spelt_words)
from beit_lab.show.patch_grid import figure_picture
from beit_lab.trunk.maps import attention_maps
from beit_lab.trunk.sizes import trunk

SCENE = scene(20_000_024, most=2, plain=True)
ASKING = exact_caption(SCENE).replace('purple', '___')


@pytest.fixture(scope='module')
def reader(): return load_reader()


@pytest.fixture(scope='module')
def pair(reader): return pair_maps(reader, SCENE, ASKING)


@pytest.fixture
def explorer(pair):
    made = AttentionExplorer(pair, ('language', pair.pieces.index('___')), told='tiny')
    yield made
    made.close()


def test_row_is_the_row_of_the_table(reader, pair):
    ids = torch.tensor([sentence_ids(reader, ASKING)])
    maps = attention_maps(reader.model.trunk, dict(vision=dict(pixels=reader.pixels([SCENE.image])), language=dict(tokens=ids)))
    for head in (None, 0, 3):
        for query, i in ((('vision', 0), 0), (('vision', (2, 5)), 1 + 2*8 + 5), (('language', 4), 65 + 4)):
            table = maps[3][0].mean(0) if head is None else maps[3][0, head]
            row = pair.row(query, 3, head)
            assert torch.allclose(torch.cat([torch.tensor([row.class_token]), row.patches.flatten(), row.words]), table[i], atol=1e-6)
            assert _position(pair, query) == i


def test_modalities_share_one_look(pair):
    for layer in (1, 4, 'mean', 'rollout'):
        row = pair.row(('language', 3), layer)
        assert row.vision + row.language == pytest.approx(1, abs=1e-4)
        assert row.top == pytest.approx(max(row.patches.max(), row.words.max(), row.class_token))
    assert pair.alike == pytest.approx(len(pair.pieces)/(65 + len(pair.pieces)))


def test_mean_of_heads_and_of_blocks(pair):
    query = ('vision', (1, 1))
    assert torch.allclose(pair.row(query, 2).words, torch.stack([pair.row(query, 2, head).words for head in range(4)]).mean(0), atol=1e-6)
    assert torch.allclose(pair.row(query, 'mean').words, torch.stack([pair.row(query, layer).words for layer in (1, 2, 3, 4)]).mean(0), atol=1e-6)


@pytest.mark.parametrize('depth', [1, 2, 5])
def test_rollout_of_even_looks_in_closed_form(depth):
    "All positions alike in every block: 2**-L stays with the position itself, the rest is spread evenly."
    even = trunk('pico', image_size=16, patch_size=4, embed_dim=32, depth=depth, num_heads=4)
    for block in even.blocks: block.attention.qkv.weight.data[:32] = 0                      # no queries
    row = pair_maps(even, torch.rand(3, 16, 16)).row(('vision', (2, 3)), 'rollout')
    expected = torch.full((4, 4), (1 - 0.5**depth)/17)
    assert row.class_token == pytest.approx((1 - 0.5**depth)/17, abs=1e-6)
    expected[2, 3] += 0.5**depth
    assert torch.allclose(row.patches, expected, atol=1e-6)


def test_rollout_of_two_known_tables(pair):
    "Two blocks by hand: (I + A2)/2 times (I + A1)/2."
    from dataclasses import replace
    maps = replace(pair.maps, weights=pair.maps.weights[:2], layers=(1, 2))
    a, b = (pair.maps.weights[i, 0].double().mean(0).numpy() for i in (0, 1))
    eye = np.eye(len(a))
    expected = (eye + b)/2 @ ((eye + a)/2)
    row = replace(pair, maps=maps).row(('language', 2), 'rollout')
    assert np.allclose(row.words.numpy(), expected[65 + 2, 65:], atol=1e-6)


@pytest.mark.parametrize('attention', ['shared', 'decoupled'])
@pytest.mark.parametrize('joint', [0, 2])
@pytest.mark.parametrize('present', [('vision', 'language'), ('vision',), ('language',)])
def test_letters_name_the_expert_that_ran(attention, joint, present):
    model = trunk('pico', image_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, vocab_size=12, max_words=8,
                  modalities=('vision', 'language'), attention=attention, joint_layers=joint).eval()
    batch = dict(vision=dict(pixels=torch.rand(1, 3, 16, 16)), language=dict(tokens=torch.tensor([[0, 5, 6, 2]])))
    batch = {name: batch[name] for name in present}
    sizes = {name: s.states.shape[1] for name, s in model.embed(batch).items()}
    ran, hooks = [{} for _ in model.blocks], []
    for note, block in zip(ran, model.blocks):
        for name, expert in block.experts.items():
            hooks.append(expert.register_forward_hook(lambda m, args, out, note=note, name=name: note.update({name: args[0].shape[1]})))
    with torch.no_grad(): model.encode(model.embed(batch))
    for hook in hooks: hook.remove()
    named = [{k: row.count(letter) for k, letter in dict(vision='V', language='L', joint='VL').items() if letter in row} for row in expert_letters(model, sizes)]
    assert named == ran


def test_blank_is_read_as_a_mask(reader, pair):
    assert pair.pieces.count('___') == 1
    assert sentence_ids(reader, ASKING).count(reader.words.mask_id) == 1
    assert sentence_ids(reader, 'a [MASK] star') == sentence_ids(reader, 'a ___ star')


def test_words_that_are_spelt(reader):
    assert spelt_words(reader, 'a red star, in front of a mint gradient') == ()
    assert [word for word, _ in spelt_words(reader, 'a zebra and a ___ quokka')] == ['zebra', 'quokka']


def test_item_brings_its_caption():
    item = open_source('emoji', 'test')[6]
    assert caption_of(SCENE) == exact_caption(SCENE) and caption_of(item) == item['caption'][0]
    assert caption_of(SCENE.image) == '' and caption_of(dict(image=SCENE.image)) == ''


def test_strip_has_a_shape_and_a_letter_for_each_expert(pair):
    svg = experts_svg(pair, ('language', 2), 4)
    squares, circles, diamonds = (svg.count(sign) for sign in ('h4', 'a2', 'l3'))
    assert svg.count('<path') == 8 and min(squares, circles, diamonds) > 0
    assert svg.count('>V<') == 3 and svg.count('>L<') == 3 and svg.count('>VL<') == 2
    assert _runs(('V', 'V', 'L', 'L'), 2) == [('V', 0, 2), ('L', 2, 4)] and _runs(('VL',)*4, 3) == [('VL', 0, 3), ('VL', 3, 4)]


def test_tiles_wrap_and_carry_shares(pair):
    row = pair.row(('language', 1), 2)
    tiles = word_tiles(pair, row, 2)
    assert [tile['text'] for tile in tiles] == ['class token', *pair.pieces]
    assert sum(float(tile['note']) for tile in tiles[1:]) == pytest.approx(100*row.language, abs=0.1*len(tiles))
    assert tiles[0]['told'].endswith('expert V') and tiles[1]['told'].endswith('expert L') and word_tiles(pair, row, 4)[1]['told'].endswith('expert VL')
    assert len(head_tiles(pair, ('vision', 0), 1)) == 5 and len(head_tiles(pair, ('vision', 0), 'rollout')) == 1
    assert _flowed(['abc', 'abcdefghij'], 12) == [(0, 0, 4.6), (1, 0, 10.6)]
    assert heat_fill(0)['ink'] != heat_fill(1)['ink']
    assert '<script' not in shares_html(pair_maps(load_reader(), SCENE, 'a <script>alert(1)</script> star'), row)


def test_still_has_every_head(pair):
    figure = show_pair_attention(pair, ('vision', (1, 2)), 2, head=1)
    labels = [ax.get_xlabel() for sub in figure.subfigs for ax in sub.axes]
    assert [label for label in labels if label.startswith('head')] == [f'head {i}: words {100*pair.row(("vision", (1, 2)), 2, i).language:.0f} %' for i in range(4)]
    assert figure_picture(figure).width > 600


def test_explorer_follows(explorer, pair):
    explorer.words.picked = 4
    assert explorer.query == ('language', 3) and explorer.picture.locked == -1
    explorer.heat.locked = 19
    assert explorer.query == ('vision', (2, 3)) and explorer.picture.locked == 19 and explorer.words.picked == -1
    explorer.layer.value, explorer.heads.picked = 2, 3
    assert torch.equal(explorer.row.patches, pair.row(('vision', (2, 3)), 2, 2).patches)
    assert explorer.heat.heat == pytest.approx((explorer.row.patches.flatten()/explorer.row.top).tolist())
    assert f'{100*explorer.row.language:.1f} %' in explorer.shares.value
    explorer.heat.hover = 10
    assert explorer.heat.caption.startswith('row 2, column 3')
    explorer.picture.locked = -1
    assert explorer.query == ('vision', 0) and explorer.words.picked == 0
    assert explorer.problem is None


def test_one_row_at_a_time(explorer, pair):
    "No message carries more than a row: a table of these positions would have thousands of numbers."
    sent = []
    for widget in (explorer.picture, explorer.heat, explorer.words, explorer.heads):
        widget.observe(lambda change: sent.append(change['new']), names=list(widget.keys))
    explorer.ask(('vision', (4, 4)))
    numbers = lambda value: sum(map(numbers, value)) if isinstance(value, list) else 1
    assert sent and max(map(numbers, sent)) <= sum(pair.maps.sizes.values())


def test_two_explorers_do_not_disturb_each_other(pair):
    a, b = (AttentionExplorer(pair, ('vision', (0, 0))) for _ in range(2))
    a.picture.locked = 30
    assert b.query == ('vision', (0, 0)) and b.picture.locked == 0
    a.close()
    b.picture.locked = 31
    assert b.query == ('vision', (3, 7)) and b.problem is None
    b.close()


def test_close_frees_the_tables(reader):
    explorer = AttentionExplorer(pair_maps(reader, SCENE, ASKING), ('vision', (0, 0)))
    tables = weakref.ref(explorer.held['pair'].maps)
    explorer.close()
    gc.collect()
    assert tables() is None and explorer.picture.comm is None


def test_widget_has_a_still_and_a_sentence(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert data['image/png'] and NOT_ATTRIBUTION in data['text/plain'] and 'words' in data['text/plain']
    assert explorer.snapshot().width > 600


def test_picture_alone_with_the_trunk_of_emoji():
    explorer = explore_attention(weights='emoji')
    assert explorer.pair.pieces == () and explorer.query == ('vision', (4, 4))
    assert len(explorer.words.tiles) == 1 and 'words' not in explorer.told().split('.')[0]
    explorer.close()


@pytest.mark.parametrize('wrong, said', [(dict(image='nowhere.png'), 'no such file'), (dict(weights='nothing'), "no tokenizer in 'nothing'"),
                                         (dict(image=SCENE, caption='a star', weights='emoji'), 'reads no words'), (dict(caption='star '*80), 'shorten it'),
                                         (dict(query=('language', 99)), '99'), (dict(image=np.zeros((2, 3, 4, 5, 6), np.uint8)), 'a picture is'),
                                         (dict(layer=9), 'no map of block 9'), (dict(image=object()), 'a picture is')])
def test_bad_input_is_one_sentence(wrong, said):
    notice = explore_attention(**wrong)
    assert not isinstance(notice, AttentionExplorer) and said in notice.told() and '\n' not in notice.told()


def test_refusals(reader, pair):
    with pytest.raises(ConfigError, match='heads 0 to 3'): pair.row(('vision', 0), 1, head=4)
    with pytest.raises(ConfigError, match='reads no words'): pair_maps(reader.model.trunk, SCENE, 'a star')
    with pytest.raises(WeightsError, match='reads no words'): load_reader('scenes')
    with pytest.raises(DataError, match='empty'): sentence_ids(reader, '  ')


def test_page_fetches_nothing():
    for text in (PickTiles._esm, PickTiles._css): assert 'http' not in str(text) and 'import ' not in str(text) and 'url(' not in str(text)
