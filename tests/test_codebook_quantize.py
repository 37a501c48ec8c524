"The codebook: lookup, k-means, running averages against another library and by hand, revival, resume, several processes."
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from beit_lab.codebook.quantize import EMACodebook, Quantized, _draw, _replace, kmeans, nearest_codes
from beit_lab.core import ConfigError, generator


def noise(*shape, key='z'): return torch.randn(*shape, generator=generator(key))


# ---- lookup

@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 80), codes=st.integers(1, 40), dim=st.integers(1, 12), chunk=st.integers(1, 90), seed=st.integers(0, 10**6))
def test_lookup_finds_a_nearest_code(count, codes, dim, chunk, seed):
    z, vectors = noise(count, dim, key=seed), noise(codes, dim, key=-seed - 1)
    found = nearest_codes(z, vectors, chunk=chunk)
    distances = torch.cdist(z.double(), vectors.double())
    assert torch.allclose(distances.gather(1, found[:, None])[:, 0], distances.min(1).values, atol=1e-5)


def test_lookup_cosine_ignores_the_length_of_z():
    vectors = F.normalize(noise(32, 8, key='e'), dim=1)
    z = noise(200, 8)
    assert torch.equal(nearest_codes(z, vectors, 'cosine'), F.cosine_similarity(z[:, None], vectors[None], dim=-1).argmax(1))
    assert torch.equal(nearest_codes(z*7, vectors, 'cosine'), nearest_codes(z, vectors, 'cosine'))


def test_lookup_keeps_its_digits_far_from_the_origin():
    z, vectors = noise(500, 4), noise(64, 4, key='e')
    moved = nearest_codes(z + 1000, vectors + 1000)
    assert (moved != nearest_codes(z, vectors)).float().mean() < 0.01
    assert (torch.cdist(z + 1000, vectors + 1000).argmin(1) != nearest_codes(z, vectors)).float().mean() > 0.1 # what is avoided


def test_lookup_stays_in_fp32_under_autocast():
    z, vectors = noise(2000, 16), noise(256, 16, key='e')
    with torch.autocast('cpu', dtype=torch.bfloat16): mixed = nearest_codes(z, vectors)
    assert torch.equal(mixed, nearest_codes(z, vectors))
    assert (( z.bfloat16() @ vectors.bfloat16().T).float() - vectors.square().sum(1)/2).argmax(1).ne(mixed).any()


def test_lookup_never_holds_the_whole_table():
    seen = []
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor): seen.append(out.numel())
            return out
    with Watch(): nearest_codes(noise(20_000, 4), noise(1000, 4, key='e'), chunk=500)
    assert max(seen) <= 500*1000


# ---- helpers

@given(empty=st.lists(st.booleans(), min_size=1, max_size=12), fresh=st.integers(1, 12))
def test_replace_fills_in_order(empty, fresh):
    vectors, empty = torch.zeros(len(empty), 1), torch.tensor(empty)
    filled_vectors, filled = _replace(vectors, empty, torch.arange(1., fresh + 1)[:, None])
    count = min(int(empty.sum()), fresh)
    assert filled.sum() == count and filled_vectors[filled].flatten().tolist() == list(range(1, count + 1))
    assert (filled_vectors[~filled] == 0).all() and not (filled & ~empty).any()


def test_draw_has_no_repeats_and_prefers_large_errors():
    errors = torch.cat([torch.zeros(50), torch.ones(50)])
    drawn = _draw(torch.arange(100.)[:, None], errors, 50, generator(0))
    assert len(drawn.unique()) == 50 and (drawn >= 50).all()


def test_kmeans_recovers_separated_clusters():
    centres = torch.tensor([[0., 0.], [9., 0.], [0., 9.], [9., 9.]])
    pool = centres.repeat_interleave(torch.tensor([1000, 5, 300, 50]), 0) + 0.1*noise(1355, 2)
    found, counts = kmeans(pool, 4)
    order = nearest_codes(centres, found)
    assert sorted(order.tolist()) == [0, 1, 2, 3] and counts[order].tolist() == [1000, 5, 300, 50]
    assert (found[order] - centres).abs().max() < 0.2


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_kmeans_with_fewer_vectors_than_codes(metric):
    pool = noise(5, 3)
    vectors, counts = kmeans(F.normalize(pool, dim=1) if metric == 'cosine' else pool, 16, metric)
    assert vectors.shape == (16, 3) and counts.sum() == 5 and torch.isfinite(vectors).all()


# ---- the same as an independent implementation

@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
@pytest.mark.parametrize('decay', [0.8, 0.98])
def test_parity_with_vector_quantize_pytorch(metric, decay):
    library = pytest.importorskip('vector_quantize_pytorch')
    ours = EMACodebook(64, 8, metric, decay=decay, commitment=1., kmeans_iterations=0, revive_below=0)
    peer = library.VectorQuantize(dim=8, codebook_size=64, decay=decay, use_cosine_sim=metric == 'cosine', rotation_trick=False,
                                  threshold_ema_dead_code=0, commitment_weight=1.)
    peer._codebook.embed.copy_(ours.vectors[None])
    peer._codebook.embed_avg.copy_(ours.vectors[None])
    for step in range(12):
        z = noise(4, 100, 8, key=step)
        out, (vectors, codes, loss) = ours(z), peer(z)
        assert torch.equal(out.codes, codes)
        assert torch.allclose(out.vectors, vectors, atol=1e-6) and torch.allclose(out.loss, loss.sum(), atol=1e-6)
        assert (ours.vectors - peer._codebook.embed[0]).abs().max() <= 1e-6
        assert torch.allclose(ours.counts, peer._codebook.cluster_size[0], atol=1e-4)


# ---- one step by hand

def test_euclidean_step_by_hand():
    book = EMACodebook(5, 3, decay=0.9, kmeans_iterations=0, revive_below=0)
    before, z = book.vectors.double(), noise(40, 3)
    codes = torch.cdist(z.double(), before).argmin(1)
    one_hot = F.one_hot(codes, 5).double()
    n, m = 0.9 + 0.1*one_hot.sum(0), 0.9*before + 0.1*one_hot.T @ z.double()
    book(z)
    assert torch.allclose(book.vectors.double(), m/((n + 1e-5)/(n.sum() + 5e-5)*n.sum())[:, None], atol=1e-6)


def test_directions_step_by_hand_leaves_unused_codes():
    book = EMACodebook(6, 4, 'cosine', decay=0.99, kmeans_iterations=0, revive_below=0, average='directions')
    before = book.vectors.clone()
    z = before[:2].repeat(10, 1) + 0.05*noise(20, 4)
    codes = (F.normalize(z, dim=1) @ before.T).argmax(1)
    book(z)
    for k in range(6):
        chosen = F.normalize(z, dim=1)[codes == k]
        new = F.normalize(chosen.mean(0), dim=0) if len(chosen) else before[k]
        assert torch.allclose(book.vectors[k], F.normalize(0.99*before[k] + 0.01*new, dim=0), atol=1e-6)


def test_straight_through_and_commitment_gradient():
    book, z = EMACodebook(8, 3, kmeans_iterations=0).eval(), noise(6, 3).requires_grad_()
    out, weight = book(z), noise(6, 3, key='w')
    (out.vectors*weight).sum().backward(retain_graph=True)
    assert torch.allclose(z.grad, weight)
    z.grad = None
    out.loss.backward()
    assert torch.allclose(z.grad, 0.25*2*(z - book.vectors[out.codes]).detach()/z.numel(), atol=1e-7)


# ---- behaviour

def test_evaluation_changes_nothing():
    book = EMACodebook(8, 3)
    book(noise(100, 3))
    state = {k: v.clone() for k, v in book.state_dict().items()}
    book.eval()(noise(100, 3, key='other'))
    assert all(torch.equal(v, state[k]) for k, v in book.state_dict().items())


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_revived_codes_live(metric):
    book = EMACodebook(32, 4, metric, decay=0.9, kmeans_iterations=0)
    centre = torch.tensor([3., 3., 3., 3.])
    for step in range(150): book(noise(512, 4, key=step)*0.5 + centre)
    assert len(book.eval()(noise(2000, 4, key='test')*0.5 + centre).codes.unique()) >= 30
    assert book.revivals > 0


def test_revival_resets_count_and_sum():
    book = EMACodebook(8, 3, kmeans_iterations=0)
    book.counts[2] = 1e-6
    z = noise(80, 3)
    book.revive_dead(z, torch.ones(80))
    assert (z == book.vectors[2]).all(1).any() and book.revivals == 1
    assert torch.allclose(book.sums[2]/book.counts[2], book.vectors[2], atol=1e-6)
    assert torch.isclose(book.counts[2], 0.05*torch.tensor(7/8), rtol=1e-4)


def test_live_codes_are_never_revived_and_the_switch_works():
    healthy = EMACodebook(16, 4)
    for step in range(60): healthy(noise(1024, 4, key=step))
    assert healthy.revivals == 0
    off = EMACodebook(16, 4, decay=0.5, kmeans_iterations=0)
    off.revive = False
    for step in range(20): off(noise(64, 4, key=step) + 9)
    assert off.revivals == 0


def test_the_threshold_scales_with_the_data():
    "More codes than vectors in a step: a fixed threshold would condemn nearly all of them."
    book = EMACodebook(512, 4)
    for step in range(40): book(noise(128, 4, key=step))
    assert book.revivals < 40*64


def test_start_from_a_pool_scales_the_counts():
    book = EMACodebook(16, 4)
    book.start(noise(4000, 4), per_step=400)
    assert book.started and torch.isclose(book.counts.sum(), torch.tensor(400.))
    assert torch.allclose(book.sums, book.vectors*book.counts[:, None])


def test_resume_is_exact(tmp_path):
    def feed(book, steps):
        for step in steps: book(noise(100, 4, key=step)*(1 + step/10))
        return book
    make = lambda: EMACodebook(64, 4, decay=0.8, revive_below=0.3, seed=5)
    whole, half, resumed = feed(make(), range(20)), feed(make(), range(10)), make()
    torch.save(half.state_dict(), tmp_path/'half.pt')
    resumed.load_state_dict(torch.load(tmp_path/'half.pt', weights_only=True))
    assert torch.equal(feed(resumed, range(10, 20)).vectors, whole.vectors) and whole.revivals > half.revivals
    assert (whole.steps, half.steps, resumed.steps) == (20, 10, 20)


def test_global_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    EMACodebook(64, 4, revive_below=0.9)(noise(100, 4))
    assert torch.equal(torch.rand(4), expected)


def test_half_precision_input():
    book = EMACodebook(8, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16): out = book(noise(50, 4).bfloat16())
    assert isinstance(out, Quantized) and out.vectors.dtype == torch.float32 and book.vectors.dtype == torch.float32


@pytest.mark.parametrize('wrong, word', [(dict(metric='l1'), 'euclidean'), (dict(decay=1.), r'\[0, 1\)'), (dict(average='directions'), 'cosine')])
def test_settings_are_checked(wrong, word):
    with pytest.raises(ConfigError, match=word): EMACodebook(8, 2, **wrong)


# ---- several processes

KINDS = dict(euclidean=dict(kmeans_iterations=3), cosine=dict(metric='cosine', kmeans_iterations=3), directions=dict(metric='cosine', average='directions', kmeans_iterations=3), random_start=dict(kmeans_iterations=0))


def _book(kind): return EMACodebook(16, 4, decay=0.7, revive_below=0.2, **KINDS[kind])


def _worker(rank, world, file, out, sizes):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=world)
    for kind in KINDS:
        book = _book(kind)
        for step in range(15): book((noise(200, 4, key=step) + step/3).split(sizes)[rank])
        torch.save(book.state_dict(), f'{out}/{kind}_{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('sizes', [[100, 100], [188, 12]])
def test_two_processes_are_one(tmp_path, sizes):
    "Start by k-means, moving averages and seeded revival: what two processes learn from their parts is what one learns from the whole."
    torch.multiprocessing.spawn(_worker, (2, tmp_path/'store', tmp_path, sizes), nprocs=2)
    for kind in KINDS:
        first, second = (torch.load(tmp_path/f'{kind}_{rank}.pt', weights_only=True) for rank in (0, 1))
        assert all(torch.equal(first[k], second[k]) for k in first), kind
        alone = _book(kind)
        for step in range(15): alone(noise(200, 4, key=step) + step/3)
        assert alone.revivals > 0 and first['revivals'] == alone.revivals
        for name, ours in alone.state_dict().items(): assert torch.allclose(first[name].double(), ours.double(), atol=1e-5), (kind, name)


def _rounding_worker(rank, world, file, out):
    "The second machine rounds a little differently."
    from beit_lab.codebook import quantize
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=world)
    plain = quantize._on_sphere
    if rank: quantize._on_sphere = lambda z, metric: plain(z, metric)*(1 + 1e-6)
    book = EMACodebook(16, 4, kmeans_iterations=3)
    book.start(noise(200, 4).chunk(2)[rank])
    torch.save(book.vectors, f'{out}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_the_start_is_broadcast(tmp_path):
    torch.multiprocessing.spawn(_rounding_worker, (2, tmp_path/'store', tmp_path), nprocs=2)
    assert torch.equal(*(torch.load(tmp_path/f'{rank}.pt', weights_only=True) for rank in (0, 1)))
