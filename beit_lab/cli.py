"""The `beit-lab` command: thin layers over library functions. Written by hand."""
import sys, warnings
from typing import Annotated

from fastcore.script import anno_parser

from .core import ConfigError, LabError


def demo(
    data:str=None,          # what to learn from: emoji, scenes, photos, digits, a folder, a parquet file or folder (default: emoji, for mdm scenes)
    out:str='runs/demo',    # where everything is written; an unfinished run there is continued
    seed:int=0,             # of everything that is drawn
    minutes:float=None,     # time for everything, turned into a number of steps at the start (default: at most 8, for mdm 15)
    objective:str='mim',    # mim (pictures) or mdm (pictures with captions)
    force:bool=False,       # start anew where a run exists
):
    "The main job: learn a codebook, hide patches, predict them, probe what was learnt, write a report."
    _job(objective)(data or DATA[objective], out, seed, force).demo(minutes)


def tokenizer(
    data:str='emoji',       # what to learn from
    out:str='runs/demo',    # gets tokenizer/, pictures and its part of metrics.json
    kind:str=None,          # of tokenizer: vq (running means), gumbel (drawn codes), fsq (rounded numbers), lfq (signs), dvae (DALL-E's) or vqkd (taught, BEiT v2's) (default: vq)
    teacher:str=None,       # for vqkd: emoji, scenes, timm:NAME=FILE, clip:FOLDER, or a file or folder with a trunk (default: the shipped trunk of emoji, for scenes that of scenes)
    words:str=None,         # for vqkd: folder of a finished VQ-KD, a released one for instance, that is to learn to paint its words; nothing else is learnt
    seed:int=0,             # of everything that is drawn
    minutes:float=None,     # time for this stage
    codebook_size:int=None, # number of codes (default: 512)
    image_size:int=None,    # pixels a side (default: 32 or 64, by the data)
    patch_size:int=None,    # pixels a patch (default: 4 or 8, by the data)
    force:bool=False,       # start anew where a run exists
):
    "Learn a codebook: pictures become grids of discrete tokens."
    if kind is not None and kind not in KINDS: raise ConfigError(f"--kind '{kind}' is unknown: choose {', '.join(KINDS)}")
    for option, value in dict(teacher=teacher, words=words).items():
        if value and kind != 'vqkd': raise ConfigError(f'--{option} is for --kind vqkd: leave it out, or choose that kind')
    if teacher and words: raise ConfigError('--words are finished, a --teacher has nothing to teach them: leave one of the two out')
    KINDS[kind or 'vq'](kind, data, out, seed, minutes, force, codebook_size=codebook_size, image_size=image_size, patch_size=patch_size, **_given(teacher=teacher, words=words))


def _codebook_job(kind, data, out, seed, minutes, force, **choices):
    "The first stage of the main job, with a codebook of some kind."
    from .main_job import Job
    job = Job(data, out, seed, force and 'tokenizer', kind=kind, **choices)
    _check_made(job, kind)
    job.tokenizer(minutes)


def _check_made(job, kind):
    "Refuse a folder in which a tokenizer of another make is finished."
    from .core import read_json
    if not kind or not job.done('tokenizer'): return
    made = read_json(job.out/'metrics.json').get('tokenizer', {}).get('kind', job.state['recipe'].get('kind', 'vq'))
    if made != kind: raise ConfigError(f'{job.out} holds a finished tokenizer of kind {made}, not {kind}: choose another --out, or start it anew with --force')


def _whole_job(kind, data, out, seed, minutes, force, teacher=None, words=None, **choices):
    "The same stage with a tokenizer of another make: DALL-E's dVAE, or VQ-KD and its painter."
    from .main_job import Job, _alone, _check_minutes
    _check_minutes(minutes)
    finished = words and _finished_words(words)
    if finished: choices = _shape_of_words(finished, choices)
    job = Job(data, out, seed, force and 'tokenizer', **choices)
    _alone(_learn_whole)(job, kind, minutes, finished or teacher or ('scenes' if data.partition(':')[0] == 'scenes' else 'emoji'))


def _finished_words(folder):
    "A VQ-KD whose words are to be painted."
    from .codebook.cache import read_tokenizer
    from .codebook.distill import VQKD
    from .core import lab_device
    tokenizer = read_tokenizer(folder)
    if not isinstance(tokenizer, VQKD): raise ConfigError(f'{folder} holds a {type(tokenizer).__name__}, which learns its painter with its words: --words takes a VQ-KD')
    return tokenizer.to(lab_device())


def _shape_of_words(tokenizer, choices):
    "Sizes that were not chosen are those of the tokenizer; those that were must fit."
    encoder, asked = tokenizer.config.encoder, _given(**choices)
    fixed = dict(codebook_size=tokenizer.codebook_size, patch_size=encoder.patch_size, image_size=encoder.image_size)
    for name, size in fixed.items():
        if asked.get(name, size) != size: raise ConfigError(f'the words were made with a {name} of {size}, not {asked[name]}: leave --{name.replace("_", "-")} out')
    return fixed


def _learn_whole(job, kind, minutes, teacher):
    "Train it, draw it, write down what it does to held-out pictures."
    from .main_job import PIECE
    from .training import Progress, seconds_per_step
    _check_made(job, kind)
    if job.done('tokenizer'): return print(f'tokenizer: done before, see {job.out}/tokenizer')
    job.open()
    learner, trained = dict(dvae=_dvae_stage, vqkd=_vqkd_stage)[kind](job, teacher)
    steps = job._steps('tokenizer', job.recipe.tokenizer_steps, lambda: seconds_per_step(learner(PIECE)), minutes)
    model = trained(steps, Progress('tokenizer'))
    model.save_pretrained(job.out/'tokenizer')
    job._judge_tokenizer(model, dict(kind=kind), steps=steps)


def _dvae_stage(job, teacher):
    "A learner of so many steps, and how the whole is trained."
    from dataclasses import replace

    from .codebook.dvae import DVAES, dvae_learner, train_dvae
    shapes = {DVAES[name].patch_size: DVAES[name] for name in ('tiny', 'small')}
    if job.recipe.patch_size not in shapes: raise ConfigError(f'a dVAE has patches of {" or ".join(map(str, shapes))} pixels, not {job.recipe.patch_size}: change --patch-size')
    config, state = replace(shapes[job.recipe.patch_size], codebook_size=job.recipe.codebook_size), job.out/'tokenizer_state'
    return (lambda steps: dvae_learner(job.pictures, config, steps, job.seed)), lambda steps, progress: train_dvae(job.pictures, config, steps, job.seed, progress, state)


def _vqkd_stage(job, teacher):
    "The same for VQ-KD; afterwards a painter learns to draw its words, for half as many steps."
    from dataclasses import replace

    from .codebook.distill import distill_learner, train_painter, train_vqkd, vqkd_config
    from .codebook.teachers import open_teacher
    from .training import Progress
    if not isinstance(teacher, str): return _painter_stage(job, teacher)
    recipe, sight = job.recipe, open_teacher(teacher)
    encoder = replace(vqkd_config('tiny').encoder, image_size=recipe.image_size, patch_size=recipe.patch_size)
    config = vqkd_config('tiny', encoder=encoder, codebook_size=recipe.codebook_size)
    def trained(steps, progress):
        words = train_vqkd(job.pictures, sight, config, steps, job.seed, progress, job.out/'tokenizer_state')
        return train_painter(words, job.pictures, max(10, steps//20*10), seed=job.seed, progress=Progress('painter'))
    return (lambda steps: distill_learner(job.pictures, sight, config, steps, job.seed)), trained


def _painter_stage(job, words):
    "The same for the painter alone, of words that are finished."
    from .codebook.cache import cache_tokens
    from .codebook.distill import painter_learner, train_painter
    from .training import Progress
    given = dict(seed=job.seed, cache=cache_tokens(words, job.pictures, batch_size=32, progress=Progress('tokens')))      # once, and told: a released tokenizer takes minutes
    paint = lambda steps, progress: train_painter(words, job.pictures, steps, progress=progress, checkpoint=job.out/'tokenizer_state', **given)
    return (lambda steps: painter_learner(words, job.pictures, steps, **given)), paint


KINDS = {kind: _codebook_job for kind in ('vq', 'gumbel', 'fsq', 'lfq')} | dict(dvae=_whole_job, vqkd=_whole_job) # what --kind may be: function(kind, data, out, seed, minutes, force, **choices); other tokenizers join here


def pretrain(
    data:str=None,          # what to learn from (default: emoji, for mdm scenes)
    out:str='runs/demo',    # gets trunk/, pictures and its part of metrics.json
    seed:int=0,             # of everything that is drawn
    minutes:float=None,     # time for this stage
    objective:str='mim',    # mim (pictures) or mdm (pictures, texts and pairs; learns a codebook first where OUT has none, and looks at what was learnt)
    tokenizer:str=None,     # folder of a trained tokenizer (default: OUT/tokenizer)
    mode:str=None,          # visible (the trunk sees visible patches only) or full (BEiT); for mim
    mask_kind:str=None,     # random, block or grid
    mask_ratio:float=None,  # share of hidden patches
    image_size:int=None,    # pixels a side (default: 32 or 64, by the data)
    patch_size:int=None,    # pixels a patch (default: 4 or 8, by the data)
    pairs:str=None,         # pictures with captions; the same as --data, for mdm
    images:str=None,        # more pictures without captions, for mdm
    text:str=None,          # a file of text, or a folder with .txt files, for mdm (default: the captions)
    attention:str=None,     # shared by pictures and words (BEiT-3's paper) or decoupled (its release), for mdm
    force:bool=False,       # start anew where a run exists
):
    "Predict what is hidden: patches of pictures, or patches and words of pictures with captions."
    options = dict(mask_kind=mask_kind, mask_ratio=mask_ratio, image_size=image_size, patch_size=patch_size, tokenizer_folder=tokenizer)
    own = dict(mim=dict(mode=mode), mdm=dict(images=images, text=text, attention=attention))
    job = _job(objective)
    if pairs and data and pairs != data: raise ConfigError('--data and --pairs both name pictures with captions: give one of them')
    if objective == 'mim' and pairs: raise ConfigError('--pairs is for --objective mdm: name pictures with --data')
    if strange := [name for other, words in own.items() if other != objective for name, value in words.items() if value is not None]:
        raise ConfigError(f'--{strange[0]} is not for --objective {objective}: leave it out, or choose the other objective')
    made = job(pairs or data or DATA[objective], out, seed, force and 'pretrain', **options, **own[objective])
    made.pretrain(minutes) if objective == 'mim' else made.stages(minutes)


DATA = dict(mim='emoji', mdm='scenes')


def _job(objective:str):
    "The kind of run that an objective asks for."
    from .main_job import Job
    from .pairs_job import PairJob
    jobs = dict(mim=Job, mdm=PairJob)
    if objective not in jobs: raise ConfigError(f"objective '{objective}' is unknown: choose mim or mdm")
    return jobs[objective]


def probe(
    data:str='emoji',       # labelled pictures
    out:str='runs/demo',    # where trunk/ and tokenizer/ lie
    seed:int=0,             # of the splits
    force:bool=False,       # probe again where that was done
):
    "Is what was learnt useful? Linear probe and nearest neighbours, beside the untrained trunk, pixels and a bag of codes."
    from .main_job import Job
    Job(data, out, seed, force and 'probe').probe()


def weights_inspect(
    file:str,               # a file of weights, a folder with one, or with --download the name of a repository on the hub
    kind:str=None,          # 'trunk' to look at the trunk alone (default: what the file is for)
    image_size:int=None,    # pixels a side it is to be used at (default: what it was made for)
    num_heads:int=None,     # attention heads, where the file does not tell
    decoder:str=None,       # of DALL-E's dVAE: the file of its decoder
    download:bool=False,    # may the hub be asked?
):
    "What is in a file of released weights: whose names, which model, and what would become of every tensor."
    from .codebook.released import inspect_tokenizer, is_tokenizer
    from .heads.released import inspect_weights
    options = _given(image_size=image_size, num_heads=num_heads)
    if kind is None and is_tokenizer(file, download): report = inspect_tokenizer(file, decoder, download, **options)
    elif decoder: raise ConfigError(f'--decoder is for the file of an encoder of DALL-E, which {file} is not')
    else: report = inspect_weights(file, kind, download, **options)
    print(report)
    bad = len(report.names('missing', 'misfit', 'unknown'))
    if bad: sys.exit(f'beit-lab: {file} cannot be used as it is: {bad} tensors are missing, misfit or unknown, see above')


def weights_import(
    file:str,               # as for inspect
    out:str,                # folder that gets config.json and model.safetensors
    kind:str=None,          # 'trunk' to leave a head out (default: what the file is for)
    image_size:int=None,    # pixels a side (default: what it was made for)
    num_heads:int=None,     # attention heads, where the file does not tell
    pixels:str=None,        # how pixels were normalised: half (to -1 .. 1) or imagenet (default: what a folder tells, else half)
    decoder:str=None,       # of DALL-E's dVAE: the file of its decoder, without which it cannot draw
    download:bool=False,    # may the hub be asked?
):
    "Released weights as a folder of beit_lab."
    from .codebook.released import import_tokenizer, is_tokenizer
    from .heads.released import import_weights, pixel_statistics
    options = _given(image_size=image_size, num_heads=num_heads)
    if kind is None and is_tokenizer(file, download):
        if pixels: raise ConfigError('--pixels is for trunks: a tokenizer knows how its pixels were normalised')
        model, report = import_tokenizer(file, decoder, download, **options)
    elif decoder: raise ConfigError(f'--decoder is for the file of an encoder of DALL-E, which {file} is not')
    else: model, report = import_weights(file, kind, download, **options, **pixel_statistics(pixels))
    model.save_pretrained(out)
    counts = dict(taken=report.matched, resized=report.resized, new=report.missing) | {'left out': report.unexpected}
    print(report.title, 'tensors: ' + ', '.join(f'{len(names)} {fate}' for fate, names in counts.items()), f'{type(model).__name__} in {out}', sep='\n')


def weights_export(
    file:str,                  # a folder of beit_lab, or anything that inspect takes
    out:str,                   # a file that ends in .safetensors; for transformers a folder
    layout:str='transformers', # whose names: transformers, timm, unilm, beit3, ...
    kind:str=None,             # 'trunk' to leave the head out
    image_size:int=None,       # pixels a side (default: what it was made for)
    num_heads:int=None,        # attention heads, where the file does not tell
):
    "Weights under the names of another library."
    from .heads.released import open_model
    from .trunk.released import export_weights
    model, report = open_model(file, **_given(image_size=image_size, num_heads=num_heads))
    export_weights(model.trunk if kind == 'trunk' and hasattr(model, 'trunk') else model, out, layout)
    print(f'{report.title}\nwritten for {layout} to {out}')


def fill(
    text:str,               # with ___ or [MASK] where a word is missing; with --hide, what the picture shows
    image:str=None,         # a picture to look at
    hide:str=None,          # patches of the picture to be painted anew: rows and columns, counted from 0, such as 2-5:3-6
    out:str='filled.png',   # gets the painted picture
    model:str=None,         # folder of a run of `beit-lab demo --objective mdm` (default: the shipped model of scenes)
    best:int=3,             # words to be given for each blank
):
    "Fill the blanks of a text, with a picture or without; or hidden patches of a picture, as the text says."
    reader = _reader(model)
    if not hide: return print(reader.fill(text, image, best))
    from PIL import Image

    from .core import atomic_path, enlarge
    if not image: raise ConfigError('--hide names patches of a picture: give --image')
    painted = reader.paint(image, _patches(hide, reader.model.config.grid), text)
    with atomic_path(out) as temporary: Image.fromarray(enlarge(painted.cpu())).save(temporary, 'PNG')
    print(f'{hide} of {image} painted as "{text}": see {out}')


def _patches(said:str, grid:tuple):
    "Patches such as '2-5:3-6' as a mask (h, w)."
    import re

    import torch
    found = re.fullmatch(r'(\d{1,4})(?:-(\d{1,4}))?:(\d{1,4})(?:-(\d{1,4}))?', said)
    top, bottom, left, right = (int(n) for n in (found[1], found[2] or found[1], found[3], found[4] or found[3])) if found else (1, 0, 1, 0)
    if not (top <= bottom < grid[0] and left <= right < grid[1]): raise ConfigError(f"--hide {said[:40]} names no patches of a grid of {grid[0]} rows and {grid[1]} columns: write rows:columns, such as 2-5:3-6")
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[top:bottom + 1, left:right + 1] = True
    return mask


def tokens(
    images:Annotated[str, dict(nargs='+')], # pictures
    tokenizer:str=None,     # folder of a tokenizer (default: the shipped one of emoji)
    out:str='tokens',       # folder that gets NAME_tokens.png and NAME_decoded.png of each
    image_size:int=None,    # pixels a side they are cut and resized to (default: as the tokenizer learnt them)
):
    "Pictures in the words of a tokenizer: prints the tokens, draws them as tiles, and paints what they keep."
    from pathlib import Path

    from .codebook.cache import read_tokenizer
    from .core import lab_device, samples
    from .data.pictures import image_batch
    from .show.codebook_report import paints, tokens_as_text, usual_size, write_token_pictures
    _check_size(image_size)
    home = Path(tokenizer) if tokenizer else samples('weights/emoji/tokenizer')
    model = read_tokenizer(home).to(lab_device())
    size = image_size or usual_size(home, model)
    for image in images: image_batch(image, size, model.patch_size, model.config.channels) # all or none
    for number, image in enumerate(images, 1):
        name = Path(image).stem if len({Path(i).stem for i in images}) == len(images) else f'{number}_{Path(image).stem}'
        print(f'{image}\n{tokens_as_text(write_token_pictures(model, image, out, name, size))}\n')
    count = f'{len(images)} picture{"s" if len(images) > 1 else ""} as tiles'
    print(f'{count} and painted again in {out}' if paints(model) else f'{count} in {out}; the words of this tokenizer have no pixels, so each is drawn in the mean colour of the patches that it stands for')


def codebook(
    folder:str,             # of a run, or of a tokenizer
    data:str=None,          # pictures to judge it on (default: those that the run held out)
    out:str=None,           # the file to appear (default: codebook.html in the folder of the run)
    image_size:int=None,    # pixels a side (default: as the tokenizer learnt them)
):
    "Is a codebook alive, what are its words, what do they keep? Everything in one HTML file."
    from .show.codebook_report import report_of_folder
    _check_size(image_size)
    print(f'done: open {report_of_folder(folder, data, out, image_size)}')


def _check_size(image_size:int):
    if image_size is not None and image_size < 1: raise ConfigError(f'--image-size must be at least 1, not {image_size}')


def embed(
    image:str=None,         # a picture, or several with commas between them
    text:str=None,          # a text; for several pictures, a file with one a line
    out:str='vectors.safetensors', # gets `vectors`, one row each
    model:str=None,         # folder of a run of `beit-lab demo --objective mdm` (default: the shipped model of scenes)
):
    "Pictures, texts or pairs of both as vectors in a file."
    import os

    from safetensors.torch import save_file

    from .core import atomic_path
    images = image.split(',') if image else None
    texts = text and (_lines(text) if os.path.isfile(text) else [text])
    vectors = _reader(model).embed(images, texts)
    with atomic_path(out) as temporary: save_file(dict(vectors=vectors.cpu().contiguous()), temporary)
    print(f'{len(vectors)} vectors of {vectors.shape[1]} numbers in {out}')


def _lines(path:str)->list:
    "The lines of a file of text."
    from .core import DataError
    try:
        with open(path, encoding='utf-8') as file: return file.read().splitlines()
    except UnicodeDecodeError: raise DataError(f'{path} is no text in UTF-8: save it as such') from None


def _reader(model:str):
    "The model of a run, or the shipped one."
    from .pretrain.reader import Reader
    return Reader.from_run(model) if model else Reader.shipped()


def _given(**options): return {name: value for name, value in options.items() if value is not None}


COMMANDS = dict(demo=demo, tokenizer=tokenizer, pretrain=pretrain, probe=probe, tokens=tokens, codebook=codebook, fill=fill, embed=embed,
                weights={'inspect': weights_inspect, 'import': weights_import, 'export': weights_export})
HELP = """beit-lab: an image as a foreign language

  beit-lab demo        the main job: tokenizer, pretraining, probe, report (8 minutes on two cores); with --objective mdm on pictures with captions (15)
  beit-lab tokenizer   the first stage alone: learn a codebook
  beit-lab pretrain    the second: predict the tokens of hidden patches, and with --objective mdm hidden words as well
  beit-lab probe       the third: is it useful?
  beit-lab tokens      pictures in the words of a tokenizer, and what those words keep
  beit-lab codebook    the health of a codebook as one page
  beit-lab fill        fill the blanks of a text, looking at a picture, or hidden patches as a text says
  beit-lab embed       pictures, texts and pairs as vectors
  beit-lab weights     released weights: inspect, import, export

`beit-lab COMMAND --help` lists the options; the same runs as `python -m beit_lab.cli COMMAND`."""


def find(
    words:list, # the command line
)->tuple:       # (command in words, function or table of commands, what follows it)
    "The command that a line names."
    name, found, rest = 'beit-lab', COMMANDS, list(words)
    while isinstance(found, dict) and rest and rest[0] not in ('-h', '--help', 'help'):
        name = f'{name} {rest[0]}'
        if rest[0] not in found: sys.exit(f"beit-lab: there is no command {name.removeprefix('beit-lab ')!r}: choose one of {', '.join(found)}")
        found = found[rest.pop(0)]
    return name, found, rest


def run(
    name:str,       # the command in words, such as 'beit-lab demo'
    command,        # the function behind it
    arguments:list, # what follows it on the command line
):
    "Read the arguments as the function's signature and comments describe them, and call it."
    parser = anno_parser(command, prog=name)
    parser.error = lambda message: sys.exit(f'beit-lab: {message}; `{name} --help` lists the options') # instead of a page of usage
    given = vars(parser.parse_args(arguments))
    command(**{k: v for k, v in given.items() if k not in ('pdb', 'xtra')})


def main():
    "Run one command; a mistake in its input costs one sentence, an interrupt one more."
    name, command, rest = find(sys.argv[1:])
    if command is COMMANDS: return print(HELP)
    if isinstance(command, dict): return print('\n'.join(f'{name} {word:8} {function.__doc__}' for word, function in command.items()))
    warnings.simplefilter('ignore', FutureWarning) # what libraries tell their developers is no news to who runs a command
    try: run(name, command, rest)
    except LabError as e: sys.exit(f'beit-lab: {e}')
    except KeyboardInterrupt: sys.exit('\nbeit-lab: stopped; the same command continues from the last checkpoint')


if __name__ == '__main__': main()
