"Released weights through the import path: parity with transformers and timm, round trips to the bit, refusals, other resolutions, full-size lists of keys."
import argparse, os, pickle, re
from dataclasses import replace

import numpy as np
import pytest
import torch
from noise import scramble
from torch import nn

from beit_lab.core import ConfigError, LabError, WeightsError, generator, write_json
from beit_lab.heads.released import build_released, import_weights, inspect_weights, open_model
from beit_lab.trunk.checkpoints import find_weights, read_released, read_state
from beit_lab.trunk.layouts import LAYOUTS, detect_layout, to_ours, to_theirs
from beit_lab.trunk.multiway import Trunk, TrunkConfig
from beit_lab.trunk.released import export_state, export_weights, import_trunk, offset_places, resize_positions, resize_table
from beit_lab.trunk.sizes import trunk, trunk_config

SMALL = dict(image_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4)
PEER = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8, vocab_size=50,
            layer_norm_eps=1e-6, drop_path_rate=0., layer_scale_init_value=0.1)


def pictures(size=32, batch=2): return torch.rand(batch, 3, size, size, generator=generator('images'))


def states(model, pixels, mask=None): return model.encode(model.embed({'vision': {'pixels': pixels, 'mask': mask}}))['vision']


def close(ours, theirs, tolerance):
    assert theirs.abs().max() > 0.5, 'the comparison needs numbers of a natural size'
    assert (ours - theirs).abs().max() <= tolerance


def equal(a, b):
    "Two state dicts, to the bit."
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# timm

def timm_beit(kind='per_layer', **changes):
    from timm.models.beit import Beit
    return scramble(Beit(**{**dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=7, qkv_bias=True, init_values=0.1, global_pool='avg', use_abs_pos_emb=False,
                                   use_rel_pos_bias=kind == 'per_layer', use_shared_rel_pos_bias=kind == 'shared'), **changes}))


@pytest.mark.parametrize('kind, changes', [('shared', {}), ('per_layer', {}), ('none', dict(use_abs_pos_emb=True)), ('none', dict(use_abs_pos_emb=True, init_values=None, global_pool=''))])
@torch.no_grad()
def test_trunks_of_timm(kind, changes):
    peer = timm_beit(kind, **changes)
    model, report = import_trunk(peer.state_dict(), num_heads=4)
    theirs = peer.forward_features(2*pictures() - 1)
    close(states(model, pictures()), theirs, 1e-6*max(1, theirs.abs().max()))
    assert not report.missing and set(report.unexpected) <= {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    back = export_state(model, 'timm')
    equal(back, {name: t for name, t in peer.state_dict().items() if name in back})
    assert not [name for name in peer.state_dict() if name not in back and not name.startswith(('fc_norm', 'head'))]


# transformers

def hf(name, size=0.15, **changes):
    transformers = pytest.importorskip('transformers')
    return scramble(getattr(transformers, name)(transformers.BeitConfig(**{**PEER, **changes})), size=size)


MIM = dict(use_mask_token=True, use_shared_relative_position_bias=True)


def on_disk(peer, folder):
    peer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize('absolute', [False, True])
@torch.no_grad()
def test_masked_image_modelling_of_transformers(absolute, tmp_path):
    "From memory and from a folder: the same trunk, the same logits over visual tokens."
    peer = hf('BeitForMaskedImageModeling', **MIM, use_absolute_position_embeddings=absolute)
    mask = torch.rand(2, 4, 4, generator=generator('mask')) < 0.4
    theirs = peer(2*pictures() - 1, bool_masked_pos=mask.flatten(1)).logits
    memory, _ = import_trunk(peer.state_dict())
    disk, report = import_trunk(on_disk(peer, tmp_path/'hf'))
    equal(memory.state_dict(), disk.state_dict())
    close(nn.functional.linear(states(disk, pictures(), mask)[:, 1:], peer.lm_head.weight, peer.lm_head.bias), theirs, 1e-5)
    assert not report.missing and sorted(report.unexpected) == ['head.bias', 'head.weight'] and disk.config.norm_eps == 1e-6


@torch.no_grad()
def test_an_epsilon_and_pixels_come_from_the_folder(tmp_path):
    peer = hf('BeitForImageClassification', use_relative_position_bias=True, layer_norm_eps=1e-3)
    on_disk(peer, tmp_path/'hf')
    write_json(tmp_path/'hf/preprocessor_config.json', dict(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]))
    model, _ = import_trunk(tmp_path/'hf')
    assert (model.config.norm_eps, model.config.pixel_mean, model.config.pixel_std) == (1e-3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    normal = (pictures() - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))/torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    close(peer.classifier(peer.beit.pooler.layernorm(model.vectors(pictures()))), peer(normal).logits, 1e-5)
    close(import_weights(tmp_path/'hf')[0](pictures()), peer(normal).logits, 1e-5)


@pytest.mark.parametrize('changes', [dict(use_relative_position_bias=True), dict(use_mean_pooling=False, use_shared_relative_position_bias=True),
                                     dict(use_absolute_position_embeddings=True, use_mean_pooling=False, layer_scale_init_value=0.)])
@torch.no_grad()
def test_there_and_back_with_the_bare_model(changes, tmp_path):
    "transformers' own `from_pretrained` takes what we write, and gives the same states."
    peer = hf('BeitModel', **changes)
    model, _ = import_trunk(on_disk(peer, tmp_path/'hf'))
    back = type(peer).from_pretrained(export_weights(model, tmp_path/'back'), add_pooling_layer=False).eval()
    assert torch.equal(back(2*pictures() - 1).last_hidden_state, peer(2*pictures() - 1).last_hidden_state)
    close(states(model, pictures()), back(2*pictures() - 1).last_hidden_state, 1e-5)
    equal(export_state(import_trunk(tmp_path/'back')[0]), export_state(model))


@torch.no_grad()
def test_a_trunk_of_the_lab_in_transformers(tmp_path):
    "Fixed sine-cosine positions become learned ones."
    transformers = pytest.importorskip('transformers')
    model = scramble(trunk('pico', depth=2, pixel_mean=(0.5, 0.4, 0.3)))
    peer = transformers.BeitModel.from_pretrained(export_weights(model, tmp_path/'hf')).eval()
    normal = (pictures() - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1))/0.5
    close(states(model, pictures()), peer(normal).last_hidden_state, 1e-4)
    again, _ = import_trunk(tmp_path/'hf')
    close(states(again, pictures()), states(model, pictures()), 1e-5)


@torch.no_grad()
def test_base_size(monkeypatch, tmp_path):
    monkeypatch.setattr(Trunk, 'reset_parameters', lambda self: None)  # every weight is replaced below
    peer = hf('BeitForMaskedImageModeling', size=0.02, **MIM, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, image_size=224, patch_size=16)
    theirs = to_theirs(to_ours(peer.state_dict(), LAYOUTS['transformers-5'].rules('shared', 'mim'))[0], LAYOUTS['unilm'].rules('shared', 'mim'))[0]
    torch.save({'model': theirs}, tmp_path/'beit_base.pth')
    model, report = import_trunk(tmp_path/'beit_base.pth')
    assert model.config == trunk_config('base', drop_path=0.) and not report.missing
    mask = torch.rand(1, 14, 14, generator=generator('mask')) < 0.4
    logits = nn.functional.linear(states(model, pictures(224, 1), mask)[:, 1:], peer.lm_head.weight, peer.lm_head.bias)
    close(logits, peer(2*pictures(224, 1) - 1, bool_masked_pos=mask.flatten(1)).logits, 1e-4)


# the layouts

def model_of(layout, kind='trunk'):
    "A small trunk that a layout can name in full, its tensors random."
    beit3 = dict(modalities=('vision', 'language'), attention='decoupled', attention_bias='qkv', sub_norm=True, positions='absolute', unused_positions=2, relative='none',
                 layer_scale=0., norm_eps=1e-5, vocab_size=60, max_words=20)
    half = dict(beit3, modalities=('vision',), unused_positions=0, mask_token=False)
    return scramble(Trunk(TrunkConfig(**SMALL, **{'beit3': beit3, 'timm-beit3': half}.get(layout, dict(relative=kind)))))


@pytest.mark.parametrize('layout, relative', [(name, relative) for name in LAYOUTS for relative in ('shared', 'per_layer', 'none') if relative == 'shared' or 'beit3' not in name])
def test_every_layout_there_and_back(layout, relative):
    "Every name is known, no bit changes, and the file is recognised for what it is."
    model = model_of(layout, relative)
    state = export_state(model, layout)
    assert detect_layout(state).name == layout
    released = read_released(state, num_heads=4)
    assert not released.left and released.kind == 'trunk'
    places = model.config.relative != 'none' or model.config.positions != 'none'
    silent = ['vocab_size', 'max_words'] + ([] if places else ['image_size'])       # what leaves no trace in these shapes
    assert replace(released.config, **{name: getattr(model.config, name) for name in silent}) == model.config
    again, report = import_trunk(state, num_heads=4, image_size=32)
    equal(again.state_dict(), model.state_dict())
    equal(export_state(again, layout), state)
    assert set(report.matched) == {'trunk.' + name for name in model.state_dict()}


def test_confusing_query_and_key_is_noticed():
    "Round trips cannot see it; the comparison with transformers can."
    rules = LAYOUTS['transformers-5'].rules('shared', 'mim')
    lie = tuple((ours, (theirs[1], theirs[0], theirs[2])) if len(theirs) == 3 else (ours, theirs) for ours, theirs in rules)
    state = hf('BeitForMaskedImageModeling', **MIM).state_dict()
    right, wrong = (to_ours(state, some)[0]['trunk.blocks.0.attention.qkv.weight'] for some in (rules, lie))
    assert torch.equal(right[:48], wrong[48:96]) and not torch.equal(right, wrong)


# BEiT-3, by the names in its released files (written out here once more, so that the table is not checked against itself)

def beit3_shapes(dim, depth, hidden, rows, words=64_010, places=1024, norm=False):
    "Name to shape of a released BEiT-3 without its head."
    shapes = {'text_embed.weight': (words, dim), 'vision_embed.mask_token': (1, 1, dim), 'vision_embed.cls_token': (1, 1, dim),
              'vision_embed.proj.weight': (dim, 3, 16, 16), 'vision_embed.proj.bias': (dim,),
              'encoder.embed_positions.A.weight': (rows, dim), 'encoder.embed_positions.B.weight': (places, dim)}
    wide = {'weight': lambda a, b: (a, b), 'bias': lambda a, b: (a,)}
    for copy in 'AB':
        for i in range(depth):
            layer = f'encoder.layers.{i}'
            for end, shape in wide.items():
                shapes |= {f'{layer}.self_attn.{part}_proj.{copy}.{end}': shape(dim, dim) for part in ('q', 'k', 'v', 'out')}
                shapes |= {f'{layer}.{name}.{copy}.{end}': (dim,) for name in ('self_attn.inner_attn_ln', 'self_attn_layer_norm', 'final_layer_norm')}
                shapes |= {f'{layer}.ffn.{copy}.fc1.{end}': shape(hidden, dim), f'{layer}.ffn.{copy}.fc2.{end}': shape(dim, hidden), f'{layer}.ffn.{copy}.ffn_layernorm.{end}': (hidden,)}
        if norm: shapes |= {f'encoder.layer_norm.{copy}.{end}': (dim,) for end in wide}
    return {'beit3.' + name: shape for name, shape in shapes.items()}


def linear(name, out, inp): return {f'{name}.weight': (out, inp), f'{name}.bias': (out,)}
def layer_norm(name, dim): return {f'{name}.weight': (dim,), f'{name}.bias': (dim,)}


def beit3_head(kind, d, words):
    "Name to shape of a released head."
    return dict(classifier=lambda: layer_norm('fc_norm', d) | linear('head', 1000, d),
                vqa=lambda: layer_norm('pooler.norm', d) | linear('pooler.dense', d, d) | linear('head.0', 2*d, d) | layer_norm('head.1', 2*d) | linear('head.3', 3129, 2*d),
                nlvr2=lambda: layer_norm('head.norm1', 4*d) | linear('head.dense1', 2*d, 4*d) | layer_norm('head.norm2', 2*d) | linear('head.dense2', 2, 2*d),
                captioning=lambda: linear('mlm_head', words, d), pretraining=lambda: linear('mlm_head', words, d) | linear('mim_head', 8192, d),
                retrieval=lambda: {'language_head.weight': (d, d), 'vision_head.weight': (d, d), 'logit_scale': ()})[kind]()


KINDS = dict(classifier=(False, 224, 'ReleasedClassifier'), vqa=(False, 480, 'ReleasedModel'), nlvr2=(True, 224, 'ReleasedModel'), captioning=(True, 480, 'ReleasedModel'),
             pretraining=(True, 224, 'ReleasedModel'), retrieval=(True, 384, 'ReleasedModel'))
ROWS = {224: 199, 384: 579, 480: 903, 768: 2307}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dim, depth, backbone', [(768, 12, 220_987_392), (1024, 24, 672_702_464)])
def test_full_size_beit3(kind, dim, depth, backbone):
    "Every name and shape of a released file has its place, in base and in large; tensors without memory."
    norm, size, name = KINDS[kind]
    shapes = beit3_shapes(dim, depth, 4*dim, ROWS[size], norm=norm) | beit3_head(kind, dim, 64_010)
    state = {n: torch.zeros(1).expand(shape) if shape else torch.zeros(()) for n, shape in shapes.items()}
    report = inspect_weights(state)
    assert len(report.matched) == len(report.rows) and not report.unexpected, report
    released = read_released(state)
    assert released.kind == kind and released.config == trunk_config(f'beit3_{"base" if dim == 768 else "large"}', image_size=size, final_norm=norm, drop_path=0.)
    if size == 224 and norm: assert sum(t.numel() for n, t in state.items() if n.startswith('beit3.')) == backbone
    with torch.device('meta'): assert type(build_released(released)).__name__ == name


def small_beit3(kind, seed=0):
    "A file of a small BEiT-3 for a task, with random numbers."
    norm, *_ = KINDS[kind]
    source = torch.Generator().manual_seed(seed)
    shapes = beit3_shapes(48, 3, 192, 19, 60, 20, norm) | beit3_head(kind, 48, 60)
    shapes['beit3.vision_embed.proj.weight'] = (48, 3, 8, 8)
    return {n: (1. if n.endswith(('norm.weight', 'norm1.weight', 'ln.weight')) else 0.) + 0.15*torch.randn(shape, generator=source) for n, shape in shapes.items()}


def some_input(): return dict(vision=dict(pixels=pictures()), language=dict(tokens=torch.randint(60, (2, 7), generator=generator('words'))))


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_small_beit3_of_every_task(kind, tmp_path):
    "Loads, answers, comes back to the bit, and can be kept in a folder."
    state = small_beit3(kind)
    torch.save({'model': state}, tmp_path/'task.pth')
    model, report = import_weights(tmp_path/'task.pth', num_heads=4)
    assert not report.missing and not report.unexpected
    equal(export_state(model, 'beit3'), state)
    model.save_pretrained(tmp_path/'own')
    again, report = open_model(tmp_path/'own')
    assert not report.missing and not report.unexpected
    equal(again.state_dict(), model.state_dict())
    both = some_input()
    calls = dict(classifier=lambda m: m(both['vision']['pixels']), nlvr2=lambda m: m(both, dict(both, vision=dict(pixels=1 - pictures()))), retrieval=lambda m: m(dict(vision=both['vision']))['vision'])
    answers = [calls.get(kind, lambda m: m(both))(m) for m in (model, again)]
    if isinstance(answers[0], dict): answers = [a['language'] for a in answers]
    assert torch.equal(*answers) and answers[0].std() > 1e-3


def test_a_head_of_another_name_is_left_out():
    "Nobody outside knows what the layer for visual tokens is called in the pretraining files."
    state = small_beit3('pretraining')
    for end in ('weight', 'bias'): state[f'visual_head.{end}'] = state.pop(f'mim_head.{end}')
    model, report = import_weights(state, num_heads=4)
    assert model.config.kind == 'captioning' and report.unexpected == ['visual_head.weight', 'visual_head.bias'] and not report.missing


def test_half_precision_is_read_as_full():
    state = {name: t.half() for name, t in small_beit3('captioning').items()}
    model, _ = import_weights(state, num_heads=4)
    back = export_state(model, 'beit3')
    assert all(t.dtype == torch.float32 for t in back.values())
    equal({name: t.half() for name, t in back.items()}, state)


@torch.no_grad()
def test_the_vision_half_of_beit3_equals_timm():
    "Our trunk, from the whole file and from timm's half of it, against timm's conversion and timm's forward pass."
    from functools import partial
    from timm.models.vision_transformer import VisionTransformer, _convert_beit3
    peer = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=1000, global_pool='avg', scale_attn_norm=True, scale_mlp_norm=True,
                             norm_layer=partial(nn.LayerNorm, eps=1e-5), class_token=True).eval()
    state = small_beit3('classifier')
    peer.load_state_dict(_convert_beit3(dict(state), peer))
    theirs = peer(2*pictures() - 1)
    whole, _ = import_weights(state, num_heads=4)
    half, report = import_weights(peer.state_dict(), num_heads=4)
    assert not report.missing and not report.unexpected and half.trunk.config.modalities == ('vision',)
    for model in (whole, half): close(model(pictures()), theirs, 1e-5)
    equal(export_state(half, 'timm'), peer.state_dict())
    cut, report = import_weights(state, num_heads=4, modalities=('vision',), unused_positions=0, mask_token=False)
    equal(cut.state_dict(), half.state_dict())
    equal(export_state(cut, 'timm'), peer.state_dict())


# whole models

@torch.no_grad()
def test_whole_models_of_transformers_and_back(tmp_path):
    for name, kind, changes in [('BeitForMaskedImageModeling', 'mim', MIM), ('BeitForImageClassification', 'classifier', dict(use_relative_position_bias=True, num_labels=7))]:
        peer = hf(name, **changes)
        model, report = import_weights(on_disk(peer, tmp_path/kind))
        assert not report.missing and not report.unexpected
        mask = torch.rand(2, 4, 4, generator=generator('mask')) < 0.4
        if kind == 'mim':
            theirs = peer(2*pictures() - 1, bool_masked_pos=mask.flatten(1)).logits
            for row in range(2): close(model(pictures()[row:row + 1], mask[row:row + 1])[0], theirs[row][mask[row].flatten()], 1e-5)
        else: close(model(pictures()), peer(2*pictures() - 1).logits, 1e-5)
        back = type(peer).from_pretrained(export_weights(model, tmp_path/f'{kind}_back'))
        equal(back.state_dict(), peer.state_dict())
        model.save_pretrained(tmp_path/f'{kind}_own')
        equal(open_model(tmp_path/f'{kind}_own')[0].state_dict(), model.state_dict())


def test_v2_keeps_its_extra_blocks_aside():
    "The two blocks that only helped the class token are reported, left out, and there for whoever asks."
    model, more = model_of('unilm', 'shared'), model_of('unilm', 'shared')
    state = export_state(model, 'unilm')
    extra = {name.replace('blocks.', 'cls_pt_layers.'): t + 1 for name, t in export_state(more, 'unilm').items() if re.match(r'blocks\.[01]\.', name)}
    state |= extra | {'lm_head.weight': torch.randn(50, 48), 'lm_head.bias': torch.randn(50), 'rel_pos_bias.relative_position_index': torch.zeros(17, 17, dtype=torch.long)}
    loaded, report = import_weights(state)
    assert not report.missing and not report.names('unknown') and len(report.unexpected) == len(extra) + 1
    assert 'for pretraining only' in str(report) and 'is computed' in str(report)
    released = read_released(state)
    blocks = nn.ModuleList(type(model.blocks[0])(48, 4, layer_scale=0.1) for _ in range(2))
    blocks.load_state_dict({name.removeprefix('extra.'): t for name, t in released.tensors.items() if name.startswith('extra.')})
    equal(export_state(loaded.trunk, 'unilm'), export_state(model, 'unilm'))


# another resolution

@pytest.mark.parametrize('known, wanted', [(27, 47), (27, 63), (7, 15), (47, 27)])
def test_tables_against_splines_axis_by_axis(known, wanted):
    "A cubic interpolating spline in one direction, then in the other: the same surface, by other code and with a solver for the ratio."
    from scipy.interpolate import make_interp_spline
    from scipy.optimize import brentq
    steps = known//2
    reach = lambda q: (q**steps - 1)/(q - 1) - wanted//2
    ratio = brentq(reach, 1.01, 1.5) if reach(1.01) < 0 < reach(1.5) else 1.01 if reach(1.01) >= 0 else 1.5
    half = (ratio**np.arange(1, steps + 1) - 1)/(ratio - 1)
    places, offsets = np.concatenate([-half[::-1], [0], half]), np.arange(-(wanted//2), wanted//2 + 1)
    table = torch.randn(known**2 + 3, 2, generator=generator(known)).double()
    inside = abs(offsets) < min(half[-1], wanted//2)                                   # the border may be beyond the last known place
    resized = resize_table(table, (wanted + 1)//2)
    assert resized.shape == (wanted**2 + 3, 2) and torch.equal(resized[-3:], table[-3:])
    for head in range(2):
        surface = table[:-3, head].reshape(known, known).numpy()
        rows = make_interp_spline(places, surface, k=3)(offsets[inside])               # (wanted, known)
        both = make_interp_spline(places, rows, k=3, axis=1)(offsets[inside])
        ours = resized[:-3, head].reshape(wanted, wanted).numpy()[np.ix_(inside, inside)]
        assert abs(ours - both).max() < 1e-3*abs(both).max()


def test_the_ratio_of_the_published_example():
    places = offset_places(27, 47)
    assert places[15] - places[14] == pytest.approx(1.09031, abs=5e-6) and places[-1] == pytest.approx(22.9999, abs=2e-4)
    assert np.array_equal(places, -places[::-1])


def test_a_transposed_table_would_be_noticed():
    "Rows stay rows: a table that knows about columns only keeps that."
    table = torch.arange(27.).expand(27, 27).reshape(-1, 1)
    resized = resize_table(torch.cat([table, torch.zeros(3, 1)]), 24)[:-3].reshape(47, 47)
    assert (resized - resized[0]).abs().max() < 1e-4 and (resized[0].diff() > 0).all()


@pytest.mark.parametrize('known, wanted', [(4, 6), (14, 24), (6, 4)])
def test_positions_equal_timm(known, wanted):
    from timm.layers import resample_abs_pos_embed
    positions = torch.randn(1, 1 + known**2, 8, generator=generator('positions'))
    theirs = resample_abs_pos_embed(positions, (wanted, wanted), (known, known), num_prefix_tokens=1, antialias=False)
    assert (resize_positions(positions, wanted) - theirs).abs().max() < 1e-6
    three = resize_positions(torch.cat([torch.zeros(1, 2, 8), positions], 1), wanted, extra=3)
    assert torch.equal(three[:, 2:], resize_positions(positions, wanted)) and (three[:, :2] == 0).all()


@pytest.mark.parametrize('layout', ['unilm', 'transformers', 'beit3'])
@torch.no_grad()
def test_a_trunk_at_another_resolution(layout):
    model = model_of(layout, 'shared')
    larger, report = import_trunk(export_state(model, layout), num_heads=4, image_size=48)
    assert report.resized == ['trunk.embeddings.vision.positions' if layout == 'beit3' else 'trunk.relative.0.table']
    assert states(larger, pictures(48)).shape == (2, 37, 48)
    same, report = import_trunk(export_state(model, layout), num_heads=4, image_size=32)
    assert not report.resized and torch.equal(states(same, pictures()), states(model, pictures()))


@torch.no_grad()
def test_a_shared_table_is_copied_into_every_block():
    model = model_of('unilm', 'shared')
    copied, report = import_trunk(export_state(model, 'unilm'), relative='per_layer', final_norm=False, mask_token=False)
    own = model.encode(model.embed({'vision': {'pixels': pictures()}}), layers=(3,)).layers[3]['vision']
    assert torch.equal(states(copied, pictures()), own) and not report.missing
    assert set(report.unexpected) == {'trunk.norm.weight', 'trunk.norm.bias', 'trunk.embeddings.vision.mask_token'}
    fresh, report = import_trunk(export_state(copied, 'unilm'), mask_token=True)
    assert report.missing == ['trunk.embeddings.vision.mask_token'] and fresh.embeddings['vision'].mask_token.abs().sum() > 0


# what is refused, and how

def spoil(change):
    state = export_state(model_of('unilm', 'per_layer'), 'unilm')
    change(state)
    return state


def rename(old, new): return lambda state: state.update({new: state.pop(old)})


@pytest.mark.parametrize('change, words', [
    (rename('blocks.1.attn.proj.weight', 'blocks.1.attn.project.weight'), 'lacks blocks.1.attn.proj.weight, and has blocks.1.attn.project.weight'),
    (rename('blocks.1.mlp.fc1.bias', 'blocks.1.mlp.up.bias'), 'lacks blocks.1.mlp.fc1.bias'),
    (rename('patch_embed.proj.weight', 'patch_embed.projection.weight'), 'kernel that embeds patches is missing'),
    (rename('blocks.1.gamma_1', 'blocks.1.ls1.gamma'), 'lacks blocks.1.gamma_1'),
    (rename('norm.weight', 'norm.scale'), 'lacks norm.weight'),
    (rename('blocks.2.attn.relative_position_bias_table', 'x'), 'lacks blocks.2.attn.relative_position_bias_table'),
    (lambda s: s.update({'blocks.0.attn.k_norm.weight': torch.zeros(12)}), 'no part of such a model'),
    (lambda s: s.update({'blocks.7.norm1.weight': torch.zeros(48)}), 'blocks are missing'),
    (lambda s: s.update({'blocks.999999999.norm1.weight': torch.zeros(48)}), 'blocks are missing'),
    (lambda s: s.update({'blocks.1.attn.qkv.weight': torch.zeros(144, 47)}), r'blocks.1.attn.qkv.weight has shape \(144, 47\)'),
    (lambda s: s.update({'blocks.1.attn.relative_position_bias_table': torch.zeros(52, 3)}), 'has shape'),
    (lambda s: s.update({'blocks.0.attn.relative_position_bias_table': torch.zeros(51, 4)}), 'no square grid'),
    (lambda s: s.update({'blocks.0.attn.relative_position_bias_table': torch.zeros(())}), 'belong to no trunk'),
    (lambda s: s.update({'patch_embed.proj.weight': torch.zeros(48, 3, 8)}), 'no four dimensions'),
    (lambda s: s.update({'blocks.1.norm1.bias': torch.full((48,), torch.inf)}), 'NaN or infinity'),
    (lambda s: [s.pop(n) for n in list(s) if n.startswith('blocks')], "not a BEiT's weights|blocks are missing"),
    (lambda s: s.clear(), 'no dictionary of tensors'),
    (lambda s: s.update(epoch=7), "'epoch' is int"),
    (lambda s: s.update(model=3), "'model' is int")])
def test_refusals_are_one_sentence(change, words):
    with pytest.raises(LabError, match=words) as caught: import_trunk(spoil(change))
    assert '\n' not in str(caught.value)


def test_heads_that_nobody_knows_are_asked_for():
    state = Trunk(TrunkConfig(**SMALL, relative='none', positions='absolute')).state_dict()
    with pytest.raises(WeightsError, match='num_heads'): import_trunk(state)
    with pytest.raises(WeightsError, match='has shape'): import_trunk(export_state(model_of('unilm', 'shared'), 'unilm'), num_heads=2)
    with pytest.raises(ConfigError, match="no setting 'width'"): import_trunk(state, num_heads=4, width=3)


def test_other_models_are_something_else():
    from timm.models.resnet import resnet18
    with pytest.raises(WeightsError, match="not a BEiT's weights"): import_trunk(resnet18().state_dict())
    from timm.models.vision_transformer import VisionTransformer
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4)
    with pytest.raises(WeightsError, match='lacks blocks.0.attn.q_bias .* has blocks.0.attn.qkv.bias'): import_trunk(vit.state_dict(), num_heads=4)


class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('legacy', [False, True])
def test_code_is_not_run(legacy, tmp_path):
    state = export_state(model_of('unilm', 'shared'), 'unilm')
    torch.save({'model': state, 'trap': Trap(tmp_path/'sprung')}, tmp_path/'trap.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError) as caught: import_trunk(tmp_path/'trap.pth')
    assert not (tmp_path/'sprung').exists() and '\n' not in str(caught.value)
    (tmp_path/'bare.pkl').write_bytes(pickle.dumps(Trap(tmp_path/'sprung')))
    with pytest.raises(WeightsError): import_trunk(tmp_path/'bare.pkl')
    assert not (tmp_path/'sprung').exists()


@pytest.mark.parametrize('share', [0., 0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_cut_files(kind, share, tmp_path):
    from safetensors.torch import save_file
    state, whole = export_state(model_of('unilm', 'shared'), 'unilm'), tmp_path/'whole'
    save_file(state, whole) if kind == 'safetensors' else torch.save({'model': state}, whole, _use_new_zipfile_serialization=kind == 'zip')
    content = whole.read_bytes()
    import_trunk(whole)                                                # by its content, without an ending
    (tmp_path/'cut').write_bytes(content[:int(share*len(content))])
    with pytest.raises(WeightsError) as caught: import_trunk(tmp_path/'cut')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'<!DOCTYPE html>', b'version https://git-lfs.github.com/spec/v1\noid sha256:1', b'PK\x03\x04 no zip', b'\x80\x02 no pickle', b'\x89PNG\r\n', b'12345678{"a"'])
def test_files_that_are_something_else(content, tmp_path):
    (tmp_path/'file').write_bytes(content)
    with pytest.raises(WeightsError) as caught: read_state(tmp_path/'file')
    assert '\n' not in str(caught.value)


def test_folders_and_names(tmp_path):
    with pytest.raises(WeightsError, match='neither model.safetensors'): find_weights(tmp_path)
    with pytest.raises(WeightsError, match='with download the name'): find_weights('microsoft/beit-base-patch16-224')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path/'pipe')
        with pytest.raises(WeightsError, match='neither a file'): find_weights(tmp_path/'pipe')
    (tmp_path/'config.json').write_text('[1]')
    torch.save(export_state(model_of('unilm', 'shared'), 'unilm'), tmp_path/'pytorch_model.bin')
    with pytest.raises(LabError): import_trunk(tmp_path)


def test_the_hub_is_asked_only_if_told(monkeypatch, tmp_path):
    asked = []
    torch.save(export_state(model_of('transformers', 'shared'), 'transformers'), tmp_path/'pytorch_model.bin')
    monkeypatch.setattr('beit_lab.trunk.checkpoints.snapshot_download', lambda name, **rest: asked.append(name) or str(tmp_path))
    with pytest.raises(WeightsError, match='does not exist'): import_trunk('somebody/beit')
    assert not asked and import_trunk('somebody/beit', download=True)[0].config.depth == 3 and asked == ['somebody/beit']
    monkeypatch.setattr('beit_lab.trunk.checkpoints.snapshot_download', lambda name, **rest: 1/0)
    with pytest.raises(WeightsError, match='could not be fetched'): import_trunk('somebody/beit', download=True)


def test_options_of_a_training_script_do_no_harm(tmp_path):
    state = {f'module.{n}': t for n, t in export_state(model_of('unilm', 'shared'), 'unilm').items()}
    torch.save({'module': state, 'args': argparse.Namespace(lr=1e-3), 'epoch': 7, 'optimizer': {'state': {}}}, tmp_path/'checkpoint.pth')
    assert import_trunk(tmp_path/'checkpoint.pth')[0].config.embed_dim == 48


# the command line

def lab(monkeypatch, capsys, *words):
    "Run a command here; what it prints, or the sentence it ends with."
    from beit_lab import cli
    monkeypatch.setattr('sys.argv', ['beit-lab', *map(str, words)])
    try: cli.main()
    except SystemExit as end: return capsys.readouterr().out + str(end.code or '')
    return capsys.readouterr().out


@torch.no_grad()
def test_commands(monkeypatch, capsys, tmp_path):
    peer, run = timm_beit(), lambda *words: lab(monkeypatch, capsys, 'weights', *words)
    torch.save({'model': peer.state_dict()}, tmp_path/'peer.pth')
    told = run('inspect', tmp_path/'peer.pth')
    assert "classifier, in the names of BEiT's" in told and "('unilm', which knows 55 of 55 names)" in told and '48 wide, 3 blocks, 4 heads, 4 by 4 patches' in told and 'blocks.*.attn.qkv.weight' in told
    assert 'ReleasedClassifier in' in run('import', tmp_path/'peer.pth', tmp_path/'own', '--pixels', 'imagenet')
    assert "our own names ('beit_lab'" in run('inspect', tmp_path/'own')
    assert 'written for timm' in run('export', tmp_path/'own', tmp_path/'timm.safetensors', '--layout', 'timm')
    equal(read_state(tmp_path/'timm.safetensors'), peer.state_dict())
    assert 'written for transformers' in run('export', tmp_path/'own', tmp_path/'hf') and 'pixel mean 0.485' in run('inspect', tmp_path/'hf')
    assert 'tensors: 52 taken, 3 resized' in run('import', tmp_path/'peer.pth', tmp_path/'large', '--image-size', '48') and open_model(tmp_path/'large')[0].trunk.config.grid == (6, 6)
    assert '6 by 6 patches' in run('export', tmp_path/'peer.pth', tmp_path/'wide.safetensors', '--layout', 'unilm', '--image-size', '48', '--num-heads', '4')
    assert 'taken as it is: leave out num_heads' in run('export', tmp_path/'own', tmp_path/'again', '--num-heads', '6')


def test_commands_that_fail_cost_a_sentence(monkeypatch, capsys, tmp_path):
    run = lambda *words: lab(monkeypatch, capsys, 'weights', *words)
    (tmp_path/'page.pth').write_text('<html>')
    torch.save(spoil(rename('blocks.1.mlp.fc1.bias', 'blocks.1.mlp.up.bias')), tmp_path/'renamed.pth')
    for words, says in [(['inspect', tmp_path/'page.pth'], 'no file of weights'), (['look'], "no command 'weights look'"), (['inspect'], 'required: file'),
                        (['inspect', tmp_path/'nothing'], 'does not exist'), (['import', tmp_path/'page.pth', tmp_path/'out'], 'no file of weights'),
                        (['import', tmp_path/'renamed.pth', tmp_path/'out', '--pixels', 'zero'], 'half or imagenet'), (['import', tmp_path/'renamed.pth', tmp_path/'out'], 'lacks blocks.1.mlp.fc1.bias'),
                        (['inspect', tmp_path/'renamed.pth'], 'cannot be used as it is: 2 tensors')]:
        sentence = run(*words).splitlines()[-1]
        assert sentence.startswith('beit-lab: ') and says in sentence, sentence
    assert not (tmp_path/'out').exists()
    assert 'weights inspect' in run() and 'usage: beit-lab weights import' in run('import', '--help')
