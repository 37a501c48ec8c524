"Prints the requirements of settings.ini that this environment does not meet; exit code 1 if there are any."
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).resolve().parents[1]/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']


def unmet(line):
    "Is the requirement missing or of another version?"
    requirement = Requirement(line)
    try: return not requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError: return True


missing = [line for line in (settings['requirements'] + ' ' + settings['test_requirements']).split() if unmet(line)]
try: version('beit_lab')
except PackageNotFoundError: missing.append('beit_lab itself')
print('\n'.join(missing))
sys.exit(bool(missing))
