"The command line in processes of their own, without the seconds in which its libraries load: they are loaded once, and every command is a fork of that."
import multiprocessing, os, sys, tempfile
from pathlib import Path
from types import SimpleNamespace

LOADED = ['beit_lab.all', 'beit_lab.cli', 'beit_lab.main_job', 'beit_lab.pairs_job', 'sklearn.linear_model', 'sklearn.neighbors']


def command(arguments, cwd, environment, files):
    "In the fork: what `python -m beit_lab.cli` does."
    for number, file in enumerate(files, 1): os.dup2(os.open(file, os.O_WRONLY), number)
    os.environ.clear(); os.environ.update(environment)
    if cwd: os.chdir(cwd)
    import torch
    torch.set_num_threads(1) # a team of threads does not survive a fork
    sys.argv = ['beit-lab', *arguments]
    from beit_lab.cli import main
    main()


def lab(*arguments, cwd=None, seconds=600):
    "Run a command to its end: its `returncode`, and what it said as `stdout` and `stderr`."
    forks = multiprocessing.get_context('forkserver')
    forks.set_forkserver_preload(LOADED)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder)/name for name in ('out', 'errors')]
        for file in files: file.touch()
        process = forks.Process(target=command, args=([*map(str, arguments)], cwd and str(cwd), dict(os.environ), [*map(str, files)]))
        process.start()
        process.join(seconds)
        if process.is_alive(): process.kill(); process.join(); raise TimeoutError(f'beit-lab {arguments} took more than {seconds} s')
        said = [file.read_text(encoding='utf-8') for file in files]
    return SimpleNamespace(returncode=process.exitcode, stdout=said[0], stderr=said[1])


def refused(*arguments, says):
    "The command fails with one sentence and without a traceback."
    result = lab(*arguments)
    assert result.returncode != 0
    assert 'Traceback' not in result.stderr, result.stderr
    assert says in result.stderr, result.stderr
    assert result.stderr.strip().startswith('beit-lab: ') and len(result.stderr.strip().splitlines()) == 1, result.stderr
