"Every tensor is put where it belongs: the cases run in a process of their own, since the pretended device changes PyTorch for all that follows."
import os, subprocess, sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(backend_registration, '_setup_privateuseone_for_python_backend'), reason='this PyTorch cannot pretend a device (2.10 and newer can)')
def test_everything_is_put_on_the_device_it_belongs_to():
    ran = subprocess.run([sys.executable, '-m', 'pytest', '-o', 'addopts=', '-q', '-x', '-p', 'no:cacheprovider', str(HERE/'other_device_cases.py')], capture_output=True, text=True, cwd=HERE,
                         env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert ran.returncode == 0 and '7 passed' in ran.stdout, ran.stdout[-3000:] + ran.stderr[-500:]
