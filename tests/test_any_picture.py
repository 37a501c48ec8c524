"Tokenizers and trunks take what other people's code holds: paths, PIL images, arrays, tensors, and lists of them."
import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from beit_lab.codebook.autoencode import VQVAE, tokenizer_config
from beit_lab.core import ConfigError, DataError, LabError
from beit_lab.data.pictures import image_batch, one_picture
from beit_lab.data.sources import open_source
from beit_lab.trunk.multiway import Trunk
from beit_lab.trunk.sizes import trunk_config

PHOTO = load_sample_image('flower.jpg')[:200, :320]                                       # (200, 320, 3) uint8
FORMS = dict(pil=Image.fromarray, last=lambda x: x, first=lambda x: x.transpose(2, 0, 1), shares=lambda x: x/255, small_floats=lambda x: (x/255).astype(np.float32),
             tensor=lambda x: torch.tensor(x).permute(2, 0, 1), tensor_last=torch.tensor, mirrored_twice=lambda x: x[:, ::-1].copy()[:, ::-1],
             png=lambda x: encoded(x, 'PNG'), palette_free=lambda x: Image.fromarray(x).convert('RGBA'))


def encoded(array, kind):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def tokenizer(): return VQVAE(tokenizer_config('nano')).eval()


@pytest.fixture(scope='module')
def trunk(): return Trunk(trunk_config('pico')).eval().requires_grad_(False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A photograph as a JPEG large enough to be unpacked at a fraction of its size, and as a PNG."
    place = tmp_path_factory.mktemp('pictures')
    Image.fromarray(PHOTO).resize((1600, 1000)).save(place/'a.jpg')
    Image.fromarray(PHOTO).save(place/'b.png')
    return place


@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_the_same_picture(tokenizer, trunk, form):
    picture = FORMS[form](PHOTO)
    assert torch.equal(tokenizer(picture), tokenizer(PHOTO)) and tokenizer(picture).shape == (50, 80)
    assert torch.equal(tokenizer([picture, PHOTO], image_size=32), tokenizer(PHOTO, image_size=32).expand(2, 8, 8))
    assert torch.allclose(trunk.vectors(picture), trunk.vectors([PHOTO])[0], atol=1e-5) and trunk.vectors(picture).ndim == 1


def test_files_become_what_sources_make_of_them(tokenizer, trunk, folder):
    images, paths = open_source(folder).images(32), [folder/'a.jpg', str(folder/'b.png')]
    assert torch.equal(image_batch(paths, 32), images/255)
    assert torch.equal(tokenizer(paths, image_size=32), tokenizer.encode(images))
    assert torch.equal(trunk.vectors(paths), trunk.vectors(images/255))
    assert torch.equal(tokenizer(folder/'b.png', 32), tokenizer.encode(images[1:])[0])


def test_batches(tokenizer, trunk):
    images = open_source('emoji').images(32)[:5]
    expected, floats = tokenizer.encode(images), images/255
    for batch in (images, floats, images.numpy(), images.permute(0, 2, 3, 1).numpy(), list(images), tuple(floats), iter(images)):
        assert torch.equal(tokenizer(batch), expected)
    vectors = trunk.vectors(floats)
    for batch in (images, images.numpy(), list(floats)): assert torch.equal(trunk.vectors(batch), vectors)
    assert torch.equal(tokenizer(images[:1]), expected[:1]) and torch.equal(tokenizer(images[0]), expected[0])


def test_a_batch_of_floats_goes_into_the_trunk_untouched(trunk):
    pixels = torch.randn(2, 3, 32, 32, requires_grad=True)                                # out of [0, 1], as adversarial work may want it
    trunk.vectors(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match='pixels must be'): trunk.vectors(torch.rand(1, 1, 32, 32))
    with pytest.raises(ConfigError, match='resize them'): Trunk(trunk_config('pico', relative='shared')).vectors(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize('side, expected', [(32, 32), (33, 32), (34, 36), (31, 32), (1, 4), (2, 4)])
def test_sides_go_to_the_nearest_multiple(side, expected):
    assert image_batch(np.zeros((side, 32, 3), np.uint8), multiple=4).shape == (1, 3, expected, 32)


def test_size_kept_means_pixels_kept(tokenizer):
    noise = torch.rand(3, 32, 48)
    assert torch.equal(image_batch(noise, multiple=4)[0], noise)


def test_transparent_grey_and_deep_pictures():
    clear = np.zeros((8, 8, 4), np.uint8)
    assert image_batch(clear).min() == 1 and image_batch(clear/255.).min() == 1           # transparent is white
    grey = np.linspace(0, 1, 64).reshape(8, 8)
    assert image_batch(grey).shape == (1, 3, 8, 8) and image_batch(grey[None]).shape == (1, 3, 8, 8)
    assert np.allclose(image_batch(grey, channels=1)[0, 0], grey, atol=1e-6)
    assert image_batch(Image.fromarray(np.full((8, 8), 65535, np.uint16))).min() == 1     # sixteen bits are scaled
    one_channel = VQVAE(tokenizer_config('nano', channels=1)).eval()
    assert one_channel(PHOTO).shape == (50, 80) and torch.equal(one_channel(grey), one_channel.encode(torch.tensor(grey).float()[None, None])[0])


def test_the_trunk_converts_to_its_own_kind_of_number():
    assert Trunk(trunk_config('pico')).bfloat16().vectors(PHOTO).dtype == torch.bfloat16


@pytest.mark.parametrize('wrong, word', [
    ('nowhere.png', 'nowhere.png: there is no such file'), ('.', 'is a folder'), (b'meow', 'these bytes: not a picture'), (None, 'not NoneType'), (7, 'not int'),
    ([None], 'not NoneType'), ([], 'list is empty'), (torch.rand(0, 3, 8, 8), 'list is empty'), (PHOTO*1., 'divide bytes by 255'), (PHOTO/255 - 0.5, 'leave normalisation'),
    (np.full((8, 8, 3), np.nan), 'nan'), (PHOTO.astype(int), 'not int64'), (PHOTO > 3, 'not bool'), (np.zeros((8, 8, 5)), r'not \(8, 8, 5\)'),
    (np.zeros((0, 8, 3)), 'no pixels'), ([PHOTO, PHOTO[:100]], 'different sizes'), (np.array(['a.png']), 'not <U5'), (torch.zeros(2, 3, 4, 8, 8), 'a picture is')])
def test_wrong_input_gets_one_sentence(tokenizer, wrong, word):
    with pytest.raises(DataError, match=word) as problem: tokenizer(wrong)
    assert '\n' not in str(problem.value)


def test_trunk_refuses_with_sentences_too(trunk):
    for wrong in ('nowhere.png', [], None, PHOTO*1.):
        with pytest.raises(LabError): trunk.vectors(wrong)


def test_sizes_that_patches_do_not_divide(tokenizer):
    with pytest.raises(ConfigError, match='30x30'): tokenizer(PHOTO, image_size=30)
    with pytest.raises(ConfigError, match='not 4'): image_batch(PHOTO, channels=4)


def test_one_or_several():
    assert all(map(one_picture, ['a.png', b'x', Image.new('L', (2, 2)), PHOTO, PHOTO[..., 0], torch.zeros(3, 2, 2)]))
    assert not any(map(one_picture, [['a.png'], PHOTO[None], torch.zeros(1, 3, 2, 2), (PHOTO,), iter([PHOTO])]))
