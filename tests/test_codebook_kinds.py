"Every kind of codebook behind one interface: the same as another library, properties that hold for all, bad input in one sentence, several processes."
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings, strategies as st

from beit_lab.codebook.autoencode import Autoencoder, VQVAE, check_images, reconstruction_report, tokenizer_config, train_tokenizer
from beit_lab.codebook.health import code_counts
from beit_lab.codebook.lookup_free import CODEBOOKS, FSQ_LEVELS, FSQCodebook, LFQCodebook, corner_shares, fsq_levels, make_codebook, mean_corner_shares
from beit_lab.codebook.quantize import Codebook, EMACodebook, GumbelCodebook, from_uniform, nearest_codes
from beit_lab.core import ConfigError, DataError, WeightsError, generator, samples

KINDS = list(CODEBOOKS)


def noise(*shape, key='z'): return torch.randn(*shape, generator=generator(key))


def book_of(kind, size=64, dim=5, **given):
    "A started codebook in evaluation mode."
    book = make_codebook(kind, size, dim, **given)
    book.start(noise(600, book.code_dim, key='pool')*2 + 0.5)
    return book.eval()


# ---- the same as an independent implementation

def peer_of(kind, book):
    "The library's counterpart with our codes, as a function of z that gives vectors and ids."
    library = pytest.importorskip('vector_quantize_pytorch')
    if kind == 'fsq': peer = library.FSQ(list(book.levels))
    elif kind == 'lfq': peer = library.LFQ(codebook_size=book.codebook_size)
    else:
        peer = library.VectorQuantize(dim=book.code_dim, codebook_size=book.codebook_size, rotation_trick=False, threshold_ema_dead_code=0, stochastic_sample_codes=kind == 'gumbel')
        peer._codebook.embed.data.copy_(book.vectors.detach()[None])
    return lambda z: peer.eval()(z)[:2]


@pytest.mark.parametrize('kind', KINDS)
def test_ids_and_vectors_are_those_of_the_library(kind):
    book = make_codebook(kind, 64, 5)
    if kind == 'gumbel': book.start(noise(600, 5, key='pool'))   # scores that begin as the nearest-code rule
    peer, z = peer_of(kind, book), noise(7, 90, book.code_dim)
    out, (vectors, codes) = book.eval()(z), peer(z)
    assert torch.equal(out.codes, codes.long())
    assert (out.vectors - vectors).abs().max() <= 1e-6


@pytest.mark.parametrize('size', [64, 512, 1000, 4375])
def test_fsq_levels_gradient_and_numbering(size):
    library = pytest.importorskip('vector_quantize_pytorch')
    book, peer = FSQCodebook(fsq_levels(size)), library.FSQ(list(fsq_levels(size)))
    book.started = True
    assert torch.equal(book.grid, peer.implicit_codebook) and book.codebook_size == size
    ours, theirs = (noise(3, 50, book.code_dim).requires_grad_() for _ in range(2))
    weight = noise(3, 50, book.code_dim, key='w')
    out, (vectors, codes) = book.train()(ours), peer(theirs)
    assert torch.equal(out.codes, codes.long()) and (out.vectors - vectors).abs().max() <= 1e-6
    for x, q in ((ours, out.vectors), (theirs, vectors)): (q*weight).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize('temperature', [0.5, 2., 100.])
@pytest.mark.parametrize('size', [2, 8, 512])
def test_lfq_loss_and_gradient(size, temperature):
    library = pytest.importorskip('vector_quantize_pytorch')
    book = LFQCodebook(size, inverse_temperature=temperature, diversity=0.7, commitment=0.25)
    book.started = True
    peer = library.LFQ(codebook_size=size, entropy_loss_weight=0.1, diversity_gamma=0.7, commitment_loss_weight=0.25).train()
    ours, theirs = (noise(3, 100, book.code_dim).requires_grad_() for _ in range(2))
    out = book.train()(ours)
    their_vectors, their_codes, their_loss = peer(theirs, inv_temperature=temperature)
    assert torch.equal(out.codes, their_codes.long()) and (out.vectors - their_vectors).abs().max() <= 1e-6
    assert out.loss.item() == pytest.approx(their_loss.item(), abs=2e-4)    # theirs cuts logarithms at 1e-5
    out.loss.backward(), their_loss.backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=2e-4) if temperature < 100 else torch.isfinite(ours.grad).all() # their cut changes the gradient of rare codes


def test_gumbel_is_the_quantizer_of_wav2vec2():
    "Another library's codebook of drawn codes, with the same scores, noise and temperature: vectors, gradients, and what is said without noise."
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer
    book = GumbelCodebook(16, 3, hard=True, kmeans_iterations=0)
    peer = Wav2Vec2GumbelVectorQuantizer(Wav2Vec2Config(num_codevector_groups=1, num_codevectors_per_group=16, codevector_dim=3, conv_dim=(3,), conv_stride=(1,), conv_kernel=(1,)))
    peer.weight_proj.weight.data, peer.weight_proj.bias.data, peer.codevectors.data = book.weight.data.clone(), book.bias.data.clone(), book.vectors.data[None].clone()
    book.temperature = peer.temperature = 0.7
    ours, theirs = noise(1, 200, 3).requires_grad_(), noise(1, 200, 3).requires_grad_()
    torch.manual_seed(5)
    out = book.train()(ours).vectors
    torch.manual_seed(5)
    expected, _ = peer.train()(theirs)
    assert torch.allclose(out, expected, atol=1e-6)
    weights = noise(1, 200, 3, key='weights')
    (out*weights).sum().backward(); (expected*weights).sum().backward()
    pairs = ((ours.grad, theirs.grad), (book.weight.grad, peer.weight_proj.weight.grad), (book.bias.grad, peer.weight_proj.bias.grad), (book.vectors.grad, peer.codevectors.grad[0]))
    for mine, other in pairs: assert mine.abs().sum() > 0 and torch.allclose(mine, other, atol=1e-4)
    with torch.no_grad(): assert torch.allclose(book.eval()(ours).vectors, peer.eval()(theirs)[0], atol=1e-6)


@pytest.mark.parametrize('hard', [False, True])
def test_gumbel_draws_as_torch_does(hard):
    book = GumbelCodebook(16, 3, hard=hard, kl_weight=0.5, kmeans_iterations=0).train()
    z = noise(200, 3)
    torch.manual_seed(5)
    out = book(z)
    scores = z @ book.weight.T + book.bias
    torch.manual_seed(5)
    assert torch.allclose(out.vectors, F.gumbel_softmax(scores, 1., hard=hard) @ book.vectors, atol=1e-6)
    assert torch.equal(out.codes, scores.argmax(1))
    kl = F.kl_div(torch.full_like(scores, -math.log(16)), scores.log_softmax(1), log_target=True, reduction='batchmean')
    assert torch.allclose(out.loss, 0.5*kl, atol=1e-6) and torch.allclose(from_uniform(scores), kl, atol=1e-6)


# ---- what holds for all kinds

shapes = st.lists(st.integers(1, 4), min_size=0, max_size=4)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), shape=shapes, size=st.sampled_from([8, 64, 512]), scale=st.sampled_from([1e-4, 1., 50.]), training=st.booleans(), seed=st.integers(0, 10**6))
def test_ids_in_range_for_any_shape(kind, shape, size, scale, training, seed):
    book = make_codebook(kind, size, 3, **(dict(levels=(8,)) if (kind, size) == ('fsq', 8) else {})).train(training)
    z = scale*noise(*shape, book.code_dim, key=seed)
    out = book(z)
    assert out.codes.shape == z.shape[:-1] and out.codes.dtype == torch.long and out.vectors.shape == z.shape and out.loss.ndim == 0
    assert 0 <= out.codes.min() and out.codes.max() < book.codebook_size == len(book.vectors) == size
    assert torch.isfinite(out.vectors).all() and torch.isfinite(out.loss)
    if not training: assert torch.equal(out.codes.flatten(), book.lookup(rearrange(z, '... d -> (...) d')))


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6))
def test_encode_decode_encode_is_stable(kind, seed):
    book = book_of(kind, seed=seed)
    codes = book(noise(40, book.code_dim, key=seed)).codes
    assert torch.equal(book(book.represent(codes)).codes, codes)
    everything = torch.arange(book.codebook_size)
    assert torch.equal(book(book.represent(everything)).codes, everything)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float64]), seed=st.integers(0, 10**6))
def test_precision_changes_ids_only_near_ties(kind, dtype, seed):
    "The id of a rounded vector is that of the exact one, unless a push of the size of the rounding reaches another code."
    book = book_of(kind)
    z = noise(100, book.code_dim, key=seed)
    rounded = z.to(dtype)
    codes = book(z).codes
    push = (rounded.float() - z).norm(dim=1).clamp(min=1e-6)
    directions = F.normalize(noise(64, book.code_dim, key='around'), dim=1)
    near = z[:, None] + 3*push[:, None, None]*directions                            # (N, 64, D)
    safe = (book(near).codes == codes[:, None]).all(1)
    assert safe.float().mean() > 0.3
    assert torch.equal(book(rounded).codes[safe], codes[safe])
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(book(z).codes, codes)      # whatever surrounds it, the search is in fp32


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(KINDS), steps=st.integers(1, 5), decay=st.sampled_from([0., 0.5, 0.98]))
def test_running_counts_are_those_of_a_plain_loop(kind, steps, decay):
    book = book_of(kind, decay=decay).train()
    if kind == 'vq': book.revive = False
    expected = book.counts.double().tolist()
    for step in range(steps):
        codes = book(noise(30, 4, book.code_dim, key=step)).codes
        seen = [0]*64
        for code in codes.flatten().tolist(): seen[code] += 1
        assert code_counts(codes, 64).tolist() == seen
        expected = [decay*e + (1 - decay)*s for e, s in zip(expected, seen)]
    assert book.counts.tolist() == pytest.approx(expected, abs=1e-3) and book.steps == steps


@pytest.mark.parametrize('kind', KINDS)
def test_evaluation_changes_nothing_and_is_not_random(kind):
    book = book_of(kind)
    state, z = {k: v.clone() for k, v in book.state_dict().items()}, noise(100, book.code_dim)
    assert torch.equal(book(z).codes, book(z).codes) and torch.allclose(book(z).vectors, book.vectors[book(z).codes], atol=1e-6)
    assert all(torch.equal(v, state[k]) for k, v in book.state_dict().items())


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_reach_the_encoder(kind):
    book, z = book_of(kind).train(), noise(50, make_codebook(kind, 64, 5).code_dim).requires_grad_()
    out = book(z)
    (out.vectors.square().sum() + out.loss).backward()
    assert torch.isfinite(z.grad).all() and (z.grad != 0).any()


@pytest.mark.parametrize('kind', ['vq', 'fsq', 'lfq'])
def test_nothing_as_large_as_vectors_times_codes_is_kept(kind):
    "N*K numbers would be 8 million here; Gumbel scores need them, the others must not."
    book = book_of(kind, 4375 if kind == 'fsq' else 4096, 12).train()
    z, sizes = noise(2048, book.code_dim).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t): book(z)
    assert max(sizes) <= 2048*128


def test_mean_of_corners_is_exact():
    ones = torch.rand(300, 7, generator=generator('p'))
    assert torch.allclose(mean_corner_shares(ones), corner_shares(ones).mean(0), atol=1e-7)
    assert torch.allclose(corner_shares(ones).sum(1), torch.ones(300), atol=1e-5)


def test_grids_begin_with_all_their_codes_in_use():
    "Whatever shift and scale the encoder's channels have."
    pool = noise(20_000, 3)*torch.tensor([0.01, 1., 300.]) + torch.tensor([5., 0., -900.])
    fsq = FSQCodebook((8, 8, 8))
    fsq.start(pool)
    counts = torch.bincount(fsq.lookup(pool), minlength=512).double()
    assert (counts > 0).all() and torch.special.entr(counts/counts.sum()).sum().exp() > 0.92*512
    lfq = LFQCodebook(8)
    lfq.start(pool)
    assert torch.bincount(lfq.lookup(pool), minlength=8).min() > 2200
    constant = LFQCodebook(4)
    constant.start(torch.ones(50, 2))
    assert torch.isfinite(constant.vectors).all() and (constant.scale == 1).all()


def test_the_temperature_falls_as_a_cosine():
    book = GumbelCodebook(8, 2, temperatures=(1., 1/16))
    seen = []
    for done in (0., 0.5, 1., 1.2):
        book.tend(done)
        seen.append(book.temperature)
    assert seen == pytest.approx([1, 0.5 + 1/32, 1/16, 1/16])


# ---- bad input: one sentence each

@pytest.mark.parametrize('call, says', [
    (lambda: make_codebook('magic', 64), 'choose vq, gumbel, fsq, lfq'),
    (lambda: make_codebook('fsq', 500), 'choose 64, 240, 512'),
    (lambda: make_codebook('fsq', 512, levels=(8, 8)), 'set codebook_size to 64'),
    (lambda: make_codebook('fsq', 512, levels=(8, 8, 'eight')), 'whole numbers'),
    (lambda: make_codebook('fsq', 2**21, levels=(128,)*3), 'at most'),
    (lambda: make_codebook('lfq', 500), 'try 256'),
    (lambda: make_codebook('lfq', 0), 'try 2'),
    (lambda: make_codebook('vq', 1), 'two codes'),
    (lambda: make_codebook('gumbel', 64, 0), 'two codes'),
    (lambda: make_codebook('lfq', 64, decay=1.), r'\[0, 1\)'),
    (lambda: tokenizer_config('tiny', kind='vqgan'), 'choose vq')])
def test_settings_are_checked(call, says):
    with pytest.raises(ConfigError, match=says): call()


@pytest.mark.parametrize('kind', KINDS)
def test_vectors_of_another_size_are_refused(kind):
    with pytest.raises(ConfigError, match='same code_dim'): book_of(kind)(torch.zeros(3, 40))


# ---- inside a tokenizer

@pytest.fixture(scope='module')
def images():
    rng = generator('pictures')
    colours = torch.randint(0, 256, (80, 3, 4, 4), generator=rng, dtype=torch.uint8)
    return F.interpolate(colours.float(), 16, mode='bilinear').to(torch.uint8)


@pytest.fixture(scope='module')
def tokenizers(images): return {kind: train_tokenizer(images[:60], tokenizer_config('nano', kind=kind), steps=10, batch_size=8) for kind in KINDS}


@pytest.mark.parametrize('kind', KINDS)
def test_a_tokenizer_takes_any_kind(tokenizers, images, kind, tmp_path):
    model = tokenizers[kind]
    tokens = model.encode(images)
    assert tokens.shape == (80, 4, 4) and 0 <= tokens.min() and tokens.max() < model.codebook_size == len(model.codebook)
    assert torch.equal(tokens, model.encode(images.float()/255)) and torch.equal(model.quantizer(model.vectors(images)).codes, tokens)
    painted = model.decode(tokens)
    assert painted.shape == (80, 3, 16, 16) and painted.min() >= 0 and painted.max() <= 1
    report = reconstruction_report(model, images[60:])
    assert report['psnr_db'] > 12 and report['codebook_usage'] > 0
    model.save_pretrained(tmp_path/kind)
    loaded = VQVAE.from_pretrained(tmp_path/kind)
    assert loaded.config == model.config and loaded.quantizer.started and torch.equal(loaded.encode(images), tokens) and torch.equal(loaded.decode(tokens), painted)


@pytest.mark.parametrize('kind', ['gumbel', 'lfq'])
def test_a_run_repeats_and_resumes(images, kind, tmp_path):
    def stop(step, steps, values):
        if step == 20: raise KeyboardInterrupt
    run = lambda **kwargs: train_tokenizer(images[:60], tokenizer_config('nano', kind=kind), 30, batch_size=2, **kwargs).state_dict()
    with pytest.raises(KeyboardInterrupt): run(checkpoint=tmp_path/'state', progress=stop)
    resumed, whole = run(checkpoint=tmp_path/'state'), run()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_levels_travel_with_the_configuration(tmp_path):
    model = VQVAE(tokenizer_config('nano', kind='fsq', codebook_size=60, levels=(5, 4, 3)))
    model.save_pretrained(tmp_path/'w')
    assert VQVAE.from_pretrained(tmp_path/'w').config.levels == (5, 4, 3)


@pytest.mark.parametrize('change, says', [(('"kind": "fsq"', '"kind": "magic"'), 'choose vq'), (('"codebook_size": 64', '"codebook_size": 512'), 'fit|shape'),
                                          (('"kind": "fsq"', '"kind": "vq"'), 'do not fit'), (('"levels": []', '"levels": ["a"]'), 'whole numbers')])
def test_a_damaged_configuration_is_refused(tmp_path, change, says):
    VQVAE(tokenizer_config('nano', kind='fsq')).save_pretrained(tmp_path/'w')
    file = tmp_path/'w'/'config.json'
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change))
    with pytest.raises((WeightsError, ConfigError), match=says): VQVAE.from_pretrained(tmp_path/'w')


@pytest.mark.parametrize('name', ['emoji', 'scenes'])
def test_shipped_weights_still_load(name):
    model = VQVAE.from_pretrained(samples(f'weights/{name}/tokenizer'))
    assert model.config.kind == 'vq' and model.quantizer.started
    tokens = torch.arange(512).view(1, 16, 32)
    assert torch.equal(model.quantizer(model.quantizer.represent(tokens)).codes, tokens)


@pytest.mark.parametrize('spoil, error, says', [
    (lambda x: x*2 - 1, DataError, r'not in \[0, 1\]'),
    (lambda x: x[:, :1], DataError, 'expected 3 channels, got 1'),
    (lambda x: torch.cat([x, x[:, :1]], 1), DataError, 'expected 3 channels, got 4'),
    (lambda x: x[..., 1:], ConfigError, 'do not divide'),
    (lambda x: torch.where(x > 0.5, torch.nan, x), DataError, 'NaN'),
    (lambda x: x.double().long(), DataError, 'uint8 or float'),
    (lambda x: x[0], DataError, r'\(N, 3, H, W\)'),
    (lambda x: x[:0], DataError, 'no pictures')])
def test_pictures_that_cannot_be_read_cost_one_sentence(images, spoil, error, says):
    with pytest.raises(error, match=says) as raised: check_images(spoil(images.float()/255), patch_size=4)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('kind', KINDS)
def test_tokens_of_another_codebook_are_refused(tokenizers, kind):
    with pytest.raises(ConfigError, match='the codebook has 64 codes'): tokenizers[kind].decode(torch.full((1, 2, 2), 64))
    with pytest.raises(ConfigError, match='the codebook has 64 codes'): code_counts(torch.tensor([64]), 64)


# ---- several processes

def _worker(rank, world, file, out):
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=world)
    for kind in KINDS:
        book = make_codebook(kind, 64, 4).train()
        z = (noise(300, book.code_dim, key=kind)*3 + 1).chunk(world)[rank].requires_grad_()
        loss = book(z).loss
        if kind == 'lfq': loss.backward()
        torch.save([book.state_dict(), loss.detach(), z.grad], f'{out}/{kind}_{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(_worker, (2, tmp_path/'store', tmp_path), nprocs=2)
    for kind in KINDS:
        (first, loss, grad), (second, other_loss, other_grad) = (torch.load(tmp_path/f'{kind}_{rank}.pt', weights_only=True) for rank in (0, 1))
        alone = make_codebook(kind, 64, 4).train()
        z = (noise(300, alone.code_dim, key=kind)*3 + 1).requires_grad_()
        whole = alone(z).loss
        for name, ours in alone.state_dict().items():
            assert torch.equal(first[name], second[name]) and torch.allclose(first[name].double(), ours.double(), atol=1e-5, rtol=1e-5), (kind, name)
        if kind == 'vq': assert torch.allclose((loss + other_loss)/2, whole, atol=1e-5)
        if kind != 'lfq': continue
        whole.backward()
        assert torch.allclose(torch.cat([grad, other_grad])/2, z.grad, atol=1e-7) # gradients of processes are averaged


def test_ids_do_not_depend_on_training_however_large_the_vectors():
    for kind, size in dict(lfq=8, fsq=64).items():
        book = make_codebook(kind, size, 3)
        book.started = True
        large = torch.tensor([[3e7, -3e7, 1e7]])[:, :book.code_dim]
        assert torch.equal(book.train()(large).codes, book.eval()(large).codes)
