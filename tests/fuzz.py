"""Bad input, a thousand times: damaged pictures, tables, weights, runs and commands, each of which must end well or with one sentence.

    python tests/fuzz.py --cases 1000 --seed 0 --out data_samples/runs/fuzz.json

A case is a function of its kind and its number. It runs in a process of its own, which is watched: an exception that is no `LabError`, more than 20 seconds of
processor time, more than 1 GB, or the death of the process is a fault. `--only 17` runs case 17 alone and shows its traceback.
"""
import argparse, contextlib, io, json, multiprocessing, os, pickle, random, re, resource, shutil, signal, struct, sys, tempfile, time, traceback, warnings, zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')

SECONDS, MEGABYTES = 20, 1024   # what a case may take: of the processor, so that a busy machine is no fault, and of memory
PATIENCE = 6*SECONDS            # on the clock


# --- damage --------------------------------------------------------------------------------------------------------------------------------

SIZES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)

def damaged(draw, data, other=b''):
    "Bytes with one kind of damage, and its name."
    kind = draw.choice(['flips', 'cut', 'splice', 'hole', 'swapped head', 'absurd size', 'appended', 'twice', 'zeros', 'empty'])
    data, at = bytearray(data), draw.randrange(max(1, len(data)))
    if kind == 'flips':
        for _ in range(draw.randint(1, 20)): data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 'cut': del data[at:]
    elif kind == 'splice': data[at:at] = draw.randbytes(draw.randint(1, 300))
    elif kind == 'hole': del data[at:at + draw.randint(1, 300)]
    elif kind == 'swapped head': data[:16] = (other or draw.randbytes(16))[:16]
    elif kind == 'absurd size':
        place = draw.randrange(max(1, min(64, len(data) - 4)))
        data[place:place + 4] = draw.choice(SIZES).to_bytes(4, draw.choice(['big', 'little']))
    elif kind == 'appended': data += draw.randbytes(1000)
    elif kind == 'twice': data *= 2
    elif kind == 'zeros': data[at:at + 100] = bytes(min(100, len(data) - at))
    else: data = bytearray()
    return bytes(data), kind

STRANGE = (None, True, -1, 0, 3, 7, 1.5, 1e308, float('nan'), float('inf'), 2**31, 10**30, '', 'x', 'ü\n\0', [], [1, 'a'], {}, dict(a=1), -10**6, 10**5)

def strange_json(draw, value):
    "The text of a JSON value that was changed in one place, as bytes, and what was done."
    value, places = json.loads(json.dumps(value)), []
    def walk(node):
        for key in (list(node) if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], (dict, list)): walk(node[key])
    walk(value)
    kind = draw.choice(['value']*6 + ['gone', 'unknown', 'text', 'bytes'])
    if kind == 'bytes': return damaged(draw, json.dumps(value).encode())
    if kind == 'text': return draw.choice([b'', b'null', b'[]', b'{}', b'3', b'"x"', b'['*100_000, b'{"a":'*50_000, json.dumps(value).encode('utf-16'), b'\xef\xbb\xbf{}', b'\xff\xfe', b'9'*5000]), kind
    node, key = draw.choice(places)
    if kind == 'value': node[key] = draw.choice(STRANGE)
    elif kind == 'gone': del node[key]
    elif isinstance(node, dict): node['strange'] = draw.choice(STRANGE)
    return json.dumps(value).encode(), f'{kind} of {key}'


# --- pictures ------------------------------------------------------------------------------------------------------------------------------

def picture(draw, mode='RGB'):
    import numpy as np
    from PIL import Image
    noise = np.frombuffer(draw.randbytes(48), np.uint8).reshape(4, 4, 3)
    return Image.fromarray(noise).resize((draw.randint(1, 60), draw.randint(1, 60))).convert(mode)

FORMATS = [('PNG', 'RGB'), ('PNG', 'RGBA'), ('PNG', 'P'), ('PNG', 'L'), ('PNG', 'LA'), ('PNG', '1'), ('PNG', 'I;16'), ('JPEG', 'RGB'), ('JPEG', 'CMYK'), ('JPEG', 'L'), ('GIF', 'P'), ('WEBP', 'RGB'),
           ('WEBP', 'RGBA'), ('BMP', 'RGB'), ('BMP', 'P'), ('TIFF', 'RGB'), ('TIFF', 'I;16'), ('TIFF', 'F'), ('TIFF', 'CMYK'), ('PPM', 'RGB'), ('JPEG2000', 'RGB'), ('AVIF', 'RGB')]

def encoded(draw):
    "A whole picture file of any format, and the name of that."
    from PIL import Image
    kind, mode = draw.choice(FORMATS)
    image, options, buffer = picture(draw, 'I' if mode == 'I;16' else mode), {}, io.BytesIO()
    if mode == 'I;16': image = image.convert('I;16')
    if kind in ('JPEG', 'PNG', 'WEBP', 'TIFF') and draw.random() < 0.3:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = draw.choice([0, 3, 6, 9, 255])
    if kind in ('GIF', 'WEBP', 'TIFF') and draw.random() < 0.3: options |= dict(save_all=True, append_images=[] if mode == 'I;16' else [picture(draw, image.mode).resize(image.size) for _ in range(3)])
    if kind == 'TIFF' and not options and draw.random() < 0.5: options['compression'] = draw.choice(['tiff_lzw', 'tiff_adobe_deflate', 'packbits'])
    image.save(buffer, kind, **options)
    return buffer.getvalue(), f'{kind} {mode}'

def png_chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

@lru_cache
def unpacks_to_much(): return zlib.compress(bytes(200_000_000), 1)

def bomb(draw):
    "A picture that claims, or unpacks to, far more than it is."
    side = draw.choice([20_000, 65_535, 2**31 - 1])
    head = lambda w, h: b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
    rows = png_chunk(b'IDAT', zlib.compress(bytes(13)*4)) + png_chunk(b'IEND', b'')
    much = unpacks_to_much()
    kinds = {'png size': head(side, side) + rows, 'png wide': head(side, 1) + rows, 'png none': head(0, 0) + rows, 'png text': head(4, 4) + png_chunk(b'tEXt', b'a\0' + b'x'*3_000_000) + rows,
             'png ztext': head(4, 4) + png_chunk(b'zTXt', b'a\0\0' + much) + rows, 'png profile': head(4, 4) + png_chunk(b'iCCP', b'a\0\0' + much) + rows,
             'png data': head(4, 4) + png_chunk(b'IDAT', much) + png_chunk(b'IEND', b''), 'ppm size': b'P6 %d %d 255\n123' % (side, side), 'ppm digits': b'P6 ' + b'9'*5000 + b' 4 255\n',
             'gif size': b'GIF89a' + struct.pack('<HHBBB', 65535, 65535, 0, 0, 0) + b',' + struct.pack('<HHHHB', 0, 0, 65535, 65535, 0) + b'\x02\x02\x44\x01\x00;',
             'bmp size': b'BM' + struct.pack('<IHHI', 100, 0, 0, 54) + struct.pack('<IiiHHIIiiII', 40, side, -side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(50),
             'tiff tags': b'II*\0\x08\0\0\0' + struct.pack('<H', 65535) + struct.pack('<HHII', 0x100, 4, 2**32 - 1, 8)*50}
    kind = draw.choice(sorted(kinds))
    return kinds[kind], kind

def bad_picture(draw):
    "A picture file with something wrong, and what."
    if draw.random() < 0.2: return bomb(draw)
    (data, name), (other, _) = encoded(draw), encoded(draw)
    data, damage = damaged(draw, data, other)
    return data, f'{name}, {damage}'

NAMES = ('{}', 'a b {}', "it's {}", '"q" {}', 'line\nbreak {}', '猫 {}', 'кот {}', '🐈 {}', '-{}', '{}' + 'x'*190, 'é {}', '%s {}', '$HOME {}', 'tab\t{}')

def use(source):
    "Everything that a job asks of a source."
    source.images(16)
    source.report(), source.fingerprint, source.labels(), source.groups(), source.captions()
    for i in range(len(source)): source[i]

def picture_case(draw, folder):
    "A folder of pictures, one to four of them damaged; or one damaged file."
    from beit_lab.data.sources import open_source, split_source
    from beit_lab.data.pictures import read_picture
    suffix, classes = draw.choice(['.png', '.jpg', '.tif', '.webp', '.gif']), draw.random() < 0.3
    place = lambda i: folder/(f'class {i % 3}' if classes else '')/(draw.choice(NAMES).format(i) + suffix)
    what = []
    for i in range(draw.choice([0, 5, 12])): write(place(i), encoded(draw)[0])
    for i in range(100, 100 + draw.randint(1, 4)):
        data, name = bad_picture(draw)
        what.append(name)
        write(last := place(i), data)
    if draw.random() < 0.1: write(last.with_suffix('.txt'), draw.randbytes(200))
    how = draw.choice(['folder', 'folder', 'folder', 'file', 'split', 'bytes'])
    def call():
        if how == 'bytes': return read_picture(data, shorter_side=draw.choice([0, 1, 16]))
        if how == 'split': return [use(part) for part in split_source(folder, max_skipped=0.5)]
        use(open_source(last if how == 'file' else folder, max_skipped=draw.choice([0.1, 0.9])))
    return f'{how}: {"; ".join(what)}', call

def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# --- tables --------------------------------------------------------------------------------------------------------------------------------

def table_columns(draw, count):
    "Columns of every type under the names that the lab looks for."
    import pyarrow as pa
    files = [(bad_picture(draw) if draw.random() < 0.05 else encoded(draw))[0] for _ in range(count)]
    holes = lambda values: [None if draw.random() < 0.1 else v for v in values]
    each = lambda make: holes([make() for _ in range(count)])
    pictures = [lambda: pa.array([dict(bytes=f, path=f'{i}.png') for i, f in enumerate(files)]), lambda: pa.array(holes([dict(bytes=f) for f in files])), lambda: pa.array(holes(files), pa.binary()), lambda: pa.array(files, pa.large_binary()),
                lambda: pa.array(files, pa.binary()).dictionary_encode(), lambda: pa.array([[f] for f in files]), lambda: pa.nulls(count), lambda: pa.array(each(lambda: draw.choice(['no.png', '\0', '', '/', 'x'*5000, '../..']))),
                lambda: pa.array([dict(bytes=3)]*count), lambda: pa.array([dict(bytes=list(f[:50])) for f in files]), lambda: pa.array([dict(bytes=dict(bytes=f)) for f in files]), lambda: pa.array([dict(bytes=None, path=draw.choice(['\0', 'no', 'y'*999, ''])) for _ in files]),
                lambda: pa.array([dict(bytes='text', path=3)]*count), lambda: pa.array([1.5]*count), lambda: pa.array([dict(bytes=f, path=None) for f in files]), lambda: pa.array(files, pa.binary()), lambda: pa.array([dict(path='a', bytes=f) for f in files])]
    others = [lambda: pa.array(each(lambda: draw.randint(-2, 3)), pa.int64()), lambda: pa.array(each(lambda: draw.choice([0, 2**64 - 1, 2**63])), pa.uint64()), lambda: pa.array(each(lambda: draw.choice([0., 1.5, float('nan'), 1e300]))),
              lambda: pa.array(each(lambda: draw.choice(['a', '', 'ü\n', 'x'*3000]))), lambda: pa.array(each(lambda: True)), lambda: pa.nulls(count), lambda: pa.array(each(lambda: [None, 'a'])), lambda: pa.array(each(lambda: [[1., 2., 3., 4.]])),
              lambda: pa.array(each(lambda: [[1., 2.], [3.]])), lambda: pa.array(each(lambda: [[1., None, 2., 3.], None])), lambda: pa.array(each(lambda: [draw.randint(-3, 2**40)])), lambda: pa.array(each(lambda: 10**9), pa.timestamp('us')), lambda: pa.array(each(lambda: dict(a=1))),
              lambda: pa.array(each(lambda: bad_picture(draw)[0]), pa.binary()), lambda: pa.array(each(lambda: encoded(draw)[0]), pa.binary()), lambda: pa.array(each(lambda: draw.choice('abc')), pa.string()).dictionary_encode(), lambda: pa.array(each(lambda: [])), lambda: pa.array(each(lambda: 2**40), pa.int64()),
              lambda: pa.array(each(lambda: draw.choice([-128, 127])), pa.int8()), lambda: pa.array(each(lambda: [b'\xff']))]
    names = ['label', 'caption', 'boxes', 'mask', 'question', 'answer', 'concept', 'labels', 'text', 'Label']
    chosen = draw.sample(names, draw.randint(0, 5))
    image = pictures[0]() if draw.random() < 0.5 else draw.choice(pictures)()
    return [('image' if draw.random() < 0.9 else 'x', image)]*(draw.random() > 0.05) + [(n, draw.choice(others)()) for n in chosen] + ([(chosen[0], draw.choice(others)())] if chosen and draw.random() < 0.05 else [])

def table_case(draw, folder):
    "One or two parquet files with strange columns, or damaged bytes."
    import pyarrow as pa, pyarrow.parquet as pq
    from beit_lab.data.sources import open_source, split_source
    what = []
    for part in ('train-0.parquet', 'test-0.parquet')[:draw.choice([1, 1, 2])]:
        columns = table_columns(draw, draw.choice([0, 1, 2, 8, 8, 8, 15]))
        table = pa.Table.from_arrays([c for _, c in columns], names=[n for n, _ in columns])
        if draw.random() < 0.15: table = table.replace_schema_metadata({b'huggingface': metadata(draw)})
        pq.write_table(table, folder/part, compression=draw.choice(['snappy', 'none', 'zstd']))
        what.append(', '.join(f'{n} {c.type}' for n, c in columns))
        if draw.random() < 0.2:
            data, damage = damaged(draw, (folder/part).read_bytes())
            (folder/part).write_bytes(data)
            what.append(damage)
    given = draw.choice([None, None, None, dict(label='label'), dict(image='image', caption='label'), dict(boxes='label', mask='caption'), dict(group='text', label=None)])
    how, share = draw.choice(['open', 'split', 'file']), draw.choice([0.1, 0.9, 0.9])
    def call():
        if how == 'split': return [use(part) for part in split_source(folder, columns=given, max_skipped=share)]
        use(open_source(folder/'train-0.parquet' if how == 'file' else folder, columns=given, max_skipped=share))
    return f'{how} {given}: {"; ".join(what)}', call

def metadata(draw):
    "What the datasets library might have written, or not."
    features = dict(info=dict(features=dict(image=dict(_type='Image'), label=dict(_type='ClassLabel', names=draw.choice([['a', 'b'], [], 3, None, [None, 1]])))))
    return strange_json(draw, features)[0] if draw.random() < 0.7 else json.dumps(features).encode()


# --- weights -------------------------------------------------------------------------------------------------------------------------------

def weights_case(draw, folder):
    "The configuration or the tensors of a saved model, changed."
    import torch
    from beit_lab.codebook.autoencode import VQVAE
    from beit_lab.pretrain.objectives import MaskedImageModel
    from beit_lab.trunk.multiway import Trunk
    name, cls = draw.choice([('tokenizer', VQVAE), ('trunk', Trunk), ('model', MaskedImageModel)])
    shutil.copytree(run_folder()/name, folder/name)
    config, tensors = folder/name/'config.json', folder/name/'model.safetensors'
    if draw.random() < 0.5:
        data, what = strange_json(draw, json.loads(config.read_text()))
        config.write_bytes(data)
    else: what = strange_tensors(draw, tensors)
    def call():
        model = cls.from_pretrained(folder/name)
        images = torch.rand(2, 3, 16, 16)
        if cls is VQVAE: model.decode(model.encode(images))
        elif cls is Trunk: model.vectors(images)
    return f'{name}: {what}', call

class Payload:
    "Leaves a mark if it is ever unpickled."
    def __reduce__(self): return os.mkdir, (str(run_folder().parent/'UNPICKLED'),)

def strange_tensors(draw, path):
    "Change a safetensors file in one way, and say which."
    import torch
    from safetensors.torch import load_file, save_file
    kind = draw.choice(['bytes', 'bytes', 'head', 'pickle', 'zip', 'missing', 'extra', 'shape', 'dtype', 'nan', 'huge', 'none', 'folder', 'json', 'gone'])
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()} # the file itself may go
    name = draw.choice(sorted(tensors))
    data = path.read_bytes()
    if kind == 'bytes':
        data, kind = damaged(draw, data)
        return path.write_bytes(data) and kind or kind
    if kind == 'head': path.write_bytes(draw.choice(SIZES).to_bytes(8, 'little') + data[8:])
    elif kind == 'json': path.write_bytes(len(text := strange_json(draw, json.loads(data[8:8 + int.from_bytes(data[:8], 'little')]))[0]).to_bytes(8, 'little') + text + data[8 + int.from_bytes(data[:8], 'little'):])
    elif kind == 'pickle': path.write_bytes(pickle.dumps(Payload()))
    elif kind == 'zip': torch.save(dict(tensors, payload=Payload()), path)
    elif kind == 'gone': path.unlink()
    elif kind == 'folder': path.unlink(), path.mkdir()
    else:
        tensor = tensors[name]
        if kind == 'missing': del tensors[name]
        elif kind == 'extra': tensors['strange'] = torch.zeros(3)
        elif kind == 'shape': tensors[name] = draw.choice([tensor.flatten(), tensor[None], torch.zeros(0), torch.zeros(3, 5)]).contiguous()
        elif kind == 'dtype': tensors[name] = tensor.to(draw.choice([torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.int64, torch.complex64]))
        elif kind == 'none': tensors = {}
        else: tensors[name] = torch.full_like(tensor, draw.choice([float('nan'), float('inf')]) if kind == 'nan' else 3e38) if tensor.is_floating_point() else torch.full_like(tensor, -1)
        save_file(tensors, path)
    return f'{kind} of {name}'


# --- runs and commands ---------------------------------------------------------------------------------------------------------------------

RUNS = Path(os.environ['BEIT_LAB_FUZZ_RUNS']) if 'BEIT_LAB_FUZZ_RUNS' in os.environ else None

def run_folder():
    "A run of a few steps, made once: what the cases damage."
    return RUNS/'run'

def make_run(folder):
    "Train for a second or two on twelve pictures of two classes."
    draw = random.Random(0)
    for i in range(24):
        path = folder/'pictures'/'ab'[i % 2]/f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(draw).resize((16, 16)).save(path)
    from beit_lab.main_job import Job
    job = Job(folder/'pictures', folder/'run', image_size=16, patch_size=4, codebook_size=16)
    with contextlib.redirect_stdout(io.StringIO()): job.demo(0.01)

def job_case(draw, folder):
    "A run whose notes or checkpoints were changed, continued by the command."
    shutil.copytree(run_folder(), folder/'run')
    notes = json.loads((folder/'run/job.json').read_text())
    keep = draw.choice([4, 3, 2, 1, 0])                                    # stages that are done
    notes['stages'] = dict(list(notes['stages'].items())[:keep])
    (folder/'run/job.json').write_text(json.dumps(notes))
    name = draw.choice(['job.json']*4 + ['metrics.json']*3 + ['tokens/cache.json', 'tokenizer/config.json', 'trunk/config.json',
                       'pretrain_state/state.safetensors', 'tokenizer_state/state.safetensors', 'tokens/tokens.safetensors', 'tokenizer/model.safetensors', 'trunk/model.safetensors'])
    path = folder/'run'/name
    if name.endswith('safetensors'): what = strange_tensors(draw, path)
    else:
        data, what = strange_json(draw, json.loads(path.read_text()))
        path.write_bytes(data)
    command = draw.choice(['demo']*4 + ['probe', 'pretrain', 'tokenizer'])
    return f'{command} after {keep} stages, {name}: {what}', lambda: lab(command, '--data', RUNS/'pictures', '--out', folder/'run', *(['--minutes', '0.01'] if command == 'demo' else []), *(['--force'] if draw.random() < 0.1 else []))

VALUES = dict(data=['', '.', 'emoji ', 'scenes:0', 'scenes:x', 'scenes:-3', 'digits:4', 'x'*5000, 'no/such', 'a/b/c', '/dev/null', '/dev/zero', 'http://x.y/z', '~nobody/x', '\n', '猫', 'scenes:99999999999999', '-', '..', 'digits', 'scenes:20', 'photos'],
              out=['', '/dev/null', '/dev/null/x', 'x'*5000, '/proc/x', 'new', 'my runs/ü'], seed=['-1', 'x', '1.5', str(10**30), 'nan', '', '0'], minutes=['nan', 'inf', '-inf', '-1', '0', '1e-9', 'x', '', '1e308'],
              codebook_size=['0', '-5', '1', '2', 'x', str(10**12), '1e3', '4096'], image_size=['0', '-1', '1', '7', '100000', str(10**15), '16'], patch_size=['0', '-4', '1', '3', '16', '64', str(10**9), '4'],
              mode=['', 'x', 'full', 'visible'], mask_kind=['x', '', 'block', 'grid'], mask_ratio=['-1', '0', '1', '0.5', 'nan', 'inf', '2', 'x'], tokenizer=['', 'x', '/dev/null', '/'])
OPTIONS = dict(demo=['data', 'out', 'seed', 'minutes'], tokenizer=['data', 'out', 'seed', 'minutes', 'codebook_size', 'image_size', 'patch_size'],
               pretrain=['data', 'out', 'seed', 'minutes', 'tokenizer', 'mode', 'mask_kind', 'mask_ratio', 'image_size', 'patch_size'], probe=['data', 'out', 'seed'])

def command_case(draw, folder):
    "A command with one or two strange values, or strange words."
    if draw.random() < 0.1: arguments = draw.choice([['dmeo'], [''], ['demo', '--nope'], ['demo', 'stray'], ['demo', '--data'], ['probe', '--minutes', '3'], ['-x'], ['demo', '--seed'], ['猫'], ['demo\n']])
    else:
        command = draw.choice(sorted(OPTIONS))
        common = dict(data=RUNS/'pictures', out=folder/'out') | (dict(minutes='0.01') if command != 'probe' else {}) | (dict(tokenizer=run_folder()/'tokenizer', image_size=16, patch_size=4) if command == 'pretrain' else {})
        strange = {name: draw.choice(VALUES[name]) for name in draw.sample(OPTIONS[command], draw.choice([1, 1, 2]))}
        arguments = [command, *(f'--{name.replace(chr(95), chr(45))}={value}' for name, value in {**common, **strange}.items())]
    return ' '.join(map(str, arguments)).replace(str(folder), 'FOLDER')[:150], lambda: lab(*arguments, cwd=folder)

def lab(*arguments, cwd=None):
    "The command itself, in this process, stopped like by Ctrl-C as soon as it trains."
    from beit_lab import cli, training
    def stop(*args): raise KeyboardInterrupt
    training.Progress.__call__, sys.argv, before = stop, ['beit-lab', *map(str, arguments)], os.getcwd()
    if cwd: os.chdir(cwd)
    try: cli.main()
    finally: os.chdir(before)


# --- judging -------------------------------------------------------------------------------------------------------------------------------

KINDS = dict(pictures=(picture_case, 38), tables=(table_case, 28), weights=(weights_case, 18), runs=(job_case, 8), commands=(command_case, 8)) # and their share in a hundred

def kind_of(number):
    "Kinds take turns, in proportion to their share."
    return random.Random(f'kind {number}').choices(list(KINDS), [share for _, share in KINDS.values()])[0]

def one_sentence(text): return '\n' not in text.strip() and 0 < len(text) < 600 and 'Traceback' not in text

def judged(call):
    "How a case ends: accepted, refused, or a fault with its traceback."
    from beit_lab.core import LabError
    screen = io.StringIO()
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen): call()
        return 'accepted', ''
    except LabError as problem: return ('refused' if one_sentence(str(problem)) else 'fault: not one sentence'), str(problem)
    except SystemExit as end:
        text = str(end.code).strip()
        if end.code in (None, 0) or 'beit-lab: stopped' in text: return 'accepted', text
        return ('refused' if one_sentence(text) and text.startswith('beit-lab: ') and not screen.getvalue().count('usage') else 'fault: no sentence'), screen.getvalue()[-300:] + text
    except BaseException as problem: return f'fault: {type(problem).__name__}', traceback.format_exc()

def run_case(number, seed):
    "One case: what it was, how it ended, seconds, megabytes."
    kind = kind_of(number)
    draw = random.Random(f'{seed} {kind} {number}')
    with tempfile.TemporaryDirectory() as folder:
        what, begin = '', time.process_time()
        try: what, call = KINDS[kind][0](draw, Path(folder))
        except Exception: outcome, text = 'fault: the fuzzer', traceback.format_exc()
        else: outcome, text = judged(call)
    if (RUNS/'UNPICKLED').exists(): outcome, text = 'fault: unpickled', 'code from a weights file was run'
    return dict(number=number, kind=kind, what=what, outcome=outcome, text=text, seconds=time.process_time() - begin)

MISBEHAVIOUR = dict(hang=lambda: all(True for _ in iter(int, 1)), swell=lambda: len(bytearray(1200*2**20)), die=lambda: os.abort()) # for the test of the watch

def memory():
    "Megabytes that this process has held at most; on Linux getrusage would count those of the process that started it too."
    own = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text()) if Path('/proc/self/status').exists() else None
    return int(own[1])/2**10 if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)

def work(pipe, seed, runs):
    "Do the cases that come through the pipe."
    global RUNS
    RUNS = Path(runs)
    import torch
    import beit_lab.main_job
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    pipe.send('ready')
    while (number := pipe.recv()) is not None:
        before = memory()
        signal.setitimer(signal.ITIMER_PROF, SECONDS if seed != 'misbehave' else 2) # its signal ends the process
        result = run_case(number, seed) if seed != 'misbehave' else dict(outcome='accepted', what=MISBEHAVIOUR[number](), seconds=0)
        pipe.send(dict(result, megabytes=memory() - before))

class Watched:
    "A process that does cases; one that hangs, swells or dies is replaced."
    def __init__(self, seed, runs): self.seed, self.runs, self.process = seed, runs, None

    def start(self):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context('spawn').Process(target=work, args=(other, self.seed, self.runs), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()

    def do(self, number):
        if self.process is None: self.start()
        about = dict(number=number, kind=kind_of(number), what='', text='', seconds=SECONDS, megabytes=0)
        self.pipe.send(number)
        try: result = self.pipe.recv() if self.pipe.poll(PATIENCE) else dict(about, outcome='fault: hangs')
        except EOFError:
            self.process.join()
            result = dict(about, outcome='fault: hangs' if self.process.exitcode == -signal.SIGPROF else 'fault: the process died')
        if result['megabytes'] > MEGABYTES: result['outcome'] = f"fault: {result['megabytes']:.0f} MB"
        if result['outcome'] in ('fault: hangs', 'fault: the process died') or result['megabytes'] > 200: self.stop()
        return result

    def stop(self):
        if self.process is not None: self.process.kill(), self.process.join()
        self.process = None

def fuzz(cases, seed=0, first=0, show=None):
    "Run cases; a list of how each ended."
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context('spawn').Process(target=make_run, args=(Path(folder),))
        maker.start(), maker.join()
        assert maker.exitcode == 0, 'the run that is to be damaged could not be made'
        worker, results = Watched(seed, folder), []
        for number in range(first, first + cases):
            results.append(worker.do(number))
            if show: show(results[-1])
        worker.stop()
    return results

def summary(results, seed):
    "The figures of a run of the fuzzer."
    outcomes = {kind: Counter(r['outcome'].partition(':')[0] for r in results if r['kind'] == kind) for kind in KINDS}
    table = {kind: dict(cases=sum(c.values()), accepted=c['accepted'], refused=c['refused'], faults=c['fault']) for kind, c in outcomes.items()}
    whole = {key: sum(row[key] for row in table.values()) for key in ('cases', 'accepted', 'refused', 'faults')}
    return dict(whole, by_kind=table, slowest_seconds=round(max(r['seconds'] for r in results), 1), most_megabytes=round(max(r['megabytes'] for r in results)), seconds=round(sum(r['seconds'] for r in results)),
                command=f'python tests/fuzz.py --cases {len(results)} --seed {seed}')

def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in dict(cases=1000, seed=0, only=None).items(): options.add_argument(f'--{name}', type=int, default=value)
    options.add_argument('--out', help='a JSON file for the figures')
    given = options.parse_args()
    def show(result):
        if result['outcome'].startswith('fault') or given.only is not None: print(f"{result['number']} {result['kind']}: {result['what']}\n  {result['outcome']}\n  {result['text']}", flush=True)
    results = fuzz(given.cases, given.seed, show=show) if given.only is None else fuzz(1, given.seed, given.only, show)
    figures = summary(results, given.seed)
    print(json.dumps(figures, indent=2))
    if given.out: Path(given.out).write_text(json.dumps(figures, indent=2) + '\n')
    sys.exit(figures['faults'] > 0)

if __name__ == '__main__': main()
