"A thousand kinds of bad input end well or with one sentence (see fuzz.py); a hundred of them in every run of the tests."
import sys

import pytest

pytest.importorskip('resource', reason='this system has no limits for processes')
import fuzz
from beit_lab.core import DataError


def faults(results): return [f"case {r['number']}, {r['kind']}, {r['what'][:200]}: {r['outcome']}\n{r['text'][-1500:]}" for r in results if r['outcome'].startswith('fault')]


def test_a_hundred_cases():
    results = fuzz.fuzz(100)
    assert not faults(results), '\n'.join(faults(results))
    assert {r['kind'] for r in results} == set(fuzz.KINDS)
    assert {r['outcome'] for r in results} == {'accepted', 'refused'}    # else the damage is too small, or too large


@pytest.mark.slow
def test_a_thousand_cases():
    results = fuzz.fuzz(1000, seed=1)
    assert not faults(results), '\n'.join(faults(results))
    assert sum(r['kind'] in ('runs', 'commands') for r in results) >= 100
    figures = fuzz.summary(results, 1)
    assert 0.15 < figures['accepted']/figures['cases'] < 0.85
    for kind in fuzz.KINDS: assert figures['by_kind'][kind]['accepted'] and figures['by_kind'][kind]['refused']


@pytest.mark.parametrize('call,outcome', [(lambda: 1/0, 'fault: ZeroDivisionError'), (lambda: sys.exit('no sentence of ours'), 'fault: no sentence'), (lambda: sys.exit('beit-lab: a\nb'), 'fault: no sentence'),
                                          (lambda: sys.exit('beit-lab: it is so'), 'refused'), (lambda: sys.exit(0), 'accepted'), (lambda: None, 'accepted'), (lambda: fuzz_error(), 'refused'), (lambda: fuzz_error(''), 'fault: not one sentence')])
def test_the_judge_knows_a_fault(call, outcome): assert fuzz.judged(call)[0] == outcome

def fuzz_error(text='the picture is broken'): raise DataError(text)


def test_hanging_swelling_and_dying_are_faults(tmp_path):
    "The watch itself, on cases that do their worst."
    watch = fuzz.Watched('misbehave', tmp_path)
    try: assert [watch.do(number)['outcome'].rstrip('0123456789 MB') for number in fuzz.MISBEHAVIOUR] == ['fault: hangs', 'fault:', 'fault: the process died']
    finally: watch.stop()
