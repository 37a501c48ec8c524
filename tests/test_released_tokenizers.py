"Released tokenizers: exact names and shapes, whole pickled networks, reports, refusals."
import os, sys, types
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch import nn

from beit_lab.codebook.distill import VQKD, vqkd_config
from beit_lab.codebook.dvae import DVAE, DVAEConfig, dvae_config, squeeze_pixels
from beit_lab.codebook.released import (VQKD_RULES, dvae_rules, import_tokenizer, inspect_tokenizer, is_tokenizer, open_tokenizer_file, tokenizer_kind)
from beit_lab.core import ConfigError, WeightsError, generator
from beit_lab.trunk.layouts import to_theirs


def theirs(model, rules): return {name: t.clone() for name, t in to_theirs(model.state_dict(), rules)[0].items()}

def dvae_halves(model, style='dalle'):
    c = model.config
    return [theirs(model, dvae_rules(part, c.groups, c.blocks, style if part == 'encoder' else 'dalle')) for part in ('encoder', 'decoder')]


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def dvae():
    torch.manual_seed(0)
    return DVAE(dvae_config('nano')).eval()


@pytest.fixture(scope='module')
def vqkd():
    torch.manual_seed(0)
    return VQKD(vqkd_config('nano', encoder=replace(vqkd_config('nano').encoder, positions='absolute'))).eval()


@pytest.fixture(scope='module')
def pictures(): return torch.rand(3, 3, 32, 32, generator=generator('released'))


# ---- exact names and shapes of the releases, written out here by hand

def dalle_shapes():
    "Encoder and decoder of DALL-E as its code builds them."
    halves = {}
    for part in ('encoder', 'decoder'):
        shapes = {'blocks.input.w': (256, 3, 7, 7), 'blocks.input.b': (256,), 'blocks.output.conv.w': (8192, 2048, 1, 1), 'blocks.output.conv.b': (8192,)} if part == 'encoder' else \
                 {'blocks.input.w': (128, 8192, 1, 1), 'blocks.input.b': (128,), 'blocks.output.conv.w': (6, 256, 1, 1), 'blocks.output.conv.b': (6,)}
        widths, kernels = ([256, 256, 512, 1024, 2048], (3, 3, 3, 1)) if part == 'encoder' else ([128, 2048, 1024, 512, 256], (1, 3, 3, 3))
        for g, (before, width) in enumerate(zip(widths, widths[1:]), 1):
            for b in (1, 2):
                inputs, block, hidden = (before if b == 1 else width), f'blocks.group_{g}.block_{b}', width//4
                if inputs != width: shapes |= {f'{block}.id_path.w': (width, inputs, 1, 1), f'{block}.id_path.b': (width,)}
                for k, (i, o, size) in enumerate(zip((inputs, hidden, hidden, hidden), (hidden, hidden, hidden, width), kernels), 1):
                    shapes |= {f'{block}.res_path.conv_{k}.w': (o, i, size, size), f'{block}.res_path.conv_{k}.b': (o,)}
        halves[part] = {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}
    return halves


def vqkd_shapes(dim=768, code_dim=32, teacher=512, depth=3):
    "A training file of BEiT v2's tokenizer."
    shapes = {}
    for part, blocks, kernel in (('encoder', 12, (dim, 3, 16, 16)), ('decoder', depth, (dim, code_dim, 1, 1))):
        own = {'cls_token': (1, 1, dim), 'pos_embed': (1, 197, dim), 'patch_embed.proj.weight': kernel, 'patch_embed.proj.bias': (dim,), 'fc_norm.weight': (dim,), 'fc_norm.bias': (dim,)}
        for i in range(blocks):
            own |= {f'blocks.{i}.{name}': shape for name, shape in {
                'norm1.weight': (dim,), 'norm1.bias': (dim,), 'attn.qkv.weight': (3*dim, dim), 'attn.q_bias': (dim,), 'attn.v_bias': (dim,), 'attn.proj.weight': (dim, dim), 'attn.proj.bias': (dim,),
                'norm2.weight': (dim,), 'norm2.bias': (dim,), 'mlp.fc1.weight': (4*dim, dim), 'mlp.fc1.bias': (4*dim,), 'mlp.fc2.weight': (dim, 4*dim), 'mlp.fc2.bias': (dim,)}.items()}
        shapes |= {f'{part}.{name}': shape for name, shape in own.items()}
    shapes |= {'encode_task_layer.0.weight': (dim, dim), 'encode_task_layer.0.bias': (dim,), 'encode_task_layer.2.weight': (code_dim, dim), 'encode_task_layer.2.bias': (code_dim,),
               'decode_task_layer.0.weight': (dim, dim), 'decode_task_layer.0.bias': (dim,), 'decode_task_layer.2.weight': (teacher, dim), 'decode_task_layer.2.bias': (teacher,),
               'quantize.cluster_size': (8192,), 'quantize.embedding.weight': (8192, code_dim), 'quantize.embedding.cluster_size': (8192,), 'quantize.embedding.embed_avg': (8192, code_dim),
               'quantize.embedding.initted': (1,), 'teacher_model.conv1.weight': (768, 3, 16, 16), 'scaling_layer.shift': (1, 3, 1, 1)}
    return {name: torch.empty(shape, device='meta') for name, shape in shapes.items()}


def test_dalle_in_full_size():
    halves = dalle_shapes()
    assert [sum(t.numel() for t in half.values()) for half in halves.values()] == [53_786_240, 43_829_766]
    for first, second in (halves['encoder'], halves['decoder']),:
        found = open_tokenizer_file(first, second)
        assert found.config == DVAEConfig()
        report = inspect_tokenizer(first, second)
        assert len(report.matched) == len(first) + len(second) == 150 and not report.missing and not report.unexpected
    assert 'encoder alone' in inspect_tokenizer(halves['encoder']).title


@pytest.mark.parametrize('depth, teacher', [(3, 512), (1, 768)])
def test_vqkd_in_full_size(depth, teacher):
    state = vqkd_shapes(depth=depth, teacher=teacher)
    found, report = open_tokenizer_file({'model': state}), inspect_tokenizer({'model': state})
    assert found.config == replace(vqkd_config('base'), encoder=found.config.encoder, decoder_depth=depth, teacher_dim=teacher)
    e = found.config.encoder
    assert (e.embed_dim, e.depth, e.num_heads, e.patch_size, e.image_size, e.layer_scale, e.relative, e.positions, e.mask_token, e.final_norm, e.norm_eps) == \
           (768, 12, 12, 16, 224, 0., 'none', 'absolute', False, True, 1e-6)
    assert len(report.matched) == len(state) - 6 and not report.missing and set(report.unexpected) == {n for n in state if n.startswith(('quantize.cluster', 'quantize.embedding.c', 'quantize.embedding.e', 'quantize.embedding.i', 'teacher', 'scaling'))}
    resized = inspect_tokenizer(state | {f'{part}.pos_embed': torch.zeros(1, 197, 768) for part in ('encoder', 'decoder')}, image_size=384)
    assert len(resized.resized) == 2 and not resized.missing and 'resized from 14' in str(resized)


# ---- there and back

def test_dvae_round_trip(dvae, pictures, tmp_path):
    for part, half in zip(('encoder', 'decoder'), dvae_halves(dvae)): torch.save(half, tmp_path/f'{part}.pth')
    for order in (('encoder', 'decoder'), ('decoder', 'encoder')):
        model, report = import_tokenizer(*(tmp_path/f'{part}.pth' for part in order))
        assert model.config == dvae.config and all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), dvae.state_dict().values()))
    tokens = dvae.encode(pictures)
    assert torch.equal(model.encode(pictures), tokens) and torch.equal(model.decode(tokens), dvae.decode(tokens))
    alone, _ = import_tokenizer(tmp_path/'encoder.pth')
    assert torch.equal(alone.encode(pictures), tokens) and alone.decoder is None
    alone.save_pretrained(tmp_path/'alone')
    assert torch.equal(DVAE.from_pretrained(tmp_path/'alone').encode(pictures), tokens)


def test_vqkd_round_trip(vqkd, pictures, tmp_path):
    torch.save({'model': theirs(vqkd, VQKD_RULES), 'epoch': 99}, tmp_path/'vqkd.pth')
    model, report = import_tokenizer(tmp_path/'vqkd.pth', num_heads=2)
    assert torch.equal(model.encode(pictures), vqkd.encode(pictures)) and not model.training and model.quantizer.started and not report.unexpected
    with torch.no_grad(): assert torch.allclose(model.teach(model.codebook[model.encode(pictures)]), vqkd.teach(vqkd.codebook[vqkd.encode(pictures)]), atol=1e-6)
    larger, report = import_tokenizer(tmp_path/'vqkd.pth', num_heads=2, image_size=48)
    assert larger.encode(torch.rand(1, 3, 48, 48)).shape == (1, 12, 12) and len(report.resized) == 2


@pytest.mark.parametrize('sizes', [dict(hidden_size=16, vocab_size=64), {}], ids=['narrow', 'paper'])
def test_flava_has_the_same_encoder(pictures, sizes):
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig
    torch.manual_seed(0)
    peer = FlavaImageCodebook(FlavaImageCodebookConfig(**sizes)).eval()
    state = {f'image_codebook.{name}': t + 0.01*torch.randn_like(t) for name, t in peer.state_dict().items()} # biases of zero would hide a mistake
    peer.load_state_dict({name.removeprefix('image_codebook.'): t for name, t in state.items()})
    model, report = import_tokenizer(state | {'flava.logit_scale': torch.zeros(())})
    pixels = squeeze_pixels(pictures)
    with torch.no_grad(): assert torch.allclose(model.scores(pictures), peer(pixels), atol=1e-5)
    assert torch.equal(model.encode(pictures), peer.get_codebook_indices(pixels)) and len(report.matched) == 74


def test_whole_pickled_networks_of_dalle(tmp_path, pictures):
    "Files like the released ones, made by the package itself where it is installed."
    package = pytest.importorskip('dall_e')
    torch.manual_seed(0)
    parts = dict(encoder=package.Encoder(n_hid=16, vocab_size=64, device=torch.device('cpu')), decoder=package.Decoder(n_hid=16, vocab_size=64, n_init=8, device=torch.device('cpu')))
    for name, part in parts.items(): torch.save(part, tmp_path/f'{name}.pkl')
    model, report = import_tokenizer(tmp_path/'encoder.pkl', tmp_path/'decoder.pkl')
    with torch.no_grad():
        scores = parts['encoder'](squeeze_pixels(pictures))
        painted = parts['decoder'](nn.functional.one_hot(scores.argmax(1), 64).permute(0, 3, 1, 2).float())
        assert torch.allclose(model.scores(pictures), scores, atol=1e-6)
        assert torch.allclose(model.decode(scores.argmax(1)), ((painted[:, :3].sigmoid() - 0.1)/0.8).clamp(0, 1), atol=1e-5)


# ---- refusals

class Command:
    def __reduce__(self): return os.system, ('touch executed',)


def pickled(path, *extra, **how):
    "A whole network under the name of DALL-E's encoder, with something in it."
    module = types.ModuleType('dall_e.encoder')
    module.Encoder = type('Encoder', (nn.Module,), dict(__module__='dall_e.encoder'))
    before = {name: sys.modules.get(name) for name in ('dall_e', 'dall_e.encoder')}
    sys.modules |= {'dall_e': types.ModuleType('dall_e'), 'dall_e.encoder': module}
    network = module.Encoder()
    network.blocks, network.extra = nn.Sequential(nn.ReLU()), list(extra)
    torch.save(network, path, **how)
    for name, old in before.items():
        if old is None: del sys.modules[name]
        else: sys.modules[name] = old


@pytest.mark.filterwarnings("ignore:Couldn.t retrieve source code")
def test_nothing_in_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled('plain.pkl')
    with pytest.raises(WeightsError, match='holds no tokenizer'): import_tokenizer('plain.pkl')                   # read, and empty
    pickled('evil.pkl', Command())
    with pytest.raises(WeightsError, match='nothing was run'): import_tokenizer('evil.pkl')
    with pytest.raises(WeightsError, match='open it with the DALL-E package'): is_tokenizer('evil.pkl')            # what the command asks first
    pickled('old.pkl', _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match='open it with the DALL-E package'): is_tokenizer('old.pkl')
    torch.save({'quantize.embedding.weight': Command()}, 'evil.pth')
    with pytest.raises(WeightsError, match='wants to run'): import_tokenizer('evil.pth')
    assert not os.path.exists('executed')


def test_other_files_are_refused(vqkd, dvae, tmp_path):
    (tmp_path/'page.pkl').write_text('<!DOCTYPE html>')
    torch.save(theirs(vqkd, VQKD_RULES), tmp_path/'whole.pth')
    (tmp_path/'cut.pth').write_bytes((tmp_path/'whole.pth').read_bytes()[:2000])
    encoder, decoder = dvae_halves(dvae)
    for where, word in [(tmp_path/'page.pkl', 'no file of weights'), (tmp_path/'cut.pth', 'truncated'), (tmp_path/'nowhere', 'does not exist'), ({'fc.weight': torch.zeros(1)}, 'holds no tokenizer'), (decoder, 'makes no tokens')]:
        with pytest.raises(WeightsError, match=word): import_tokenizer(where)
        with pytest.raises(WeightsError, match=word): inspect_tokenizer(where)
    with pytest.raises(WeightsError, match='both files hold the encoder'): import_tokenizer(encoder, encoder)
    with pytest.raises(ConfigError, match='one file'): import_tokenizer(tmp_path/'whole.pth', decoder)
    with pytest.raises(ConfigError, match='any size'): import_tokenizer(encoder, image_size=64)


@pytest.mark.parametrize('name, value, word', [
    ('encoder.blocks.0.attn.q_bias', None, 'lacks encoder.blocks.0.attention.q_bias'), ('decoder.fc_norm.weight', torch.zeros(3), r'has shape \(3,\)'),
    ('decoder.blocks.0.attn.k_norm', torch.zeros(3), 'no part of such'), ('encode_task_layer.2.bias', torch.full((8,), torch.nan), 'NaN'),
    ('decode_task_layer.2.weight', None, 'lacks its decoder'), ('encoder.patch_embed.proj.weight', None, 'embeds patches is missing')])
def test_damaged_vqkd(vqkd, name, value, word):
    state = {n: t for n, t in (theirs(vqkd, VQKD_RULES) | {name: value}).items() if t is not None}
    with pytest.raises(WeightsError, match=word): import_tokenizer(state, num_heads=2)


@pytest.mark.parametrize('name, value, word', [
    ('blocks.group_2.block_1.id_path.w', None, 'lacks encoder.groups.1.0.skip.weight'), ('blocks.input.w', None, 'lacks the first convolution'), ('blocks.output.conv.w', None, 'lacks its last'),
    ('blocks.group_1.block_1.res_path.conv_2.b', torch.zeros(5), r'has shape \(5,\)'), ('blocks.group_1.block_1.res_path.conv_9.b', torch.zeros(5), 'no part of such')])
def test_damaged_dvae(dvae, name, value, word):
    state = {n: t for n, t in (dvae_halves(dvae)[0] | {name: value}).items() if t is not None}
    with pytest.raises(WeightsError, match=word): import_tokenizer(state)


def test_kinds(dvae, vqkd):
    assert tokenizer_kind(dvae_halves(dvae)[0]) == 'dvae' and tokenizer_kind(theirs(vqkd, VQKD_RULES)) == 'vqkd' and tokenizer_kind(['blocks.0.norm1.weight']) is None
    assert is_tokenizer(theirs(vqkd, VQKD_RULES)) and not is_tokenizer({'cls_token': torch.zeros(1)}) and not is_tokenizer('nowhere')


def test_command_line_opens_tokenizers(dvae, pictures, tmp_path, capsys):
    from beit_lab.cli import weights_import, weights_inspect
    encoder, decoder = (str(tmp_path/f'{part}.pth') for part in ('encoder', 'decoder'))
    for path, half in zip((encoder, decoder), dvae_halves(dvae)): torch.save(half, path)
    weights_inspect(encoder, decoder=decoder)
    assert 'dVAE, the tokenizer of DALL-E and BEiT, with its decoder' in capsys.readouterr().out
    weights_import(encoder, str(tmp_path/'out'), decoder=decoder)
    assert torch.equal(DVAE.from_pretrained(tmp_path/'out').encode(pictures), dvae.encode(pictures))


# ---- the same networks written down once more, from the released names alone

def test_the_decoder_of_dalle_by_hand():
    torch.manual_seed(0)
    model = DVAE(dvae_config('dalle', width=16, codebook_size=64, code_dim=8)).eval()
    for weight in model.parameters(): weight.data += 0.02*torch.randn_like(weight)
    state = to_theirs(model.state_dict(), dvae_rules('decoder', 4, 2))[0]

    def convolve(x, name):
        weight = state[f'{name}.w']
        return nn.functional.conv2d(x, weight, state[f'{name}.b'], padding=(weight.shape[-1] - 1)//2)

    def block(x, name):
        along = x
        for k in range(1, 5): along = convolve(along.relu(), f'{name}.res_path.conv_{k}')
        return (convolve(x, f'{name}.id_path') if f'{name}.id_path.w' in state else x) + along/64                    # eight blocks: one over their number squared

    tokens = torch.randint(64, (2, 3, 4), generator=generator('tokens'))
    x = convolve(nn.functional.one_hot(tokens, 64).permute(0, 3, 1, 2).float(), 'blocks.input')
    for group in range(1, 5):
        for k in (1, 2): x = block(x, f'blocks.group_{group}.block_{k}')
        if group < 4: x = nn.functional.interpolate(x, scale_factor=2, mode='nearest')
    painted = ((convolve(x.relu(), 'blocks.output.conv')[:, :3].sigmoid() - 0.1)/0.8).clamp(0, 1)
    assert painted.std() > 0.01 and torch.allclose(model.decode(tokens), painted, atol=1e-6)


def layer(x, state, name, heads):
    "A block of a BEiT without position bias, (B, N, D)."
    at, norm = lambda key: state[f'{name}.{key}'], lambda x, key: nn.functional.layer_norm(x, x.shape[-1:], state[f'{name}.{key}.weight'], state[f'{name}.{key}.bias'], 1e-6)
    linear, width = nn.functional.linear, x.shape[-1]
    bias = torch.cat([at('attn.q_bias'), torch.zeros(width), at('attn.v_bias')])                                     # keys have none
    q, k, v = rearrange(linear(norm(x, 'norm1'), at('attn.qkv.weight'), bias), 'b n (three h d) -> three b h n d', three=3, h=heads)
    mixed = rearrange((q @ k.transpose(-1, -2)/(width//heads)**0.5).softmax(-1) @ v, 'b h n d -> b n (h d)')
    x = x + linear(mixed, at('attn.proj.weight'), at('attn.proj.bias'))
    inner = nn.functional.gelu(linear(norm(x, 'norm2'), at('mlp.fc1.weight'), at('mlp.fc1.bias')))
    return x + linear(inner, at('mlp.fc2.weight'), at('mlp.fc2.bias'))


def transformer(x, state, name, depth, heads):
    "Pictures or grids of codes (B, C, H, W) to the states of their patches (B, N, D)."
    weight = state[f'{name}.patch_embed.proj.weight']
    x = rearrange(nn.functional.conv2d(x, weight, state[f'{name}.patch_embed.proj.bias'], stride=weight.shape[-1]), 'b d h w -> b (h w) d')
    x = torch.cat([state[f'{name}.cls_token'].expand(len(x), -1, -1), x], 1) + state[f'{name}.pos_embed']
    for i in range(depth): x = layer(x, state, f'{name}.blocks.{i}', heads)
    return nn.functional.layer_norm(x[:, 1:], x.shape[-1:], state[f'{name}.fc_norm.weight'], state[f'{name}.fc_norm.bias'], 1e-6)


def test_vqkd_by_hand():
    torch.manual_seed(0)
    config = vqkd_config('nano', encoder=replace(vqkd_config('nano').encoder, positions='absolute', depth=2))
    model = VQKD(config).eval()
    for weight in model.parameters(): weight.data += 0.05*torch.randn_like(weight)
    state, heads = to_theirs(model.state_dict(), VQKD_RULES)[0], config.encoder.num_heads

    def two_layers(x, name):
        x = nn.functional.linear(x, state[f'{name}.0.weight'], state[f'{name}.0.bias']).tanh()
        return nn.functional.linear(x, state[f'{name}.2.weight'], state[f'{name}.2.bias'])

    pixels, codes = torch.rand(2, 3, 32, 32, generator=generator('pixels')), state['quantize.embedding.weight']
    vectors = nn.functional.normalize(two_layers(transformer(2*pixels - 1, state, 'encoder', 2, heads), 'encode_task_layer'), dim=-1)
    ids = torch.cdist(vectors, codes.expand(2, -1, -1)).argmin(-1)                                                   # (B, N)
    with torch.no_grad():
        assert len(ids.unique()) > 3 and torch.equal(model.encode(pixels).flatten(1), ids)
        told = two_layers(transformer(rearrange(codes[ids], 'b (h w) d -> b d h w', h=8), state, 'decoder', config.decoder_depth, heads), 'decode_task_layer')
        assert torch.allclose(rearrange(model.teach(model.codebook[model.encode(pixels)]), 'b h w d -> b (h w) d'), told, atol=1e-5)
