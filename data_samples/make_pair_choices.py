"""Make data_samples/runs/pair_choices/ : which choices of masked data modelling matter, at equal minutes, on drawn scenes with captions.

    python data_samples/make_pair_choices.py                       # everything: about three hours on two cores
    python data_samples/make_pair_choices.py --seeds 0 --arms base decoupled
    python data_samples/make_pair_choices.py --plan                # how long a step of each arm takes beside one of the base
    python data_samples/make_pair_choices.py --gather              # only collect what is there

Every arm has the time in which the base does BASE_STEPS steps; how many steps that is follows from --plan, once, and is written below, so that a run
is the same on every machine. An interrupted study continues where it stopped, and figures of several machines add up.
"""
import argparse, json, math, os
from pathlib import Path

from beit_lab.core import read_json, write_json
from beit_lab.pairs_job import PairJob
from make_choices import pace

HERE = Path(__file__).parent
WORK = Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'pair_choices'
BASE_STEPS = 500                                                  # about five minutes on one core: pictures and words have begun to explain each other
ARMS = {                                                          # what differs from the recipe of scenes
    'base': {}, 'decoupled': dict(attention='decoupled', joint_layers=0), 'no_joint_expert': dict(joint_layers=0),
    'pairs_only': dict(alone=0), 'more_alone': dict(alone=32), 'both_hidden': dict(pair_hides='both'), 'patches_light': dict(vision_weight=0.1),
    'patches_20': dict(mask_ratio=0.2), 'patches_60': dict(mask_ratio=0.6), 'words_25': dict(pair_text_ratio=0.25), 'words_75': dict(pair_text_ratio=0.75),
}
PACE = dict(decoupled=1.04, no_joint_expert=0.95, pairs_only=0.82, more_alone=1.95) # time of a step, in steps of the base (from --plan); of the others within a tenth of one, which is as well as it could be measured


def job(name, seed):
    "The run of an arm; all arms of a seed share its tokenizer."
    tokenizer = PairJob('scenes', WORK/f'tokenizer_{seed}', seed)
    tokenizer.tokenizer(limit=math.inf)
    steps = 10*round(BASE_STEPS/PACE.get(name, 1.)/10)
    return PairJob('scenes', WORK/f'{name}_{seed}', seed, tokenizer_folder=tokenizer.out/'tokenizer', pretrain_steps=steps, **ARMS[name])


def run(name, seed):
    "Pretrain and look."
    made = job(name, seed)
    made.pretrain(limit=math.inf)
    made.look()


def learner(name):
    "The Learner of an arm, for its pace."
    made = job(name, 0)
    made.open()
    words = made.words()
    task = made.task(words)
    kinds, held = made.kinds(words, task)
    return made._learner(task, kinds, held, {kind: made.recipe.batch_size if kind == 'pairs' else made.recipe.alone for kind in kinds}, name)(10)


def gather():
    "Everything that is there, in one file; what was gathered before and is not here stays."
    kept = HERE/'runs/pair_choices'
    kept.mkdir(parents=True, exist_ok=True)
    rows = {(row['arm'], row['seed']): row for row in (read_json(kept/'metrics.json')['rows'] if (kept/'metrics.json').exists() else [])}
    for name in ARMS:
        for folder in sorted(WORK.glob(f'{name}_[0-9]')):
            found = read_json(folder/'metrics.json') if (folder/'metrics.json').exists() else {}
            if 'mdm' in found:
                mdm = {k: v for k, v in found['mdm'].items() if k != 'examples'}
                rows[name, int(folder.name[-1])] = dict(arm=name, seed=int(folder.name[-1]), pretrain=found['pretrain'], mdm=mdm)
    write_json(kept/'metrics.json', dict(base_steps=BASE_STEPS, pace=PACE, arms=ARMS, rows=[rows[key] for key in sorted(rows)]))
    (kept/'command.txt').write_text('python data_samples/make_pair_choices.py\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--plan', action='store_true', help='measure the time of a step of each arm')
    parser.add_argument('--gather', action='store_true', help='only collect what is there')
    given = parser.parse_args()
    if given.plan: return print(json.dumps(pace({name: learner(name) for name in ARMS}), indent=1))
    for seed in [] if given.gather else given.seeds:
        for name in given.arms: run(name, seed)
    gather()


if __name__ == '__main__': main()
