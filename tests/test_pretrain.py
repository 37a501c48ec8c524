"Pretraining: what is hidden stays hidden, runs are functions of their seed, and an interrupted run ends with the weights of an undisturbed one."
import math

import pytest
import torch
from fastai.callback.core import Callback

from beit_lab.codebook.autoencode import tokenizer_config, train_tokenizer
from beit_lab.codebook.cache import cache_tokens
from beit_lab.core import ConfigError, WeightsError, generator
from beit_lab.data.loaders import TwoViews
from beit_lab.masking import draw_masks
from beit_lab.pretrain.learner import MIMSteps, evaluate, mim_learner, predict_tokens
from beit_lab.pretrain.objectives import IGNORE, Guesses, MIMConfig, MaskedImageModel, hidden_targets, masked_cross_entropy, score_guesses
from beit_lab.training import TrainConfig, _autocast_depth, train
from beit_lab.trunk.sizes import trunk_config


@pytest.fixture(scope='module')
def small():
    "Sixty smooth pictures, a tokenizer of 32 codes for them, and their tokens."
    coarse = torch.rand(60, 3, 4, 4, generator=generator('pretrain test'))
    images = (torch.nn.functional.interpolate(coarse, 16, mode='bilinear')*255).to(torch.uint8)
    tokenizer = train_tokenizer(images, tokenizer_config(codebook_size=32, width=16), 20)
    return images[:48], images[48:], tokenizer, cache_tokens(tokenizer, images[:48])


def task(mode='visible', drop_path=0., **changes):
    trunk = trunk_config('pico', image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, drop_path=drop_path)
    return MIMConfig(**{**dict(trunk=trunk, codebook_size=32, mode=mode, mask_kind='random', mask_ratio=0.5, decoder_dim=16, decoder_heads=2), **changes})


def learner(small, mode='visible', cbs=(), **changes):
    images, held_out, tokenizer, cache = small
    torch.manual_seed(0)
    config = TrainConfig(steps=24, batch_size=16, warmup_steps=4, piece=6)
    return mim_learner(MaskedImageModel(task(mode, **changes)), images, held_out, tokenizer, cache, config=config, cbs=cbs)


class StopAt(Callback):
    "Ctrl-C at a step of the whole run."
    order = 50
    def __init__(self, step): self.at = step
    def after_batch(self):
        if self.training and self.epoch*self.n_iter + self.iter == self.at: raise KeyboardInterrupt


@pytest.mark.parametrize('mode', ['full', 'visible'])
@pytest.mark.parametrize('at', [3, 13])
def test_resumed_run_equals_undisturbed(small, mode, at, tmp_path):
    undisturbed = train(learner(small, mode, drop_path=0.2))
    with pytest.raises(KeyboardInterrupt): train(learner(small, mode, [StopAt(at)], drop_path=0.2), tmp_path/'state')
    resumed = train(learner(small, mode, drop_path=0.2), tmp_path/'state')
    for (name, a), b in zip(undisturbed.model.state_dict().items(), resumed.model.state_dict().values()): assert torch.equal(a, b), name
    assert [r['step'] for r in resumed.run_log.rows] == [6, 12, 18, 24]


class Interrupt(Callback):
    "A notebook's interrupt: once, at an event of a step."
    order = 50
    def __init__(self, event, step):
        self.at = step
        setattr(self, event, self._interrupt)
    def _interrupt(self):
        if not self.training or self.epoch*self.n_iter + self.iter != self.at: return
        self.at = None
        raise KeyboardInterrupt


@pytest.mark.filterwarnings('ignore:CUDA is not available')
@pytest.mark.parametrize('event, at, kept', [('after_pred', 2, True), ('before_step', 13, True), ('before_step', 13, False)])
def test_interrupted_learner_stays_usable(small, event, at, kept, tmp_path):
    "It predicts, is judged, and goes on to the end: with a checkpoint to the same bits, whatever an interrupted step left behind."
    learn = learner(small, cbs=[Interrupt(event, at)]).to_bf16()  # on a CPU the numbers stay as they are, but fastai's autocast is entered
    folder, callbacks, depth, judged = tmp_path/'state' if kept else None, len(learn.cbs), _autocast_depth(), learn.dls.valid.dataset
    with pytest.raises(KeyboardInterrupt): train(learn, folder)
    assert len(learn.cbs) == callbacks and _autocast_depth() == depth
    assert predict_tokens(learn.model.eval(), judged.images, judged.tokens, judged.masks).shape == judged.tokens.shape
    assert math.isfinite(evaluate(learn.model, judged)['loss']) and math.isfinite(learn.validate()[0])
    train(learn, folder)
    assert [row['step'] for row in learn.run_log.rows] == [6, 12, 18, 24]
    if kept: assert all(torch.equal(a, b) for a, b in zip(train(learner(small)).model.state_dict().values(), learn.model.state_dict().values()))


def test_tokenizer_resumes_too(small, tmp_path):
    images, config = small[0], tokenizer_config(codebook_size=16, width=8)
    undisturbed = train_tokenizer(images, config, 100)
    with pytest.raises(KeyboardInterrupt): train_tokenizer(images, config, 100, checkpoint=tmp_path/'state', cbs=[StopAt(70)])
    resumed = train_tokenizer(images, config, 100, checkpoint=tmp_path/'state')
    for (name, a), b in zip(undisturbed.state_dict().items(), resumed.state_dict().values()): assert torch.equal(a, b), name


def test_checkpoint_of_another_plan_is_refused(small, tmp_path):
    train(learner(small), tmp_path/'state')
    with pytest.raises(WeightsError, match='model.mode'): train(learner(small, 'full'), tmp_path/'state')


def test_half_written_checkpoint_is_refused_with_a_sentence(small, tmp_path):
    train(learner(small), tmp_path/'state')
    file = tmp_path/'state/state.safetensors'
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsError, match='truncated'): train(learner(small), tmp_path/'state')


def test_batches_depend_on_seed_and_step_alone(small):
    images, _, _, cache = small
    steps = MIMSteps(images, task(), cache, batch_size=16)
    first, again, other = steps[5], MIMSteps(images, task(), cache, batch_size=16)[5], steps[6]
    assert all(torch.equal(a, b) for a, b in zip(first, again)) and not torch.equal(first[1], other[1])
    seen = torch.cat([MIMSteps(images, task(), cache, batch_size=16)[t][0] for t in range(3)])
    assert len(seen) == len(images)


def test_views_are_tokenized_as_they_are_seen(small):
    images, _, tokenizer, cache = small
    pixels, mask, targets = MIMSteps(images, task(), cache, tokenizer, TwoViews(16, scale=(0.5, 1)), batch_size=16)[0]
    assert torch.equal(hidden_targets(tokenizer.encode(pixels), mask), targets)


@pytest.mark.parametrize('mode', ['full', 'visible'])
def test_loss_of_a_batch_is_the_mean_over_hidden_positions(small, mode):
    "The gradient of a batch is that of its pictures one by one, weighted by their hidden positions."
    images, _, tokenizer, cache = small
    model = MaskedImageModel(task(mode))
    pixels, mask, targets = MIMSteps(images, task(mode), cache, batch_size=6)[0]
    masked_cross_entropy(model(pixels, mask), targets).backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    count = (targets != IGNORE).sum()
    for i in range(6):
        own = (targets[i] != IGNORE).sum()/count
        (masked_cross_entropy(model(pixels[i:i+1], mask[i:i+1]), targets[i:i+1])*own).backward()
    for name, gradient in whole.items(): torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, atol=1e-6, rtol=1e-4)


def test_unequal_masks_are_padded_not_counted(small):
    "In `full` mode pictures may hide different numbers of patches; the filling asks nothing."
    images, _, tokenizer, _ = small
    model, mask = MaskedImageModel(task('full')).eval(), draw_masks('random', 2, (4, 4), 0.5, generator(0))
    mask[1] = False
    mask[1, 0, 0] = True
    pixels = images[:2].float()/255
    targets = hidden_targets(tokenizer.encode(pixels), mask)
    both = masked_cross_entropy(model(pixels, mask), targets)
    alone = [masked_cross_entropy(model(pixels[i:i+1], mask[i:i+1]), targets[i:i+1]) for i in range(2)]
    torch.testing.assert_close(both, (8*alone[0] + alone[1])/9)


def test_evaluation_where_it_counts(small):
    images, held_out, tokenizer, cache = small
    learn = learner(small)
    judged = learn.dls.valid.dataset
    everywhere = evaluate(learn.model, judged, torch.ones_like(judged.masks))
    assert everywhere == evaluate(learn.model, judged)
    corner = torch.zeros_like(judged.masks)
    corner[:, 0, 0] = True
    predicted = predict_tokens(learn.model.eval(), judged.images, judged.tokens, judged.masks)
    asked = judged.masks[:, 0, 0]
    expected = (predicted == judged.tokens)[:, 0, 0][asked].float().mean().item()
    assert math.isclose(evaluate(learn.model, judged, corner)['token_accuracy'], expected, abs_tol=1e-6)


def test_guesses_get_the_benefit_of_the_doubt():
    "With many pictures the per-place unigram reaches the entropy of the source."
    draw = generator('guesses')
    odds = torch.softmax(2*torch.randn(4, 8, generator=draw), -1)                              # (places, codes)
    tokens = torch.multinomial(odds, 6000, replacement=True, generator=draw).T.reshape(6000, 2, 2)
    entropy = -(odds*odds.log()).sum(-1).mean().item()
    mask = torch.ones(2000, 2, 2, dtype=torch.bool)
    mask[:, 0, 0] = False
    entropy = -(odds*odds.log()).sum(-1)[1:].mean().item()
    scores = score_guesses(Guesses(tokens[:4000], 8), tokens[4000:], mask)
    assert abs(scores['unigram_loss'] - entropy) < 0.02
    assert abs(scores['guess_position'] - odds.max(-1).values[1:].mean().item()) < 0.02


def test_what_does_not_fit():
    with pytest.raises(ConfigError, match='visible'): MIMConfig(mode='both')
    with pytest.raises(ConfigError, match='leaves nothing to predict'): MIMConfig(codebook_size=1)
