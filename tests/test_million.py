"""A million pictures: memory stays flat, and a run reads no more of them than it learns from.

    python tests/test_million.py --out data_samples/runs/million.json
"""
import argparse, json, resource, struct, subprocess, sys, tempfile, time, zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS, SIDE, GROUP = 1_000_000, 8, 10_000  # pictures, pixels a side, rows that are written at once


def grey_png(pixels):
    "A PNG of bytes (H, W), made without an image library, which would take minutes for a million."
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    head = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 0)
    rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()     # before each row: no filter
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows, 0)) + chunk(b'IEND', b'')


def make_set(path, rows=ROWS):
    "A parquet file of different random pictures of ten classes."
    draw, schema = np.random.default_rng(0), pa.schema(dict(image=pa.struct(dict(bytes=pa.binary(), path=pa.string())), label=pa.int64(), caption=pa.string()))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, GROUP):
            pixels = draw.integers(0, 256, (GROUP, SIDE, SIDE), dtype=np.uint8)
            images = [dict(bytes=grey_png(p), path=None) for p in pixels]
            writer.write_table(pa.table(dict(image=images, label=np.arange(start, start + GROUP) % 10, caption=[f'picture {i}' for i in range(start, start + GROUP)]), schema))


def resident():
    "Megabytes that this process holds in memory now."
    return int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/2**20


def measure(path):
    "Resident memory, above that of the imports, while a set is opened, read through and read at random."
    from beit_lab.data.sources import open_source
    start, begin, figures = resident(), time.monotonic(), dict(rows=pq.ParquetFile(path).metadata.num_rows, file_mb=round(Path(path).stat().st_size/2**20))
    def note(name): figures[f'{name}_mb'], figures[f'{name}_seconds'] = round(resident() - start), round(time.monotonic() - begin)
    source = open_source(path)
    note('opened')
    for i in range(0, len(source)): source[i]
    note('read_through')
    for i in np.random.default_rng(0).integers(0, len(source), 20_000): source[int(i)]
    note('at_random')
    source.fingerprint, source.report()
    note('fingerprint')
    return dict(figures, peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 - start))


def measure_run(path):
    "The same for the main job, as far as its pictures are open; and how many pictures were decoded."
    from beit_lab.data import pictures
    from beit_lab.main_job import Job
    decoded, read = [0], pictures.read_picture
    def counted(*args, **kwargs):
        decoded[0] += 1
        return read(*args, **kwargs)
    pictures.read_picture = counted
    start, begin = resident(), time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        job = Job(path, out)
        job.open()
    return dict(learnt_from=len(job.pictures), decoded=decoded[0], pictures_mb=round(job.pictures.nbytes/2**20), seconds=round(time.monotonic() - begin),
                peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 - start))


def alone(function, path):
    "The figures of a process that does nothing else."
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import json, beit_lab.main_job, test_million; print(json.dumps(test_million.{function}({str(path)!r})))'
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def figures(rows=ROWS):
    with tempfile.TemporaryDirectory() as folder:
        make_set(path := Path(folder)/'many.parquet', rows)
        return dict(source=alone('measure', path), run=alone('measure_run', path))


def judge(source, run):
    "What is promised: the table itself and a little; reading adds nothing; a run decodes what it learns from, twice."
    assert source['opened_mb'] < 2*source['file_mb'] + 150
    assert source['at_random_mb'] - source['opened_mb'] < 100
    assert source['peak_mb'] < 2*source['file_mb'] + 300
    assert run['learnt_from'] == 50_000 and run['decoded'] < 130_000
    assert run['peak_mb'] < 2*source['file_mb'] + run['pictures_mb'] + 300


def test_the_small_png_is_one():
    from beit_lab.data.pictures import read_picture
    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    assert np.array_equal(np.asarray(read_picture(grey_png(pixels)))[..., 0], pixels)


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='this system does not tell how much memory a process holds')
def test_a_million_pictures(): judge(**figures())


if __name__ == '__main__':
    options = argparse.ArgumentParser()
    options.add_argument('--out'), options.add_argument('--rows', type=int, default=ROWS)
    given = options.parse_args()
    found = figures(given.rows)
    print(json.dumps(found, indent=2))
    if given.out: Path(given.out).write_text(json.dumps(dict(found, command=f'python tests/test_million.py --out {given.out}'), indent=2) + '\n')
    judge(**found)
