"README's four things that people do, as they stand there, on small data: what is shortened is named in SMALL"
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1]/'README.md').read_text()
SMALL = {'60, 3.5e-4': '1, 3.5e-4', 'size=(256, 128), bs=64': 'size=(64, 32), bs=8'}
NAMES = ['Train on your own data', 'Evaluate', 'Search', 'Deploy']


def snippet(name):
    "Language and text of the code below a heading"
    language, text = re.search(rf'^### {name}$.*?^```(\w+)\n(.*?)^```', README, re.M | re.S).groups()
    return language, text


def test_five_lines_each():
    for name in NAMES: assert 1 <= len(snippet(name)[1].strip().splitlines()) <= 5, name


@pytest.fixture(scope='module')
def folder(tmp_path_factory, walkers_root):
    "What the snippets name: people, a folder a person, with part masks; a benchmark; a tracker's crops; a picture; and ImageNet weights of our own"
    import torch
    from torchvision.models import ResNet50_Weights, resnet50
    from magnifier.data.readers import market1501
    here, catalog = tmp_path_factory.mktemp('readme'), market1501(walkers_root)
    (here/'Market-1501-v15.09.15').symlink_to(walkers_root)
    for row in catalog[catalog.split == 'train'].itertuples():
        for kind, source in (('people', row.path), ('people_ps_label', row.mask)):
            target = here/kind/f'{row.pid:04d}'/Path(source).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for row in catalog[catalog.split == 'gallery'].head(12).itertuples():
        target = here/'crops'/Path(row.path).name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(row.path, target)
    shutil.copy(catalog[catalog.split == 'query'].path.iat[0], here/'person.jpg')
    weights = here/'torch/hub/checkpoints'/ResNet50_Weights.IMAGENET1K_V1.url.rsplit('/', 1)[1]
    weights.parent.mkdir(parents=True)
    torch.save(resnet50().state_dict(), weights)
    return here


def environment(folder): return {**os.environ, 'TORCH_HOME': str(folder/'torch'), 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'}


def shortened(text):
    for long, short in SMALL.items(): text = text.replace(long, short)
    return text


def test_the_python_of_the_four_things(folder):
    "One process, as one session: what the first trains the others use"
    texts = [text for language, text in map(snippet, NAMES) if language == 'python']
    assert len(texts) == 3 and all(long in ''.join(texts) for long in SMALL)
    code = 'crops = [__import__("numpy").zeros((90, 40, 3), "uint8")]*3\n' + shortened('\n'.join(texts)) + \
           '\nassert embeddings.shape == (3, 4096) and Path("people.pkl").exists(), embeddings.shape\n'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_commands_of_the_four_things(folder):
    "The learner of the test before; the page is asked for and stopped"
    if not (folder/'people.pkl').exists(): test_the_python_of_the_four_things(folder)
    language, text = snippet('Search')
    lines = [line.split('#')[0].strip() for line in text.strip().splitlines()]
    assert language == 'bash' and [line.split()[0] for line in lines] == ['magnifier_index', 'magnifier_search', 'magnifier_app']
    run = lambda line: [str(Path(sys.executable).parent/line.split()[0]), *line.split()[1:]]
    for line in lines[:2]:
        done = subprocess.run(run(line), cwd=folder, env=environment(folder), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert (folder/'people.db').exists() and (folder/'hits.png').stat().st_size > 5000 and 'similarity' in done.stdout
    with subprocess.Popen(run(lines[2]), cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as page:
        said, end = '', time.time() + 120
        while 'http://127.0.0.1' not in said and time.time() < end and page.poll() is None: said += page.stdout.readline()
        page.send_signal(signal.SIGINT)
        assert page.wait(30) == 0 and 'searches 12 images' in said, said
