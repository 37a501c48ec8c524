"""BEiT-3 as released, from two other hands: torchscale's own module, and a slow one written from the published facts.

The slow one needs no package, so that the comparison runs everywhere; torchscale, where it is installed, vouches for it.
Both take weights under the names of the released files.
"""
import contextlib, importlib, importlib.util, sys, types

import pytest
import torch
import torch.nn.functional as F

UNUSED = 2 # rows of the position tables that nothing reads


def released_shapes(dim, depth, hidden, patch, patches, vocab, words):
    "Names and shapes of a released file."
    shapes = {'text_embed.weight': (vocab, dim), 'vision_embed.mask_token': (1, 1, dim), 'vision_embed.cls_token': (1, 1, dim),
              'vision_embed.proj.weight': (dim, 3, patch, patch), 'vision_embed.proj.bias': (dim,),
              'encoder.embed_positions.A.weight': (UNUSED + 1 + patches, dim), 'encoder.embed_positions.B.weight': (UNUSED + words, dim)}
    linear = lambda name, rows, columns: {f'{name}.weight': (rows, columns), f'{name}.bias': (rows,)}
    norm = lambda name, width: {f'{name}.weight': (width,), f'{name}.bias': (width,)}
    for branch in 'AB':
        shapes |= norm(f'encoder.layer_norm.{branch}', dim)
        for layer in (f'encoder.layers.{i}' for i in range(depth)):
            for part in 'q k v out'.split(): shapes |= linear(f'{layer}.self_attn.{part}_proj.{branch}', dim, dim)
            for part in ('self_attn.inner_attn_ln', 'self_attn_layer_norm', 'final_layer_norm'): shapes |= norm(f'{layer}.{part}.{branch}', dim)
            shapes |= linear(f'{layer}.ffn.{branch}.fc1', hidden, dim) | linear(f'{layer}.ffn.{branch}.fc2', dim, hidden)
            shapes |= norm(f'{layer}.ffn.{branch}.ffn_layernorm', hidden)
    return shapes


def random_weights(seed=0, size=0.15, **shape):
    "Weights under the released names; norms are near one."
    draw = torch.Generator().manual_seed(seed)
    near_one = lambda name: name.endswith('weight') and ('norm' in name or '_ln' in name)
    return {name: size*torch.randn(s, generator=draw) + near_one(name) for name, s in released_shapes(**shape).items()}


def to_trunk(state, depth):
    "Released weights under the names of a `Trunk`."
    ours = {'embeddings.language.words.weight': state['text_embed.weight'], 'embeddings.language.positions': state['encoder.embed_positions.B.weight'][None],
            'embeddings.vision.class_token': state['vision_embed.cls_token'], 'embeddings.vision.mask_token': state['vision_embed.mask_token'],
            'embeddings.vision.positions': state['encoder.embed_positions.A.weight'][None]}
    def copy(own, theirs): ours.update({f'{own}.{part}': state[f'{theirs}.{part}'] for part in ('weight', 'bias')})
    copy('embeddings.vision.projection', 'vision_embed.proj')
    for branch, name in dict(A='vision', B='language').items():
        copy(f'norm.{name}', f'encoder.layer_norm.{branch}')
        for i in range(depth):
            own, layer = f'blocks.{i}', f'encoder.layers.{i}'
            attention, expert, heads = f'{own}.attention.{name}', f'{own}.experts.{name}', f'{layer}.self_attn'
            ours[f'{attention}.qkv.weight'] = torch.cat([state[f'{heads}.{p}_proj.{branch}.weight'] for p in 'qkv'])
            for p in 'qkv': ours[f'{attention}.{p}_bias'] = state[f'{heads}.{p}_proj.{branch}.bias']
            copy(f'{attention}.proj', f'{heads}.out_proj.{branch}')
            copy(f'{attention}.sub_norm', f'{heads}.inner_attn_ln.{branch}')
            copy(f'{own}.norm1.{name}', f'{layer}.self_attn_layer_norm.{branch}')
            copy(f'{expert}.norm2', f'{layer}.final_layer_norm.{branch}')
            for p, theirs in dict(fc1='fc1', fc2='fc2', sub_norm='ffn_layernorm').items(): copy(f'{expert}.{p}', f'{layer}.ffn.{branch}.{theirs}')
    return ours


class SlowBEiT3:
    "The released forward pass, one branch and one head at a time."
    def __init__(self, state, depth, heads): self.state, self.depth, self.heads = state, depth, heads

    def linear(self, x, name): return x@self.state[f'{name}.weight'].T + self.state[f'{name}.bias']
    def norm(self, x, name): return F.layer_norm(x, x.shape[-1:], self.state[f'{name}.weight'], self.state[f'{name}.bias'], 1e-5)

    def picture(self, pixels, hidden=None):
        "Class token and patches, with positions."
        s, patch = self.state, self.state['vision_embed.proj.weight'].shape[-1]
        x = F.conv2d(pixels, s['vision_embed.proj.weight'], s['vision_embed.proj.bias'], stride=patch).flatten(2).transpose(1, 2)
        if hidden is not None: x = torch.where(hidden[..., None], s['vision_embed.mask_token'], x)
        x = torch.cat([s['vision_embed.cls_token'].expand(len(x), -1, -1), x], 1)
        return x + s['encoder.embed_positions.A.weight'][UNUSED:UNUSED + x.shape[1]]

    def text(self, tokens, first=0):
        "Words, with positions."
        begin = UNUSED + first
        return self.state['text_embed.weight'][tokens] + self.state['encoder.embed_positions.B.weight'][begin:begin + tokens.shape[1]]

    def branches(self, x, split, work):
        "The first `split` positions through A, the rest through B."
        return torch.cat([work(x[:, :split], 'A'), work(x[:, split:], 'B')], 1)

    def attention(self, x, layer, split, visible):
        "Attention probabilities written out; `visible` (B, N, N) is True where i may look at j."
        q, k, v = (self.branches(x, split, lambda part, branch: self.linear(part, f'{layer}.self_attn.{p}_proj.{branch}')) for p in 'qkv')
        mixed = []
        for q1, k1, v1 in zip(*(t.chunk(self.heads, -1) for t in (q, k, v))):
            logits = (q1@k1.transpose(1, 2)/q1.shape[-1]**0.5).masked_fill(~visible, -1e8)
            mixed.append(logits.softmax(-1)@v1)
        mixed = torch.cat(mixed, -1)
        return self.branches(mixed, split, lambda part, branch: self.linear(self.norm(part, f'{layer}.self_attn.inner_attn_ln.{branch}'), f'{layer}.self_attn.out_proj.{branch}'))

    def expert(self, x, layer, branch):
        "What a position does alone."
        hidden = F.gelu(self.linear(self.norm(x, f'{layer}.final_layer_norm.{branch}'), f'{layer}.ffn.{branch}.fc1'))
        return self.linear(self.norm(hidden, f'{layer}.ffn.{branch}.ffn_layernorm'), f'{layer}.ffn.{branch}.fc2')

    def __call__(self, pixels=None, tokens=None, pad=None, hidden=None, blocked=None):
        "States (B, N, D): the picture's, then the text's."
        parts = ([] if pixels is None else [self.picture(pixels, hidden)]) + ([] if tokens is None else [self.text(tokens)])
        x, split = torch.cat(parts, 1), 0 if pixels is None else parts[0].shape[1]
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        if pad is not None: padding[:, split:] = pad
        x = x*~padding[..., None]
        visible = (~padding)[:, None].expand(-1, x.shape[1], -1)
        if blocked is not None: visible = visible & ~blocked
        for layer in (f'encoder.layers.{i}' for i in range(self.depth)):
            normed = self.branches(x, split, lambda part, branch: self.norm(part, f'{layer}.self_attn_layer_norm.{branch}'))
            x = x + self.attention(normed, layer, split, visible)
            x = x + self.branches(x, split, lambda part, branch: self.expert(part, layer, branch))
        return self.branches(x, split, lambda part, branch: self.norm(part, f'encoder.layer_norm.{branch}'))


@contextlib.contextmanager
def _stand_ins():
    "Empty modules for what torchscale imports and does not need here: fairscale, and an old address of two functions of timm."
    import timm.layers
    added = {'fairscale': types.ModuleType('fairscale'), 'fairscale.nn': types.ModuleType('fairscale.nn'), 'timm.models.layers': types.ModuleType('timm.models.layers')}
    added['fairscale.nn'].checkpoint_wrapper = added['fairscale.nn'].wrap = lambda module, *args, **kwargs: module
    added['timm.models.layers'].drop_path, added['timm.models.layers'].trunc_normal_ = timm.layers.drop_path, timm.layers.trunc_normal_
    before = {name: sys.modules.get(name) for name in added}
    sys.modules.update(added)
    try: yield
    finally:
        for name, module in before.items():
            if module is None: del sys.modules[name]
            else: sys.modules[name] = module


def torchscale_beit3(dim, depth, heads, hidden, image, patch, vocab, words):
    "torchscale's BEiT-3 in evaluation mode; the test is skipped where it is not installed."
    if importlib.util.find_spec('torchscale') is None: pytest.skip('torchscale is not installed (pip install --no-deps torchscale==0.3.0)')
    with _stand_ins():
        BEiT3 = importlib.import_module('torchscale.model.BEiT3').BEiT3
        EncoderConfig = importlib.import_module('torchscale.architecture.config').EncoderConfig
    return BEiT3(EncoderConfig(encoder_embed_dim=dim, encoder_attention_heads=heads, encoder_ffn_embed_dim=hidden, encoder_layers=depth, multiway=True,
                               vocab_size=vocab, img_size=image, patch_size=patch, max_source_positions=UNUSED + words, no_output_layer=True)).eval()
