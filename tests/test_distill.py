"VQ-KD: teachers behind one protocol, the contract of a tokenizer, training, the painter, weights."
import pytest
import timm
import torch
from dataclasses import replace
from einops import rearrange

from beit_lab.codebook.autoencode import reconstruction_report
from beit_lab.codebook.distill import (Distiller, TaughtBatches, VQKD, VQKDS, distill_learner, distill_loss, distill_report, train_painter, train_vqkd, vqkd_config)
from beit_lab.codebook.quantize import Quantized
from beit_lab.codebook.teachers import Teacher, clip_teacher, open_teacher, timm_teacher, trunk_teacher
from beit_lab.core import ConfigError, DataError, WeightsError, count_parameters, generator
from beit_lab.trunk.multiway import Trunk
from beit_lab.trunk.sizes import trunk_config


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def images():
    "Sixty pictures of coloured rectangles."
    rng, pictures = generator('distill'), torch.full((60, 3, 32, 32), 255, dtype=torch.uint8)
    for picture in pictures:
        for _ in range(3):
            (top, left), (height, width) = torch.randint(0, 26, (2,), generator=rng), torch.randint(4, 20, (2,), generator=rng)
            picture[:, top:top + height, left:left + width] = torch.randint(0, 256, (3, 1, 1), generator=rng).byte()
    return pictures


@pytest.fixture(scope='module')
def teacher():
    "A small trunk with random weights."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trunk_teacher(Trunk(trunk_config('pico', embed_dim=32, depth=1, num_heads=2)))


@pytest.fixture(scope='module')
def tokenizer(images, teacher): return train_vqkd(images[:48], teacher, vqkd_config('nano'), steps=40, batch_size=8)


# ---- teachers

def check_teacher(teacher, images, grid=(8, 8)):
    seen = teacher(images[:3], grid)
    assert seen.shape == (3, *grid, teacher.dim) and seen.dtype == torch.float32 and not seen.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.model.training
    assert torch.equal(seen, teacher(images[:3]/255, grid)) and seen.std() > 0
    assert teacher(images[:3], (4, 5)).shape == (3, 4, 5, teacher.dim)


def test_a_trunk_teaches(teacher, images):
    check_teacher(teacher, images)
    trunk = teacher.model
    with torch.no_grad(): states = trunk.encode(trunk.embed({'vision': {'pixels': images[:3]/255}}), layers=(1,))
    assert torch.equal(rearrange(teacher(images[:3], (8, 8)), 'b h w d -> b (h w) d'), states['vision'][:, 1:])
    first = trunk_teacher(trunk, layer=1)(images[:3], (8, 8))
    assert torch.equal(rearrange(first, 'b h w d -> b (h w) d'), states.layers[1]['vision'][:, 1:])


@pytest.mark.parametrize('name, options', [('vit_tiny_patch16_224', dict(img_size=32, patch_size=4, depth=1)), ('resnet10t', {}), ('convnext_atto', {}), ('ghostnet_050', {})])
def test_any_model_of_timm_teaches(name, options, images):
    teacher = timm_teacher(timm.create_model(name, num_classes=0, **options))
    teacher.image_size = 64 if not options else teacher.image_size # quicker
    check_teacher(teacher, images)


def test_clip_teaches_what_its_class_token_would_say(images, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    torch.manual_seed(0)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, projection_dim=20)).eval()
    clip.save_pretrained(tmp_path)
    teacher = open_teacher(f'clip:{tmp_path}')
    check_teacher(teacher, images)
    mean, std = torch.tensor([.48145466, .4578275, .40821073]), torch.tensor([.26862954, .26130258, .27577711])
    pixels = (images[:3]/255 - mean[:, None, None])/std[:, None, None]
    with torch.no_grad():
        last = clip.vision_model(pixel_values=pixels).last_hidden_state
        expected = clip.visual_projection(clip.vision_model.post_layernorm(last))
        assert torch.allclose(expected[:, 0], clip(pixel_values=pixels).image_embeds, atol=1e-6)
    assert torch.allclose(rearrange(teacher(images[:3], (4, 4)), 'b h w d -> b (h w) d').cpu(), expected[:, 1:], atol=1e-5)


def test_teachers_by_name(tmp_path):
    assert open_teacher('scenes').dim == open_teacher('emoji').dim == 128
    for name, error, word in [('timm:resnet10t', ConfigError, 'teaches noise'), ('timm:mine=x', ConfigError, 'no model'), ('clip:nowhere', WeightsError, 'no folder'), ('nowhere', WeightsError, 'does not exist')]:
        with pytest.raises(error, match=word): open_teacher(name)
    (tmp_path/'config.json').write_text('{}')
    with pytest.raises(WeightsError, match='no CLIP'): clip_teacher(tmp_path)


def test_weights_of_a_teacher_must_be_its_own(images, tmp_path):
    model = timm.create_model('resnet10t', num_classes=0)
    torch.save(model.state_dict(), tmp_path/'own.pth')
    assert torch.equal(timm_teacher('resnet10t', tmp_path/'own.pth')(images[:2], (4, 4)), timm_teacher(model)(images[:2], (4, 4)))
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path/'other.pth')
    with pytest.raises(WeightsError, match='does not hold'): timm_teacher('resnet10t', tmp_path/'other.pth')


# ---- the contract

@pytest.mark.parametrize('name', [n for n in VQKDS if n != 'base'])
def test_contract(name):
    config = vqkd_config(name)
    model, size = VQKD(config).eval(), config.encoder.image_size
    pictures = torch.rand(2, 3, size, size, generator=generator(name))
    tokens = model.encode(pictures)
    assert tokens.shape == (2, 8, 8) == (2, *model.grid(size)) and tokens.dtype == torch.long
    assert 0 <= tokens.min() and tokens.max() < model.codebook_size == len(model.codebook) and model.codebook.shape[1] == config.code_dim
    assert torch.equal(tokens, model.encode((pictures*255).round().byte())) or (tokens == model.encode((pictures*255).round().byte())).float().mean() > 0.9
    with pytest.raises(ConfigError, match='train_painter'): model.decode(tokens)
    with pytest.raises(ConfigError, match='do not divide'): model.encode(pictures[..., 1:])


def test_sizes_of_the_paper():
    with torch.device('meta'): base = VQKD(vqkd_config('base'))
    assert (count_parameters(base.encoder), count_parameters(base.decoder)) == (85_789_440, 21_440_256)
    assert base.codebook.shape == (8192, 32) and base.grid(224) == (14, 14) and count_parameters(base.to_codes) == 768*769 + 32*769


def test_tokens_are_fp32_and_those_of_the_quantizer(tokenizer, images):
    tokens = tokenizer.encode(images)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(tokenizer.encode(images), tokens)
    with torch.no_grad(): assert torch.equal(tokenizer.quantizer(tokenizer.vectors(images)).codes, tokens)


def test_encode_does_not_learn_even_in_training_mode(images):
    model = VQKD(vqkd_config('nano')).train()
    before = model.codebook.clone()
    model.encode(images[:4])
    assert torch.equal(model.codebook, before)


# ---- the rules of the paper

def test_one_update_of_the_codebook_by_hand(images):
    "Codes move a hundredth of the way to the mean direction of the vectors that chose them; the others stay (spec: norm-EMA)."
    model = Distiller(vqkd_config('nano', decay=0.99, revive_below=0.)).train()
    model.quantizer.started = True
    before = model.codebook.clone()
    with torch.no_grad(): z = torch.nn.functional.normalize(model.vectors(images[:4]), dim=-1).flatten(0, 2)
    codes = (z @ before.T).argmax(1)
    expected = before.clone()
    for code in codes.unique():
        mean = torch.nn.functional.normalize(z[codes == code].sum(0), dim=0)
        expected[code] = torch.nn.functional.normalize(0.99*before[code] + 0.01*mean, dim=0)
    outputs = model(images[:4])
    assert torch.allclose(model.codebook, expected, atol=1e-6) and torch.equal(outputs[1].codes.flatten(), codes)
    assert torch.allclose(outputs[1].loss, (before[codes] - z).square().mean(), atol=1e-6)                # commitment, beta 1, a mean over channels too


def test_loss_by_hand():
    said, seen = torch.randn(2, 3, 3, 5), torch.randn(2, 3, 3, 5)
    cosine = (said*seen).sum(-1)/(said.norm(dim=-1)*seen.norm(dim=-1))
    assert torch.allclose(distill_loss((said, Quantized(None, None, torch.tensor(0.5))), seen), (1 - cosine).mean() + 0.5, atol=1e-6)


def test_gradients_reach_the_encoder_and_not_the_teacher(images, teacher):
    model = Distiller(vqkd_config('nano', teacher_dim=32)).train()
    distill_loss(model(images[:4]), teacher(images[:4], (8, 8))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the class tokens' own rows in the last blocks say nothing to patches; everything else learns
    assert not [name for name in without if 'class_token' not in name]


# ---- training

def test_batches_hold_what_the_teacher_sees(images, teacher):
    batches = TaughtBatches(images, teacher, (8, 8), 10, 4, seed=3)
    batch, seen = batches[6]
    assert torch.equal(seen, teacher(batch, (8, 8))) and torch.equal(batch, TaughtBatches(images, teacher, (8, 8), 10, 4, seed=3)[6][0])


def test_training_beats_a_constant_and_keeps_codes_alive(tokenizer, teacher, images):
    report = distill_report(tokenizer, teacher, images[48:])
    assert report['cosine'] > report['constant_cosine'] + 0.01 and report['codebook_usage'] > 0.3
    seen = torch.nn.functional.normalize(teacher(images[48:], (8, 8)), dim=-1)
    assert report['constant_cosine'] == pytest.approx(seen.flatten(0, 2).mean(0).norm().item(), rel=1e-4)


def test_resumed_run_is_the_same_run(images, teacher, tmp_path):
    def stop(step, steps, values):
        if step == 20: raise KeyboardInterrupt
    run = lambda **kwargs: train_vqkd(images, teacher, vqkd_config('nano'), 30, batch_size=4, **kwargs).state_dict()
    with pytest.raises(KeyboardInterrupt): run(checkpoint=tmp_path/'state', progress=stop)
    resumed, whole = run(checkpoint=tmp_path/'state'), run()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    with pytest.raises(WeightsError, match='another run'): train_vqkd(images, teacher, vqkd_config('nano', code_dim=4), 30, batch_size=4, checkpoint=tmp_path/'state')


def test_bad_pictures_are_refused(images, teacher):
    with pytest.raises(DataError, match='normalises'): distill_learner(images/127.5 - 1, teacher, vqkd_config('nano'), 5)
    with pytest.raises(ConfigError, match='choose from'): vqkd_config('huge')


# ---- the painter

def test_the_painter_draws_the_same_words(tokenizer, images, tmp_path):
    drawing = train_painter(tokenizer, images[:48], steps=40, width=16, batch_size=16)
    assert tokenizer.painter is None and torch.equal(drawing.encode(images), tokenizer.encode(images)) and torch.equal(drawing.codebook, tokenizer.codebook)
    painted = drawing.decode(drawing.encode(images[48:]))
    assert painted.shape == (12, 3, 32, 32) and 0 <= painted.min() and painted.max() <= 1
    plain = (images[48:]/255 - images[:48].float().mean()/255).square().mean()
    assert (painted - images[48:]/255).square().mean() < 0.9*plain and reconstruction_report(drawing, images[48:])['psnr_db'] > 0
    assert drawing.code_tiles().shape == (64, 3, 4, 4)
    with pytest.raises(ConfigError, match='has 64 codes'): drawing.decode(torch.full((1, 8, 8), 64))
    for model in (tokenizer, drawing):
        model.save_pretrained(tmp_path/'w')
        again = VQKD.from_pretrained(tmp_path/'w')
        assert again.config == model.config and torch.equal(again.encode(images), tokenizer.encode(images))


def test_a_painter_takes_tokens_that_are_there(tokenizer, images):
    from beit_lab.codebook.cache import cache_tokens
    some, others = images[:24], images[24:48]
    paint = lambda cache: train_painter(tokenizer, some, steps=4, width=16, batch_size=8, cache=cache).state_dict()
    ours, computed = paint(cache_tokens(tokenizer, some)), paint(None)
    assert all(torch.equal(value, computed[name]) for name, value in ours.items())
    with pytest.raises(ConfigError, match='of other pictures'): paint(cache_tokens(tokenizer, others))
