"Package metadata: everything is read from settings.ini, so that it is written once."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=settings['author'],
    license=settings['license'],
    keywords=settings['keywords'],
    packages=find_packages(include=['beit_lab*']),
    package_data={'beit_lab': ['*.css', '**/*.css', '**/*.html', '*.js', '**/*.js']},
    python_requires=f">={settings['min_python']},<3.{int(settings['max_python'].split('.')[1]) + 1}",
    install_requires=settings['requirements'].split(),
    extras_require={'test': settings['test_requirements'].split()},
    entry_points={'console_scripts': settings['console_scripts'].split(), 'nbdev': ['beit_lab=beit_lab._modidx:d']},
)
