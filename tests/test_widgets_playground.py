"The playground without a browser: holes on one side are what the reader says, words and patches follow, and bad input is a sentence."
import gc, weakref

import pytest
import torch

from beit_lab.core import ConfigError, DataError
from beit_lab.data.language import exact_caption
from beit_lab.data.scenes import scene
from beit_lab.pretrain.evidence import box_patches
from beit_lab.show.holes import (answer_blanks, Choice, colour_words, known_colours, paint_patches, play, say_colours, show_playground, swap_word, word_choices)
from beit_lab.show.pair_maps import load_reader
from beit_lab.show.patch_grid import figure_picture
from beit_lab.show.playground import choices_html, holes_told, model_told, Playground, playground

SCENE = scene(20_000_016, most=2, plain=True)
SAID = exact_caption(SCENE)                                                 # a large red moon in the middle, in front of a rosy gradient
MASK = box_patches([SCENE], (8, 8))[0][0]


@pytest.fixture(scope='module')
def reader(): return load_reader()


@pytest.fixture
def ground(reader):
    made = Playground(reader, SCENE, SAID.replace('rosy', '___'), MASK)
    yield made
    made.close()


def test_blanks_alone_are_what_the_reader_fills(reader):
    text = 'a large ___ moon in the [MASK]'
    filled = reader.fill(text, SCENE.image, best=3)
    for ours, theirs in zip(word_choices(reader, SCENE, None, text, 3), filled.choices):
        assert [c.word for c in ours] == [word for word, _ in theirs]
        assert [c.seen for c in ours] == pytest.approx([p for _, p in theirs], abs=1e-5)
    blind = reader.fill(text, best=400).choices[0]
    for c in word_choices(reader, SCENE, None, text, 3)[0]: assert c.blind == pytest.approx(dict(blind)[c.word], abs=1e-5)


def test_holes_alone_are_what_the_reader_paints(reader):
    painted, = paint_patches(reader, SCENE, MASK, [SAID])
    assert torch.allclose(painted.picture, reader.paint(SCENE.image, MASK, SAID), atol=1e-6)
    visible = ~MASK.repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(painted.picture[:, visible], reader.pixels([SCENE.image])[0][:, visible])
    assert painted.hidden == int(MASK.sum()) and torch.equal(painted.tokens[~MASK], reader.tokens(SCENE.image)[~MASK])
    assert painted.right == int((painted.tokens == reader.tokens(SCENE.image))[MASK].sum())


def test_what_is_hidden_is_not_seen(reader):
    "Another picture under the hidden patches changes no answer."
    other = SCENE.image.copy()
    cover = MASK.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    other[cover] = 255 - other[cover]
    text = 'a large ___ moon in the middle'
    for a, b in zip(answer_blanks(reader, SCENE.image, MASK, [text]), answer_blanks(reader, other, MASK, [text])):
        assert torch.allclose(a[0], b[0], atol=1e-5)
    assert not torch.allclose(answer_blanks(reader, SCENE.image, None, [text])[1][0], answer_blanks(reader, other, None, [text])[1][0], atol=1e-2)


def test_sentences_of_a_batch_do_not_touch_each_other(reader):
    texts = [SAID, 'a ___ moon', 'a ___ star and a ___ ring on the left, in front of a sandy gradient']
    together = answer_blanks(reader, SCENE, MASK, texts)
    assert [len(words) for words in together[1]] == [0, 1, 2]
    for i, text in enumerate(texts):
        alone = answer_blanks(reader, SCENE, MASK, [text])
        assert torch.allclose(together[0][i], alone[0][0], atol=1e-4)
        assert torch.allclose(together[1][i], alone[1][0], atol=1e-4)


@pytest.mark.parametrize('sentence, places, swapped', [('a red star', [(2, 5)], 'an orange star'), ('An orange, RED thing', [(3, 9), (11, 14)], None),
                                                       ('a reddish star', [], None), ('', [], None), ('the blue one', [(4, 8)], 'the orange one')])
def test_colour_words_are_found_and_swapped(reader, sentence, places, swapped):
    assert list(colour_words(reader, sentence)) == places
    if swapped: assert swap_word(sentence, places[0], 'orange') == swapped


def test_article_goes_back(): assert swap_word('an orange star', (3, 9), 'red') == 'a red star'


def test_patches_follow_the_word(reader):
    "The painted thing is nearer to the colour that was said than to the others, for most colours."
    from beit_lab.data.drawing import COLOURS
    said = say_colours(reader, SCENE, MASK, SAID, colour_words(reader, SAID)[0])
    assert tuple(said) == known_colours(reader) == tuple(COLOURS)
    wanted, nearest = torch.tensor(list(COLOURS.values())), []
    for painted in said.values():
        inside = painted.picture[:, 20:44, 28:48].reshape(3, -1)
        vivid = inside[:, inside.std(0).topk(60).indices].mean(1)                            # the most colourful pixels of the hole
        nearest.append(int((wanted - vivid).norm(dim=1).argmin()))
    assert sum(a == i for i, a in enumerate(nearest)) >= 6


def test_play_fills_the_sentence(reader):
    played = play(reader, SCENE, None, 'a large ___ moon in the [MASK], in front of a __ gradient')
    assert played.filled == SAID and len(played.choices) == 3 and played.painted.hidden == 0
    assert 'no patch is hidden' in str(played)
    assert play(reader, SCENE, MASK, SAID).choices == ()
    assert torch.equal(play(reader, SCENE, MASK, SAID).truth, reader.pixels([SCENE.image])[0])


@pytest.mark.parametrize('blanks', [0, 1, 4])
def test_still(reader, blanks):
    sentence = ' '.join(['a', *['___']*blanks, 'moon'])
    figure = show_playground(reader, SCENE, MASK, sentence)
    titles = [ax.get_xlabel() for sub in figure.subfigs for ax in sub.axes]
    assert titles[:2] == ['truth', '30 patches hidden'] and sum(title.startswith('blank') for title in titles) == blanks
    assert figure_picture(figure).width > 600


def test_bars_carry_words_and_numbers():
    text = choices_html(((Choice('<i>', 0.5, 0.25), Choice('b', 0.25, 0.)),))
    assert '<i>' not in text and '&lt;i&gt;' in text and '50 %' in text and 'width:50.0%' in text and 'left:25.0%' in text


def test_notes(reader):
    told = lambda mask, sentence: holes_told(reader, play(reader, SCENE, mask, sentence))
    assert told(None, SAID).startswith('Nothing is hidden') and told(MASK, SAID) == ''
    assert 'one or the other' in told(MASK, 'a ___ moon') and told(None, 'a ___ moon') == ''
    assert "'zebra' is no word" in told(MASK, 'a zebra')
    assert 'tiny' in model_told(reader, 'scenes_pairs') and 'drawn scenes' in model_told(reader, 'scenes_pairs') and 'emoji' in model_told(reader, 'emoji_pairs')


def test_widget_follows(ground):
    red = ground.played.painted.picture
    ground.colours.picked = [tile['text'] for tile in ground.colours.tiles].index('blue')
    assert 'large blue moon' in ground.sentence.value and (ground.played.painted.picture - red).abs().max() > 0.3
    before = ground.predicted.image
    ground.hidden.mask = [True]*64
    assert ground.played.painted.hidden == 64 and ground.predicted.image != before and '64 of 64' in ground.hidden.caption
    ground.bare.click()
    assert ground.played.painted.hidden == 0 and ground.colours.tiles == []
    ground.block.click()
    first = ground.hidden.mask
    ground.block.click()
    assert sum(first) == sum(ground.hidden.mask) and first != ground.hidden.mask
    ground.again.click()
    assert torch.equal(ground.hidden.get_mask(), MASK) and ground.sentence.value == SAID.replace('rosy', '___') and ground.problem is None


def test_several_colour_words_can_be_chosen(ground):
    ground.sentence.value = 'a red star on the left and a blue moon on the right'
    assert [label for label, _ in ground.word.options] == ['red (word 2)', 'blue (word 9)']
    ground.word.index = 1
    assert [tile['text'] for tile in ground.colours.tiles if tile['note']] == ['blue']
    ground.colours.picked = 1
    assert ground.sentence.value == 'a red star on the left and an orange moon on the right' and ground.word.index == 1


def test_mistakes_are_sentences_and_pass(ground):
    ground.sentence.value = ' '
    assert 'empty' in ground.message.value and isinstance(ground.problem, DataError)
    ground.sentence.value = 'star '*80
    assert 'shorten it' in ground.message.value
    ground.sentence.value = 'a ___ moon'
    assert ground.message.value == '' and ground.problem is None


def test_two_grounds_do_not_disturb_each_other(reader):
    a, b = (Playground(reader, SCENE, SAID, MASK) for _ in range(2))
    a.sentence.value, a.hidden.mask = 'a ___ moon', [False]*64
    assert b.sentence.value == SAID and b.played.painted.hidden == 30
    a.close()
    b.sentence.value = 'a large ___ moon'
    assert len(b.played.choices) == 1 and b.problem is None
    b.close()


def test_close_frees_what_it_held(reader):
    ground = Playground(reader, SCENE, SAID, MASK)
    played = weakref.ref(ground.held['played'])
    data, _ = ground._repr_mimebundle_()
    assert data['image/png'] and 'patches painted' in data['text/plain']
    ground.close()
    gc.collect()
    assert played() is None and ground.hidden.comm is None and ground.held == {}


def test_emoji():
    ground = playground(weights='emoji_pairs')
    assert len(ground.played.choices) == 1 and ground.played.mask.shape == (8, 8) and 'emoji' in ground.children[0].value
    ground.close()


@pytest.mark.parametrize('wrong, said', [(dict(image='nowhere.png'), 'no such file'), (dict(weights='nothing'), 'no tokenizer in'), (dict(weights='scenes'), 'reads no words'),
                                         (dict(sentence='star '*80), 'shorten it'), (dict(sentence=''), 'empty'), (dict(mask=torch.ones(4, 4)), 'does not fit a grid')])
def test_bad_input_is_one_sentence(wrong, said):
    notice = playground(**wrong)
    assert not isinstance(notice, Playground) and said in notice.told() and '\n' not in notice.told()


def test_broken_picture(tmp_path):
    (tmp_path/'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b'nothing')
    assert 'broken.png' in playground(tmp_path/'broken.png', 'a ___ star').told()


def test_refusals(reader):
    with pytest.raises(ConfigError, match='does not fit a grid'): play(reader, SCENE, torch.ones(4, 4), SAID)
    with pytest.raises(DataError, match='at least one'): answer_blanks(reader, SCENE, None, [])
