"Loaders: rows by step, boxes, views and batches against independent implementations."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from beit_lab.core import ConfigError, generator
from beit_lab.data.loaders import (as_floats, cubic, epoch_order, image_loaders, jitter_colours, lanczos, random_boxes, render, resize_weights,
                                   step_indices, TwoViews)
from beit_lab.data.sources import open_source


# --- rows ----------------------------------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 5), step=st.integers(0, 50), world=st.integers(1, 4), batch=st.integers(1, 9), count=st.integers(1, 40))
def test_ranks_share_one_stream(seed, step, world, batch, count):
    together = torch.cat([step_indices(seed, step, rank, world, batch, count) for rank in range(world)])
    assert torch.equal(together, step_indices(seed, step, 0, 1, batch*world, count))
    stream = torch.cat([epoch_order(seed, epoch, count) for epoch in range((step + 1)*batch*world//count + 1)])
    assert torch.equal(together, stream[step*batch*world:(step + 1)*batch*world])

def test_every_epoch_is_a_permutation_of_its_own():
    stream = torch.cat([step_indices(0, step, 0, 1, 8, 100) for step in range(25)])
    first, second = stream.split(100)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(100))
    assert not torch.equal(first, second) and not torch.equal(first, epoch_order(1, 0, 100))

def test_rows_are_golden():
    "Changing these numbers changes every stored run."
    assert step_indices(0, 0, 0, 1, 4, 10).tolist() == [9, 3, 6, 4]
    assert step_indices(7, 1000, 1, 2, 3, 50_000).tolist() == [11120, 33749, 38397]


# --- boxes and rendering -------------------------------------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 80), width=st.integers(1, 80), low=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_boxes_lie_inside(height, width, low, seed):
    top, left, h, w = random_boxes(50, height, width, scale=(low, 1), draw=generator(seed)).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()

@settings(max_examples=25, deadline=None)
@given(height=st.integers(8, 60), width=st.integers(8, 60), size=st.integers(1, 70), seed=st.integers(0, 99))
def test_render_is_torchvision(height, width, size, seed):
    images = torch.rand(4, 3, height, width, generator=generator(seed))
    boxes = random_boxes(4, height, width, scale=(0.05, 1), draw=generator(seed, 'boxes'))
    expected = torch.stack([TF.resized_crop(i, *b, [size, size], v2.InterpolationMode.BICUBIC, antialias=True) for i, b in zip(images, boxes.tolist())])
    assert (render(images, boxes, size) - expected.clamp(0, 1)).abs().max() < 1e-4

def test_weights_sum_to_one_and_stay_in_the_part():
    for weight in (cubic, lanczos):
        matrix = resize_weights(torch.tensor([5, 0]), torch.tensor([9, 20]), 20, 6, weight)
        assert torch.allclose(matrix.sum(-1), torch.ones(2, 6))
        assert (matrix[0, :, :5] == 0).all() and (matrix[0, :, 14:] == 0).all()

def test_mirrored_render_is_the_mirror_image():
    images, boxes = torch.rand(3, 3, 20, 30), random_boxes(3, 20, 30, draw=generator(0))
    flips = torch.tensor([True, False, True])
    plain, mirrored = render(images, boxes, 12), render(images, boxes, 12, flips)
    assert torch.allclose(mirrored[0], plain[0].flip(-1), atol=1e-6) and torch.equal(mirrored[1], plain[1])

def test_views_do_not_leave_the_range_and_repeat_by_seed():
    images = (torch.rand(8, 3, 32, 32, generator=generator(2)) > 0.5).to(torch.uint8)*255      # as harsh as pictures get
    views = TwoViews(24, 48, jitter=0.4)
    first, second = views(images, generator(1)), views(images, generator(1))
    for a, b in zip(first, second): assert torch.equal(a, b) and 0 <= a.min() and a.max() <= 1
    assert not torch.equal(first[0], views(images, generator(3))[0])
    assert [tuple(v.shape) for v in first] == [(8, 3, 24, 24), (8, 3, 48, 48)]

def test_both_views_show_the_same_part():
    "A picture whose colours are its coordinates tells where each view looked."
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing='ij')
    images = torch.stack([x, y, x*0]).expand(16, 3, 64, 64)
    trunk, token = TwoViews(32, 16)(images, generator(0))
    assert (trunk[:, :2, :, :].mean((2, 3)) - token[:, :2].mean((2, 3))).abs().max() < 5e-3
    assert (torch.nn.functional.avg_pool2d(trunk, 2) - token).abs().max() < 0.02
    assert ((trunk[:, 0, 0, -1] < trunk[:, 0, 0, 0]).float().mean() - 0.5).abs() < 0.4        # some are mirrored, some are not

def test_lanczos_view_differs_but_little():
    images = open_source('emoji', 'test').images(64)[:8]
    cubic_view, lanczos_view = (TwoViews(64, 32, token_filter=f)(images, generator(0))[1] for f in (cubic, lanczos))
    assert 0 < (cubic_view - lanczos_view).abs().mean() < 0.01

def test_jitter_is_torchvisions_in_fixed_order():
    images = torch.rand(6, 3, 16, 16, generator=generator(0))
    factors = 1 + 0.4*(2*torch.rand(3, 6, 1, 1, 1, generator=generator(9)) - 1)
    for image, result, b, c, s in zip(images, jitter_colours(images, 0.4, generator(9)), *factors.flatten(1).tolist()):
        expected = TF.adjust_saturation(TF.adjust_contrast(TF.adjust_brightness(image, b), c), s)
        assert (result - expected).abs().max() < 1e-3

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_views_on_a_gpu_are_those_of_the_cpu():
    images = torch.rand(8, 3, 64, 64, generator=generator(0))
    views = TwoViews(64, 32, jitter=0.4)
    for a, b in zip(views(images, generator(1)), views(images.cuda(), generator(1))): assert (a - b.cpu()).abs().max() < 2e-3


@pytest.mark.parametrize('column', range(3))
def test_what_must_be_still_is_still(column):
    "One change is forbidden for some rows: those rows lack it, and all others are as they would have been."
    images = torch.rand(12, 3, 20, 20, generator=generator('still'))
    still = torch.zeros(12, 3, dtype=torch.bool)
    still[::2, column] = True
    views = TwoViews(20, 10, jitter=0.4)
    free, careful = views(images, generator(7)), views(images, generator(7), still)
    for a, b in zip(free, careful): assert torch.equal(a[1::2], b[1::2]) and not torch.equal(a, b)
    if column == 0: assert torch.allclose(careful[0][::2], TwoViews(20, 10, flip=False, jitter=0.4)(images, generator(7))[0][::2])
    everything = views(images, generator(7), torch.ones(12, 3, dtype=torch.bool))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(everything, views.plain(images)))
    for a, b in zip(free, views(images, generator(7), torch.zeros(12, 3, dtype=torch.bool))): assert torch.equal(a, b)


# --- fastai --------------------------------------------------------------------------------------------------------------------------------

def test_batches_are_the_rows_of_the_source():
    digits = open_source('digits')
    dls = image_loaders(digits, 8, bs=50, valid=0.2, device='cpu')
    x, y = dls.one_batch()
    rows = dls.train_ds.rows[epoch_order(0, 0, len(dls.train_ds))[:50]]
    assert torch.equal(torch.Tensor(x), digits.images(8)[rows].float()/255) and torch.equal(torch.as_tensor(y), digits.labels()[rows])
    assert dls.vocab[3] == 'three' and dls.c == 10 and type(x).__name__ == 'TensorImage' and type(y).__name__ == 'TensorCategory'
    assert sum(len(y) for _, y in dls.valid) == len(dls.valid_ds) and {len(y) for _, y in dls.train} == {50}

def test_other_ways_to_give_data():
    block = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    dls = image_loaders(block, 16, bs=64, valid=0.25, device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds), len(dls.train)) == (30, 10, 1)
    (x,) = dls.one_batch()
    assert x.shape == (30, 3, 16, 16)
    dls = image_loaders(block, 16, bs=8, valid=block[:5], device='cpu')
    assert (len(dls.train_ds), len(dls.valid_ds)) == (40, 5)
    with pytest.raises(ConfigError, match='uint8'): image_loaders(block.float(), 16)
    with pytest.raises(ConfigError, match='16'): image_loaders(block, 8)

def test_two_views_reach_the_learner():
    from fastai.vision.all import Learner, nn
    block = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    dls = image_loaders(block, 16, bs=8, two_views=TwoViews(16, 8), device='cpu')
    seen = []
    class Half(nn.Module):
        def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.ones(1))
        def forward(self, x): seen.append(tuple(x.shape)); return nn.functional.avg_pool2d(x, 2)*self.scale
    learn = Learner(dls, Half(), loss_func=nn.MSELoss())
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert set(seen) == {(8, 3, 16, 16), (4, 3, 16, 16)}

def test_fastai_habits():
    import matplotlib.pyplot as plt
    from fastai.vision.all import accuracy, Learner, nn, Normalize
    plt.switch_backend('Agg')
    dls = image_loaders('digits', 8, bs=64, device='cpu', after_batch=[Normalize.from_stats([0.5]*3, [0.5]*3, cuda=False)])
    assert dls.one_batch()[0].min() == -1
    dls.show_batch(max_n=4)
    torch.manual_seed(0)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), loss_func=nn.CrossEntropyLoss(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=20, show_plot=False)
        learn.fit_one_cycle(4, 1e-2)
        assert learn.validate()[1] > 0.85
        predictions, targets = learn.get_preds()
        assert torch.equal(torch.as_tensor(targets), dls.valid_ds.labels[dls.valid_ds.rows])
        learn.show_results(max_n=4)
    plt.close('all')

def test_processes_of_fastai_share_an_epoch(monkeypatch):
    from fastai.distributed import DistributedDL
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self, t, rank: list(t))
    seen = []
    for rank in range(2):
        dls = image_loaders('digits', 8, bs=10, valid=0.1, device='cpu')
        seen += [tuple(x.flatten(1)[i].tolist()) for x, _ in DistributedDL(dls.train, rank, 2) for i in range(len(x))]
    assert len(seen) >= len(dls.train_ds) - 20 and len(set(seen)) > 0.97*len(dls.train_ds)

def test_floats_pass_through():
    x = torch.rand(2, 3, 4, 4)
    assert as_floats(x) is x and as_floats(torch.full((1,), 255, dtype=torch.uint8)).item() == 1
