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


COMMANDS = dict(demo=demo, tokenizer=tokenizer, pretrain=pretrain, probe=probe)
HELP = """beit-lab: an image as a foreign language

  beit-lab demo        the main job: tokenizer, pretraining, probe, report (8 minutes on two cores)
  beit-lab tokenizer   the first stage alone: learn a codebook
  beit-lab pretrain    the second: predict the tokens of hidden patches
  beit-lab probe       the third: is it useful?

`beit-lab COMMAND --help` lists the options; the same runs as `python -m beit_lab.cli COMMAND`."""


def run(
    name:str,       # one of COMMANDS
    arguments:list, # what follows it on the command line
):
    "Read the arguments as the function's signature and comments describe them, and call it."
    parser = anno_parser(COMMANDS[name], prog=f'beit-lab {name}')
    parser.error = lambda message: sys.exit(f'beit-lab: {message}; `beit-lab {name} --help` lists the options') # instead of a page of usage
    given = vars(parser.parse_args(arguments))
    COMMANDS[name](**{k: v for k, v in given.items() if k not in ('pdb', 'xtra')})


def main():
    "Run one command; a mistake in its input costs one sentence, an interrupt one more."
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help', 'help'): return print(HELP)
    if name not in COMMANDS: sys.exit(f"beit-lab: there is no command '{name}': choose one of {', '.join(COMMANDS)}")
    warnings.simplefilter('ignore', FutureWarning) # what libraries tell their developers is no news to who runs a command
    try: run(name, sys.argv[2:])
    except LabError as e: sys.exit(f'beit-lab: {e}')
    except KeyboardInterrupt: sys.exit('\nbeit-lab: stopped; the same command continues from the last checkpoint')


if __name__ == '__main__': main()
