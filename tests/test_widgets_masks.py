"The mask painter, without a browser."
import matplotlib.pyplot as plt
import pytest, torch

from beit_lab.core import ConfigError
from beit_lab.show.masks import MaskPainter, answer_mask, answer_pictures, choose_mask, guess_table, paint_mask, show_paint_mask, top_codes
from beit_lab.show.patch_grid import Notice, any_picture, load_weights, sample_picture


@pytest.fixture(scope='module', params=['emoji', 'scenes', 'scenes_pairs'])
def weights(request): return load_weights(request.param)


@pytest.fixture(scope='module')
def picture(weights): return any_picture(sample_picture(weights.name), weights.image_size)


def test_answers_are_those_of_the_model(weights, picture):
    mask = choose_mask(weights, 'random', 0.5, seed=1)
    answer = answer_mask(weights, picture, mask)
    if hasattr(weights.model, 'head'):                                             # asked directly
        with torch.inference_mode(): expected = weights.model(picture[None], mask[None])[0].softmax(-1)
        assert torch.allclose(answer.probabilities, expected, atol=1e-6)
    assert answer.probabilities.shape == (32, weights.tokenizer.codebook_size)
    assert torch.equal(answer.truth, weights.tokenizer.encode(picture[None])[0])
    assert torch.equal(answer.tokens[mask], answer.probabilities.argmax(-1)) and torch.equal(answer.tokens[~mask], answer.truth[~mask]) and answer.right == int((answer.tokens == answer.truth)[mask].sum())
    predicted, decoded = answer_pictures(weights, answer)
    assert torch.allclose(decoded, weights.tokenizer.decode(answer.truth[None])[0], atol=1e-5) and predicted.shape == picture.shape


def test_the_model_does_not_see_what_is_hidden(weights, picture):
    mask = choose_mask(weights, 'block', 0.4)
    side = weights.image_size//weights.grid[0]
    other = torch.where(mask.repeat_interleave(side, 0).repeat_interleave(side, 1), torch.rand_like(picture), picture)
    assert torch.allclose(answer_mask(weights, picture, mask).probabilities, answer_mask(weights, other, mask).probabilities, atol=1e-5)


@pytest.mark.parametrize('mask', [torch.zeros(8, 8), torch.ones(8, 8)])
def test_nothing_and_everything_hidden(weights, picture, mask):
    answer = answer_mask(weights, picture, mask)
    assert len(answer.probabilities) == int(mask.sum()) and not answer.probabilities.isnan().any()
    assert answer_pictures(weights, answer)[0].shape == picture.shape


def test_confidence_stands_at_its_patch(weights, picture):
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[1, 2] = mask[5, 6] = True
    answer = answer_mask(weights, picture, mask)
    assert [i for i, c in enumerate(answer.confidence) if c >= 0] == [10, 46]
    assert answer.confidence[46] == pytest.approx(top_codes(answer, 46)[0].probability)


def test_top_codes_always_name_the_true_one(weights, picture):
    answer = answer_mask(weights, picture, choose_mask(weights, 'random', 0.75))
    for place in answer.mask.flatten().nonzero().flatten().tolist():
        guesses = top_codes(answer, place)
        assert [g.probability for g in guesses] == sorted((g.probability for g in guesses), reverse=True)
        true, = [g for g in guesses if g.right]
        assert true.token == int(answer.truth.flatten()[place]) and len(guesses) == 5 + (true.rank > 5)
        assert guess_table(guesses, torch.zeros(512, 3, 4, 4)).count('✓ true') == 1


def test_masks_are_repeatable_and_differ_by_seed(weights):
    a, b, c = choose_mask(weights, seed=1), choose_mask(weights, seed=1), choose_mask(weights, seed=2)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_painter_follows_hand_and_controls():
    painter = paint_mask(kind='random', mask_ratio=0.5)
    assert isinstance(painter, MaskPainter) and sum(painter.paint.mask) == 32
    drawn = painter.paint.mask
    painter.again.click()
    assert painter.seed.value == 1 and painter.paint.mask != drawn and sum(painter.paint.mask) == 32
    painter.kind.value, painter.ratio.value = 'block', 0.25
    assert sum(painter.paint.mask) == 16
    painter.clear.click()
    assert not any(painter.paint.mask) and '0 of 64 patches hidden' in painter.counted()
    painter.paint.mask = [i in (9, 10) for i in range(64)]
    assert painter.held['answer'].mask.flatten().nonzero().flatten().tolist() == [9, 10]
    assert painter.sure.heat == pytest.approx(painter.held['answer'].confidence)
    painter.paint.hover = 9
    assert '✓ true' in painter.words.value
    painter.paint.hover = -1
    assert 'Click and drag' in painter.words.value
    painter.sure.locked = 10
    assert 'row 2, column 3' in painter.words.value
    painter.close()


def test_picture_on_the_page_is_the_prediction():
    from PIL import Image
    from io import BytesIO
    painter = paint_mask(mask=torch.eye(8))
    shown = any_picture(Image.open(BytesIO(painter.predicted.image)))
    assert (shown - answer_pictures(painter.held['weights'], painter.held['answer'])[0]).abs().max() < 0.5/255 + 1e-6


@pytest.mark.parametrize('arguments,words', [(dict(image='nowhere.png'), 'no such file'), (dict(image=b'no picture'), 'not a picture'), (dict(weights='nowhere'), 'no tokenizer'), (dict(image=dict(x=1)), 'no picture'),
                                             (dict(mask=torch.ones(3, 3)), 'does not fit'), (dict(mask_ratio=2.), 'not between 0 and 1'), (dict(kind='stars'), 'stars')])
def test_bad_input_is_a_sentence(arguments, words):
    notice = paint_mask(**arguments)
    assert isinstance(notice, Notice) and words in notice.told()


def test_static_twin_is_the_snapshot():
    figure = show_paint_mask(seed=2)
    assert [ax.get_xlabel() for ax in figure.axes[:5]] == ['truth', 'hidden', 'predicted', 'true tokens, decoded', 'confidence']
    plt.close(figure)
    open_before = plt.get_fignums()
    assert paint_mask(seed=2).snapshot().width > 600 and plt.get_fignums() == open_before
    with pytest.raises(ConfigError): show_paint_mask(mask=torch.ones(2, 2))


def test_own_weights_and_any_picture():
    emoji = load_weights('emoji')
    painter = paint_mask(torch.rand(3, 50, 70), weights=(emoji.tokenizer, emoji.model))
    assert isinstance(painter, MaskPainter) and painter.held['picture'].shape == (3, 32, 32)


def test_a_run_with_another_kind_of_tokenizer(tmp_path):
    "A dVAE that fits the model paints as a vq does."
    import shutil

    from beit_lab.codebook.dvae import DVAE, dvae_config
    from beit_lab.core import samples
    from beit_lab.show.masks import MaskPainter, paint_mask
    shutil.copytree(samples('weights/emoji/model'), tmp_path/'run/model')
    torch.manual_seed(0)
    DVAE(dvae_config('tiny')).save_pretrained(tmp_path/'run/tokenizer')
    painter = paint_mask(weights=tmp_path/'run')
    assert isinstance(painter, MaskPainter), painter.told()
