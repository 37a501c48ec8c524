"What the lessons say about the committed studies is what the figures say."
import pytest

from beit_lab.core import read_json, samples

ROWS = {(row['arm'], row['seed']): row for row in read_json(samples('runs/cifar10_minutes/metrics.json'))['rows']}
CHOICES = read_json(samples('runs/choices/metrics.json'))


@pytest.mark.parametrize('seed', range(3))
def test_minutes_on_cifar10(seed):
    probe = {m: ROWS[f'minutes_{m}', seed]['probe'] for m in (5, 20, 60)}
    assert probe[20]['trained'] >= 0.58 and probe[60]['trained'] >= 0.62
    for found in probe.values(): assert found['trained'] > max(found['untrained'], found['pixels'], found['bag_of_codes']) + 0.1


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('labels', [100, 1_000, 10_000])
def test_fewer_labels_are_needed(seed, labels):
    score = lambda arm: next(found['score'] for found in ROWS[arm, seed]['finetune'] if found['labels'] == labels)
    assert min(score(f'minutes_{m}') for m in (5, 20, 60)) > score('scratch')


def test_choices_are_complete_and_had_the_same_time():
    assert len(CHOICES['rows']) == 2*3*len(CHOICES['arms'])
    for row in CHOICES['rows']:
        pace = CHOICES['pace'][row['data']].get(row['arm'], 1)
        assert abs(row['steps']*pace - CHOICES['base_steps']) <= 5*pace + 1e-6
