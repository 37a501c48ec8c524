"Codebook and trunk in one run: what reaches what, when the words rest, judging, resuming."
from dataclasses import replace

import pytest
import torch

from beit_lab.codebook.autoencode import VQVAE, reconstruction_report, tokenizer_config
from beit_lab.core import ConfigError, WeightsError, generator
from beit_lab.pretrain.joint import JointConfig, JointHeldOut, JointModel, JointSteps, joint_learner, joint_loss, prediction_nats, train_joint
from beit_lab.pretrain.learner import HeldOut, evaluate, tokenize
from beit_lab.pretrain.objectives import MIMConfig, MaskedImageModel
from beit_lab.training import TrainConfig
from beit_lab.trunk.sizes import trunk_config


def config(**choices):
    words = tokenizer_config('nano')
    return JointConfig(words, MIMConfig(trunk_config('pico', embed_dim=32, depth=1, num_heads=2), 64, 'visible', 'random', 0.75, decoder_dim=32), **choices)


PLAN = TrainConfig(20, 8, 2e-3, warmup_steps=2, piece=10)


pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def images(): return (torch.rand(48, 3, 4, 4, generator=generator('joint'))*255).byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


def step(model, images):
    pixels, mask = images[:4]/255, torch.rand(4, 8, 8, generator=generator('mask')) < 0.5
    outputs = model(pixels, mask)
    return outputs, pixels


@pytest.mark.parametrize('pull', [0., 1.])
def test_prediction_reaches_the_words_only_if_pulled(images, pull):
    torch.manual_seed(0)
    model = JointModel(config(pull=pull)).train()
    outputs, pixels = step(model, images)
    (prediction_nats(outputs, pixels) + pull*outputs.pulled).backward()
    reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.words.encoder.parameters())
    assert reached == (pull > 0) and all(p.grad is not None for p in model.reader.trunk.blocks.parameters())


def test_pull_makes_words_more_expected(images):
    "A step against the gradient of the pull lowers it, with the trunk as it is."
    torch.manual_seed(0)
    model = JointModel(config(pull=1.)).train()
    step(model, images)                                                                                     # gives the codebook its start
    with torch.no_grad(): model.reader.head.bias.normal_(0, 2)                                               # some words are expected
    outputs, pixels = step(model, images)
    outputs.pulled.backward()
    before = outputs.pulled.item()
    norm = sum(p.grad.square().sum() for p in model.words.encoder.parameters()).sqrt()
    with torch.no_grad():
        for p in model.words.encoder.parameters(): p -= 0.02*p.grad/norm
    assert step(model.eval(), images)[0].pulled.item() < before


def test_soft_words_of_directions():
    "With codes on a sphere the length of a vector means nothing."
    torch.manual_seed(0)
    words = tokenizer_config('nano', metric='cosine')
    model = JointModel(JointConfig(words, config().task, pull=1.))
    z, places = torch.randn(2, 8, 8, words.code_dim), torch.arange(64).expand(2, 64)
    assert torch.allclose(model._soft_words(3*z, places), model._soft_words(z, places), atol=1e-6)


def test_the_seed_reaches_the_codebook(images): assert joint_learner(images, images[:8], config(), replace(PLAN, seed=5)).model.words.quantizer.seed == 5


def test_settled_words_rest(images):
    model = JointModel(config()).train()
    step(model, images)
    before = {name: t.clone() for name, t in model.words.state_dict().items()}
    model.settled = True
    outputs, pixels = step(model, images)
    assert outputs.painted is None and torch.equal(joint_loss(outputs, pixels, weight=2.), 2*prediction_nats(outputs, pixels))
    joint_loss(outputs, pixels).backward()
    assert all(p.grad is None for p in model.words.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.words.state_dict().items())
    assert step(model.eval(), images)[0].painted is not None                                                # validation still paints


def test_validation_teaches_nothing(images):
    model = JointModel(config()).train()
    step(model, images)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    step(model.eval(), images)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_words_settle_on_time(images):
    seen = []
    learn = joint_learner(images, images[:8], config(settle=0.6), PLAN)
    learn.model.register_forward_pre_hook(lambda module, _: seen.append((module.settled, module.words.quantizer.revive)) if module.training else None)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert [settled for settled, _ in seen] == [False]*12 + [True]*8
    assert [revive for settled, revive in seen if not settled] == [True]*10 + [False]*2                     # nothing is revived in the last fifth of their time


def test_batches_are_those_of_masked_modelling(images):
    steps = JointSteps(images, config().task, batch_size=4, seed=1)
    pixels, mask, target = steps[3]
    assert torch.equal(pixels, target) and (mask.flatten(1).sum(1) == 48).all() and torch.equal(mask, JointSteps(images, config().task, batch_size=4, seed=1)[3][1])
    held = JointHeldOut(images[:10], config().task, 4)
    assert len(held) == 3 and torch.equal(held[2][0], images[8:10]/255) and torch.equal(held[0][1], JointHeldOut(images[:10], config().task, 4)[0][1])


def test_learns_and_gives_both(images):
    learn = train_joint(images, images[:16], config(settle=0.6), TrainConfig(40, 8, 3e-3, warmup_steps=5, piece=20))
    words, reader = learn.model.finished()
    first, last = learn.run_log.rows[0], learn.run_log.rows[-1]
    assert type(words) is VQVAE and type(reader) is MaskedImageModel and not words.training and not reader.training
    assert last['prediction_nats'] < first['prediction_nats'] and reconstruction_report(words, images)['psnr_db'] > 15
    held = HeldOut(images[:16], tokenize(words, images[:16]).cpu(), learn.model.config.task, 16, 0)
    assert evaluate(reader, held)['loss'] == pytest.approx(last['prediction_nats'], abs=1e-3)               # asked from outside, the same


def test_resumed_run_is_the_same_run(images, tmp_path):
    def stop(step, steps, values):
        if step == 15: raise KeyboardInterrupt
    run = lambda **kwargs: train_joint(images, images[:8], config(settle=0.7, pull=0.1), PLAN, **kwargs).model.state_dict()
    with pytest.raises(KeyboardInterrupt): run(checkpoint=tmp_path/'state', progress=stop)
    resumed, whole = run(checkpoint=tmp_path/'state'), run()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    with pytest.raises(WeightsError, match='another run'): train_joint(images, images[:8], config(settle=0.5), PLAN, checkpoint=tmp_path/'state')


def test_weights_round_trip(images, tmp_path):
    model = JointModel(config()).eval()
    model.save_pretrained(tmp_path/'w')
    again = JointModel.from_pretrained(tmp_path/'w')
    assert again.config == model.config and torch.equal(step(again, images)[0].logits, step(model, images)[0].logits)


@pytest.mark.parametrize('make, word', [
    (lambda: JointConfig(tokenizer_config('nano'), MIMConfig(codebook_size=512)), 'set both alike'), (lambda: JointConfig(tokenizer_config('tiny'), MIMConfig(codebook_size=512)), 'patches of'),
    (lambda: config(settle=0.), 'share of the run'), (lambda: JointConfig(tokenizer_config('nano', kind='lfq'), config().task, pull=1.), 'codes with distances')])
def test_pieces_that_do_not_fit(make, word):
    with pytest.raises(ConfigError, match=word): make()


def test_bad_pictures_are_refused(images):
    with pytest.raises(ConfigError, match='uint8 pictures of 32'): joint_learner(images[..., :16, :16], images, config(), PLAN)
