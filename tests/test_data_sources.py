"Pictures and sources: every kind of file, every kind of collection, and every way in which they can be wrong."
import io, zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from beit_lab.core import DataError, real_data, samples
from beit_lab.data.pictures import as_rgb, checked, PictureSource, read_picture, square_crop
from beit_lab.data.sources import find_columns, open_source, split_source, table_source


def picture(seed=0, width=40, height=30, mode='RGB'):
    "A smooth random picture."
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)

def encoded(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()

def folder_of(tmp_path, names):
    for i, name in enumerate(names):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(tmp_path/name)
    return tmp_path


# --- one picture ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mode,kind', [('L', 'PNG'), ('1', 'PNG'), ('P', 'GIF'), ('RGB', 'BMP'), ('RGB', 'WEBP'), ('CMYK', 'JPEG'), ('CMYK', 'TIFF'), ('RGBA', 'PNG'), ('LA', 'PNG'), ('YCbCr', 'JPEG')])
def test_every_mode_becomes_rgb(mode, kind):
    image = picture(mode=mode)
    read = read_picture(encoded(image, kind))
    assert (read.mode, read.size) == ('RGB', (40, 30))
    assert abs(np.asarray(read).astype(int) - np.asarray(image.convert('RGB'))).mean() < 6

def test_transparent_parts_become_white_in_all_modes():
    alpha = Image.new('L', (8, 8), 0)
    for mode in ('RGBA', 'LA'):
        layer = Image.new(mode, (8, 8), (0,)*(len(mode) - 1) + (0,))
        assert read_picture(encoded(layer)).getpixel((3, 3)) == (255, 255, 255)
    half = Image.merge('RGBA', [*Image.new('RGB', (8, 8), (0, 0, 0)).split(), alpha.point(lambda _: 128)])
    assert abs(read_picture(encoded(half)).getpixel((0, 0))[0] - 127) <= 1
    palette = Image.new('P', (8, 8), 1)
    palette.putpalette([9, 9, 9, 1, 2, 3])
    assert read_picture(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(encoded(Image.new('L', (8, 8), 7), 'PNG', transparency=7)).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(encoded(Image.new('RGB', (8, 8), (1, 2, 3)), 'PNG', transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)

def test_sixteen_bits_are_scaled():
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for kind in ('PNG', 'TIFF'):
        read = np.asarray(read_picture(encoded(Image.fromarray(ramp), kind)))
        assert np.array_equal(read[..., 0], (ramp/257).round().astype(np.uint8))
    shares = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    assert np.asarray(read_picture(encoded(shares, 'TIFF')))[..., 0].max() == 255
    assert np.asarray(as_rgb(Image.fromarray(np.full((2, 2), np.nan, np.float32)))).max() == 0

@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(orientation):
    image, exif = picture(3, 48, 32), Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, 'PNG', exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(np.asarray(read_picture(data)), expected)
    assert read_picture(data).size == ((32, 48) if orientation > 4 else (48, 32))

def test_a_wrong_suffix_does_not_matter_but_wrong_content_does(tmp_path):
    (tmp_path/'a.jpg').write_bytes(encoded(picture()))
    (tmp_path/'b.jpg').write_text('dear diary')
    assert read_picture(tmp_path/'a.jpg').size == (40, 30)
    with pytest.raises(DataError, match='not a picture'): read_picture(tmp_path/'b.jpg')

def test_bombs_are_refused_by_their_head():
    with pytest.raises(DataError, match='limit'): read_picture(encoded(Image.new('1', (9000, 9000))))
    bomb = bytearray(encoded(Image.new('L', (8, 8))))
    bomb[16:24] = (100_000).to_bytes(4, 'big')*2                 # the head of a PNG says 100,000 by 100,000 ...
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, 'big')     # ... and its checksum is right
    with pytest.raises(DataError, match='too many|limit'): read_picture(bytes(bomb))

@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(['PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF']), cut=st.floats(0, 0.98), flips=st.lists(st.integers(0, 10**6), max_size=6))
def test_damaged_files_give_a_picture_or_a_sentence(kind, cut, flips):
    data = bytearray(encoded(picture(1), kind))
    for place in flips: data[place % len(data)] ^= 0xFF
    data = bytes(data[:int(len(data)*(1 - cut)) or 1]) if not flips else bytes(data)
    try: assert read_picture(data).mode == 'RGB'
    except DataError as problem: assert len(str(problem)) < 150 and '\n' not in str(problem)

@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_half_a_file_is_never_taken_for_whole(kind):
    data = encoded(picture(2, 64, 64), kind)
    for shorter_side in (0, 1):
        with pytest.raises(DataError): read_picture(data[:len(data)//2], shorter_side=shorter_side)

@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
def test_square_crop_has_its_size_and_colours(width, height, size):
    result = square_crop(Image.new('RGB', (width, height), (10, 200, 30)), size)
    assert result.shape == (size, size, 3) and (result == (10, 200, 30)).all()

def test_reading_small_is_close_to_reading_all():
    data = encoded(picture(4, 1600, 1200), 'JPEG', quality=90)
    small, full = (square_crop(read_picture(data, shorter_side=s), 64).astype(int) for s in (64, 0))
    assert read_picture(data, shorter_side=64).size == (400, 300)
    assert abs(small - full).mean() < 1.5


# --- folders -------------------------------------------------------------------------------------------------------------------------------

def test_flat_folder_with_odd_names_and_captions(tmp_path):
    names = ['a b.png', "it's \"x\".PNG", '猫 кот.jpeg', 'zoë.webp', '.hidden.png']
    folder_of(tmp_path, names)
    (tmp_path/'猫 кот.txt').write_text('a cat\n\n a big cat \n', encoding='utf-8')
    (tmp_path/'notes.md').write_text('no picture')
    source = open_source(tmp_path)
    assert len(source) == 4 and source.labels() is None and source.label_names is None
    assert sorted(source.captions()) == [[], [], [], ['a cat', 'a big cat']]
    row = [i for i in range(4) if 'caption' in source[i]][0]
    assert np.abs(np.asarray(source[row]['image']).astype(int) - np.asarray(picture(2))).mean() < 8

def test_class_folders_and_their_splits_have_one_numbering(tmp_path):
    folder_of(tmp_path, [f'{split}/{kind}/{i}.png' for split, kinds in dict(train='abc', val='ac').items() for kind in kinds for i in range(3)])
    train, held_out = split_source(tmp_path)
    assert (train.label_names, held_out.label_names) == (list('abc'), list('abc'))
    assert held_out.labels().tolist() == [0]*3 + [2]*3
    assert len(open_source(tmp_path)) == 15 and len(open_source(tmp_path, 'train+validation')) == 15
    with pytest.raises(DataError, match="no split 'test' .splits: train, validation"): open_source(tmp_path, 'test')

def test_loose_pictures_beside_folders_have_no_classes(tmp_path):
    assert open_source(folder_of(tmp_path, ['x.png', 'train/a.png', 'b/c/d.png'])).labels() is None

def test_broken_files_are_skipped_named_and_counted(tmp_path):
    folder_of(tmp_path, [f'{kind}/{i}.jpg' for kind in 'ab' for i in range(10)])
    (tmp_path/'a/3.jpg').write_bytes(b'')
    (tmp_path/'b/7.jpg').write_bytes((tmp_path/'b/7.jpg').read_bytes()[:200])
    source = open_source(tmp_path)
    assert [name.split('/')[-2:] for name, _ in source.skipped] == [['a', '3.jpg'], ['b', '7.jpg']]
    assert source.labels().tolist() == [0]*9 + [1]*9 and len(source.images(16)) == 18
    assert '18 pictures' in source.report() and '3.jpg (the file is empty)' in source.report()
    for i in (5, 15): assert np.array_equal(np.asarray(source[i]['image']), np.asarray(read_picture(tmp_path/f'{"ab"[i//9]}/{i%9 + (i%9 >= (3, 7)[i//9])}.jpg')))
    with pytest.raises(DataError, match='2 of 20 pictures'): open_source(tmp_path, max_skipped=0.05)
    with pytest.raises(DataError, match='3.jpg cannot be used'): open_source(tmp_path, on_error='raise')

def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match='no pictures'): open_source(tmp_path)
    (tmp_path/'a.png').write_bytes(b'x')
    with pytest.raises(DataError, match='none of the 1 pictures'): open_source(tmp_path)
    with pytest.raises(DataError, match='did you mean .*a.png'): open_source(tmp_path/'a.pgn')
    with pytest.raises(DataError, match='no table'): open_source(folder_of(tmp_path/'sub', ['q.png']), columns=dict(image='x'))
    (tmp_path/'data.csv').write_text('a,b')
    with pytest.raises(DataError, match='data.csv is not a picture'): open_source(tmp_path/'data.csv')
    assert len(open_source(tmp_path/'sub/q.png')) == 1


# --- tables --------------------------------------------------------------------------------------------------------------------------------

def write_table(path, count=12, **columns):
    pictures = [dict(bytes=encoded(picture(i)), path=f'{i}.png') for i in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(image=pictures) | columns), path)
    return path

def test_words_as_classes_have_one_numbering_in_all_splits(tmp_path):
    write_table(tmp_path/'train-00000-of-00001.parquet', cls=[*'aabbcc']*2)
    write_table(tmp_path/'test-00000-of-00001.parquet', 3, cls=['c', 'b', None])
    train, test = split_source(tmp_path)
    assert test.label_names == list('abc') and test.labels().tolist() == [2, 1, -1]
    assert len(open_source(tmp_path)) == 15

def test_mapping_of_columns(tmp_path):
    file = write_table(tmp_path/'t.parquet', img=[encoded(picture(50 + i)) for i in range(12)], alt=['x']*12, n=list(range(12)))
    source = open_source(file, columns=dict(image='img', caption='alt', label='n'))
    assert source.captions()[0] == ['x'] and source.label_column == 'n'
    assert np.array_equal(np.asarray(source[2]['image']), np.asarray(picture(52)))
    assert open_source(file, columns=dict(label=None)).labels() is None
    with pytest.raises(DataError, match="no column 'nope': it has image, img, alt, n"): open_source(file, columns=dict(image='nope'))

def test_paths_in_tables_and_missing_pictures(tmp_path):
    folder_of(tmp_path, ['p/0.png', 'p/1.png'])
    rows = [dict(bytes=None, path='p/0.png'), dict(bytes=None, path='p/1.png'), dict(bytes=encoded(picture(2)), path=None), None]
    pq.write_table(pa.table(dict(image=rows)), tmp_path/'t.parquet')
    source = open_source(tmp_path/'t.parquet', max_skipped=0.5)
    assert len(source) == 3 and source.skipped[0][0] == 'row 3'

def test_tables_that_cannot_be_used(tmp_path):
    pq.write_table(pa.table(dict(text=['a'], n=[1])), tmp_path/'t.parquet')
    with pytest.raises(DataError, match='no column of pictures: it has text, n'): open_source(tmp_path/'t.parquet')
    whole = write_table(tmp_path/'w.parquet').read_bytes()
    (tmp_path/'w.parquet').write_bytes(whole[:len(whole)//2])
    with pytest.raises(DataError, match='not a whole parquet file'): open_source(tmp_path/'w.parquet')

def test_saved_and_open_datasets(tmp_path):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(dict(image=datasets.Image(), label=datasets.ClassLabel(names=['no', 'yes']), text=datasets.Value('string')))
    data = datasets.Dataset.from_dict(dict(image=[picture(i) for i in range(6)], label=[0, 1]*3, text=[f't{i}' for i in range(6)]), features=features)
    data.save_to_disk(tmp_path/'one')
    datasets.DatasetDict(train=data.select([4, 5, 0, 1]), test=data.select([2, 3])).save_to_disk(tmp_path/'two')
    one, (train, test) = open_source(tmp_path/'one'), split_source(tmp_path/'two')
    assert one.label_names == ['no', 'yes'] and one.captions()[5] == ['t5']
    assert train.captions() == [['t4'], ['t5'], ['t0'], ['t1']] and test.labels().tolist() == [0, 1]
    assert open_source(data.select([3, 1])).captions() == [['t3'], ['t1']]
    assert torch.equal(train.images(16)[0], one.images(16)[4])

def test_the_hub_that_cannot_be_reached(monkeypatch):
    from huggingface_hub import HfApi
    def fail(*args, **kwargs): raise ConnectionError('no line')
    monkeypatch.setattr(HfApi, 'dataset_info', fail)
    with pytest.raises(DataError, match='could not be fetched .ConnectionError.: check the name and the network'): open_source('nobody/nothing')


# --- sources as a whole --------------------------------------------------------------------------------------------------------------------

def test_fingerprint_follows_content():
    emoji = open_source('emoji', 'test')
    assert emoji.fingerprint == open_source('emoji', 'test').fingerprint
    assert len({emoji.fingerprint, emoji.subset(range(191)).fingerprint, emoji.subset(range(191, -1, -1)).fingerprint, open_source('emoji', 'validation').fingerprint}) == 4

def test_subsets_agree_with_the_whole():
    whole = open_source('digits')
    pick = torch.randperm(len(whole))[:50]
    fresh, cached = whole.subset(pick), None
    block, labels = whole.images(8), whole.labels()
    cached = whole.subset(pick)
    for part in (fresh, cached):
        assert torch.equal(part.images(8), block[pick]) and torch.equal(part.labels(), labels[pick])
        assert part[7]['label'] == labels[pick[7]]
    assert torch.equal(fresh.subset([3]).images(8)[0], block[pick[3]])

@settings(max_examples=25, deadline=None)
@given(groups=st.lists(st.integers(0, 8), min_size=2, max_size=40), share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_splits_keep_groups_together(groups, share, seed):
    source = PictureSource('g', [np.zeros((4, 4, 3), np.uint8)]*len(groups), dict(group=np.array(groups)), digests=np.zeros(len(groups), np.uint64))
    if len(set(groups)) == 1:
        with pytest.raises(DataError): split_source(source, share, seed)
        return
    train, test = split_source(source, share, seed)
    assert len(train) + len(test) == len(groups) and len(train) and len(test)
    assert not set(train.groups().tolist()) & set(test.groups().tolist())

def test_scenes_are_the_scenes():
    from beit_lab.data.scenes import largest_shape, scene, scene_images
    source = open_source('scenes:12')
    assert torch.equal(source.images(48), scene_images(12, 48))
    assert source.labels().tolist() == [largest_shape(scene(i)) for i in range(12)]
    row = source.subset([5])[0]
    assert np.array_equal(row['boxes'], scene(5).boxes) and np.array_equal(row['mask'], scene(5).semantic_mask) and len(row['question']) == len(row['answer']) > 0

def test_a_million_rows_cost_what_they_hold(tmp_path):
    "A column of a table is not copied when rows are chosen."
    small = encoded(picture(0, 8, 8))
    source = table_source(pa.table(dict(image=[small]*50_000)), 'many')
    part = source.subset(range(0, 50_000, 10_000))
    assert part.pictures is source.pictures and len(part.images(8)) == 5


# --- the shipped emoji ---------------------------------------------------------------------------------------------------------------------

def test_emoji_rows_are_whole_and_splits_share_no_concept():
    splits = {split: open_source('emoji', split, on_error='raise') for split in ('train', 'validation', 'test')}
    assert [len(s) for s in splits.values()] == [1528, 191, 192]
    concepts = [set(s.groups().tolist()) for s in splits.values()]
    assert not (concepts[0] & concepts[1] or concepts[0] & concepts[2] or concepts[1] & concepts[2])
    for source in splits.values():
        assert len(source.label_names) == 9 and source.labels().min() >= 0 and len(set(source.labels().tolist())) == 9
        assert all(text == [text[0].lower()] and text[0] for text in source.captions())
    digests = [set(s.digests.tolist()) for s in splits.values()]
    assert not (digests[0] & digests[1] or digests[0] & digests[2] or digests[1] & digests[2])      # no picture on both sides

def test_emoji_pictures_are_plain_png_of_64_pixels():
    rows = pq.read_table(samples('emoji')/'test-00000-of-00001.parquet').to_pylist()
    for row in rows[::10]:
        stored = Image.open(io.BytesIO(row['image']['bytes']))
        assert (stored.format, stored.mode, stored.size) == ('PNG', 'RGB', (64, 64))
    by_name = {row['name']: row for row in pq.read_table(samples('emoji')/'train-00000-of-00001.parquet').to_pylist()}
    assert by_name['red heart']['emoji'] == '❤️' and by_name['red heart']['concept'] == by_name['green heart']['concept']
    assert sum(f.stat().st_size for f in samples('emoji').iterdir()) < 7_000_000

@pytest.mark.parametrize('name,category,idea', [('man farmer', 'People & Body', 'farmer'), ('family: man, woman, boy', 'People & Body', 'family'), ('twelve-thirty', 'Travel & Places', 'clock face'),
    ('light blue heart', 'Smileys & Emotion', 'heart'), ('flag of norway', 'Flags', 'flag of norway'), ('keycap 7', 'Symbols', 'keycap'), ('waxing crescent moon', 'Travel & Places', 'moon'), ('girl', 'People & Body', 'person'),
    ('orange', 'Food & Drink', 'orange')])
def test_ideas(name, category, idea):
    import importlib.util
    spec = importlib.util.spec_from_file_location('make_emoji', samples()/'make_emoji.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.idea(name, category) == idea


# --- real data -----------------------------------------------------------------------------------------------------------------------------

REAL = dict(cifar10=(60_000, {'label'}, 'airplane'), flickr8k=(7_000, {'caption'}, None), camvid=(701, {'mask'}, None), bccd=(364, {'boxes', 'box_label'}, None),
            coco_mini=(208, {'caption', 'boxes', 'box_label', 'mask'}, None), easy_vqa=(5_000, {'question', 'answer'}, None), nlvr_dev=(2_967, {'caption', 'label'}, 'false'),
            noto_emoji=(3_543, {'caption', 'label'}, 'Activities'))

@pytest.mark.parametrize('name', REAL)
def test_real_sets(name):
    if not real_data(name): pytest.skip(f'{name} is not here: BEIT_LAB_DATA names no folder with it')
    count, roles, first_class = REAL[name]
    source = open_source(real_data(name), on_error='raise')
    assert (len(source), set(source.fields)) == (count, roles)
    assert (source.label_names or [None])[0] == first_class
    seen = set().union(*(source[i] for i in range(0, count, count//50)))
    assert seen == roles | {'image'}
    row = source[count//3]
    if 'boxes' in row: assert row['boxes'].shape == (len(row['box_label']), 4) and (row['boxes'][:, 2:] > row['boxes'][:, :2]).all()
    if name == 'camvid': assert row['mask'].shape == row['image'].size[::-1] and row['mask'].max() <= 11
    if name == 'flickr8k': assert len(row['caption']) == 5
    if name == 'easy_vqa': assert len(row['question']) == len(row['answer'])
