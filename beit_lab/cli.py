"""The `beit-lab` command: thin layers over library functions. Written by hand."""
import sys, warnings

from fastcore.script import anno_parser

from .core import LabError


def demo(
    data:str='emoji',       # what to learn from: emoji, scenes, photos, digits, a folder, a parquet file or folder
    out:str='runs/demo',    # where everything is written; an unfinished run there is continued
    seed:int=0,             # of everything that is drawn
    minutes:float=None,     # time for everything, turned into a number of steps at the start (default: at most 8)
    force:bool=False,       # start anew where a run exists
):
    "The main job: learn a codebook, hide patches, predict them, probe what was learnt, write a report."
    from .main_job import Job
    Job(data, out, seed, force).demo(minutes)


def tokenizer(
    data:str='emoji',       # what to learn from
    out:str='runs/demo',    # gets tokenizer/, pictures and its part of metrics.json
    seed:int=0,             # of everything that is drawn
    minutes:float=None,     # time for this stage
    codebook_size:int=None, # number of codes (default: 512)
    image_size:int=None,    # pixels a side (default: 32 or 64, by the data)
    patch_size:int=None,    # pixels a patch (default: 4 or 8, by the data)
    force:bool=False,       # start anew where a run exists
):
    "Learn a codebook: pictures become grids of discrete tokens."
    from .main_job import Job
    Job(data, out, seed, force and 'tokenizer', codebook_size=codebook_size, image_size=image_size, patch_size=patch_size).tokenizer(minutes)


def pretrain(
    data:str='emoji',       # what to learn from
    out:str='runs/demo',    # gets trunk/, pictures and its part of metrics.json
    seed:int=0,             # of everything that is drawn
    minutes:float=None,     # time for this stage
    tokenizer:str=None,     # folder of a trained tokenizer (default: OUT/tokenizer)
    mode:str=None,          # visible (the trunk sees visible patches only) or full (BEiT)
    mask_kind:str=None,     # random, block or grid
    mask_ratio:float=None,  # share of hidden patches
    image_size:int=None,    # pixels a side (default: 32 or 64, by the data)
    patch_size:int=None,    # pixels a patch (default: 4 or 8, by the data)
    force:bool=False,       # start anew where a run exists
):
    "Masked image modelling: predict the tokens of hidden patches."
    from .main_job import Job
    Job(data, out, seed, force and 'pretrain', mode=mode, mask_kind=mask_kind, mask_ratio=mask_ratio, image_size=image_size,
        patch_size=patch_size, tokenizer_folder=tokenizer).pretrain(minutes)


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
    download:bool=False,    # may the hub be asked?
):
    "What is in a file of released weights: whose names, which model, and what would become of every tensor."
    from .heads.released import inspect_weights
    report = inspect_weights(file, kind, download, **_given(image_size=image_size, num_heads=num_heads))
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
    download:bool=False,    # may the hub be asked?
):
    "Released weights as a folder of beit_lab."
    from .heads.released import import_weights, pixel_statistics
    model, report = import_weights(file, kind, download, **_given(image_size=image_size, num_heads=num_heads), **pixel_statistics(pixels))
    model.save_pretrained(out)
    counts = dict(taken=report.matched, resized=report.resized, new=report.missing) | {'left out': report.unexpected}
    print(report.title, 'tensors: ' + ', '.join(f'{len(names)} {fate}' for fate, names in counts.items()), f'{type(model).__name__} in {out}', sep='\n')


def weights_export(
    file:str,                  # a folder of beit_lab, or anything that inspect takes
    out:str,                   # a file that ends in .safetensors; for transformers a folder
    layout:str='transformers', # whose names: transformers, timm, unilm, beit3, ...
    kind:str=None,             # 'trunk' to leave the head out
):
    "Weights under the names of another library."
    from .heads.released import open_model
    from .trunk.released import export_weights
    model, report = open_model(file)
    export_weights(model.trunk if kind == 'trunk' and hasattr(model, 'trunk') else model, out, layout)
    print(f'{report.title}\nwritten for {layout} to {out}')


def _given(**options): return {name: value for name, value in options.items() if value is not None}


COMMANDS = dict(demo=demo, tokenizer=tokenizer, pretrain=pretrain, probe=probe,
                weights={'inspect': weights_inspect, 'import': weights_import, 'export': weights_export})
HELP = """beit-lab: an image as a foreign language

  beit-lab demo        the main job: tokenizer, pretraining, probe, report (8 minutes on two cores)
  beit-lab tokenizer   the first stage alone: learn a codebook
  beit-lab pretrain    the second: predict the tokens of hidden patches
  beit-lab probe       the third: is it useful?
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
