"The multiway trunk: against torchscale's BEiT-3 and timm's, and against itself."
import json
from dataclasses import asdict, fields, replace
from functools import partial

import pytest
import torch
from noise import scramble
from torch import nn

from beit3_peer import SlowBEiT3, random_weights, to_trunk, torchscale_beit3
from beit_lab.core import ConfigError, count_parameters, generator, samples
from beit_lab.pretrain.objectives import MaskedImageModel
from beit_lab.trunk.blocks import Block, amplify_residuals, init_weights
from beit_lab.trunk.embeddings import EMBEDDINGS, Segment, TrunkConfig
from beit_lab.trunk.multiway import Cache, Trunk, causal_mask
from beit_lab.trunk.sizes import trunk, trunk_config

DIM, DEPTH, HEADS, IMAGE, PATCH, VOCAB, WORDS = 48, 3, 4, 32, 8, 50, 12
RELEASED = trunk_config('beit3_base', image_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, vocab_size=VOCAB, max_words=WORDS)
LAB = dict(image_size=16, patch_size=4, embed_dim=32, depth=4, num_heads=4, layer_scale=0., init='xavier', relative='none', positions='sincos',
           modalities=('vision', 'language'), vocab_size=40, max_words=10)
KINDS = dict(shared=dict(), decoupled=dict(attention='decoupled', attention_bias='qkv', sub_norm=True), joint=dict(joint_layers=2),
             offsets=dict(relative='per_layer', layer_scale=0.5))


def scrambled(seed=0, size=0.15, **changes):
    "A trunk whose parameters are all random, biases and tables included."
    return scramble(Trunk(TrunkConfig(**{**LAB, **changes})), seed, size)


def inputs(batch=2, image=16, words=7, vocab=40):
    draw = generator('inputs', batch, words)
    pad = torch.arange(words) >= torch.tensor([words - 3, words, words - 1, words - 4])[:batch, None]
    return torch.rand(batch, 3, image, image, generator=draw), torch.randint(vocab, (batch, words), generator=draw), pad


def states(model, pixels=None, tokens=None, pad=None, mask=None, **kwargs):
    "All states, joined, (B, N, D)."
    batch = ({} if pixels is None else {'vision': dict(pixels=pixels, mask=mask)}) | ({} if tokens is None else {'language': dict(tokens=tokens, pad_mask=pad)})
    return torch.cat(list(model.encode(model.embed(batch), **kwargs).states.values()), 1)


def difference(a, b): return (a - b).abs().max().item()


# Beside torchscale, and beside a slow version written from the published facts

@pytest.fixture(scope='module')
def weights(): return random_weights(dim=DIM, depth=DEPTH, hidden=4*DIM, patch=PATCH, patches=16, vocab=VOCAB, words=WORDS)


@pytest.fixture(scope='module')
def released(weights):
    model = Trunk(RELEASED).eval()
    model.load_state_dict(to_trunk(weights, DEPTH))
    return model


def peer_of(name, weights):
    "A function from inputs to states."
    if name == 'slow': return SlowBEiT3(weights, DEPTH, HEADS)
    model = torchscale_beit3(DIM, DEPTH, HEADS, 4*DIM, IMAGE, PATCH, VOCAB, WORDS)
    model.load_state_dict(weights)
    return lambda pixels=None, tokens=None, pad=None, hidden=None, blocked=None: model(
        tokens, pixels, pad, None if blocked is None else blocked.float(), hidden)['encoder_out']


CASES = dict(picture=('pixels',), hidden_patches=('pixels', 'hidden'), text=('tokens',), padded_text=('tokens', 'pad'), both=('pixels', 'tokens'),
             both_padded=('pixels', 'tokens', 'pad'), both_causal=('pixels', 'tokens', 'blocked'), everything=('pixels', 'tokens', 'pad', 'hidden', 'blocked'))


@pytest.mark.parametrize('peer', ['slow', 'torchscale'])
@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_released_beit3(case, peer, weights, released):
    pixels, tokens, pad = inputs(4, IMAGE, 7, VOCAB)
    hidden = torch.rand(4, 4, 4, generator=generator('hidden')) < 0.4
    given = {k: v for k, v in dict(pixels=2*pixels - 1, tokens=tokens, pad=pad, hidden=hidden.flatten(1)).items() if k in CASES[case]}
    own = dict(pixels=pixels if 'pixels' in given else None, tokens=given.get('tokens'), pad=given.get('pad'), mask=hidden if 'hidden' in given else None)
    if 'blocked' in CASES[case]:
        allowed = causal_mask({'vision': Segment(torch.zeros(4, 17, DIM)), 'language': Segment(torch.zeros(4, 7, DIM))})
        given['blocked'], own['attention_mask'] = ~allowed[0, 0], allowed
    expected = peer_of(peer, weights)(**given)
    assert expected.abs().max() > 0.5
    assert difference(states(released, **own), expected) < 1e-5


@torch.no_grad()
def test_writing_beside_torchscale(weights, released):
    "A picture and two words first, then word after word; torchscale's own cache gives the same states."
    model = torchscale_beit3(DIM, DEPTH, HEADS, 4*DIM, IMAGE, PATCH, VOCAB, WORDS)
    model.load_state_dict(weights)
    pixels, tokens, _ = inputs(2, IMAGE, 7, VOCAB)
    memory, cache = {i: {} for i in range(DEPTH)}, Cache()
    for begin, end in [(0, 2), (2, 3), (3, 5), (5, 7)]:
        batch = {'language': dict(tokens=tokens[:, begin:end], first=begin)} | ({} if begin else {'vision': dict(pixels=pixels)})
        segments = released.embed(batch)
        mask = causal_mask(segments, cache)
        places = None if begin == 0 else torch.arange(begin + 2, end + 2)[None]
        theirs = model(tokens[:, begin:end], 2*pixels - 1 if begin == 0 else None, attn_mask=(~mask[0, 0]).float(), incremental_state=memory, positions=places)
        ours = released.encode(segments, mask, cache)['language']
        assert difference(ours, theirs['encoder_out'][:, -(end - begin):]) < 1e-5


@torch.no_grad()
def test_vision_branch_equals_timm(weights):
    from timm.models.vision_transformer import VisionTransformer, _convert_beit3
    peer = VisionTransformer(img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, num_classes=0, scale_attn_norm=True, scale_mlp_norm=True,
                             norm_layer=partial(nn.LayerNorm, eps=1e-5), global_pool='', final_norm=True).eval()
    converted = _convert_beit3({f'beit3.{k}': v for k, v in weights.items()}, peer)
    peer.load_state_dict({k.replace('layer_norm.', 'norm.', 1) if k.startswith('layer_norm.') else k: v for k, v in converted.items()})
    alone = Trunk(replace(RELEASED, modalities=('vision',))).eval()
    alone.load_state_dict({k: v for k, v in to_trunk(weights, DEPTH).items() if 'language' not in k})
    pixels, _, _ = inputs(2, IMAGE)
    assert difference(states(alone, pixels), peer.forward_features(2*pixels - 1)) < 1e-5


# One trunk in several ways

@torch.no_grad()
def test_shared_is_decoupled_with_equal_parts():
    "Attention and norms copied to each modality: the same function."
    shared = scrambled(sub_norm=True, attention_bias='qkv')
    apart = Trunk(replace(shared.config, attention='decoupled')).eval()
    own = shared.state_dict()
    def source(name):
        for modality in LAB['modalities']:
            for part in ('norm1', 'attention', 'scale1', 'norm'): name = name.replace(f'{part}.{modality}.', f'{part}.')
        return name
    apart.load_state_dict({name: own[source(name)] for name in apart.state_dict()})
    assert difference(states(shared, *inputs()), states(apart, *inputs())) < 1e-5


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_padding_changes_nothing(kind):
    "Neither what it says nor how much of it there is."
    model, (pixels, tokens, pad) = scrambled(**KINDS[kind]), inputs()
    before = states(model, pixels, tokens, pad)
    other = torch.where(pad, (tokens + 17) % 40, tokens)
    assert torch.equal(states(model, pixels, other, pad), before)
    longer = torch.cat([tokens, tokens[:, :3]], 1), nn.functional.pad(pad, (0, 3), value=True)
    real = nn.functional.pad(~pad, (17, 0), value=True)
    assert difference(states(model, pixels, *longer)[:, :24][real], before[real]) < 1e-5
    assert difference(states(model, None, *longer)[:, :7][~pad], states(model, None, tokens, pad)[~pad]) < 1e-5


@torch.no_grad()
def test_a_text_of_padding_alone_is_no_number_in_question():
    model, (pixels, tokens, pad) = scrambled(), inputs()
    pad[0] = True
    assert states(model, pixels, tokens, pad).isfinite().all()
    assert difference(states(model, pixels, tokens, pad)[0, :17], states(model, pixels)[0]) < 1e-5


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_a_picture_alone_is_the_trunk_without_words(kind):
    model, (pixels, _, _) = scrambled(**KINDS[kind]), inputs()
    alone = Trunk(replace(model.config, modalities=('vision',), joint_layers=0)).eval()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if 'language' not in k and 'joint' not in k})
    assert difference(states(model, pixels), states(alone, pixels)) < 1e-6


def test_absent_experts_have_no_gradient():
    "A step without text leaves the language expert untouched; a term of weight zero brings it in, as distributed training wants."
    model, (pixels, tokens, _) = scrambled(attention='decoupled', joint_layers=1), inputs()
    states(model, pixels).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert {n for n in silent if 'mask_token' not in n} == {n for n, _ in model.named_parameters() if 'language' in n or 'joint' in n}
    model.zero_grad()
    (states(model, pixels).square().sum() + 0*states(model, pixels, tokens).sum() + 0*states(model, None, tokens).sum()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None and 'mask_token' not in name]


@pytest.mark.parametrize('kind', KINDS)
def test_every_parameter_learns(kind):
    model, (pixels, tokens, pad) = scrambled(**KINDS[kind], positions='absolute').train(), inputs()
    mask = torch.rand(2, 4, 4, generator=generator('mask')) < 0.5
    mixed = states(model, pixels, tokens, pad, mask)
    apart = torch.cat([states(model, pixels), states(model, None, tokens)], 1)
    ((mixed + apart)*torch.randn(mixed.shape, generator=generator('pull'))).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]


@torch.no_grad()
def test_joint_experts_work_where_modalities_meet():
    model, (pixels, tokens, _) = scrambled(joint_layers=2), inputs()
    before = states(model, pixels), states(model, None, tokens), states(model, pixels, tokens)
    for block in model.blocks[-2:]: nn.init.normal_(block.experts['joint'].fc2.bias)
    after = states(model, pixels), states(model, None, tokens), states(model, pixels, tokens)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and difference(before[2], after[2]) > 0.1
    for block in model.blocks[-2:]: nn.init.normal_(block.experts['vision'].fc2.bias)
    assert torch.equal(states(model, pixels, tokens), after[2]), 'the single experts rest there'
    assert ['joint' in block.experts for block in model.blocks] == [False, False, True, True]


# Word by word

def write(model, pixels, tokens, pad, ends, kept=True):
    "States of a text that is encoded in pieces, from a cache or all over again."
    cache, found, begin = Cache(), [], 0
    for end in ends:
        picture = {} if (kept and begin) else {'vision': dict(pixels=pixels)}
        begin = begin if kept else 0
        segments = model.embed(picture | {'language': dict(tokens=tokens[:, begin:end], pad_mask=None if pad is None else pad[:, begin:end], first=begin)})
        encoded = model.encode(segments, causal_mask(segments, cache if kept else None), cache if kept else None)['language']
        found.append(encoded[:, (found[-1].shape[1] if found and not kept else 0):] if kept else encoded)
        begin = end
    return torch.cat(found, 1) if kept else found[-1]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('padded', [False, True])
@torch.no_grad()
def test_cached_equals_computed_again(kind, padded):
    model, (pixels, tokens, pad) = scrambled(**KINDS[kind]), inputs()
    pad = pad.clone().fill_(False) if padded else None
    if padded: pad[0, 1:3] = True # a question of one word less, then the answer
    cached, again = write(model, pixels, tokens, pad, [2, 3, 5, 7]), write(model, pixels, tokens, pad, [7], kept=False)
    real = slice(None) if pad is None else ~pad
    assert difference(cached[real], again[real]) < 1e-5


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_a_question_is_forgotten(kind):
    "BEiT-3 writes with a mask token that asks for the next word and is dropped when the word is there."
    model, (pixels, tokens, _) = scrambled(**KINDS[kind]), inputs()
    asking = torch.full((2, 1), 39)
    cache = Cache()
    for n in range(1, 6):
        begin = n - 1
        picture = {} if begin else {'vision': dict(pixels=pixels)}
        step = model.embed(picture | {'language': dict(tokens=torch.cat([tokens[:, begin:n], asking], 1), first=begin)})
        asked = model.encode(step, causal_mask(step, cache), cache)['language'][:, -1]
        cache.drop(1)
        assert cache.size == 17 + n
        whole = model.embed({'vision': dict(pixels=pixels), 'language': dict(tokens=torch.cat([tokens[:, :n], asking], 1))})
        assert difference(asked, model.encode(whole, causal_mask(whole))['language'][:, -1]) < 1e-5


@torch.no_grad()
def test_rows_of_a_cache_go_on_as_a_search_wants():
    model, (pixels, tokens, _) = scrambled(), inputs(4)
    rows, cache = torch.tensor([3, 0, 0, 2]), Cache()
    start = model.embed({'vision': dict(pixels=pixels), 'language': dict(tokens=tokens[:, :2])})
    model.encode(start, causal_mask(start), cache)
    cache.select(rows)
    step = model.embed({'language': dict(tokens=tokens[:, 2:3], first=2)})
    chosen = torch.cat([tokens[rows, :2], tokens[:, 2:3]], 1)
    assert difference(model.encode(step, cache=cache)['language'], write(model, pixels[rows], chosen, None, [3], kept=False)[:, -1:]) < 1e-5


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_a_picture_may_come_later(kind):
    "A text is remembered, then a picture looks at it: offsets between its patches stay where they belong."
    model, (pixels, tokens, _) = scrambled(**KINDS[kind]), inputs()
    if kind == 'joint': model = scrambled() # its top experts do not foresee a picture
    batch, cache = model.embed({'vision': dict(pixels=pixels), 'language': dict(tokens=tokens)}), Cache()
    model.encode({'language': batch['language']}, cache=cache)
    later = model.encode({'vision': batch['vision']}, cache=cache)['vision']
    allowed = torch.ones(24, 24, dtype=torch.bool)
    allowed[:7, 7:] = False
    assert difference(later, model.encode({'language': batch['language'], 'vision': batch['vision']}, allowed[None, None])['vision']) < 1e-5


def test_causal_mask():
    "Rows look at columns: two patches and the summary of a picture, then three words."
    segments = {'vision': Segment(torch.zeros(1, 3, 4)), 'language': Segment(torch.zeros(1, 3, 4))}
    assert causal_mask(segments)[0, 0].int().tolist() == [[1, 1, 1, 0, 0, 0]]*3 + [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert causal_mask({'language': segments['language']})[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    turned = dict(reversed(segments.items()))
    assert causal_mask(turned)[0, 0].int().tolist() == [[1, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]] + [[0, 0, 0, 1, 1, 1]]*3


# Memory for time

@pytest.mark.parametrize('kind', KINDS)
def test_checkpointing_gives_the_same_gradients(kind):
    model, (pixels, tokens, pad) = scrambled(**KINDS[kind], drop_path=0.3).train(), inputs()
    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        states(model, pixels, tokens, pad).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]
    calls = []
    handle = model.blocks[0].register_forward_pre_hook(lambda *a: calls.append(1))
    plain = gradients()
    saving = (model.checkpoint_blocks(), gradients())[1]
    handle.remove()
    assert len(calls) == 3, 'once, and then forward and again in the backward pass'
    assert len(plain) == len(saving) and all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, saving))


# What is published

def test_published_counts():
    with torch.device('meta'):
        assert [count_parameters(trunk(n)) for n in ('beit3_base', 'beit3_large')] == [220_987_392, 672_702_464]
        heads = lambda dim: 2*dim*dim + 1
        assert [count_parameters(trunk(n)) + heads(d) for n, d in (('beit3_base', 768), ('beit3_large', 1024))] == [222_167_041, 674_799_617]
        words_and_codes = lambda dim: (dim + 1)*(64_010 + 8_192)
        assert [count_parameters(trunk(n)) + words_and_codes(d) for n, d in (('beit3_base', 768), ('beit3_large', 1024))] == [276_510_730, 746_709_514]
        wide = dict(embed_dim=1408, depth=40, num_heads=16, hidden_dim=6144, patch_size=14)
        assert count_parameters(trunk('beit3_large', **wide)) == 2_113_992_704


def test_the_giant_of_the_paper():
    with torch.device('meta'): giant = trunk('beit3_giant')
    layers = lambda module: sum(count_parameters(m) for m in module.modules() if isinstance(m, nn.Linear))
    biases = 3*1408
    assert sum(layers(b.attention) + biases for b in giant.blocks) == 40*(4*1408**2 + 4*1408)
    for name in ('vision', 'language'): assert sum(layers(b.experts[name]) for b in giant.blocks) == 40*(2*1408*6144 + 6144 + 1408)
    joint = sum(layers(b.experts['joint']) for b in giant.blocks if 'joint' in b.experts)
    assert [round(n/1e6) for n in (40*(4*1408**2 + 4*1408), 40*(2*1408*6144 + 6144 + 1408), joint)] == [317, 692, 52]
    assert count_parameters(giant) == 1_847_179_392 # the 1.9B of the paper with its table of words


@pytest.mark.parametrize('image, rows', [(224, 199), (384, 579), (480, 903), (768, 2307)])
def test_rows_of_the_position_tables(image, rows):
    with torch.device('meta'): tables = trunk('beit3_base', depth=1, image_size=image).embeddings
    assert tables['vision'].positions.shape == (1, rows, 768) and tables['language'].positions.shape == (1, 1024, 768)


@pytest.mark.parametrize('size', ['pico', 'nano', 'tiny', 'small', 'base'])
def test_every_lab_size_takes_words(size):
    with torch.device('meta'):
        for changes in (dict(), dict(attention='decoupled', sub_norm=True), dict(joint_layers=2, vocab_size=300)):
            model = trunk(size, modalities=('vision', 'language'), **changes)
            grid = model.config.image_size
            seen = model.encode(model.embed({'vision': dict(pixels=torch.rand(2, 3, grid, grid)), 'language': dict(tokens=torch.zeros(2, 5, dtype=torch.long))}))
            assert seen['language'].shape == (2, 5, model.config.embed_dim)


# How it starts, and how it is stored

def test_starts():
    apart = trunk('pico', modalities=('vision', 'language'), attention='decoupled', joint_layers=1, depth=2, init='beit')
    values = dict(apart.named_parameters())
    for l in (1, 2):
        for name in ('attention.vision.proj', 'attention.language.proj', 'experts.vision.fc2', 'experts.language.fc2'):
            assert values[f'blocks.{l-1}.{name}.weight'].abs().max().item() == pytest.approx(0.02/(2*l)**0.5, rel=0.05)
    assert values['blocks.1.experts.joint.fc2.weight'].abs().max().item() == pytest.approx(0.02/2, rel=0.05)
    assert not torch.equal(values['blocks.0.attention.vision.proj.weight'], values['blocks.0.attention.language.proj.weight'])
    assert 0.005 < values['embeddings.language.words.weight'].std() < 0.02 and values['embeddings.language.positions'].std() > 0.005


def test_magneto_amplifies_values_and_outputs():
    block = nn.ModuleList([Block(16, 2, sub_norm=True, modalities=('vision', 'language'), attention='decoupled') for _ in range(3)])
    init_weights(block, 'magneto')
    before = {n: p.detach().clone() for n, p in block.named_parameters()}
    amplify_residuals(block)
    gain = torch.log(torch.tensor(6.))**0.5
    for name, p in block.named_parameters():
        if name.endswith('qkv.weight'): assert torch.equal(p[:32], before[name][:32]) and torch.allclose(p[32:], gain*before[name][32:])
        elif 'norm' not in name and p.ndim == 2: assert torch.allclose(p, gain*before[name]), name
        else: assert torch.equal(p, before[name])


@pytest.mark.parametrize('kind', KINDS)
def test_a_saved_trunk_comes_back(kind, tmp_path):
    model, given = scrambled(**KINDS[kind]), inputs()
    model.save_pretrained(tmp_path/'trunk')
    back = Trunk.from_pretrained(tmp_path/'trunk')
    assert back.config == model.config
    with torch.no_grad(): assert torch.equal(states(back, *given), states(model, *given))


@pytest.mark.parametrize('name', ['emoji', 'scenes'])
def test_weights_from_before_there_were_words(name, tmp_path):
    "Their configuration has none of the newer settings; defaults mean what was always done."
    folder = samples(f'weights/{name}/model')
    stored = json.loads((folder/'config.json').read_text())
    newer = {'attention', 'attention_bias', 'sub_norm', 'joint_layers', 'vocab_size', 'max_words', 'unused_positions'}
    assert newer <= {f.name for f in fields(TrunkConfig)}
    stored['trunk'] = {k: v for k, v in stored['trunk'].items() if k not in newer}
    (tmp_path/'config.json').write_text(json.dumps(stored))
    (tmp_path/'model.safetensors').symlink_to((folder/'model.safetensors').resolve())
    old, now = (MaskedImageModel.from_pretrained(f).trunk for f in (tmp_path, folder))
    assert asdict(old.config) == asdict(now.config)
    pixels = torch.rand(2, 3, *[old.config.image_size]*2)
    with torch.no_grad(): assert torch.equal(old.vectors(pixels), now.vectors(pixels))


def test_half_precision():
    model, given = scrambled(**KINDS['decoupled']), inputs()
    with torch.no_grad():
        full = states(model, *given)
        with torch.autocast('cpu', dtype=torch.bfloat16): mixed = states(model, *given)
    assert difference(mixed.float(), full) < 0.1*full.abs().max()


def test_a_third_modality_needs_no_change(monkeypatch):
    class Notes(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.pitch, self.summary_token = nn.Embedding(12, config.embed_dim), nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        def forward(self, pitches): return Segment(torch.cat([self.summary_token.expand(len(pitches), -1, -1), self.pitch(pitches)], 1))
    monkeypatch.setitem(EMBEDDINGS, 'notes', Notes)
    for changes in KINDS.values():
        model, (pixels, tokens, pad) = scrambled(**changes, modalities=('vision', 'language', 'notes')), inputs()
        batch = {'notes': dict(pitches=torch.randint(12, (2, 5))), 'language': dict(tokens=tokens, pad_mask=pad), 'vision': dict(pixels=pixels)}
        assert [s.shape[1] for s in model.encode(model.embed(batch)).states.values()] == [17, 7, 6]
        assert model.encode(model.embed({'notes': batch['notes']}))['notes'].shape == (2, 6, 32)


# What is refused

def text(**changes): return {'language': {'tokens': torch.zeros(2, 3, dtype=torch.long), **changes}}


@pytest.mark.parametrize('call, words', [
    (lambda: TrunkConfig(attention='both'), 'attention'), (lambda: TrunkConfig(attention_bias='kv'), 'qkv'), (lambda: TrunkConfig(joint_layers=13), 'depth'),
    (lambda: TrunkConfig(vocab_size=0), 'at least 1'), (lambda: TrunkConfig(unused_positions=-1), 'at least 0'), (lambda: TrunkConfig(modalities=()), 'needs a modality'),
    (lambda: TrunkConfig(modalities=('vision', 'vision')), 'names of their own'), (lambda: TrunkConfig(modalities=('joint',)), 'joint'),
    (lambda: scrambled().embed(text(tokens=torch.zeros(2, 3))), 'whole numbers'), (lambda: scrambled().embed(text(tokens=torch.full((2, 3), 40))), 'token 40'),
    (lambda: scrambled().embed(text(tokens=torch.zeros(2, 11, dtype=torch.long))), 'max_words'), (lambda: scrambled().embed(text(first=8)), 'max_words'),
    (lambda: scrambled().embed(text(pad_mask=torch.zeros(2, 3))), 'pad_mask'), (lambda: scrambled().embed(text(pad_mask=torch.zeros(2, 4, dtype=torch.bool))), 'pad_mask'),
    (lambda: scrambled(modalities=('vision',)).embed(text()), "no modality 'language'"),
    (lambda: scrambled().encode(scrambled().embed(text()), attention_mask=torch.zeros(3, 3)), 'must be bool'), (lambda: Cache().drop(1), 'cannot drop'),
    (lambda: scrambled(modalities=('vision',)).encode({'language': Segment(torch.zeros(1, 2, 32))}), "no modality 'language'")])
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ConfigError, match=words) as caught: call()
    assert '\n' not in str(caught.value)
