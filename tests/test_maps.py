"Attention maps: beside transformers' and torchscale's own tables, and against what the trunk does with them."
import matplotlib.pyplot as plt
import pytest
import torch
from noise import scramble

from beit3_peer import random_weights, to_trunk, torchscale_beit3
from beit_lab.core import ConfigError, generator
from beit_lab.trunk.attention import attend
from beit_lab.trunk.maps import Maps, attention_maps, attention_weights, rollout, show_attention
from beit_lab.trunk.multiway import Trunk, causal_mask
from beit_lab.trunk.released import import_trunk
from beit_lab.trunk.sizes import trunk, trunk_config

PEER = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8, vocab_size=50,
            layer_norm_eps=1e-6, drop_path_rate=0., layer_scale_init_value=0.1, attn_implementation='eager')
SMALL = dict(image_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4, vocab_size=40, max_words=10, modalities=('vision', 'language'))
KINDS = dict(shared={}, decoupled=dict(attention='decoupled', attention_bias='qkv', sub_norm=True), table=dict(relative='shared'),
             tables=dict(relative='per_layer', layer_scale=0.5), joint=dict(joint_layers=2, relative='shared'))


def some(batch=2, words=7, size=16):
    "Pictures, words, and padding of different lengths."
    draw = generator('maps', batch)
    pad = torch.arange(words) >= torch.tensor([words, words - 3])[:batch, None]
    return torch.rand(batch, 3, size, size, generator=draw), torch.randint(40, (batch, words), generator=draw), pad


def modes(model):
    "Segments and rules of every kind."
    pixels, tokens, pad = some()
    hidden = torch.rand(2, 4, 4, generator=generator('hidden')) < 0.4
    both = model.embed({'vision': dict(pixels=pixels, mask=hidden), 'language': dict(tokens=tokens, pad_mask=pad)})
    indices, valid = torch.tensor([[3, 8, 15], [2, 9, 0]]), torch.tensor([[True]*3, [True, True, False]])
    thin = both | {'vision': both['vision'].keep(indices, valid)}
    return dict(picture=({'vision': both['vision']}, None), text=({'language': both['language']}, None), both=(both, None), causal=(both, causal_mask(both)),
                thin=(thin, None), thin_causal=(thin, causal_mask(thin)), thin_alone=({'vision': thin['vision']}, None),
                other_order=(dict(reversed(both.items())), None))


# Beside other codes

@pytest.mark.parametrize('kind', ['shared', 'per_layer', 'absolute'])
@torch.no_grad()
def test_weights_equal_transformers(kind):
    transformers = pytest.importorskip('transformers')
    peer = scramble(transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**PEER, use_mask_token=True, use_absolute_position_embeddings=kind == 'absolute',
                    use_shared_relative_position_bias=kind == 'shared', use_relative_position_bias=kind == 'per_layer')))
    pixels = torch.rand(2, 3, 32, 32, generator=generator('pixels'))
    hidden = torch.rand(2, 4, 4, generator=generator('hidden')) < 0.4
    theirs = torch.stack(peer(2*pixels - 1, bool_masked_pos=hidden.flatten(1), output_attentions=True).attentions)       # (L, B, H, N, N)
    model, report = import_trunk(peer.state_dict(), num_heads=4)
    assert not report.missing
    assert theirs.std() > 0.01, 'flat tables prove nothing'
    assert (attention_maps(model, {'vision': dict(pixels=pixels, mask=hidden)}).weights - theirs).abs().max() < 1e-5


@pytest.mark.parametrize('case', ['picture', 'text', 'both', 'padded', 'causal'])
@torch.no_grad()
def test_weights_equal_torchscale(case):
    "Parameters for each modality, padding, and a rule."
    shape = dict(dim=48, depth=3, hidden=192, patch=8, vocab=50, words=12)
    weights, peer = random_weights(patches=16, **shape), torchscale_beit3(heads=4, image=32, **shape)
    peer.load_state_dict(weights)
    config = trunk_config('beit3_base', image_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, vocab_size=50, max_words=12)
    model = Trunk(config).eval()
    model.load_state_dict(to_trunk(weights, 3))
    pixels, tokens, pad = some(size=32)
    vision, words, pad = (case != 'text') or None, (case != 'picture') or None, pad if case in ('padded', 'causal') else None
    segments = model.embed(({'vision': dict(pixels=pixels)} if vision else {}) | ({'language': dict(tokens=tokens, pad_mask=pad)} if words else {}))
    rule = causal_mask(segments) if case == 'causal' else None
    theirs = tables_of(peer, words and tokens, vision and 2*pixels - 1, pad, None if rule is None else (~rule[0, 0]).float())
    ours = attention_maps(model, segments, rule).weights
    if pad is not None: theirs, ours = (torch.where(real_rows(pad, ours.shape[-1]), t, 0) for t in (theirs, ours))        # what padding asks is nobody's business
    assert theirs.std() > 0.01 and (ours - theirs).abs().max() < 1e-5


def tables_of(peer, *inputs):
    "The attention probabilities (L, B, H, N, N) of a run of torchscale's encoder."
    found = []
    hooks = [layer.self_attn.register_forward_hook(lambda module, given, out: found.append(out[1].transpose(0, 1))) for layer in peer.encoder.layers]
    peer(*inputs)
    for hook in hooks: hook.remove()
    return torch.stack(found)


def real_rows(pad, count):
    "True where a row of (L, B, H, N, N) is asked by something real; the text is last."
    real = torch.ones(len(pad), count, dtype=torch.bool)
    real[:, count - pad.shape[1]:] = ~pad
    return real[None, :, None, :, None]


# Against the trunk itself

@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_tables_times_values_are_what_attention_gives(kind, monkeypatch):
    "In every mode and block: what `attend` was given, and what came out."
    model, calls = scramble(trunk('pico', **SMALL, **KINDS[kind])), []
    def watched(qkv, num_heads, mask=None, past=None):
        calls.append((qkv, attend(qkv, num_heads, mask, past)))
        return calls[-1][1]
    for module in ('attention', 'blocks'): monkeypatch.setattr(f'beit_lab.trunk.{module}.attend', watched)
    for name, (segments, rule) in modes(model).items():
        calls.clear()
        maps = attention_maps(model, segments, rule)
        assert len(calls) == 3
        for layer, (qkv, out) in enumerate(calls, 1):
            values = qkv.unflatten(-1, (3, 4, 8))[:, :, 2].transpose(1, 2)                # (B, H, N, d)
            assert ((maps[layer]@values).transpose(1, 2).flatten(2) - out).abs().max() < 1e-5, name


@pytest.mark.parametrize('kind', KINDS)
def test_rows_sum_to_one_and_what_is_out_of_sight_gets_nothing(kind):
    model = scramble(trunk('pico', **SMALL, **KINDS[kind]))
    for segments, rule in modes(model).values():
        weights = attention_maps(model, segments, rule).weights
        assert (weights.sum(-1) - 1).abs().max() < 1e-5
        pad = torch.cat([s.padding() for s in segments.values()], 1)[None, :, None, None]
        assert (weights[pad.expand_as(weights)] == 0).all()
        if rule is not None: assert (weights[~rule.expand_as(weights)] == 0).all() and (weights > 0).any()


def test_nothing_of_the_model_changes():
    model = scramble(trunk('pico', **SMALL, drop_path=0.)).train()
    before, state = {name: t.clone() for name, t in model.state_dict().items()}, torch.get_rng_state()
    segments = model.embed({'vision': dict(pixels=some()[0])})
    maps = attention_maps(model, segments)
    assert torch.equal(torch.get_rng_state(), state) and model.training and torch.is_grad_enabled() and not maps.weights.requires_grad
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()) and all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(attention_maps(model, {'vision': dict(pixels=some()[0])}).weights, maps.weights)
    assert torch.equal(attention_maps(model, segments, layers=(3, 1)).weights, maps.weights[[2, 0]])


def test_blind_rows_and_low_precision():
    qkv, rule = torch.randn(1, 5, 24), torch.ones(1, 1, 5, 5, dtype=torch.bool)
    rule[..., 2, :] = False
    for mask in (rule, torch.zeros(1, 2, 5, 5).masked_fill(~rule, -torch.inf)):
        weights = attention_weights(qkv, 2, mask)
        assert (weights[:, :, 2] == 0).all() and (weights.sum(-1)[:, :, [0, 1, 3, 4]] - 1).abs().max() < 1e-6
        assert attend(qkv, 2, mask)[:, 2].abs().max() == 0
    assert (attention_weights(qkv.bfloat16(), 2).double().sum(-1) - 1).abs().max() < 1e-6
    assert attention_weights(qkv.double(), 2).dtype == torch.float64


# Reading them

def test_a_query_is_the_patch_it_names():
    "By place, wherever thinning has put it; filling at the place of a patch is not that patch."
    model = scramble(trunk('pico', **SMALL))
    whole = model.embed({'language': dict(tokens=some()[1]), 'vision': dict(pixels=some()[0])})
    thin = whole | {'vision': whole['vision'].keep(torch.tensor([[0, 9, 3], [9, 0, 0]]), torch.tensor([[True]*3, [True, False, False]]))}
    maps = attention_maps(model, thin)
    assert maps.positions.tolist() == [[0, 1, 10, 4], [0, 10, -1, -1]]
    looks = maps.between(2, ('vision', (2, 1)))
    assert torch.equal(looks[0], maps.weights[1, 0, :, 2]) and torch.equal(looks[1], maps.weights[1, 1, :, 1])
    assert torch.equal(maps.between('mean', ('language', -1), 'vision'), maps.weights.mean(0)[:, :, 10, :4])
    grid = maps.on_grid(maps.between(2, ('vision', (2, 1)), 'vision'))
    assert grid.shape == (2, 4, 4, 4) and torch.equal(grid[0, :, 0, 3], looks[0][:, 3]) and torch.equal(grid[1, :, 2, 1], looks[1][:, 1])
    assert (~grid.isnan()).sum((1, 2, 3)).tolist() == [12, 4]
    with pytest.raises(ConfigError, match='picture 1'): maps.between(1, ('vision', (0, 0)))


def test_rollout_by_hand():
    a, b = (torch.rand(1, 2, 4, 4, generator=generator(name)).softmax(-1) for name in 'ab')
    maps = Maps(torch.stack([a, b]), (1, 2), {'vision': 4})
    half = lambda table: 0.5*table.mean(1) + 0.5*torch.eye(4)
    assert (rollout(maps) - half(b)@half(a)).abs().max() < 1e-6
    assert (half(a)@half(b) - half(b)@half(a)).abs().max() > 1e-3, 'the order must matter here'
    assert torch.equal(maps['rollout'][:, 0], rollout(maps)) and torch.equal(maps['mean'], (a + b)/2)


@pytest.mark.parametrize('call, words', [
    (lambda m, maps: attention_maps(m, {'vision': dict(pixels=some()[0])}, layers=(0, 1)), 'from 1 to 3'), (lambda m, maps: attention_maps(m, {'vision': dict(pixels=some()[0])}, layers=()), 'from 1 to 3'),
    (lambda m, maps: maps[4], 'no map of block 4'), (lambda m, maps: maps.between(1, ('sound', 0)), "no modality 'sound'"), (lambda m, maps: maps.between(1, ('vision', 17)), 'position 17'),
    (lambda m, maps: maps.between(1, ('vision', (4, 0))), 'not in picture 0'), (lambda m, maps: maps.between(1, ('vision', 0), 'language'), "no modality 'language'"),
    (lambda m, maps: rollout(attention_maps(m, {'vision': dict(pixels=some()[0])}, layers=(2, 3))), 'from the first'),
    (lambda m, maps: show_attention(maps, some()[0][0], ('vision', 0), words=('one',)), 'do not fit'),
    (lambda m, maps: show_attention(attention_maps(m, {'language': dict(tokens=some()[1])}), None, ('language', 0)), 'no picture')])
def test_mistakes_are_one_sentence(call, words):
    model = trunk('pico', **SMALL).eval()
    with pytest.raises(ConfigError, match=words) as caught: call(model, attention_maps(model, {'vision': dict(pixels=some()[0])}))
    assert '\n' not in str(caught.value)


def test_the_figure_shows_the_numbers():
    model = scramble(trunk('pico', **SMALL))
    pixels, tokens, pad = some()
    maps = attention_maps(model, {'vision': dict(pixels=pixels), 'language': dict(tokens=tokens, pad_mask=pad)})
    figure = show_attention(maps, pixels[1], ('language', 2), layers=(1, 3, 'rollout'), heads=(None, 2), words='a b c d'.split(), sample=1)
    panels = [ax for ax in figure.axes if len(ax.images) == 2]                            # hatching, and the map over it
    assert len(panels) == 6
    assert torch.allclose(torch.tensor(panels[4].images[1].get_array().data), 100*maps.weights[2, 1, 2, 17 + 2, 1:17].reshape(4, 4))
    told = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert f'{100*float(maps.weights[0, 1, :, 17 + 2, 17 + 3].mean()):.1f}' in told
    plt.close(figure)
