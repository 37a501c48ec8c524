"The trunk against independent implementations with the same random weights: transformers and timm."
import re

import pytest
import torch
from noise import scramble
from torch import nn

from beit_lab.core import ConfigError, count_parameters, generator
from beit_lab.trunk.blocks import Block, init_weights, relative_index, sincos_positions
from beit_lab.trunk.multiway import Encoded, Segment, Trunk, TrunkConfig
from beit_lab.trunk.sizes import SIZES, trunk, trunk_config

SMALL = dict(image_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4)
PEER = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8, vocab_size=50,
            layer_norm_eps=1e-6, drop_path_rate=0., layer_scale_init_value=0.1)


# From their names to ours, written by hand: `trunk/layouts` has a table of its own, and neither may lean on the other.

def own_name(name):
    "The name of a timm (or original) BEiT tensor in a `Trunk`, or None where a trunk has no such tensor."
    for pattern, new in [(r'^(cls|mask)_token$', lambda m: f'embeddings.vision.{dict(cls="class").get(m[1], m[1])}_token'),
                         (r'^patch_embed\.proj\.(.*)', r'embeddings.vision.projection.\1'),
                         (r'^pos_embed$', 'embeddings.vision.positions'),
                         (r'^rel_pos_bias\.relative_position_bias_table$', 'relative.0.table'),
                         (r'^blocks\.(\d+)\.attn\.relative_position_bias_table$', r'relative.\1.table'),
                         (r'^blocks\.(\d+)\.attn\.(.*)', r'blocks.\1.attention.\2'),
                         (r'^blocks\.(\d+)\.mlp\.(.*)', r'blocks.\1.experts.vision.\2'),
                         (r'^blocks\.(\d+)\.norm2\.(.*)', r'blocks.\1.experts.vision.norm2.\2'),
                         (r'^blocks\.(\d+)\.gamma_1$', r'blocks.\1.scale1.gamma'),
                         (r'^blocks\.(\d+)\.gamma_2$', r'blocks.\1.experts.vision.scale2.gamma'),
                         (r'^(blocks\.\d+\.norm1\..*|norm\..*)', r'\1')]:
        if re.match(pattern, name): return re.sub(pattern, new, name)


def from_timm(state):
    "A timm state dict with the names of a `Trunk`; heads are left out."
    return {own_name(k): v for k, v in state.items() if own_name(k)}


def from_transformers(state):
    "A transformers 5 BEiT state dict, in-memory names, with the names of a `Trunk`; heads are left out."
    renamed, qkv = {}, {}
    for name, tensor in state.items():
        name = name.removeprefix('beit.')
        if m := re.match(r'layers\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)$', name): qkv[m[1], m[2], m[3]] = tensor
        else: renamed[_timm_name(name)] = tensor
    for layer in sorted({k[0] for k in qkv}):
        renamed[f'blocks.{layer}.attn.qkv.weight'] = torch.cat([qkv[layer, part, 'weight'] for part in 'qkv'])
        for part in 'qv': renamed[f'blocks.{layer}.attn.{part}_bias'] = qkv[layer, part, 'bias']
    return from_timm(renamed)


def _timm_name(name):
    for pattern, new in [(r'^embeddings\.(cls|mask)_token', r'\1_token'), (r'^embeddings\.position_embeddings', 'pos_embed'),
                         (r'^embeddings\.patch_embeddings\.projection', 'patch_embed.proj'), (r'^layernorm\.', 'norm.'),
                         (r'^shared_position_bias\.', 'rel_pos_bias.'), (r'^layers\.(\d+)\.relative_position_bias\.', r'blocks.\1.attn.'),
                         (r'^layers\.(\d+)\.attention\.o_proj', r'blocks.\1.attn.proj'), (r'^layers\.(\d+)\.mlp', r'blocks.\1.mlp'),
                         (r'^layers\.(\d+)\.layernorm_before', r'blocks.\1.norm1'), (r'^layers\.(\d+)\.layernorm_after', r'blocks.\1.norm2'),
                         (r'^layers\.(\d+)\.lambda_', r'blocks.\1.gamma_')]:
        name = re.sub(pattern, new, name)
    return name


def run(model, images, mask=None):
    "States of a picture whose pixels are given as the peers take them, in [-1, 1]."
    return model.encode(model.embed({'vision': {'pixels': images/2 + 0.5, 'mask': mask}}))['vision']


def images_and_mask(size, grid, batch=2):
    images = 2*torch.rand(batch, 3, size, size, generator=generator('images')) - 1
    return images, torch.rand(batch, *grid, generator=generator('mask')) < 0.4


# transformers

def transformers_mim(size=0.15, **changes):
    transformers = pytest.importorskip('transformers')
    config = transformers.BeitConfig(**{**PEER, 'use_mask_token': True, 'use_shared_relative_position_bias': True, **changes})
    return scramble(transformers.BeitForMaskedImageModeling(config), size=size)


def masked_logits(peer, model, images, mask):
    "Logits over the visual tokens of all patches, from our states and the peer's head."
    return nn.functional.linear(run(model, images, mask)[:, 1:], peer.lm_head.weight, peer.lm_head.bias)


def close(ours, theirs, tolerance):
    assert theirs.abs().max() > 0.5, 'the comparison needs numbers of a natural size'
    assert (ours - theirs).abs().max() <= tolerance


@pytest.mark.parametrize('absolute', [False, True])
@torch.no_grad()
def test_masked_image_modelling_equals_transformers(absolute):
    peer = transformers_mim(use_absolute_position_embeddings=absolute)
    model = Trunk(TrunkConfig(**SMALL, positions='absolute' if absolute else 'none')).eval()
    model.load_state_dict(from_transformers(peer.state_dict()))
    images, mask = images_and_mask(32, (4, 4))
    close(masked_logits(peer, model, images, mask), peer(images, bool_masked_pos=mask.flatten(1)).logits, 1e-5)


@torch.no_grad()
def test_classification_equals_transformers():
    transformers = pytest.importorskip('transformers')
    peer = scramble(transformers.BeitForImageClassification(transformers.BeitConfig(**PEER, use_relative_position_bias=True, use_mean_pooling=True)))
    model = Trunk(TrunkConfig(**SMALL, relative='per_layer', mask_token=False, final_norm=False)).eval()
    model.load_state_dict(from_transformers(peer.state_dict()))
    images, _ = images_and_mask(32, (4, 4))
    close(peer.classifier(peer.beit.pooler.layernorm(model.vectors(images/2 + 0.5))), peer(images).logits, 1e-5)


@torch.no_grad()
def test_a_real_size_equals_transformers(monkeypatch):
    monkeypatch.setattr(Trunk, 'reset_parameters', lambda self: None)  # every weight is replaced below
    peer = transformers_mim(size=0.02, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, image_size=224, patch_size=16)
    model = trunk('base').eval()
    model.load_state_dict(from_transformers(peer.state_dict()))
    images, mask = images_and_mask(224, (14, 14), batch=1)
    close(masked_logits(peer, model, images, mask), peer(images, bool_masked_pos=mask.flatten(1)).logits, 1e-4)


@pytest.mark.parametrize('grid', [(4, 4), (3, 7)])
def test_sine_cosine_positions_equal_transformers(grid):
    "transformers puts the rows first; MAE's own code, which we follow, the columns."
    mae = pytest.importorskip('transformers.models.vit_mae.modeling_vit_mae')
    if not hasattr(mae, 'build_2d_sinusoidal_position_embedding'): pytest.skip('another version of transformers')
    rows, columns = torch.as_tensor(mae.build_2d_sinusoidal_position_embedding(*grid, 32)).chunk(2, dim=1)
    close(sincos_positions(grid, 32), torch.cat([columns, rows], 1), 1e-6)


# timm

@pytest.mark.parametrize('kind', ['shared', 'per_layer'])
@torch.no_grad()
def test_features_equal_timm(kind):
    from timm.models.beit import Beit
    peer = scramble(Beit(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=7, qkv_bias=True, init_values=0.1, global_pool='avg', use_abs_pos_emb=False,
                         use_rel_pos_bias=kind == 'per_layer', use_shared_rel_pos_bias=kind == 'shared'))
    model = Trunk(TrunkConfig(**SMALL, relative=kind, mask_token=False, final_norm=False)).eval()
    model.load_state_dict(from_timm(peer.state_dict()))
    images, _ = images_and_mask(32, (4, 4))
    close(run(model, images), peer.forward_features(images), 1e-6*max(1, peer.forward_features(images).abs().max()))
    close(peer.head(peer.fc_norm(model.vectors(images/2 + 0.5))), peer(images), 1e-6)


@pytest.mark.parametrize('grid', [(1, 1), (1, 5), (3, 2), (14, 14)])
def test_the_index_equals_timm(grid):
    from timm.models.beit import gen_relative_position_index
    assert torch.equal(relative_index(grid), gen_relative_position_index(grid))


# The trunk itself

LAB = dict(image_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, layer_scale=0., init='xavier')


@pytest.mark.parametrize('size, rows', [(224, 732), (384, 2212), (512, 3972), (640, 6244)])
def test_rows_of_the_table(size, rows):
    with torch.device('meta'): assert trunk('base', depth=1, image_size=size).relative[0].table.shape == (rows, 12)


def test_published_counts():
    with torch.device('meta'):
        assert count_parameters(trunk('base')) + 769*8192 == 91_965_776
        assert count_parameters(trunk('base', relative='per_layer', mask_token=False, final_norm=False)) + 2*768 + 769*1000 == 86_530_984


@pytest.mark.parametrize('name', sorted(SIZES))
def test_every_size_can_be_built(name):
    with torch.device('meta'): model = trunk(name)
    assert len(model.blocks) == SIZES[name]['depth']
    assert [getattr(b.drop_path, 'drop_prob', 0.) for b in model.blocks][-1] == pytest.approx(model.config.drop_path)


@pytest.mark.parametrize('relative', ['none', 'shared', 'per_layer'])
@pytest.mark.parametrize('positions', ['none', 'absolute', 'sincos'])
def test_every_parameter_learns(positions, relative):
    model = Trunk(TrunkConfig(**{**LAB, 'layer_scale': 0.1}, positions=positions, relative=relative))
    mask = torch.rand(2, 4, 4, generator=generator('mask')) < 0.5
    states = model.encode(model.embed({'vision': {'pixels': torch.rand(2, 3, 16, 16), 'mask': mask}}))['vision']
    (states*torch.randn(states.shape, generator=generator('pull'))).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not silent


@pytest.mark.parametrize('relative', ['none', 'shared', 'per_layer'])
def test_gradients_of_thinned_and_whole_agree(relative):
    "The visible patches alone, or all patches with the hidden ones out of sight: same states, same gradients, the table's included."
    model = Trunk(TrunkConfig(**LAB, positions='sincos', relative=relative)).double()
    for bias in model.relative: nn.init.normal_(bias.table)
    mask = torch.stack([torch.randperm(16, generator=generator(i)) < 7 for i in range(2)])
    visible = (~mask).nonzero()[:, 1].reshape(2, 9)
    whole = model.embed({'vision': {'pixels': torch.rand(2, 3, 16, 16, generator=generator('x')).double()}})
    out_of_sight = torch.cat([torch.ones(2, 1, dtype=torch.bool), ~mask], 1)[:, None, None, :]
    thin = model.encode({'vision': whole['vision'].keep(visible)})['vision']
    full = model.encode(whole, attention_mask=out_of_sight)['vision'][out_of_sight[:, 0, 0]].view_as(thin)
    assert (thin - full).abs().max() < 1e-10
    pull = torch.randn(thin.shape, generator=generator('pull')).double()
    parameters = [p for name, p in model.named_parameters() if 'mask_token' not in name]
    for a, b in zip(*(torch.autograd.grad((s*pull).sum(), parameters, retain_graph=True) for s in (thin, full))): assert (a - b).abs().max() < 1e-9


def test_filling_is_never_seen():
    model = Trunk(TrunkConfig(**LAB, positions='sincos', relative='shared')).eval()
    whole = model.embed({'vision': {'pixels': torch.rand(1, 3, 16, 16)}})['vision']
    valid = torch.tensor([[True, True, False]])
    a, b = (model.encode({'vision': whole.keep(torch.tensor([[3, 8, filling]]), valid)})['vision'][:, :3] for filling in (0, 14))
    assert torch.equal(a, b)


def test_keeping_twice_is_keeping_once():
    segment = Segment(torch.randn(2, 10, 4), mask=torch.rand(2, 10) < 0.5, grid=(3, 3))
    once = segment.keep(torch.tensor([[2, 5], [0, 8]]))
    twice = segment.keep(torch.tensor([[0, 2, 5, 7], [0, 3, 4, 8]])).keep(torch.tensor([[1, 2], [0, 3]]))
    for name in ('states', 'mask', 'positions'): assert torch.equal(getattr(once, name), getattr(twice, name))


def test_initialisation():
    model = trunk('base', depth=2, embed_dim=192, num_heads=3)
    values = {name: p.detach() for name, p in model.named_parameters()}
    assert values['blocks.0.attention.qkv.weight'].abs().max() <= 0.02
    assert values['embeddings.vision.mask_token'].std() > 0.005
    for l in (1, 2):
        for name in ('attention.proj', 'experts.vision.fc2'): assert values[f'blocks.{l-1}.{name}.weight'].abs().max() == pytest.approx(0.02/(2*l)**0.5, rel=0.02)
    assert all((p == 0).all() for name, p in values.items() if name.endswith('bias') and 'norm' not in name)
    assert values['blocks.1.scale1.gamma'].unique().tolist() == pytest.approx([0.1])
    torch.manual_seed(1)
    first = trunk('pico').state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(v, first[k]) for k, v in trunk('pico').state_dict().items())


def test_bfloat16_and_autocast():
    model = Trunk(TrunkConfig(**LAB, positions='sincos', relative='shared')).eval()
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        full = model.vectors(pixels)
        with torch.autocast('cpu', dtype=torch.bfloat16): mixed = model.vectors(pixels)
        half = model.bfloat16().vectors(pixels.bfloat16())
    assert (mixed.float() - full).abs().max() < 0.05 and (half.float() - full).abs().max() < 0.1


def test_a_saved_trunk_comes_back(tmp_path):
    model = trunk('pico', depth=2, relative='shared')
    nn.init.normal_(model.relative[0].table)
    model.save_pretrained(tmp_path/'trunk')
    back, pixels = Trunk.from_pretrained(tmp_path/'trunk'), torch.rand(2, 3, 32, 32)
    assert back.config == model.config and torch.equal(back.vectors(pixels), model.eval().vectors(pixels))


def test_intermediate_layers_continue_to_the_end():
    model = trunk('pico').eval()
    encoded = model.encode(model.embed({'vision': {'pixels': torch.rand(2, 3, 32, 32)}}), layers=range(5))
    assert isinstance(encoded, Encoded) and list(encoded.layers) == [0, 1, 2, 3, 4]
    x = encoded.layers[0]['vision']
    for i, block in enumerate(model.blocks, 1):
        x = block(x)
        assert (x - encoded.layers[i]['vision']).abs().max() < 1e-5
    assert torch.equal(model.norm(encoded.layers[4]['vision']), encoded['vision'])


@pytest.mark.parametrize('call, words', [
    (lambda: TrunkConfig(relative='both'), 'relative'), (lambda: TrunkConfig(embed_dim=100), 'num_heads'), (lambda: TrunkConfig(drop_path=1.), 'probability'),
    (lambda: TrunkConfig(depth=0), 'at least 1'), (lambda: Trunk(TrunkConfig(**{**LAB, 'embed_dim': 36}, positions='sincos')) and sincos_positions((2, 2), 30), 'divide by 4'),
    (lambda: Block(8, 2)(torch.zeros(1, 2, 8)) is None or init_weights(nn.Linear(2, 2), 'he'), 'unknown'), (lambda: trunk_config('pico', heads=2), 'no setting'),
    (lambda: trunk('pico').encode({}), 'batch size'), (lambda: trunk('pico').vectors(torch.zeros(1, 1, 32, 32)), 'pixels must be'),
    (lambda: trunk('pico', mask_token=False).embed({'vision': dict(pixels=torch.zeros(1, 3, 32, 32), mask=torch.ones(1, 8, 8, dtype=torch.bool))}), 'cannot hide')])
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ConfigError, match=words) as caught: call()
    assert '\n' not in str(caught.value)
