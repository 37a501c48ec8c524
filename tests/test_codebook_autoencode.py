"The tokenizer: contract, bad pictures, start, training, report, weights; real pictures where there are some."
import io

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings, strategies as st

from beit_lab.codebook.autoencode import (Autoencoder, StepBatches, TOKENIZERS, VQVAE, VQVAEConfig, as_floats, check_images, reconstruction_report,
                                          tokenizer_config, tokenizer_learner, train_tokenizer)
from beit_lab.codebook.health import code_counts, code_perplexity, codebook_usage
from beit_lab.core import ConfigError, DataError, WeightsError, generator, real_data


@pytest.fixture(scope='module')
def images():
    "Two hundred pictures of coloured rectangles."
    rng, pictures = np.random.default_rng(0), np.full((200, 3, 32, 32), 255, np.uint8)
    for picture in pictures:
        for _ in range(3):
            (top, left), (height, width) = rng.integers(0, 26, 2), rng.integers(4, 20, 2)
            picture[:, top:top + height, left:left + width] = rng.integers(0, 256, (3, 1, 1))
    return torch.tensor(pictures)


@pytest.fixture(scope='module')
def tokenizer(images): return train_tokenizer(images[:150], tokenizer_config('nano'), steps=60, batch_size=16)


# ---- the contract

@pytest.mark.parametrize('name', TOKENIZERS)
@pytest.mark.parametrize('channels', [1, 3])
def test_contract(name, channels):
    config = tokenizer_config(name, channels=channels)
    model = VQVAE(config).eval()
    size = (4*config.patch_size, 3*config.patch_size)
    pictures = torch.rand(2, channels, *size, generator=generator(name))
    tokens = model.encode(pictures)
    assert tokens.shape == (2, 4, 3) == (2, *model.grid(size)) and tokens.dtype == torch.long and not tokens.is_inference()
    assert 0 <= tokens.min() and tokens.max() < model.codebook_size == len(model.codebook)
    painted = model.decode(tokens)
    assert painted.shape == pictures.shape and painted.min() >= 0 and painted.max() <= 1
    assert model.code_tiles().shape == (model.codebook_size, channels, config.patch_size, config.patch_size)


def test_bytes_and_floats_give_the_same_tokens(tokenizer, images):
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(images/255))
    assert torch.equal(tokenizer.encode(images), tokenizer.encode(images.double().div(255).float()))


def test_encode_does_not_learn_even_in_training_mode(images):
    model = VQVAE(tokenizer_config('nano')).train()
    before = model.codebook.clone()
    model.encode(images[:4])
    assert torch.equal(model.codebook, before) and not model.quantizer.started


def test_encode_is_fp32_under_autocast(tokenizer, images):
    with torch.autocast('cpu', dtype=torch.bfloat16): mixed = tokenizer.encode(images)
    assert torch.equal(mixed, tokenizer.encode(images))


def test_encode_agrees_with_the_quantizer(tokenizer, images):
    with torch.no_grad(): quantized = tokenizer.quantizer(tokenizer.vectors(images[:20]))
    assert torch.equal(quantized.codes, tokenizer.encode(images[:20]))


@pytest.mark.parametrize('tokens', [torch.full((1, 2, 2), 64), torch.full((1, 2, 2), -1)])
def test_unknown_tokens_are_refused(tokenizer, tokens):
    with pytest.raises(ConfigError, match='has 64 codes'): tokenizer.decode(tokens)


# ---- training and asking are two things

def test_called_in_training_mode_the_codebook_does_not_learn(images):
    model = VQVAE(tokenizer_config('nano')).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(images[:4]), model.encode(images[:4])) and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_training_pass_learns_and_keeps_the_names_of_weights(images):
    trained = Autoencoder(tokenizer_config('nano')).train()
    before = trained.codebook.clone()
    painted, quantized = trained(images[:8])
    assert painted.shape == images[:8].shape and quantized.codes.shape == (8, 8, 8) and painted.requires_grad
    assert not torch.equal(trained.codebook, before)
    assert trained.state_dict().keys() == VQVAE(tokenizer_config('nano')).state_dict().keys()


def test_finished_is_a_plain_copy_at_rest(images):
    trained = Autoencoder(tokenizer_config('nano')).train()
    trained(images[:8])
    state = torch.get_rng_state()
    tokenizer = trained.finished()
    assert type(tokenizer) is VQVAE and not tokenizer.training and tokenizer.quantizer.started and torch.equal(state, torch.get_rng_state())
    assert torch.equal(tokenizer(images), trained.encode(images))
    tokens = tokenizer(images)
    trained(images[8:16])
    assert torch.equal(tokenizer(images), tokens)


# ---- bad pictures

@pytest.mark.parametrize('spoil, error, word', [
    (lambda x: x.float(), DataError, 'normalises them itself'), (lambda x: x/255 - 0.1, DataError, 'not in'), (lambda x: x/0., DataError, 'NaN'),
    (lambda x: x[0], DataError, 'shape'), (lambda x: x[:0], DataError, 'no pictures'), (lambda x: x[:, :1], DataError, 'channels'),
    (lambda x: rearrange(x, 'n c h w -> n h w c'), DataError, 'channels first'), (lambda x: x[..., :30], ConfigError, 'do not divide'),
    (lambda x: x.long(), DataError, 'uint8')])
def test_bad_pictures(images, spoil, error, word):
    with pytest.raises(error, match=word): check_images(spoil(images), 4)
    with pytest.raises((DataError, ConfigError)): tokenizer_learner(spoil(images), tokenizer_config('nano'), 1)


# ---- the start

@settings(max_examples=10, deadline=None)
@given(patch_size=st.sampled_from([1, 2, 4, 8]), code_dim=st.integers(1, 20), channels=st.sampled_from([1, 3]))
def test_linear_start_is_the_best_linear_map(patch_size, code_dim, channels):
    pictures = torch.rand(20, channels, 16, 16, generator=generator(patch_size, code_dim))
    model = VQVAE(tokenizer_config('nano', patch_size=patch_size, code_dim=code_dim, channels=channels))
    model.start_linear(pictures)
    with torch.no_grad(): error = (model.paint(model.vectors(pictures)) - pictures).square().mean()
    patches = rearrange(pictures, 'n c (h p) (w q) -> (n h w) (c p q)', p=patch_size, q=patch_size).double()
    values = torch.linalg.svdvals(patches - patches.mean(0))
    assert torch.allclose(error.double(), values[code_dim:].square().sum()/patches.numel(), atol=1e-5)


# ---- training

def test_batches_depend_on_seed_and_step_alone(images):
    first, second = StepBatches(images, 10, 8, seed=1), StepBatches(images, 10, 8, seed=1)
    second.first_step = 4
    assert torch.equal(first[6][0], second[2][0]) and not torch.equal(first[6][0], StepBatches(images, 10, 8, seed=2)[6][0])
    batch, target = first[0]
    assert torch.equal(batch, target) and batch.dtype == torch.uint8
    plain = (batch[:, None] == images[None]).flatten(2).all(2).any(1)
    flipped = (batch[:, None] == images.flip(-1)[None]).flatten(2).all(2).any(1)
    assert (plain | flipped).all()


def test_training_beats_its_start_and_mean_colours(tokenizer, images):
    report = reconstruction_report(tokenizer, images[150:])
    untrained = train_tokenizer(images[:150], tokenizer_config('nano'), steps=1, batch_size=16)
    assert report['psnr_db'] > reconstruction_report(untrained, images[150:])['psnr_db'] > 0
    assert report['psnr_db'] > report['patch_mean_psnr_db']


def test_revival_ends_with_the_last_fifth(images):
    seen = []
    learn = tokenizer_learner(images, tokenizer_config('nano'), 20, batch_size=4)
    learn.model.quantizer.register_forward_hook(lambda module, *_: seen.append(module.revive))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert seen == [True]*16 + [False]*4


def test_progress_is_called_to_the_end(images):
    calls = []
    train_tokenizer(images, tokenizer_config('nano'), 25, batch_size=4, progress=lambda step, steps, values: calls.append((step, steps, sorted(values))))
    assert [c[0] for c in calls] == [10, 20, 25] and calls[0][1:] == (25, ['codes_used', 'loss'])


def test_resumed_run_is_the_same_run(images, tmp_path):
    def stop(step, steps, values):
        if step == 60: raise KeyboardInterrupt
    run = lambda **kwargs: train_tokenizer(images, tokenizer_config('nano'), 100, batch_size=4, **kwargs).state_dict()
    with pytest.raises(KeyboardInterrupt): run(checkpoint=tmp_path/'state', progress=stop)
    resumed, whole = run(checkpoint=tmp_path/'state'), run()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_global_random_state_is_left_alone(images):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tokenizer_learner(images, tokenizer_config('nano'), 5)
    assert torch.equal(torch.rand(4), expected)


# ---- the report

def test_report_by_hand(tokenizer, images):
    held = images[150:]
    report = reconstruction_report(tokenizer, held, batch_size=7)
    truth, tokens = held/255, tokenizer.encode(held)
    means = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(truth, 4), scale_factor=4)
    decibel = lambda x: -10*(x - truth).square().mean().log10().item()
    assert report['psnr_db'] == pytest.approx(decibel(tokenizer.decode(tokens)), abs=1e-3)
    assert report['patch_mean_psnr_db'] == pytest.approx(decibel(means), abs=1e-3)
    counts = code_counts(tokens, 64)
    assert report['codebook_usage'] == pytest.approx(codebook_usage(counts), abs=1e-6)
    assert report['perplexity'] == pytest.approx(code_perplexity(counts), rel=1e-4)


def test_report_weights_select_patches(tokenizer, images):
    held = images[150:]
    left = torch.zeros(len(held), 8, 8)
    left[..., :4] = 1
    truth, painted = held/255, tokenizer.decode(tokenizer.encode(held))
    expected = -10*(truth - painted)[..., :16].square().mean().log10().item()
    assert reconstruction_report(tokenizer, held, weights=left, batch_size=7)['psnr_db'] == pytest.approx(expected, abs=1e-3)


def test_code_tiles_average_what_is_painted(tokenizer, images):
    tiles, tokens = tokenizer.code_tiles(images, batch_size=33), tokenizer.encode(images)
    painted = rearrange(tokenizer.decode(tokens), 'n c (h p) (w q) -> n h w c p q', p=4, q=4)
    code = tokens.flatten().mode().values
    assert torch.allclose(tiles[code], painted[tokens == code].mean(0), atol=1e-4)


# ---- weights

def test_weights_round_trip_and_damage(tokenizer, images, tmp_path):
    tokenizer.save_pretrained(tmp_path/'w')
    loaded = VQVAE.from_pretrained(tmp_path/'w')
    assert loaded.config == tokenizer.config and torch.equal(loaded.encode(images), tokenizer.encode(images)) and loaded.quantizer.started
    (tmp_path/'w'/'config.json').write_text((tmp_path/'w'/'config.json').read_text().replace('"codebook_size": 64', '"codebook_size": 32'))
    with pytest.raises(WeightsError, match='shape'): VQVAE.from_pretrained(tmp_path/'w')


# ---- real pictures

def _pictures(name, split, count):
    from PIL import Image
    import pyarrow.parquet as pq
    rows = pq.read_table(real_data(f'cifar10/{split}-00000-of-00001.parquet'), columns=['image']).slice(0, count)['image'].to_pylist()
    return torch.stack([torch.tensor(np.array(Image.open(io.BytesIO(row['bytes'])).convert('RGB'))).permute(2, 0, 1) for row in rows])


@pytest.mark.skipif(not real_data('cifar10'), reason='set BEIT_LAB_DATA to a folder with cifar10')
def test_cifar10_reaches_a_useful_quality():
    "A fifteenth of the recipe's steps: better than k-means of raw patches (22.4 dB), nearly all codes used."
    model = train_tokenizer(_pictures('cifar10', 'train', 5000), tokenizer_config('tiny'), steps=100)
    report = reconstruction_report(model, _pictures('cifar10', 'test', 1000))
    assert report['psnr_db'] > 23.2 and report['codebook_usage'] > 0.97 and report['perplexity'] > 300


@pytest.mark.parametrize('shape, says', [((1, 1, 8, 8), 'expected 3 channels, got 1'), ((3, 8, 8), r'expected pictures of shape \(N, 3, H, W\)')])
def test_every_tokenizer_says_what_it_cannot_read(shape, says):
    from beit_lab.codebook.distill import VQKD, vqkd_config
    from beit_lab.codebook.dvae import DVAE, dvae_config
    for tokenizer in (VQVAE(tokenizer_config('nano')), DVAE(dvae_config('nano')), VQKD(vqkd_config('nano'))):
        with pytest.raises(DataError, match=says): tokenizer.eval().encode(torch.zeros(shape))
