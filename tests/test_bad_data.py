"Bad days for data: what a run does when files vanish, names are strange, sets are tiny, and nothing is what it claims to be."
import os, socket, threading, warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from beit_lab.core import ConfigError, DataError, read_json
from beit_lab.data.pictures import as_rgb, MAX_BYTES, PictureSource, read_picture
from beit_lab.data.sources import open_source, split_source, table_source
from test_data_sources import encoded, folder_of, picture, write_table


def within(seconds, call):
    "The result of `call`; a call that hangs is a failure, not a long wait."
    found = []
    def work():
        try: found.append(call())
        except Exception as problem: found.append(problem)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f'still waiting after {seconds} seconds'
    if isinstance(found[0], Exception): raise found[0]
    return found[0]


# --- files that change, and files that are none --------------------------------------------------------------------------------------------

def test_a_picture_that_vanishes_between_scan_and_read(tmp_path):
    source = open_source(folder_of(tmp_path, ['a.png', 'b.png']))
    (tmp_path/'b.png').unlink()
    for read in (lambda: source.images(16), lambda: source[1]):
        with pytest.raises(DataError, match='b.png: there is no such file; it was whole when the set was opened: open it again'): read()
    assert source[0]['image'].size == (40, 30)


def test_a_picture_that_breaks_between_scan_and_read(tmp_path):
    source = open_source(folder_of(tmp_path, ['a.png', 'b.png']))
    (tmp_path/'b.png').write_bytes((tmp_path/'b.png').read_bytes()[:60])
    with pytest.raises(DataError, match='b.png: .*; it was whole when the set was opened'): source.images(16)


def test_links_that_lead_nowhere_or_in_circles(tmp_path):
    folder_of(tmp_path, [f'{i}.png' for i in range(18)])
    (tmp_path/'dangling.png').symlink_to(tmp_path/'gone.png')
    (tmp_path/'circle.png').symlink_to(tmp_path/'circle.png')
    (tmp_path/'round').symlink_to(tmp_path)
    source = within(20, lambda: open_source(tmp_path))
    assert len(source) == 18
    assert {(os.path.basename(name), reason) for name, reason in source.skipped} == {('dangling.png', 'there is no such file'), ('circle.png', 'too many levels of symbolic links')}


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
def test_pipes_sockets_and_devices_are_not_read(tmp_path, monkeypatch):
    folder_of(tmp_path, [f'{i}.png' for i in range(40)])
    os.mkfifo(tmp_path/'pipe.png')
    os.mkfifo(tmp_path/'0.txt')                                          # would be the caption of a picture
    os.mkfifo(tmp_path/'table.parquet')
    (tmp_path/'endless.png').symlink_to('/dev/zero')
    with socket.socket(socket.AF_UNIX) as talk:
        monkeypatch.chdir(tmp_path)                                       # the name of a socket must be short
        talk.bind('socket.png')
        source = within(20, lambda: open_source(tmp_path))
    assert len(source) == 40 and {reason for _, reason in source.skipped} == {'not a plain file'} and len(source.skipped) == 3
    with pytest.raises(DataError, match='is not a picture'): within(20, lambda: open_source(tmp_path/'pipe.png'))
    with pytest.raises(DataError, match='is not a picture'): within(20, lambda: open_source('/dev/zero'))


def test_a_file_too_large_to_be_a_picture_is_not_read(tmp_path):
    folder_of(tmp_path, [f'{i}.png' for i in range(11)])
    with open(tmp_path/'disk image.png', 'wb') as file: file.truncate(MAX_BYTES + 1)         # takes no room on the disk
    with open(tmp_path/'0.txt', 'wb') as file:
        file.write(b'a short caption\n')
        file.truncate(2**31)
    source = open_source(tmp_path)
    assert 'MB, more than the limit' in source.skipped[0][1]
    assert source.captions()[0][0] == 'a short caption' and len(''.join(source.captions()[0])) <= 2**20


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='the administrator may read everything')
def test_a_folder_without_permission(tmp_path):
    folder_of(tmp_path, ['a/1.png', 'b/2.png'])
    (tmp_path/'a').chmod(0)
    try:
        with pytest.raises(DataError, match='cannot be read .Permission denied.'): open_source(tmp_path)
    finally: (tmp_path/'a').chmod(0o700)


# --- names ---------------------------------------------------------------------------------------------------------------------------------

STRANGE_NAMES = ['with space.png', "it's.png", 'say "x".png', 'line\nbreak.png', 'tab\t.png', '猫.png', 'кот.png', 'قط.png', '🐈‍⬛.png', 'é.png', '-rf.png', '%s.png', '$HOME.png', '`x`.png', '{0}.png', '<b>.png', '#1.png',
                 'n'*196 + '.png']

@pytest.mark.skipif(os.name == 'nt', reason='Windows allows fewer names')
@pytest.mark.parametrize('broken', [False, True])
def test_strange_names(tmp_path, broken):
    folder_of(tmp_path, STRANGE_NAMES)
    with open(os.fsencode(tmp_path) + b'/\xff\xfe.png', 'wb') as file: file.write(encoded(picture(3)))   # no letters in any encoding
    source = open_source(tmp_path)
    assert len(source) == len(STRANGE_NAMES) + 1 and not source.skipped
    assert len(source.images(16)) == len(source)
    if not broken: return
    for file in os.listdir(os.fsencode(tmp_path)): open(os.path.join(os.fsencode(tmp_path), file), 'wb').close()
    folder_of(tmp_path, [f'whole {i}.png' for i in range(20)])
    report = open_source(tmp_path, max_skipped=0.9).report()
    assert report.isprintable() and report.encode() and len(report) < 600
    with pytest.raises(DataError) as problem: open_source(tmp_path)
    assert '\n' not in str(problem.value) and '19 of 39 pictures' in str(problem.value)


# --- classes and tables --------------------------------------------------------------------------------------------------------------------

def test_class_folders_with_one_class_or_an_empty_one(tmp_path):
    one = open_source(folder_of(tmp_path/'one', ['cat/1.png', 'cat/2.png']))
    assert len(one) == 2 and one.labels() is None
    empty = folder_of(tmp_path/'empty', ['cat/1.png', 'dog/2.png'])
    (empty/'bird').mkdir()
    assert open_source(empty).label_names == ['cat', 'dog']
    (empty/'bird/notes.txt').write_text('no bird yet')
    assert open_source(empty).label_names == ['cat', 'dog']


def test_one_corrupt_shard_is_named(tmp_path):
    for i in range(3): write_table(tmp_path/f'part-{i}.parquet')
    whole = (tmp_path/'part-1.parquet').read_bytes()
    for broken in (whole[:-20], whole[:4], b'', whole[:200] + bytes(len(whole) - 300) + whole[-100:]):
        (tmp_path/'part-1.parquet').write_bytes(broken)
        with pytest.raises(DataError, match='part-1.parquet is not a whole parquet file|of 36 pictures'): open_source(tmp_path)
    pq.write_table(pa.table(dict(image=[1, 2])), tmp_path/'part-1.parquet')
    with pytest.raises(DataError, match='tables that do not fit together'): open_source(tmp_path)


def table(tmp_path, **columns):
    return write_table(tmp_path/'t.parquet', 4, **columns)

def test_columns_of_the_wrong_kind(tmp_path):
    twice = pa.Table.from_arrays([pa.array([b'x']), pa.array([1]), pa.array([2])], ['image', 'a', 'a'])
    pq.write_table(twice, tmp_path/'twice.parquet')
    with pytest.raises(DataError, match='not a whole parquet file'): open_source(tmp_path/'twice.parquet')
    with pytest.raises(DataError, match="two columns called 'a'"): table_source(twice, 'twice')
    with pytest.raises(DataError, match='a column of a kind that cannot be used'): open_source(table(tmp_path, label=pa.array([2**64 - 1]*4, pa.uint64())))
    with pytest.raises(DataError, match='a column of a kind that cannot be used'): open_source(table(tmp_path, x=[[1], [2], [], None]), columns=dict(label='x'))
    assert open_source(table(tmp_path, label=[0.5, None, float('nan'), 1])).labels() is None          # numbers with a point are no classes
    assert open_source(table(tmp_path, label=[-5, 3, None, 9])).labels().tolist() == [-1, 0, -1, 1]
    assert open_source(table(tmp_path, caption=[['a', None], None, [], ['b']])).captions() == [['a'], [], [], ['b']]
    for name, column in dict(boxes=[[[1., 2., 3.]]]*4, mask=[b'no picture']*4).items():
        source = open_source(table(tmp_path, **{name: column}))
        with pytest.raises(DataError, match=f'row 2 .2.png.: its {name} cannot be used'): source[2]
        assert len(source.images(16)) == 4


def test_paths_in_tables_that_are_no_paths(tmp_path):
    paths = ['\0', 'x'*5000, '', '/', '.', 'no.png']
    pq.write_table(pa.table(dict(image=[dict(bytes=None, path=p) for p in paths] + [dict(bytes=encoded(picture()), path=None)])), tmp_path/'t.parquet')
    source = open_source(tmp_path/'t.parquet', max_skipped=0.9)
    assert len(source) == 1 and len(source.skipped) == len(paths)


@pytest.mark.parametrize('names', ['{', '[]', '{"info": 3}', '{"info": {"features": {"label": {"names": 3}}}}', '{"info": {"features": {"label": {"names": [null, 1]}}}}', '{"info": {"features": [1]}}', '['*100_000])
def test_what_is_said_about_the_columns_may_be_nonsense(tmp_path, names):
    whole = pa.table(dict(image=[encoded(picture(i)) for i in range(3)], label=[0, 1, 1])).replace_schema_metadata({b'huggingface': names.encode()})
    pq.write_table(whole, tmp_path/'t.parquet')
    assert open_source(tmp_path/'t.parquet').labels().tolist() == [0, 1, 1]


def test_classes_beyond_their_names(tmp_path):
    about = b'{"info": {"features": {"label": {"names": ["no", "yes"]}}}}'
    pq.write_table(pa.table(dict(image=[encoded(picture())]*3, label=[0, 1, 7])).replace_schema_metadata({b'huggingface': about}), tmp_path/'t.parquet')
    with pytest.raises(DataError, match='holds class 7, but only 2 classes have names'): open_source(tmp_path/'t.parquet')


@pytest.mark.parametrize('where,says', [('', 'an empty name'), ('x'*5000, 'cannot be opened'), ('~nobody-of-that-name/x', 'cannot be opened'), ('scenes:0', 'gives no number'), ('scenes:²', 'gives no number'),
                                        ('scenes:99999999999', 'gives no number'), ('digits:5', 'only scenes'), ('\0', 'there is no'), ('\n', 'there is no')])
def test_names_that_are_no_data_sets(where, says):
    with pytest.raises(DataError, match=says): open_source(where)


# --- pixels --------------------------------------------------------------------------------------------------------------------------------

def test_arrays_with_nan_become_pictures_or_a_sentence():
    grey = np.full((8, 8), np.nan, np.float32)
    grey[0] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.asarray(as_rgb(Image.fromarray(grey)))[..., 0].max() == 128
    source = PictureSource('arrays', [grey, np.full((8, 8), np.inf, np.float32)], {})
    assert source.images(8).shape == (2, 3, 8, 8)
    for odd in (np.zeros((0, 3, 3), np.uint8), np.zeros((3, 3, 7), np.uint8), np.array(['a']), np.zeros((2, 2, 3), np.complex64)):
        with pytest.raises(DataError): read_picture(odd)
    with pytest.raises(DataError, match='NaN'):
        from beit_lab.codebook.autoencode import check_images
        check_images(torch.full((1, 3, 8, 8), torch.nan))


def test_random_parts_of_a_larger_set(tmp_path):
    "What is not drawn is not read: a broken picture among the others goes unnoticed."
    folder_of(tmp_path, [f'{i:02}.png' for i in range(40)])
    part = open_source(tmp_path, at_most=10, seed=3)
    assert len(part) == 10 and part.fingerprint == open_source(tmp_path, at_most=10, seed=3).fingerprint != open_source(tmp_path, at_most=10, seed=4).fingerprint
    drawn = set(part.rows.tolist())
    for i in set(range(40)) - drawn: (tmp_path/f'{i:02}.png').write_bytes(b'')
    assert not open_source(tmp_path, at_most=10, seed=3).skipped and 'a random part of its 40 rows' in part.report()
    train, test = split_source('digits', at_most=90, seed=0)
    assert (len(train), len(test)) == (90, 10)


def test_more_pictures_than_fit_into_memory():
    with pytest.raises(DataError, match='need .* GB, this machine has'): open_source('digits').images(10**6)


# --- whole runs on next to nothing ---------------------------------------------------------------------------------------------------------

def demo(data, out, minutes=0.02, **choices):
    from beit_lab.main_job import Job
    return Job(data, out, **choices).demo(minutes)

@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_demo_of_a_handful_of_pictures(tmp_path, count):
    folder_of(tmp_path/'few', [f'{i}.png' for i in range(count)])
    if count == 1:
        with pytest.raises(DataError, match='only one picture'): demo(tmp_path/'few', tmp_path/'run')
        return
    assert 'Is it useful?' in demo(tmp_path/'few', tmp_path/'run').read_text(encoding='utf-8')
    assert read_json(tmp_path/'run/metrics.json')['pretrain']['loss'] is not None


def test_demo_of_one_constant_colour(tmp_path):
    "K-means on one point, a perfect reconstruction, nothing to guess: it trains and reports all the same."
    (tmp_path/'red').mkdir()
    for i in range(12): Image.new('RGB', (16, 16 + i), 'red').save(tmp_path/'red'/f'{i}.png')
    report = demo(tmp_path/'red', tmp_path/'run', image_size=16).read_text(encoding='utf-8')
    assert 'nan' not in report and 'None' not in report


@pytest.mark.parametrize('choices,says', [(dict(image_size=0), 'image_size must lie'), (dict(image_size=10**6), 'image_size must lie'), (dict(patch_size=-4), 'patch_size must lie'), (dict(codebook_size=1), 'codebook_size must lie'),
                                          (dict(mask_ratio=float('nan')), 'mask_ratio must lie'), (dict(mask_ratio=1.), 'mask_ratio must lie'), (dict(mode='x'), "mode 'x' is unknown"), (dict(mask_kind=''), "mask_kind '' is unknown"),
                                          (dict(image_size=512, patch_size=2), 'too fine'), (dict(seed=-1), '--seed must lie'), (dict(seed=2**63), '--seed must lie')])
def test_settings_that_no_run_can_do(tmp_path, choices, says):
    with pytest.raises(ConfigError, match=says): demo('photos' if 'seed' not in choices else 'digits', tmp_path/'run', **choices)


@pytest.mark.parametrize('minutes', [float('nan'), float('inf'), -1., 0., 1e308])
def test_times_that_nobody_has(tmp_path, minutes):
    from beit_lab.main_job import Job
    for stage in ('demo', 'tokenizer', 'pretrain'):
        with pytest.raises(ConfigError, match='--minutes'): getattr(Job('digits', tmp_path/'run'), stage)(minutes)
