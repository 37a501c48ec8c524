"Masked data modelling: a batch is nothing but its samples, on one process or several, stopped or not."
import math

import pytest, torch
from fastai.callback.core import Callback

from beit_lab.codebook.autoencode import VQVAE, tokenizer_config
from beit_lab.codebook.cache import cache_tokens
from beit_lab.core import ConfigError, DataError, generator
from beit_lab.data.reading import TextStream
from beit_lab.data.text import train_text_tokenizer
from beit_lab.pretrain.masked_data import MDMConfig, MaskedDataLoss, MaskedDataModel, MixedSteps, Pairs, StreamedTexts, Texts, blank_counts, blank_losses
from beit_lab.pretrain.masked_learner import mdm_learner
from beit_lab.pretrain.objectives import IGNORE
from beit_lab.training import TrainConfig, train
from beit_lab.trunk.sizes import trunk_config

TEXTS = [f'{a} {b} {c}' for a in ('red', 'blue', 'green') for b in ('circle', 'square above', 'star left of it') for c in ('here', 'over there', 'and one more red star')]


def world(**choices):
    "Small pictures, their tokens, a vocabulary, a task."
    images = torch.randint(0, 256, (27, 3, 16, 16), dtype=torch.uint8, generator=generator('pictures'))
    torch.manual_seed(0)
    cache = cache_tokens(VQVAE(tokenizer_config(codebook_size=16, width=8)).eval(), images)
    words = train_text_tokenizer(TEXTS, 300)
    trunk = trunk_config('pico', image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, modalities=('vision', 'language'), joint_layers=1,
                         vocab_size=words.vocab_size, max_words=32, **choices.pop('trunk', {}))
    task = MDMConfig(trunk, codebook_size=16, **choices)
    pairs = Pairs(images, cache, TEXTS, words, task)
    return task, dict(pictures=pairs.pictures, texts=Texts(TEXTS, words, task), pairs=pairs)


def model_of(task):
    torch.manual_seed(0)
    return MaskedDataModel(task)


def cut(value, rows): return {k: cut(v, rows) for k, v in value.items()} if isinstance(value, dict) else value[rows]


def gradients(model, parts):
    model.zero_grad()
    for inputs, hidden, targets, weight in parts: (weight*MaskedDataLoss()(model(inputs, hidden), targets)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize('kind', ['pictures', 'texts', 'pairs'])
@pytest.mark.parametrize('hides', ['one', 'both'])
def test_a_batch_is_its_samples(kind, hides):
    "Each sample alone, its losses weighted by its share of the blanks: the gradient of the batch, padding and all."
    task, kinds = world(pair_hides=hides)
    model, batch = model_of(task), MixedSteps({kind: kinds[kind]}, {kind: 6})[2]
    whole, alone = gradients(model, [(*batch, 1.)]), {}
    counts = blank_counts(batch[2])
    for i in range(6):
        inputs, hidden, targets = (cut(part, slice(i, i + 1)) for part in batch)
        model.zero_grad()
        losses, own = blank_losses(model(inputs, hidden), targets), blank_counts(targets)
        sum(loss*own[part]/counts[part] for part, loss in losses.items() if own[part]).backward()
        for name, p in model.named_parameters(): alone[name] = alone.get(name, 0) + (p.grad if p.grad is not None else 0)
    for name in whole: torch.testing.assert_close(torch.as_tensor(alone[name]).expand_as(whole[name]), whole[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize('attention', ['shared', 'decoupled'])
def test_what_is_absent_has_gradient_zero(attention):
    task, kinds = world(trunk=dict(attention=attention))
    found = gradients(model_of(task), [(*MixedSteps({'texts': kinds['texts']}, {'texts': 4})[0], 1.)])
    idle = [name for name, g in found.items() if {'vision', 'joint'} & set(name.split('.'))]
    assert idle and all(found[name].abs().max() == 0 for name in idle)
    assert found['heads.language.weight'].abs().max() > 0


def test_batches_depend_on_seed_and_step_alone():
    _, kinds = world()
    steps = MixedSteps(kinds, dict(pictures=3, texts=4, pairs=5))
    steps.first_step = 2
    same, other = steps[5], MixedSteps(kinds, dict(pictures=3, texts=4, pairs=5), seed=1)[7]
    again = MixedSteps(kinds, dict(pictures=3, texts=4, pairs=5))[7]
    assert torch.equal(same[0]['pairs']['language']['tokens'], again[0]['pairs']['language']['tokens'])
    assert torch.equal(same[0]['pictures']['vision']['pixels'], again[0]['pictures']['vision']['pixels'])
    assert not torch.equal(same[1]['pictures']['vision'], other[1]['pictures']['vision'])


def test_pairs_keep_left_and_right():
    "A pair's picture is not mirrored, or only where no word becomes false; pictures alone are."
    rows = torch.arange(27)
    def pixels(kind, task): return kind.draw(rows, 0, 0)[0]['vision']['pixels']
    task, kinds = world()
    plain = kinds['pairs'].pictures.images.float()/255
    assert torch.equal(pixels(kinds['pairs'], task), plain)
    assert not torch.equal(pixels(kinds['pictures'], task), plain)
    mirrored = (pixels(world(pair_mirror=True)[1]['pairs'], task) != plain).flatten(1).any(1)
    harmless = torch.tensor(['left' not in text for text in TEXTS])
    assert mirrored.any() and not (mirrored & ~harmless).any()


def test_what_has_no_words_is_left_out_and_counted():
    task, kinds = world()
    texts = Texts(['red circle', '  ', None, ['blue', '']], kinds['texts'].captions.tokenizer, task)
    assert len(texts) == 2 and texts.captions.empty == 2 and 'left out' in texts.captions.report()
    pairs = kinds['pairs']
    some = Pairs(pairs.pictures.images, pairs.pictures.cache, [None]*20 + TEXTS[20:], kinds['texts'].captions.tokenizer, task)
    assert len(some) == 7 and torch.equal(some.draw(torch.arange(7), 0, 0)[0]['vision']['pixels'], pairs.pictures.images[20:].float()/255)


class StopAt(Callback):
    order = 50
    def __init__(self, step): self.at = step
    def after_batch(self):
        if self.training and self.epoch*self.n_iter + self.iter == self.at: raise KeyboardInterrupt


def test_resumed_run_equals_undisturbed(tmp_path):
    task, kinds = world(trunk=dict(drop_path=0.2))
    def learner(cbs=()): return mdm_learner(model_of(task), kinds, kinds, dict(pictures=4, texts=4, pairs=4), TrainConfig(steps=8, batch_size=12, warmup_steps=2, piece=4), 1, cbs=cbs)
    undisturbed = train(learner())
    with pytest.raises(KeyboardInterrupt): train(learner([StopAt(6)]), tmp_path/'state')
    resumed = train(learner(), tmp_path/'state')
    for (name, a), b in zip(undisturbed.model.state_dict().items(), resumed.model.state_dict().values()): assert torch.equal(a, b), name
    assert {'pictures_vision', 'texts_language', 'pairs_vision', 'pairs_language'} <= set(resumed.run_log.rows[-1])


def test_a_stream_goes_on_where_a_run_stopped(tmp_path):
    "Texts that are read as they go: a stopped run reads on at the same line, and a repeated step gives the same batch."
    task, kinds = world()
    words = kinds['texts'].tokenizer
    (tmp_path/'plain.txt').write_text('\n'.join(TEXTS*20))
    def mixed(): return dict(texts=StreamedTexts(TextStream(tmp_path/'plain.txt', words, max_words=16, chapter_lines=50), task), pairs=kinds['pairs'])
    steps = MixedSteps(mixed(), dict(texts=5, pairs=4))
    seen = [steps[t][0]['texts']['language']['tokens'] for t in (0, 1, 2, 9, 1)]
    assert torch.equal(seen[1], seen[4]) and not torch.equal(seen[1], seen[2])
    assert torch.equal(MixedSteps(mixed(), dict(texts=5, pairs=4))[9][0]['texts']['language']['tokens'], seen[3])
    held = dict(texts=kinds['texts'], pairs=kinds['pairs'])
    def learner(cbs=()): return mdm_learner(model_of(task), mixed(), held, dict(texts=5, pairs=4), TrainConfig(steps=8, batch_size=9, warmup_steps=2, piece=4), 1, cbs=cbs)
    undisturbed = train(learner())
    with pytest.raises(KeyboardInterrupt): train(learner([StopAt(6)]), tmp_path/'state')
    resumed = train(learner(), tmp_path/'state')
    for (name, a), b in zip(undisturbed.model.state_dict().items(), resumed.model.state_dict().values()): assert torch.equal(a, b), name


def test_the_loss_is_the_weighted_sum():
    task, kinds = world()
    inputs, hidden, targets = MixedSteps(kinds, dict(pictures=3, texts=4, pairs=5))[0]
    answers = model_of(task)(inputs, hidden)
    losses = blank_losses(answers, targets)
    weights = {('pictures', 'vision'): 0.05, ('texts', 'language'): 2., ('pairs', 'vision'): 0.3, ('pairs', 'language'): 3.}
    torch.testing.assert_close(MaskedDataLoss((0.5, 2., 3.), vision_weight=0.1)(answers, targets), sum(weights[part]*loss for part, loss in losses.items()))


def test_recomputing_blocks_gives_the_same_gradients():
    task, kinds = world()
    batch = MixedSteps(kinds, dict(pictures=3, texts=4, pairs=5))[0]
    kept, model = gradients(model_of(task), [(*batch, 1.)]), model_of(task)
    model.trunk.checkpoint_blocks()
    again = gradients(model, [(*batch, 1.)])
    for name in kept: torch.testing.assert_close(again[name], kept[name], atol=1e-7, rtol=1e-5)


# ---- several processes

def shares():
    "The batch of one step, and who gets what: the second process has no texts."
    _, kinds = world()
    batch = MixedSteps(kinds, dict(pictures=4, texts=3, pairs=6))[1]
    first = tuple({kind: cut(part[kind], slice(0, 2)) if kind != 'texts' else part[kind] for kind in part} for part in batch)
    second = tuple({kind: cut(part[kind], slice(2, None)) for kind in part if kind != 'texts'} for part in batch)
    return batch, (first, second)


def _worker(rank, size, file, out):
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=size)
    model = torch.nn.parallel.DistributedDataParallel(model_of(world()[0]))
    inputs, hidden, targets = shares()[1][rank]
    MaskedDataLoss()(model(inputs, hidden), targets).backward()
    torch.save({name: p.grad for name, p in model.module.named_parameters()}, f'{out}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradient_of_one(tmp_path):
    torch.multiprocessing.spawn(_worker, (2, tmp_path/'store', tmp_path), nprocs=2)
    batch, _ = shares()
    whole = gradients(model_of(world()[0]), [(*batch, 1.)])
    for rank in (0, 1):
        shared = torch.load(tmp_path/f'{rank}.pt', weights_only=True)
        for name in whole: torch.testing.assert_close(shared[name], whole[name], atol=2e-6, rtol=1e-4)


def test_what_cannot_work_is_refused():
    task, kinds = world()
    images, cache, words = kinds['pairs'].pictures.images, kinds['pairs'].pictures.cache, kinds['texts'].captions.tokenizer
    with pytest.raises(DataError, match='27 pictures, but 3 texts'): Pairs(images, cache, TEXTS[:3], words, task)
    with pytest.raises(DataError, match='no words'): Texts(['', None], words, task)
    with pytest.raises(ConfigError, match='tokens of 27'): Pairs(images[:5], cache, TEXTS[:5], words, task)
    with pytest.raises(ConfigError, match='pair_hides'): MDMConfig(task.trunk, pair_hides='none')
    with pytest.raises(ConfigError, match='must name the same'): MixedSteps(kinds, dict(pictures=3))
    assert (kinds['texts'].draw(torch.arange(4), 0, 0)[2]['language'] != IGNORE).any()


def test_batches_without_a_kind_of_blank_do_not_count():
    "Of a few pairs, some judged batches hide no words: the mean is over those that do."
    from types import SimpleNamespace

    from beit_lab.pretrain.masked_learner import OverBlanks, filled, surprise
    batch = lambda truth: SimpleNamespace(pred=dict(pairs=dict(language=torch.eye(3)[None, :sum(t >= 0 for t in truth)]*9)), yb=(dict(pairs=dict(language=torch.tensor([truth]))),), to_detach=lambda t: t)
    for measure, expected in ((filled, 1.), (surprise, -math.log(1/(1 + 2*math.exp(-9.))))):
        metric = OverBlanks(measure('pairs', 'language'))
        metric.reset()
        metric.accumulate(batch([-100, -100]))
        assert math.isnan(metric.value)
        metric.accumulate(batch([0, 1]))
        metric.accumulate(batch([-100, -100]))
        assert abs(metric.value - expected) < 1e-6


@pytest.mark.parametrize('grid', [(8, 8), (12, 12), (14, 14)])
def test_patches_of_an_object_on_any_grid(grid):
    from beit_lab.data.scenes import scene
    from beit_lab.pretrain.looking import object_patches
    masks = torch.stack([torch.as_tensor(scene(i).instance_mask) for i in range(20)])
    found = object_patches(masks, grid)
    assert found.shape == (20, *grid) and found.any((1, 2)).all() and not found.all((1, 2)).any()
    if grid == (8, 8): assert all((found[i].repeat_interleave(8, 0).repeat_interleave(8, 1) | (m == 0)).any() for i, m in enumerate(masks))
