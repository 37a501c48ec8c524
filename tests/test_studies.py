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


PAIRS = read_json(samples('runs/pair_choices/metrics.json'))
PAIR_ROWS = {(row['arm'], row['seed']): row['mdm'] for row in PAIRS['rows']}
SEEDS = sorted({seed for arm, seed in PAIR_ROWS if arm == 'base'})


def ahead(arm, seed, group='words_ahead', against='wrong_image'): return PAIR_ROWS[arm, seed][group][against]['gap']


def test_every_arm_of_pairs_had_the_same_time():
    assert {arm for arm, _ in PAIR_ROWS} == set(PAIRS['arms'])
    for row in PAIRS['rows']:
        pace = PAIRS['pace'].get(row['arm'], 1)
        assert abs(row['pretrain']['steps']*pace - PAIRS['base_steps']) <= 5*pace + 1e-6


@pytest.mark.parametrize('arm, seed', [key for key in PAIR_ROWS if key[1] in SEEDS])
def test_what_lesson_07_says(arm, seed):
    words, patches = ahead(arm, seed), ahead(arm, seed, 'patches_ahead', 'attributes_hidden')
    base_words, base_patches = ahead('base', seed), ahead('base', seed, 'patches_ahead', 'attributes_hidden')
    if arm == 'both_hidden' or arm == 'more_alone': assert words < 0.03 < base_words
    if arm == 'pairs_only': assert words > base_words and PAIR_ROWS[arm, seed]['patch_loss']['no_caption'] > 6.24
    if arm == 'patches_20': assert patches < 0.05 < base_patches
    if arm == 'patches_60': assert patches > base_patches
    if arm == 'words_25': assert words < base_words
    if arm == 'patches_light': assert patches < base_patches
    if arm in ('decoupled', 'no_joint_expert'): assert abs(words - base_words) < 0.05


@pytest.mark.parametrize('against', ['wrong_image', 'no_image', 'text_only_twin'])
def test_photographs_help_after_a_longer_run(against):
    gap = read_json(samples('runs/flickr8k_pairs_longer/metrics.json'))['mdm']['words_ahead'][against]
    assert gap['gap'] > gap['interval'] > 0


KINDS = {(row['data'], row['kind']): row for row in read_json(samples('runs/kinds/metrics.json'))['rows']}


def test_every_kind_was_learnt_on_every_set(): assert set(KINDS) == {(data, kind) for data in ('emoji', 'scenes', 'flickr8k') for kind in ('vq', 'fsq', 'lfq', 'gumbel', 'dvae', 'vqkd')}


@pytest.mark.parametrize('kind', ['vq', 'fsq', 'lfq'])
def test_codes_live(kind):
    "On held-out pictures, with the codebook frozen."
    assert min(KINDS[data, kind]['codebook_usage'] for data in ('flickr8k', 'emoji', 'scenes')) >= 0.9 and KINDS['flickr8k', kind]['perplexity_share'] >= 0.3


@pytest.mark.parametrize('kind', ['vq', 'fsq', 'lfq', 'gumbel'])
def test_codes_mean_something_on_photographs(kind):
    meaning = KINDS['flickr8k', kind]['meaning']
    assert meaning['explained'] > 0.5 > 0.02 > meaning['explained_shuffled']
    assert meaning['psnr_db_as_said'] > meaning['psnr_db_nearest_code'] > meaning['psnr_db_any_code']


TOKENIZERS = read_json(samples('runs/tokenizers/metrics.json'))


@pytest.mark.parametrize('row', TOKENIZERS['rows'], ids=lambda row: f"{row['data']}-{row['arm']}-{row['seed']}")
def test_every_tokenizer_had_the_same_time(row):
    if 'tokenizer_steps' in row:
        pace = {'vq': 1., **TOKENIZERS['pace'][row['device']]}[row['arm']]
        assert abs(row['tokenizer_steps']*pace - TOKENIZERS['tokenizer_steps']) <= 5*pace + 1e-6
    if row['arm'] != 'untrained': assert row['pretrain_steps'] == TOKENIZERS['pretrain_steps']


def test_every_language_teaches():
    rows = {(row['data'], row['arm'], row['seed']): row for row in TOKENIZERS['rows']}
    for (data, arm, seed), row in rows.items():
        if arm != 'untrained': assert row['knn']['trained'] > rows[data, 'untrained', seed]['knn']['trained']


SIX = ('vq', 'gumbel', 'fsq', 'lfq', 'dvae', 'vqkd')


def arms_of(data, seed): return {row['arm']: row for row in TOKENIZERS['rows'] if (row['data'], row['seed']) == (data, seed)}


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('data, ahead', [('emoji', 0.03), ('cifar10', 0.055)])
def test_what_lesson_08_says_of_all(data, ahead, seed):
    "All languages teach; the best painter no better than the worst; two of them say where they are."
    rows = arms_of(data, seed)
    assert set(rows) == {*SIX, 'pixels', 'untrained'} and min(rows[arm]['probe']['trained'] for arm in SIX) > rows['untrained']['probe']['trained'] + ahead
    assert rows['vq']['psnr_db'] > rows['dvae']['psnr_db'] + 5 and abs(rows['vq']['probe']['trained'] - rows['dvae']['probe']['trained']) < 0.03
    assert rows['dvae']['psnr_db'] < rows['dvae']['patch_mean_psnr_db'] and min(rows[arm]['position_bits'] for arm in ('dvae', 'lfq')) > 1.3
    if data == 'cifar10': assert max(rows[arm]['position_bits'] for arm in SIX if arm not in ('dvae', 'lfq')) < 0.2


@pytest.mark.parametrize('seed', range(3))
def test_a_teacher_of_emoji_hands_on_a_little_of_emoji(seed):
    rows = arms_of('emoji', seed)
    assert all(rows['vqkd'][key] > rows['vq'][key] for key in ('few_5', 'few_20')) and rows['vqkd']['knn']['trained'] > rows['vq']['knn']['trained']


@pytest.mark.parametrize('data', ['emoji', 'cifar10'])
@pytest.mark.parametrize('key', ['probe', 'knn', 'few_5', 'few_20'])
def test_pixels_are_behind_tokens_in_every_mean(data, key):
    score = lambda arm: sum(row[key]['trained'] if isinstance(row[key], dict) else row[key] for row in (arms_of(data, seed)[arm] for seed in range(3)))
    assert score('pixels') < score('vq')


def test_a_dvae_learns_to_paint_if_it_has_time():
    rows = read_json(samples('runs/dvae/metrics.json'))['rows']
    assert rows[0]['psnr_db'] < rows[0]['patch_mean_psnr_db'] < rows[-1]['psnr_db'] - 1 and rows[-1]['usage'] > 0.9


JOINT = read_json(samples('runs/joint/metrics.json'))


def test_joint_and_apart_cost_the_same():
    costs = [JOINT['cost'][arm] for arm in ('apart', 'settle', 'moving')]
    assert max(costs) < 1.02*min(costs) and {(row['arm'], row['seed']) for row in JOINT['rows'] if row['data'] == 'emoji'} >= {(arm, seed) for arm in ('apart', 'settle', 'moving') for seed in range(3)}


def test_together_neither_pays_nor_costs():
    rows = {(row['arm'], row['seed']): row for row in JOINT['rows'] if row['data'] == 'emoji'}
    for seed in range(3):
        apart, settle, moving = (rows[arm, seed] for arm in ('apart', 'settle', 'moving'))
        assert abs(settle['painting']['psnr_db'] - apart['painting']['psnr_db']) < 0.1 and moving['painting']['psnr_db'] > apart['painting']['psnr_db']
        assert abs(settle['explained'] - apart['explained']) < 0.02 and moving['explained'] < apart['explained'] and abs(settle['probe']['trained'] - apart['probe']['trained']) < 0.04


@pytest.mark.parametrize('row', read_json(samples('runs/codebook_speed.json'))['rows'], ids=lambda row: row['name'])
def test_lookup_and_update_of_a_large_codebook(row):
    assert row['times_faster'] >= 2.5 and row['memory_ratio'] <= 0.1 and row['largest_kept_for_backward']*100 < row['vectors_times_codes']
