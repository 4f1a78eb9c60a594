"Builds the distribution from settings.ini, the one place that holds its name, version and requirements"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser()
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'],
    author=cfg['author'],
    license=cfg['license'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={'magnifier.app': ['page.css', 'page.js']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={key.removesuffix('_requirements'): value.split()
                    for key, value in cfg.items() if key.endswith('_requirements')},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
)
