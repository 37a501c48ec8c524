"Masks over texts: promised counts, nothing but text is hidden, whole words, separate runs, the shares of BERT, and what transformers does."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from beit_lab.core import ConfigError, generator, real_data
from beit_lab.data.text import train_text_tokenizer
from beit_lab.masking_text import (BERT_SHARES, PAIR_TEXT_MASK_RATIO, RUN_LENGTH, TEXT_MASK_RATIO, TEXT_MASKS, corrupt, draw_text_masks,
                                   hidden_counts, span_masks, text_targets, token_masks, word_masks)


@st.composite
def numbered(draw, rows=4, most=14):
    "Word numbers as a tokenizer gives them: <s>, words of some pieces, perhaps a </s> between two texts, </s>, padding."
    lines = []
    for _ in range(draw(st.integers(1, rows))):
        sizes, line = draw(st.lists(st.integers(1, 4), max_size=most)), [-1]
        for number, size in enumerate(sizes):
            line += [number]*size + ([-1] if draw(st.integers(0, 9)) == 0 else [])
        lines.append([*line, -1])
    width = max(map(len, lines)) + draw(st.integers(0, 3))
    return torch.tensor([line + [-1]*(width - len(line)) for line in lines])


def wanted(total, ratio): return 0 if total == 0 else min(max(1, round(ratio*total)), max(1, total - 1))


def hidden_words(words, mask): return [set(row[m].tolist()) for row, m in zip(words, mask)]


# --- what every kind promises --------------------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(words=numbered(), kind=st.sampled_from(sorted(TEXT_MASKS)), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 999))
def test_counts_are_exact_and_specials_are_seen(words, kind, ratio, seed):
    mask = draw_text_masks(kind, words, ratio, generator(seed))
    assert mask.dtype == torch.bool and mask.shape == words.shape and not mask[words < 0].any()
    if kind == 'token': assert mask.sum(1).tolist() == [wanted(int((row >= 0).sum()), ratio) for row in words]
    else:
        chosen = hidden_words(words, mask)
        assert list(map(len, chosen)) == [wanted(int(row.max()) + 1, ratio) for row in words]
        for row, hidden, numbers in zip(words, mask, chosen): assert hidden.tolist() == [int(w) in numbers for w in row] # whole words
    assert torch.equal(mask, draw_text_masks(kind, words, ratio, generator(seed)))

@settings(max_examples=200, deadline=None)
@given(words=numbered(most=30), ratio=st.floats(0.05, 0.95), length=st.floats(1, 9), seed=st.integers(0, 999))
def test_runs_are_as_many_as_promised(words, ratio, length, seed):
    for row, numbers in zip(words, hidden_words(words, span_masks(words, ratio, generator(seed), length))):
        total, count = int(row.max()) + 1, len(numbers)
        runs = sum(n - 1 not in numbers for n in numbers)
        assert runs == (min(max(1, round(count/length)), total - count + 1, count) if total else 0)

@settings(max_examples=100, deadline=None)
@given(total=st.lists(st.integers(0, 500), min_size=1), ratio=st.floats(0.001, 0.999))
def test_hidden_counts(total, ratio): assert hidden_counts(torch.tensor(total), ratio).tolist() == [wanted(n, ratio) for n in total]

def test_ratios_are_those_of_beit3(): assert (TEXT_MASK_RATIO, PAIR_TEXT_MASK_RATIO, RUN_LENGTH) == (0.15, 0.5, 3)

def test_masks_of_a_batch_differ():
    words = torch.arange(20).expand(64, 20)
    for kind in TEXT_MASKS: assert len({tuple(row.tolist()) for row in draw_text_masks(kind, words, 0.3, generator(kind))}) > 55

def test_golden():
    "Changing these numbers changes every stored run."
    words = torch.tensor([[-1, 0, 0, 1, 2, 3, 3, 4, 5, 6, -1]])
    found = {kind: draw_text_masks(kind, words, 0.4, generator(5)).int().tolist()[0] for kind in TEXT_MASKS}
    assert found == dict(token=[0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0], word=[0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0], span=[0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])

# --- distributions -------------------------------------------------------------------------------------------------------------------------

def test_every_piece_and_word_is_equally_likely():
    words = torch.arange(12).expand(20_000, 12)
    for kind in ('token', 'word'):
        share = draw_text_masks(kind, words, 0.25, generator('uniform', kind)).float().mean(0)
        assert (share - 0.25).abs().max() < 4.5*math.sqrt(0.25*0.75/20_000)

def test_runs_are_uniform_over_all_arrangements():
    "All ways to place 2 runs that hold 4 of 8 words occur equally often: 3 cuts of the hidden words, 10 pairs of gaps."
    masks = span_masks(torch.arange(8).expand(30_000, 8), 0.5, generator('runs'), run_length=2)
    kinds, counts = masks.unique(dim=0, return_counts=True)
    assert len(kinds) == 3*10
    assert (counts - 1000).abs().max() < 4.5*math.sqrt(1000)

def test_a_run_is_three_words_long_on_average():
    words = torch.arange(60).expand(2000, 60)
    mask = span_masks(words, 0.5, generator('mean')).float()
    begins = mask[:, 0].sum() + ((mask[:, 1:] == 1) & (mask[:, :-1] == 0)).sum()
    assert mask.sum()/begins == RUN_LENGTH

# --- what the trunk sees -------------------------------------------------------------------------------------------------------------------

@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 999), shares=st.sampled_from([(1, 0, 0), BERT_SHARES, (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0)]))
def test_only_what_is_hidden_changes(seed, shares):
    draw = generator('ids', seed)
    ids, mask = torch.randint(0, 50, (6, 17), generator=draw), torch.rand(6, 17, generator=draw) < 0.4
    seen = corrupt(ids, mask, 50, shares, generator(seed))
    assert torch.equal(seen[~mask], ids[~mask]) and seen.dtype == torch.long
    if shares == (1, 0, 0): assert (seen[mask] == 50).all()
    if shares == (0, 0, 1): assert torch.equal(seen, ids)
    if shares == (0, 1, 0): assert ((seen[mask] >= 4) & (seen[mask] < 50)).all()
    assert torch.equal(seen, corrupt(ids, mask, 50, shares, generator(seed)))

def test_targets_follow_the_convention_of_the_objectives():
    from beit_lab.pretrain.objectives import IGNORE, at_hidden
    ids, mask = torch.arange(12).view(2, 6), torch.rand(2, 6, generator=generator(1)) < 0.5
    targets = text_targets(ids, mask)
    assert torch.equal(targets, torch.where(mask, ids, IGNORE))
    assert at_hidden(targets)[0][:int(mask[0].sum())].tolist() == ids[0][mask[0]].tolist()
    loss = torch.nn.functional.cross_entropy(torch.randn(12, 20), targets.flatten(), reduction='none')
    assert torch.equal(loss == 0, ~mask.flatten())

# --- transformers does the same ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def collated():
    "Texts masked by transformers' collator with its 80/10/10, and how it was asked to do it."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
    names = ['<s>', '<pad>', '</s>', '<unk>', *(f'w{i}' for i in range(95)), '<mask>']
    engine = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token='<unk>'))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=engine, bos_token='<s>', pad_token='<pad>', eos_token='</s>', unk_token='<unk>', mask_token='<mask>')
    ids = torch.cat([torch.zeros(4000, 1, dtype=torch.long), torch.randint(4, 99, (4000, 20), generator=generator('texts')), torch.full((4000, 1), 2)], 1)
    batch = DataCollatorForLanguageModeling(fast, mlm_probability=0.15, seed=0)([dict(input_ids=row) for row in ids.tolist()])
    return ids, batch['input_ids'], batch['labels']

def shares_of(ids, seen, targets):
    "Of the hidden pieces: replaced by <mask>, replaced by another id, left as they were; and the share that is hidden."
    hidden = targets != -100
    masked, same = seen[hidden] == 99, seen[hidden] == ids[hidden]
    return torch.stack([x.float().mean() for x in (masked, ~masked & ~same, same, hidden[:, 1:-1])])

def test_shares_are_those_of_transformers(collated):
    ids, seen, labels = collated
    words = torch.cat([torch.full((4000, 1), -1), torch.arange(20).expand(4000, 20), torch.full((4000, 1), -1)], 1)
    mask = token_masks(words, 0.15, generator('ours'))
    ours = shares_of(ids, corrupt(ids, mask, 99, BERT_SHARES, generator('shares')), text_targets(ids, mask))
    theirs = shares_of(ids, seen, labels)
    assert torch.equal(labels[labels != -100], ids[labels != -100]) and not (labels[:, [0, -1]] != -100).any()
    assert (ours - theirs).abs().max() < 4.5*math.sqrt(2*0.8*0.2/12_000)
    assert abs(ours[0] - 0.8) < 0.015 and abs(ours[2] - 0.1) < 0.011

def test_whole_words_are_those_of_transformers():
    "Its collator finds whole words by the places of letters; ours by the ids. The same pieces must belong together."
    import numpy as np
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
    texts = ['smiling cat with heart-eyes', 'see-no-evil monkey', 'hedgehogs, big hedgehogs!', 'one']
    kind = train_text_tokenizer(texts, 290)
    for text in texts:
        pieces = [kind.pieces[i] for i in kind.encode(text)[1:-1]]
        ours = kind.words(torch.tensor(kind.encode(text)))[1:-1].numpy()
        ends = np.cumsum([len(piece) for piece in pieces]) - 1         # in the text, which has no space before its first word
        bare = [(end - len(piece.lstrip('Ġ')), end) for piece, end in zip(pieces, ends)]
        offsets = np.array([[(0, 0), *bare, (0, 0)]])
        fast = PreTrainedTokenizerFast(tokenizer_object=kind.engine, mask_token='<mask>', pad_token='<pad>')
        collator = DataCollatorForLanguageModeling(fast, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0)
        theirs, _ = collator._calc_word_ids_and_prob_mask(offsets, np.array([[1, *[0]*len(bare), 1]]))
        together = lambda numbers: numbers[:, None] == numbers[None]
        assert np.array_equal(together(ours), together(theirs[0][1:-1])), text

# --- real captions -------------------------------------------------------------------------------------------------------------------------

def test_real_captions():
    folder = real_data('flickr8k')
    if folder is None: pytest.skip('set BEIT_LAB_DATA to the folder that holds flickr8k')
    import pyarrow.parquet as pq
    texts = [text for texts in pq.read_table(next(folder.glob('validation-*.parquet')), columns=['captions'])['captions'].to_pylist() for text in texts]
    kind = train_text_tokenizer(texts, 1000)
    ids, pad = kind.batch(texts, 64)
    words = kind.words(ids)
    for name in TEXT_MASKS:
        for ratio in (TEXT_MASK_RATIO, PAIR_TEXT_MASK_RATIO):
            mask = draw_text_masks(name, words, ratio, generator(name))
            assert abs(mask.sum()/kind.is_word(ids).sum() - ratio) < 0.03 and not mask[pad].any() and mask.any(1).all()
            assert not kind.is_word(corrupt(ids, mask, kind.mask_id)[mask]).any()

# --- what is refused -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('call, words', [
    (lambda w: draw_text_masks('block', w), 'choose token, word, span'), (lambda w: token_masks(w, 0), 'between 0 and 1'),
    (lambda w: word_masks(w, 1.), 'between 0 and 1'), (lambda w: span_masks(w, math.nan), 'between 0 and 1'),
    (lambda w: span_masks(w, 0.5, run_length=0.5), 'run_length'), (lambda w: span_masks(w, 0.5, run_length=math.nan), 'run_length'),
    (lambda w: corrupt(w, w > 0, 9, (0.5, 0.2, 0.2)), 'sum to 1'), (lambda w: corrupt(w, w > 0, 9, (1.2, -0.2, 0)), 'sum to 1'),
    (lambda w: corrupt(w, w > 0, 9, (math.nan, 0, 1)), 'sum to 1'), (lambda w: corrupt(w, w > 0, 9, (1, 0)), 'sum to 1')])
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ConfigError, match=words) as caught: call(torch.tensor([[-1, 0, 1, 2, 3, -1]]))
    assert '\n' not in str(caught.value)

def test_without_a_generator_torch_decides():
    words = torch.arange(20).expand(8, 20)
    for kind in TEXT_MASKS:
        torch.manual_seed(3)
        first = draw_text_masks(kind, words, 0.3)
        torch.manual_seed(3)
        assert torch.equal(first, draw_text_masks(kind, words, 0.3))

def test_masks_cost_little():
    "A training step of 64 captions may spend a few milliseconds on its masks."
    import time
    words, threads = torch.arange(40).expand(64, 40), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind in TEXT_MASKS:
            times = []
            for _ in range(10):
                start = time.process_time()
                draw_text_masks(kind, words, 0.5)
                times.append(time.process_time() - start)
            assert min(times) < 0.005
    finally: torch.set_num_threads(threads)
