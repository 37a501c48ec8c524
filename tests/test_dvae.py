"DALL-E's dVAE: sizes, parity, likelihood, mixtures, schedules, training, weights."
import math

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from beit_lab.codebook.dvae import (DVAE, DVAES, DVAESchedule, SoftDVAE, dvae_config, dvae_learner, dvae_loss, gumbel_mixture, lab_schedule, logit_laplace, squeeze_pixels, stretch_pixels, train_dvae)
from beit_lab.core import ConfigError, DataError, WeightsError, count_parameters, generator


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def images(): return (torch.rand(24, 3, 4, 4, generator=generator('dvae'))*255).byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


# ---- shape

def test_sizes_of_dalle():
    with torch.device('meta'): full = DVAE(dvae_config('dalle'))
    assert (count_parameters(full.encoder), count_parameters(full.decoder)) == (53_786_240, 43_829_766)
    assert len(full.encoder.state_dict()) == 74 and full.grid(112) == (14, 14) and full.grid(224) == (28, 28)
    assert all(block.gain == 1/64 for half in (full.encoder, full.decoder) for group in half.groups for block in group)


@pytest.mark.parametrize('name', [n for n in DVAES if n != 'dalle'])
def test_contract(name):
    config = dvae_config(name)
    torch.manual_seed(0)
    model, p = DVAE(config).eval(), config.patch_size
    pictures = torch.rand(2, 3, 4*p, 3*p)
    tokens = model.encode(pictures)
    assert tokens.shape == (2, 4, 3) == (2, *model.grid((4*p, 3*p))) and tokens.dtype == torch.long
    assert 0 <= tokens.min() and tokens.max() < model.codebook_size == len(model.codebook)
    painted = model.decode(tokens)
    assert painted.shape == pictures.shape and 0 <= painted.min() and painted.max() <= 1
    assert torch.equal(model.encode((pictures*255).byte()), model.encode((pictures*255).byte()/255))
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(model.encode(pictures), tokens)
    with pytest.raises(ConfigError, match='codes'): model.decode(tokens + model.codebook_size)
    with pytest.raises(ConfigError, match='do not divide'): model.encode(pictures[..., 1:])


def test_code_tiles_and_mute():
    model = DVAE(dvae_config('nano')).eval()
    assert model.code_tiles().shape == (64, 3, 4, 4)
    mute = DVAE(dvae_config('nano', draws=False))
    assert mute.codebook.shape == (64, 32)
    with pytest.raises(ConfigError, match='cannot draw'): mute.decode(torch.zeros(1, 8, 8))
    with pytest.raises(ConfigError, match='choose from'): dvae_config('huge')


def test_encode_maps_pixels_and_uses_no_noise():
    torch.manual_seed(0)
    model = SoftDVAE(dvae_config('nano')).train()
    pictures = torch.rand(2, 3, 16, 16)
    expected = model.encoder(0.8*pictures + 0.1).argmax(1)
    assert torch.equal(model.encode(pictures), expected) and torch.equal(model.encode(pictures), expected)


def test_decoding_a_choice_is_decoding_its_code():
    "Looking codes up gives what the first convolution makes of a picture of zeros and ones."
    torch.manual_seed(0)
    model = DVAE(dvae_config('nano')).eval()
    torch.nn.init.normal_(model.decoder.first.bias)
    tokens = torch.randint(0, 64, (2, 3, 3))
    with torch.no_grad():
        painted = model.decoder(model.decoder.first(rearrange(F.one_hot(tokens, 64).float(), 'b h w k -> b k h w')))
        assert torch.allclose(model.decode(tokens), stretch_pixels(painted[:, :3].sigmoid()), atol=1e-6)


# ---- likelihood and mixtures

def test_logit_laplace_is_a_density_and_agrees_with_torch():
    x = torch.linspace(0, 1, 4001)[None, None, None]
    for place, log_width in ((0.3, -1.), (-1., 0.), (1.2, -0.5)):
        painted = torch.tensor([place, log_width]).view(1, 2, 1, 1).expand(1, 2, 1, 4001)
        nats, y = logit_laplace(painted, x), squeeze_pixels(x)
        expected = -(torch.distributions.Laplace(place, math.exp(log_width)).log_prob(y.logit()) - (y*(1 - y)).log())   # change of variables
        assert torch.allclose(nats, expected, atol=1e-4)
    assert torch.allclose(stretch_pixels(squeeze_pixels(x)), x, atol=1e-6)
    assert stretch_pixels(torch.tensor([0., 1.])).tolist() == [0., 1.] and torch.allclose(squeeze_pixels(torch.tensor([0., 1.])), torch.tensor([0.1, 0.9]))


def test_mixtures_choose_by_chance_and_cool_down():
    torch.manual_seed(0)
    scores = torch.tensor([1., 0., -1., 2.]).expand(20_000, 4)
    for temperature in (1., 0.1):
        shares = gumbel_mixture(scores, temperature)
        assert torch.allclose(shares.sum(-1), torch.ones(20_000), atol=1e-5)
        assert torch.allclose(torch.bincount(shares.argmax(-1), minlength=4)/20_000, scores[0].softmax(0), atol=0.015)
    assert gumbel_mixture(scores, 0.1).max(-1).values.mean() > gumbel_mixture(scores, 1.).max(-1).values.mean() + 0.1


def test_schedules_of_the_paper():
    schedule = DVAESchedule()
    assert schedule.at(0) == (1., 0.) and schedule.at(10**6) == pytest.approx((1/16, 6.6))
    assert schedule.at(75_000)[0] == pytest.approx((1 + 1/16)/2) and schedule.at(2_500)[1] == pytest.approx(3.3) and schedule.at(5_000)[1] == pytest.approx(6.6)
    assert schedule.at(37_500)[0] == pytest.approx(1/16 + 15/16*(1 + math.cos(math.pi/4))/2)


def test_loss_by_hand(images):
    "Nats per value of the picture, plus weight/192 of the divergence per token for patches of 8 pixels."
    torch.manual_seed(0)
    model = SoftDVAE(dvae_config('small', width=8, codebook_size=32)).eval()
    model.kl_weight = 6.6
    outputs = model(images[:2])
    chances = model.scores(images[:2]).softmax(1)
    divergence = (chances*(chances*32).log()).sum(1).mean()
    assert torch.allclose(dvae_loss(outputs, images[:2]), logit_laplace(outputs[0], images[:2]).mean() + 6.6/192*divergence, atol=1e-5)
    assert torch.equal(outputs[1].codes, model.encode(images[:2]))


# ---- training

def test_while_the_encoder_rests_only_the_decoder_learns(images):
    model = SoftDVAE(dvae_config('nano')).train()
    for resting in (True, False):
        model.zero_grad()
        model.resting, model.kl_weight = resting, 1.
        dvae_loss(model(images[:4]), images[:4]).backward()
        learning = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in half.parameters()) for half in (model.encoder, model.decoder)]
        assert learning == [not resting, True]


def test_words_start_apart(images):
    torch.manual_seed(0)
    model = DVAE(dvae_config('nano', codebook_size=32))
    before = len(model.encode(images).unique())
    model.start_words(images)
    assert len(model.encode(images).unique()) > max(before, 20)


def test_training_learns_to_paint(images):
    error = lambda model: (model.decode(model.encode(images)) - images/255).square().mean()
    start, trained = (train_dvae(images, dvae_config('nano'), steps, batch_size=4, start_images=24) for steps in (1, 40))
    assert error(trained) < 0.85*error(start)


def test_resumed_run_is_the_same_run(images, tmp_path):
    def stop(step, steps, values):
        if step == 20: raise KeyboardInterrupt
    run = lambda **kwargs: train_dvae(images, dvae_config('nano'), 30, batch_size=4, start_images=8, **kwargs).state_dict()
    with pytest.raises(KeyboardInterrupt): run(checkpoint=tmp_path/'state', progress=stop)
    resumed, whole = run(checkpoint=tmp_path/'state'), run()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    with pytest.raises(WeightsError, match='another run'): train_dvae(images, dvae_config('nano'), 30, batch_size=4, start_images=8, schedule=lab_schedule(31), checkpoint=tmp_path/'state')


def test_bad_pictures_are_refused(images):
    with pytest.raises(DataError, match='normalises'): dvae_learner(images/127.5 - 1, dvae_config('nano'), 5)
    with pytest.raises(ConfigError, match='draws=True'): dvae_learner(images, dvae_config('nano', draws=False), 5)


def test_weights_round_trip(images, tmp_path):
    model = DVAE(dvae_config('nano')).eval()
    model.save_pretrained(tmp_path/'w')
    again = DVAE.from_pretrained(tmp_path/'w')
    assert again.config == model.config and torch.equal(again.encode(images), model.encode(images)) and torch.equal(again.decode(again.encode(images)), model.decode(model.encode(images)))


def test_a_start_from_fewer_places_than_words_is_finite():
    torch.manual_seed(0)
    model = SoftDVAE(dvae_config('nano'))
    for pictures in (torch.zeros(1, 3, 8, 8), torch.rand(1, 3, 8, 8, generator=generator('few'))):
        model.start_words(pictures)
        assert all(torch.isfinite(weight).all() for weight in model.parameters()) and torch.isfinite(model.scores(pictures)).all()
