"Patch aggregation: what the second loss reaches, what the head weighs and how it starts, and what remains of it."
import pytest
import torch
from einops import rearrange
from torch import nn

from beit_lab.codebook.autoencode import VQVAE, tokenizer_config
from beit_lab.core import ConfigError, count_parameters, generator
from beit_lab.masking import draw_masks, hidden_positions
from beit_lab.pretrain.aggregate import AggregateConfig, AggregatingModel, aggregate_config, aggregate_learner, aggregate_loss, class_token_worth, shallow_blocks
from beit_lab.pretrain.learner import mim_learner
from beit_lab.pretrain.objectives import MaskedImageModel, MIMConfig, hidden_targets, masked_cross_entropy
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config


def task(depth=4, **changes):
    trunk = trunk_config('pico', **{**dict(image_size=16, embed_dim=32, depth=depth, num_heads=2), **changes})
    return MIMConfig(trunk=trunk, codebook_size=32, mask_ratio=0.5)


def build(early_layer=2, depth=4, head_depth=2, shared_head=True, **changes):
    torch.manual_seed(0)
    return AggregatingModel(AggregateConfig(task(depth, **changes), early_layer, head_depth, shared_head)).eval()


@pytest.fixture
def batch():
    "Pixels, mask and targets of three pictures."
    draw = generator('aggregate')
    mask = draw_masks('random', 3, (4, 4), 0.5, draw)
    return torch.rand(3, 3, 16, 16, generator=draw), mask, hidden_targets(torch.randint(32, (3, 4, 4), generator=draw), mask)


def pulls(model, batch, which):
    "The gradient of one loss at the states after the last block: (class token, patches)."
    states, (pixels, mask, targets) = [], batch
    hook = model.masked.trunk.blocks[-1].register_forward_hook(lambda module, given, made: states.append(made))
    loss = masked_cross_entropy(model(pixels, mask)[which], targets)
    hook.remove()
    gradient, = torch.autograd.grad(loss, states)
    return gradient[:, :1], gradient[:, 1:]


def test_each_loss_leaves_the_other_s_states_alone(batch):
    first, second = (pulls(build(), batch, which) for which in (0, 1))
    assert (first[0] == 0).all() and (first[1] != 0).any()
    assert (second[1] == 0).all() and (second[0] != 0).any(-1).all()


def test_with_the_last_layer_as_early_one_the_bottleneck_is_open(batch):
    assert (pulls(build(early_layer=4), batch, 1)[1] != 0).any()


def test_blocks_above_the_early_layer_learn_through_the_class_token_only(batch):
    model, (pixels, mask, targets) = build(), batch
    _, class_token, early = model.seen(pixels, mask)
    masked_cross_entropy(model.ask_again(class_token.detach(), early, hidden_positions(mask)[0]), targets).backward()
    reached = [any(p.grad is not None and (p.grad != 0).any() for p in block.parameters()) for block in model.masked.trunk.blocks]
    assert reached == [True, True, False, False]


def test_losses_and_their_gradients_are_added(batch):
    model, (pixels, mask, targets) = build(), batch
    gradient = lambda loss: torch.autograd.grad(loss, model.masked.trunk.blocks[0].experts['vision'].fc1.weight, retain_graph=True)[0]
    answers = model(pixels, mask)
    total, parts = aggregate_loss(answers, targets), [masked_cross_entropy(answer, targets) for answer in answers]
    torch.testing.assert_close(total, parts[0] + parts[1])
    torch.testing.assert_close(gradient(total), gradient(parts[0]) + gradient(parts[1]), atol=1e-7, rtol=1e-4)


BEIT = dict(init='beit', layer_scale=0.1, drop_path=0.1, positions='none')


@pytest.mark.parametrize('changes', [dict(), dict(BEIT, relative='shared'), dict(BEIT, relative='per_layer'), dict(init='magneto', sub_norm=True),
                                     dict(modalities=('vision', 'language'), attention='decoupled', attention_bias='qkv')], ids=str)
@pytest.mark.parametrize('shared_head', [True, False])
def test_answers_equal_a_plain_loop(batch, changes, shared_head):
    model, (pixels, mask, _) = build(shared_head=shared_head, **changes), batch
    for table in (m.table for m in model.modules() if hasattr(m, 'table')): nn.init.normal_(table)
    trunk, masked, size = model.masked.trunk, model.masked, {'vision': 17}
    tables = [t() for t in trunk.relative] or [None]
    states = trunk.embed({'vision': dict(pixels=pixels, mask=mask)})['vision'].states
    for i, block in enumerate(trunk.blocks, 1):
        states = block(states, size, tables[min(i, len(tables)) - 1])
        if i == 2: early = states
    odd = torch.cat([states[:, :1], early[:, 1:]], dim=1)
    own = [t() for t in model.relative] or [tables[0]]*2
    for block, table in zip(model.blocks, own): odd = block(odd, mask=table)
    norm = trunk.norm['vision'] if changes.get('attention') == 'decoupled' else trunk.norm
    norms, heads = (norm, norm if shared_head else model.norm), (masked.head, masked.head if shared_head else model.head)
    hidden = rearrange(mask, 'b h w -> b (h w)')
    for answer, x, norm, head in zip(model(pixels, mask), (states, odd), norms, heads):
        torch.testing.assert_close(answer.flatten(0, 1), head(norm(x)[:, 1:][hidden]), atol=1e-5, rtol=1e-4)


def test_sizes_of_the_paper():
    "The authors' base model has 106,143,056 parameters with the head (reference: their code, counted)."
    block = lambda width: 12*width**2 + 14*width
    for size, width, layer in (('base', 768, 9), ('large', 1024, 21)):
        config = aggregate_config(MIMConfig(trunk=trunk_config(size)))
        with torch.device('meta'): model = AggregatingModel(config)
        assert config.early_layer == layer and count_parameters(model) - count_parameters(model.masked) == 2*block(width)
        if size == 'base': assert (count_parameters(model), count_parameters(model.masked)) == (106_143_056, 91_965_776)
    shared, own, tables = build(), build(shared_head=False), build(relative='per_layer')
    assert count_parameters(own) - count_parameters(shared) == 2*32 + 33*32
    assert count_parameters(tables.relative) == 2*2*(7*7 + 3)


def test_the_head_starts_as_numbered_on():
    "Block j of a BEiT trunk's head: PyTorch's own weights, the two output matrices divided by sqrt(2j); drop path by number."
    config = AggregateConfig(task(6, **BEIT), early_layer=4, head_depth=3)
    largest = lambda weight: float(weight.detach().abs().max()*weight.shape[1]**0.5)      # PyTorch draws up to 1/sqrt(inputs)
    for number, block in zip((5, 6, 7), shallow_blocks(config)):
        expert, attention = block.experts['vision'], block.attention
        assert largest(expert.fc1.weight) == pytest.approx(1, rel=0.01) and largest(attention.qkv.weight) == pytest.approx(1, rel=0.01)
        for weight in (expert.fc2.weight, attention.proj.weight): assert largest(weight)*(2*number)**0.5 == pytest.approx(1, rel=0.01)
        assert block.drop_path.drop_prob == pytest.approx(0.1*(number - 1)/6)             # as in a trunk of seven blocks
        assert (block.scale1.gamma == 0.1).all() and (expert.scale2.gamma == 0.1).all()


def test_padding_is_not_counted(batch):
    "Pictures may hide different numbers of patches."
    model, (pixels, _, _) = build(), batch
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2], mask[1, 0, 0] = True, True
    targets = hidden_targets(torch.randint(32, (2, 4, 4), generator=generator(5)), mask)
    both = aggregate_loss(model(pixels[:2], mask), targets)
    alone = [aggregate_loss(model(pixels[i:i+1], mask[i:i+1]), targets[i:i+1]) for i in range(2)]
    torch.testing.assert_close(both, (8*alone[0] + alone[1])/9)


def test_saved_whole_and_without_the_head(batch, tmp_path):
    model, (pixels, mask, _) = build(early_layer=1, shared_head=False, **BEIT, relative='per_layer'), batch
    model.save_pretrained(tmp_path/'all'), model.masked.save_pretrained(tmp_path/'masked')
    again, masked = AggregatingModel.from_pretrained(tmp_path/'all'), MaskedImageModel.from_pretrained(tmp_path/'masked')
    assert again.config == model.config
    for a, b in zip(again(pixels, mask), model(pixels, mask)): assert torch.equal(a, b)
    assert torch.equal(masked(pixels, mask), model(pixels, mask)[0])


@pytest.mark.parametrize('make, words', [(lambda: AggregateConfig(MIMConfig(mode='visible')), "use mode='full'"), (lambda: AggregateConfig(task(), 5), 'layers 0 to 4'),
                                         (lambda: AggregateConfig(task(), -1), 'layers 0 to 4'), (lambda: aggregate_config(task(), head_depth=0), 'at least 1')])
def test_what_does_not_fit(make, words):
    with pytest.raises(ConfigError, match=words): make()


def test_learner_and_worth():
    "The same batches as without aggregation; both losses are logged; a head that never looks around finds class tokens worthless."
    coarse = torch.rand(40, 3, 4, 4, generator=generator('aggregate pictures'))
    images = (nn.functional.interpolate(coarse, 16, mode='bilinear')*255).to(torch.uint8)
    tokenizer = VQVAE(tokenizer_config(codebook_size=32, width=8)).eval()
    model, plan = build(), TrainConfig(steps=6, batch_size=8, warmup_steps=2, piece=3)
    learn = aggregate_learner(model, images[:32], images[32:], tokenizer, config=plan)
    plain = mim_learner(model.masked, images[:32], images[32:], tokenizer, config=plan)
    for a, b in zip(learn.dls.train.dataset[1], plain.dls.train.dataset[1]): assert torch.equal(a, b)
    last = train(learn).run_log.rows[-1]
    assert last['valid_loss'] == pytest.approx(last['loss_1'] + last['loss_2'], rel=1e-5) and {'token_accuracy', 'accuracy_2'} < last.keys()
    assert len(learn.show_results(max_n=2).axes) == 8
    judged, _ = learn.dls.valid.dataset, model.train()
    found = class_token_worth(model, judged)
    assert model.training and found['own'] == pytest.approx(last['loss_2'], rel=1e-4) and found['worth'] != 0
    with torch.no_grad():
        for block in model.blocks: block.attention.proj.weight.zero_()
    assert class_token_worth(model, judged)['worth'] == 0
