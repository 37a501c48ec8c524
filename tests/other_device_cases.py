"Every tensor is put where it belongs: the main jobs, on a pretended GPU that refuses to be mixed with the CPU."
import math
from dataclasses import replace

import pytest
import torch
from fastai.callback.core import Callback

import beit_lab.all  # so that all modules are there to be told of the device
from beit_lab.heads.probes import knn_predict, linear_predict, trunk_features
from beit_lab.main_job import Job
from beit_lab.pairs_job import PairJob
from beit_lab.training import seconds_per_step, train
from other_device import OTHER, other_device

SMALL = dict(pictures=150, tokenizer_steps=10, pretrain_steps=10, batch_size=8, held_out=40, tested=40)


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with other_device():
        weight, picture = torch.ones(3, 4, device=OTHER), torch.ones(4, 2)
        assert weight.device.type == 'other' and (weight@picture.to(OTHER)).cpu().device.type == 'cpu'
        with pytest.raises(RuntimeError, match='two devices'): weight@picture
        assert (weight*torch.tensor(2.)).device.type == 'other'          # a single number may come from anywhere


def test_gradients_reach_it():
    with other_device():
        model = torch.nn.Linear(3, 1).to(OTHER)
        model(torch.ones(2, 3).to(OTHER)).sum().backward()
        assert model.weight.grad.device.type == 'other' and model.weight.grad.cpu().tolist() == [[2., 2., 2.]]


def test_pictures(tmp_path):
    job = Job('emoji', tmp_path/'run', 0, **SMALL)
    with other_device():
        job.tokenizer(limit=math.inf)
        job.pretrain(limit=math.inf)
        vectors = trunk_features(job._trunk(), job.pictures, (4,), ('mean',))[4, 'mean']
        classes = torch.arange(len(vectors)) % 3
        assert vectors.device.type == linear_predict(vectors, classes, vectors[:5], 3, (1.,)).device.type == knn_predict(vectors, classes, vectors[:5], 3).device.type == 'cpu'


def test_pictures_and_words(tmp_path):
    with other_device(): report = PairJob('scenes:200:2:plain', tmp_path/'run', 0, **SMALL).demo(limit=math.inf)
    assert report.exists()


def makes_learner(kind):
    "A function from a folder to a finished training of a tokenizer, in two pieces, and its Learner."
    from beit_lab.codebook.autoencode import tokenizer_config, tokenizer_learner
    from beit_lab.codebook.distill import distill_learner, vqkd_config
    from beit_lab.codebook.dvae import dvae_config, dvae_learner
    from beit_lab.codebook.teachers import open_teacher
    images = (torch.rand(40, 3, 32, 32)*255).byte()
    return dict(vq=lambda: tokenizer_learner(images, tokenizer_config('nano'), 20, batch_size=8, start_images=20), dvae=lambda: dvae_learner(images, dvae_config('nano'), 20, batch_size=8, start_images=20),
                vqkd=lambda: distill_learner(images, open_teacher('emoji'), vqkd_config('nano', encoder=replace(vqkd_config('nano').encoder, image_size=32)), 20, batch_size=8))[kind]


class Leave(Callback):
    order = 90 # after the checkpoint
    def after_epoch(self): raise KeyboardInterrupt


@pytest.mark.parametrize('kind', ['vq', 'dvae', 'vqkd'])
def test_tokenizers_are_timed_stopped_and_taken_up(kind, tmp_path):
    with other_device():
        make = makes_learner(kind)
        assert seconds_per_step(make()) > 0
        left = make()
        left.add_cb(Leave())
        with pytest.raises(KeyboardInterrupt): train(left, tmp_path/'state')
        assert train(make(), tmp_path/'state').run_log.rows[-1]['step'] == 20
