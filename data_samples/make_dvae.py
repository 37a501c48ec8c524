"""Make data_samples/runs/dvae/ : how a dVAE at lab size paints emoji as time goes by.

    python data_samples/make_dvae.py                  # 3,000 steps: about ten minutes on one core
    python data_samples/make_dvae.py --steps 300      # shorter

The slim dVAE of lesson `08_which_tokenizer` (one block a group, 16 channels, 512 words), pictures of 32 pixels, 64 a step, seed 0. Every EVERY steps it is judged on held-out emoji:
decibels, words in use, perplexity. An interrupted run continues where it stopped. Only figures are kept.
"""
import argparse, os
from pathlib import Path

from fastai.callback.core import Callback

from beit_lab.codebook.autoencode import reconstruction_report
from beit_lab.codebook.dvae import dvae_config, train_dvae
from beit_lab.codebook.health import codebook_health
from beit_lab.core import read_json, write_json
from beit_lab.data.sources import split_source
from beit_lab.pretrain.learner import tokenize
from beit_lab.training import Progress

HERE = Path(__file__).parent
WORK = Path(os.environ.get('BEIT_LAB_WORK', HERE.parent/'runs/made'))/'dvae'
EVERY = 150


class Judge(Callback):
    "A row every EVERY steps, kept in a file so that an interrupted run has them all."
    def __init__(self, held_out, steps): self.held_out, self.steps, self.file = held_out, steps, WORK/f'curve_{steps}.json'

    def after_batch(self):
        step = self.epoch*self.n_iter + self.iter + 1
        if not self.training or step % EVERY and step != self.steps: return
        rows = [row for row in (read_json(self.file)['rows'] if self.file.exists() else []) if row['step'] < step]
        write_json(self.file, dict(rows=[*rows, dict(step=step, **judged(self.learn.model.finished(), self.held_out))]))


def judged(tokenizer, held_out):
    "Decibels and health on held-out pictures."
    report, health = reconstruction_report(tokenizer, held_out), codebook_health(tokenize(tokenizer, held_out), tokenizer.codebook_size)
    return dict(psnr_db=report['psnr_db'], patch_mean_psnr_db=report['patch_mean_psnr_db'], usage=health['usage'], perplexity=health['perplexity'])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=3000, help='of 64 pictures')
    steps = parser.parse_args().steps
    learnt, held_out = [source.images(32) for source in split_source('emoji')]
    judge = Judge(held_out, steps)
    train_dvae(learnt, dvae_config('tiny', blocks=1, width=16), steps, progress=Progress('dvae'), checkpoint=WORK/f'state_{steps}', cbs=[judge])
    write_json(HERE/'runs/dvae/metrics.json', dict(steps=steps, batch_size=64, seed=0, rows=read_json(judge.file)['rows']))
    (HERE/'runs/dvae/command.txt').write_text(f'python data_samples/make_dvae.py --steps {steps}\n')


if __name__ == '__main__': main()
