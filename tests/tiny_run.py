"Runs of the command line so small that they last seconds, for the tests that disturb them."
import json, os, subprocess, sys
from dataclasses import asdict, replace

from beit_lab.main_job import RECIPES

RECIPE = replace(RECIPES['small'], image_size=16, codebook_size=16, batch_size=8, crops=0.5, pictures=64, held_out=16, tested=16)


def prepare(out, recipe=RECIPE, **steps):
    "A folder in which a run on digits has begun: recipe and steps are settled, nothing is done."
    out.mkdir(parents=True)
    state = dict(data='digits', seed=0, recipe=asdict(recipe), stages={stage: dict(steps=count) for stage, count in steps.items()})
    (out/'job.json').write_text(json.dumps(state))
    return out


# The command line, killed from within: when the `nth` checkpoint has begun to be written, plus some seconds, by a child that outlives it.
KILLED = """
import os, signal, sys, time
nth, seconds = int(sys.argv.pop(1)), float(sys.argv.pop(1))
def watch(event, arguments):
    global nth
    if event != 'tempfile.mkdtemp' or '.state.safetensors-' not in arguments[0]: return
    nth -= 1
    if nth or os.fork(): return
    time.sleep(seconds)
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(0)
sys.addaudithook(watch)
from beit_lab.cli import main
main()
"""


def start(stage, out, *more, while_saving=None):
    "A stage in a process of its own; one thread, so that sums are always added in the same order."
    program = ['-m', 'beit_lab.cli'] if while_saving is None else ['-c', KILLED, *map(str, while_saving)]
    command = [sys.executable, *program, stage, '--data', 'digits', '--out', str(out), *more]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process):
    "Wait for the end of a process, which must be a good one."
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def sentence(process):
    "The one sentence with which a process ended."
    _, errors = process.communicate(timeout=600)
    lines = errors.strip().splitlines()
    assert process.returncode not in (0, None) and len(lines) == 1 and lines[0].startswith('beit-lab: '), errors
    return lines[0]
