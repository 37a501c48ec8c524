"Text tokenizers: nothing is lost, ids stand where BEiT-3 has them, other libraries cut alike, broken files cost a sentence."
import io, json, subprocess, sys

import pytest
import torch
from hypothesis import given, settings, strategies as st

from beit_lab.core import ConfigError, DataError, LabError, real_data, samples, WeightsError
from beit_lab.data.sources import open_source
from beit_lab.data.text import (BEIT3_ROWS, BytePairTokenizer, LONGEST_PIECE, SentencePieceTokenizer, SPECIALS, TextTokenizer, show_words,
                                train_text_tokenizer)


def flat(captions): return [text for texts in captions for text in texts]


@pytest.fixture(scope='module')
def names(): return flat(open_source('emoji', 'train').captions())


@pytest.fixture(scope='module')
def tokenizer(names): return train_text_tokenizer(names, 1000)


@pytest.fixture(scope='module')
def sentence_pieces(names):
    from sentencepiece import SentencePieceTrainer
    file = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(names), model_writer=file, vocab_size=600, minloglevel=2)
    return SentencePieceTokenizer(file.getvalue())


# --- nothing is lost -----------------------------------------------------------------------------------------------------------------------

@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[0] == 0 and ids[-1] == 2 and all(4 <= i < tokenizer.mask_id for i in ids[1:-1])

@pytest.mark.parametrize('text', [' leading', 'trailing ', '\n\t\r\x0b\x0c', '<s></s><pad><unk><mask>', 'Ġ', 'a\u3000b', '\x00', '👩‍🚀🏳️‍🌈', ' ', ''])
def test_odd_texts_come_back(tokenizer, text): assert tokenizer.decode(tokenizer.encode(text)) == text

def test_names_of_specials_are_plain_letters(tokenizer, sentence_pieces):
    for kind in (tokenizer, sentence_pieces):
        for name in (*SPECIALS, '<mask>'): assert not {0, 1, 2, kind.mask_id} & set(kind.encode(name)[1:-1])

def test_half_characters_are_replaced(tokenizer): assert tokenizer.decode(tokenizer.encode('a \ud800 b')) == 'a ? b'

@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(max_size=80), min_size=1, max_size=5), max_words=st.integers(3, 20), fixed=st.booleans())
def test_batches_are_the_texts_cut_and_filled(tokenizer, texts, max_words, fixed):
    ids, pad = tokenizer.batch(texts, max_words, fixed)
    whole = [tokenizer.encode(text) for text in texts]
    longest = min(max_words, max(map(len, whole)))
    assert ids.dtype == torch.long and pad.dtype == torch.bool and ids.shape == pad.shape == (len(texts), max_words if fixed else longest)
    for row, hole, one in zip(ids, pad, whole):
        kept = row[~hole].tolist()
        assert hole.tolist() == sorted(hole.tolist()) and (row[hole] == 1).all()
        assert kept == (one if len(one) <= max_words else [*one[:max_words - 1], 2])

def test_an_enormous_text_costs_little(tokenizer):
    import time
    start = time.process_time()
    ids, pad = tokenizer.batch(['abc '*5_000_000], 64)
    assert ids.shape == (1, 64) and time.process_time() - start < 0.5

# --- the arrangement -----------------------------------------------------------------------------------------------------------------------

def test_specials_stand_where_beit3_has_them(tokenizer, sentence_pieces):
    for kind in (tokenizer, sentence_pieces):
        assert (kind.bos_id, kind.pad_id, kind.eos_id, kind.unk_id, kind.first_word) == (0, 1, 2, 3, 4)
        assert kind.mask_id == kind.vocab_size - 1 and kind.pieces[-1] == '<mask>' and len(kind.pieces) == kind.vocab_size

def test_the_released_vocabulary_would_have_its_ids():
    "64,000 pieces give 64,002 ids, <mask> is 64,001, and the released embedding has eight rows to spare."
    kind = TextTokenizer([f'p{i}' for i in range(64_000 - 3)], ('▁',))
    assert (kind.vocab_size, kind.mask_id, BEIT3_ROWS - kind.vocab_size) == (64_002, 64_001, 8)

# --- what other libraries say --------------------------------------------------------------------------------------------------------------

def test_tokenizers_own_training_gives_the_same_ids(names, tokenizer):
    "The library's usual way: specials first in the vocabulary, <mask> added at the end."
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    other = Tokenizer(models.BPE())
    other.normalizer, other.pre_tokenizer = normalizers.Prepend(' '), pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.train_from_iterator(names, trainers.BpeTrainer(vocab_size=999, min_frequency=2, show_progress=False, special_tokens=list(SPECIALS),
                                                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    other.add_special_tokens(['<mask>'])
    other.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 2)])
    assert other.token_to_id('<mask>') == tokenizer.mask_id
    for text in [*names, 'Ærø 犬', 'not yet seen: quixotic!']: assert other.encode(text).ids == tokenizer.encode(text)

def test_transformers_xlm_roberta_cuts_like_the_sentence_pieces(names, sentence_pieces):
    "An independent search for the best pieces (Rust's Unigram instead of Google's C++) and the id arrangement of XLM-R."
    from transformers import XLMRobertaTokenizer
    engine = sentence_pieces.engine
    words = [(engine.id_to_piece(i), engine.get_score(i)) for i in range(3, engine.get_piece_size())]
    other = XLMRobertaTokenizer(vocab=[*((s, 0.) for s in SPECIALS), *words, ('<mask>', 0.)])
    assert other.mask_token_id == sentence_pieces.mask_id
    for name in names[:500]:
        if name.isascii(): assert other(name).input_ids == sentence_pieces.encode(name)

def test_sentence_pieces_decode_and_know_holes(sentence_pieces, names):
    for name in names[:200]: assert sentence_pieces.decode(sentence_pieces.encode(name)) == name
    assert 3 in sentence_pieces.encode('犬') and 3 not in sentence_pieces.encode('cat')
    assert sentence_pieces.batch(['', 'cat'])[0][0, :2].tolist() == [0, 2]

# --- words ---------------------------------------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.text('abcdeæ犬-.,!', min_size=1, max_size=12), min_size=1, max_size=8))
def test_word_numbers_are_those_of_split(tokenizer, words):
    ids = torch.tensor(tokenizer.encode(' '.join(words)))
    numbers = tokenizer.words(ids)
    assert numbers[0] == numbers[-1] == -1
    assert [tokenizer.decode(ids[numbers == n]) for n in range(int(numbers.max()) + 1)] == words

def test_word_numbers_of_sentence_pieces(sentence_pieces, names):
    for name in names[:200]:
        ids = torch.tensor(sentence_pieces.encode(name))
        numbers = sentence_pieces.words(ids)
        if sentence_pieces.unk_id not in ids: assert [sentence_pieces.decode(ids[numbers == n]) for n in range(int(numbers.max()) + 1)] == name.split()

def test_specials_part_words(tokenizer):
    "A row that begins inside a word, and holds two texts, as packed text does."
    inside = tokenizer.encode('hedgehog')[2:-1]
    ids = torch.tensor([[0, *inside, 2, *inside, 2, 1, 1]])
    numbers = tokenizer.words(ids)[0]
    n = len(inside)
    assert numbers.tolist() == [-1, *[0]*n, -1, *[1]*n, -1, -1, -1]
    assert torch.equal(tokenizer.is_word(ids)[0], numbers >= 0)

# --- the same everywhere -------------------------------------------------------------------------------------------------------------------

def test_training_is_the_same_in_another_process_and_order(names, tokenizer):
    code = ('from beit_lab.data.text import train_text_tokenizer\nfrom beit_lab.data.sources import open_source\n'
            'print(train_text_tokenizer([t for ts in open_source("emoji", "train").captions() for t in ts][::-1], 1000).fingerprint)')
    other = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert other.stdout.strip() == tokenizer.fingerprint, other.stderr[-500:]

def test_folders_give_the_tokenizer_back(tmp_path, tokenizer, sentence_pieces):
    for i, kind in enumerate((tokenizer, sentence_pieces)):
        kind.save_pretrained(tmp_path/str(i))
        again = TextTokenizer.from_pretrained(tmp_path/str(i))
        assert type(again) is type(kind) and again.fingerprint == kind.fingerprint and again.pieces == kind.pieces
        assert again.encode('red apple, 犬') == kind.encode('red apple, 犬') and torch.equal(again.begins, kind.begins)
        kind.save_pretrained(tmp_path/str(i)) # again, in its place
    (tmp_path/'beit3.spm').write_bytes(sentence_pieces.model)
    assert TextTokenizer.from_pretrained(tmp_path/'beit3.spm').fingerprint == sentence_pieces.fingerprint
    assert tokenizer.fingerprint != train_text_tokenizer(['a b'], 300).fingerprint

def test_a_longer_vocabulary_begins_with_the_shorter(names, tokenizer):
    shorter = train_text_tokenizer(names, 500)
    assert tokenizer.merges[:len(shorter.merges)] == shorter.merges and tokenizer.pieces[:499] == shorter.pieces[:499]

def test_no_piece_is_longer_than_promised():
    kind = train_text_tokenizer(['x'*1000]*5, 1000)
    assert max(len(piece) for piece in kind.pieces) <= LONGEST_PIECE and kind.decode(kind.encode('x'*777)) == 'x'*777

# --- what is refused -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('content', ['', '{', '[]', '{}', '{"tokenizer": "BytePairTokenizer"}', '{"tokenizer": "BytePairTokenizer", "merges": 3}',
    '{"tokenizer": "BytePairTokenizer", "merges": ["a"]}', '{"tokenizer": "BytePairTokenizer", "merges": ["a b c"]}', '{"tokenizer": ["BytePairTokenizer"]}',
    '{"tokenizer": "BytePairTokenizer", "merges": ["ab c"]}', '{"tokenizer": "BytePairTokenizer", "merges": [["a", "b"]]}',
    '{"tokenizer": "BytePairTokenizer", "merges": ["é é"]}'.replace('é', '犬'), '{"tokenizer": "SentencePieceTokenizer"}', '{"tokenizer": "os.system"}'])
def test_broken_folders_are_one_sentence(tmp_path, content):
    (tmp_path/'words.json').write_text(content, encoding='utf-8')
    with pytest.raises(LabError) as caught: TextTokenizer.from_pretrained(tmp_path)
    assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)

def test_pieces_that_double_are_refused(tmp_path):
    "Forty merges could describe a piece of a terabyte."
    merges, piece = [], 'a'
    for _ in range(40):
        merges.append(f'{piece} {piece}')
        if len(piece) < 200: piece += piece
    (tmp_path/'words.json').write_text(json.dumps(dict(tokenizer='BytePairTokenizer', merges=merges)))
    with pytest.raises(WeightsError, match='merge 6'): TextTokenizer.from_pretrained(tmp_path)

def test_every_cut_of_a_sentence_piece_model_is_refused(sentence_pieces):
    model = sentence_pieces.model
    SentencePieceTokenizer(model)
    for end in [*range(0, 9000, 1), len(model)//2, len(model) - 1]:
        if end >= len(model): continue
        with pytest.raises(WeightsError): SentencePieceTokenizer(model[:end])

def test_a_sentence_piece_model_of_another_arrangement_is_refused(names):
    from sentencepiece import SentencePieceTrainer
    file = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(names), model_writer=file, vocab_size=300, minloglevel=2, pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    with pytest.raises(WeightsError, match='begins with <pad>'): SentencePieceTokenizer(file.getvalue(), 'its file')

@pytest.mark.parametrize('call, error, words', [
    (lambda t: train_text_tokenizer([], 300), DataError, 'no texts'), (lambda t: train_text_tokenizer(['', ''], 300), DataError, 'no texts'),
    (lambda t: train_text_tokenizer(['a'], 260), ConfigError, '261'), (lambda t: train_text_tokenizer(['a', None], 300), DataError, 'NoneType'),
    (lambda t: t.encode(3), DataError, 'int'), (lambda t: t.batch([]), DataError, 'empty'), (lambda t: t.batch(['a', None]), DataError, 'NoneType'),
    (lambda t: t.batch(['a'], 2), ConfigError, 'at least 3'), (lambda t: t.decode([t.vocab_size]), ConfigError, 'another tokenizer'),
    (lambda t: t.decode([-1]), ConfigError, 'another tokenizer'), (lambda t: TextTokenizer.from_pretrained('/nowhere/at/all'), WeightsError, 'words.json')])
def test_bad_input_is_one_sentence(tokenizer, call, error, words):
    with pytest.raises(error, match=words) as caught: call(tokenizer)
    assert '\n' not in str(caught.value)

# --- pictures of words ---------------------------------------------------------------------------------------------------------------------

def test_spelled_pieces_are_the_text(tokenizer, sentence_pieces):
    for kind in (tokenizer, sentence_pieces):
        assert ''.join(kind.spell(kind.encode('smiling cat with heart-eyes')[1:-1])).strip() == 'smiling cat with heart-eyes'
        assert kind.spell([0, kind.mask_id, 2]) == [' <s>', ' <mask>', ' </s>']

def test_words_are_drawn_and_hidden(tokenizer):
    import matplotlib.pyplot as plt
    pieces = tokenizer.spell(tokenizer.encode('smiling cat'))
    figure = show_words([pieces, pieces], [None, [False, True] + [False]*(len(pieces) - 2)], ['truth', 'hidden'])
    ax = figure.axes[0]
    assert len(ax.patches) == 2*len(pieces) and len(ax.images) == 1
    assert sum(text.get_text() == pieces[1].strip() for text in ax.texts) == 1
    plt.close(figure)

# --- real captions -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def flickr():
    folder = real_data('flickr8k')
    if folder is None: pytest.skip('set BEIT_LAB_DATA to the folder that holds flickr8k')
    import pyarrow.parquet as pq
    return {split: flat(pq.read_table(next(folder.glob(f'{split}-*.parquet')), columns=['captions'])['captions'].to_pylist()) for split in ('train', 'validation')}

def test_real_captions(flickr):
    kind = train_text_tokenizer(flickr['train'], 4096)
    assert kind.vocab_size == 4096
    for text in flickr['validation']: assert kind.decode(kind.encode(text)) == text
    rows, words = kind.encode_all(flickr['validation']), sum(len(text.split()) for text in flickr['validation'])
    pieces, lengths = sum(len(row) - 2 for row in rows), sorted(map(len, rows))
    assert 1.0 <= pieces/words < 1.12                               # nearly all words are one piece
    assert lengths[len(lengths)//2] in range(12, 17) and lengths[-1] <= 64
    assert not any(kind.unk_id in row for row in rows)

def test_real_captions_in_sentence_pieces(flickr):
    from sentencepiece import SentencePieceTrainer
    file = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(flickr['train'][:10_000]), model_writer=file, vocab_size=3000, minloglevel=2)
    rows = SentencePieceTokenizer(file.getvalue()).encode_all(flickr['validation'])
    assert sum(row.count(3) for row in rows)/sum(map(len, rows)) < 0.002 # holes: signs and letters that the first captions hardly had

@pytest.mark.parametrize('name, split, most', [('scenes', 'train', 1.1), ('emoji', 'train', 1.7)])
def test_shipped_captions(name, split, most):
    texts = flat(open_source(samples(name) if name == 'scenes' else name, split).captions())
    kind = train_text_tokenizer(texts, 2000)
    assert all(kind.decode(row) == text for row, text in zip(kind.encode_all(texts), texts))
    assert sum(len(row) - 2 for row in kind.encode_all(texts))/sum(len(text.split()) for text in texts) < most
