"README's five things that people do, as they stand there, on small data: what is shortened is named in SMALL"
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT/'README.md').read_text()
SMALL = {'60, 3.5e-4': '1, 3.5e-4', 'size=(256, 128), bs=64': 'size=(64, 32), bs=8'}
NAMES = ['Train on your own data', 'Evaluate', 'Search', 'Who was where', 'Deploy']


def section(heading):
    return re.search(rf'^#+ {heading}$(.*?)^#', README, re.M | re.S).group(1)


def test_ablation_table_is_that_of_the_runs():
    import pandas as pd
    from magnifier.train.ablation import summary
    made = summary(pd.read_csv(ROOT/'nbs'/'ablation-walkers.csv')).loc['Table 2']
    rows = [[cell.strip() for cell in line.split('|')[1:4]] for line in section('What each part adds').splitlines()
            if line.startswith('| G')]
    figures = [[f'{row[name]:.1f} ± {row[f"± {name}"]:.1f}' for name in ('R1', 'mAP')] for _, row in made.iterrows()]
    assert rows == [[line.replace('+', ' + '), *of_line] for line, of_line in zip(made.index, figures)]


def test_figures_on_photographs_are_those_of_the_benchmark():
    import pandas as pd
    found = pd.read_csv(ROOT/'tests'/'bench'/'2026-11-28-photographs.csv')
    light = (found['size'] == '128x64') & (found.arguments == 'last_convolution=false upsample_maps=true')
    rows = found.row.str.startswith('G') & (found.embedding == 'parts x 0.5')
    found = found[light & rows].groupby('row')[['R1', 'mAP']].mean()
    said = {cells[1].strip().replace(' ', ''): cells[4].strip() for line in section('What each part adds').splitlines()
            if line.startswith('| G') and (cells := line.split('|'))}
    for row, words in said.items():
        if words: assert [float(f) for f in words.split(' / ')] == pytest.approx(found.loc[row].tolist(), abs=.051), row
    assert len(found) == 5
    assert sum(map(bool, said.values())) == 5


def test_figures_of_who_was_where_are_those_of_the_benchmark():
    import pandas as pd
    found = pd.read_csv(ROOT/'tests'/'bench'/'2026-11-28-people.csv')
    found = found.set_index(['embedder', 'setting', 'tracks'])['idf1'].sort_index()
    cases = [('model', 'as it is'), *[('HSV stripes', setting) for setting in ('as it is', 'best threshold', 'chance')]]
    measured = [found[case][tracks] for case in cases for tracks in ('true', 'tracker')]
    said = [float(figure) for figure in re.findall(r'\b0\.\d\d\b', section('Who was where'))]
    assert said == pytest.approx(measured, abs=.0051)


def snippet(name):
    "Language and text of the code below a heading"
    language, text = re.search(rf'^### {name}$.*?^```(\w+)\n(.*?)^```', README, re.M | re.S).groups()
    return language, text


def test_five_lines_each():
    for name in NAMES: assert 1 <= len(snippet(name)[1].strip().splitlines()) <= 5, name


@pytest.fixture(scope='module')
def folder(tmp_path_factory, walkers_root):
    """What the snippets name: own images, a folder a person, with part masks; a benchmark; a tracker's crops;
    an image; two videos with a tracker's boxes; and ImageNet weights of our own"""
    import torch
    from torchvision.models import ResNet50_Weights, resnet50
    from magnifier.data.readers import market1501
    from magnifier.walkers.streams import walkers_streams
    here, catalog = tmp_path_factory.mktemp('readme'), market1501(walkers_root)
    (here/'Market-1501-v15.09.15').symlink_to(walkers_root)
    for row in catalog[catalog.split == 'train'].itertuples():
        for kind, source in (('own', row.path), ('own_ps_label', row.mask)):
            target = here/kind/f'{row.pid:04d}'/f'cam{row.camid}_{Path(source).name}'
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for row in catalog[catalog.split == 'gallery'].head(12).itertuples():
        target = here/'crops'/Path(row.path).name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(row.path, target)
    shutil.copy(catalog[catalog.split == 'query'].path.iat[0], here/'person.jpg')
    streams = walkers_streams(here/'streams', people=2, cameras=2, minutes=.1, size=(144, 256), masks=False)
    for file in streams.glob('cam?.[mt]*'): shutil.copy(file, here)
    weights = here/'torch/hub/checkpoints'/ResNet50_Weights.IMAGENET1K_V1.url.rsplit('/', 1)[1]
    weights.parent.mkdir(parents=True)
    torch.save(resnet50().state_dict(), weights)
    return here


def environment(folder):
    return {**os.environ, 'TORCH_HOME': str(folder/'torch'), 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'}


def shortened(text):
    for long, short in SMALL.items(): text = text.replace(long, short)
    return text


def commands(text): return [line.split('#')[0].strip() for line in text.strip().splitlines()]


def words(line): return [str(Path(sys.executable).parent/line.split()[0]), *line.split()[1:]]


def run(line, folder):
    "What a command prints"
    done = subprocess.run(words(line), cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_python_of_the_five_things(folder):
    "One process, as one session: what the first trains the others use"
    texts = [text for language, text in map(snippet, NAMES) if language == 'python']
    assert len(texts) == 3
    assert all(long in ''.join(texts) for long in SMALL)
    code = 'crops = [__import__("numpy").zeros((90, 40, 3), "uint8")]*3\n' + shortened('\n'.join(texts)) + \
           '\nassert embeddings.shape == (3, 4096) and Path("people.pkl").exists(), embeddings.shape\n'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, env=environment(folder),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_commands_of_the_five_things(folder):
    "The learner of the test before; the page is asked for and stopped"
    if not (folder/'people.pkl').exists(): test_the_python_of_the_five_things(folder)
    language, text = snippet('Search')
    lines = commands(text)
    assert language == 'bash'
    assert [line.split()[0] for line in lines] == ['magnifier_index', 'magnifier_search', 'magnifier_app']
    done = [run(line, folder) for line in lines[:2]]
    assert (folder/'people').is_dir()
    assert (folder/'hits.png').stat().st_size > 5000
    assert 'similarity' in done[1]
    with subprocess.Popen(words(lines[2]), cwd=folder, env=environment(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as page:
        said, end = '', time.time() + 120
        while 'http://127.0.0.1' not in said and time.time() < end and page.poll() is None:
            said += page.stdout.readline()
        page.send_signal(signal.SIGINT)
        assert page.wait(30) == 0, said
        assert 'searches 12 images' in said


@pytest.mark.slow
def test_who_was_where(folder):
    """Two people, two cameras, from videos to a table, a figure and boxes; so few are followed that a threshold
    has to be named"""
    if not (folder/'people.pkl').exists(): test_the_python_of_the_five_things(folder)
    language, text = snippet('Who was where')
    assert language == 'bash'
    first, second, people = commands(text)
    for line in (first, second): assert 'images added' in run(line, folder)
    assert 'person' in run(f'{people} --threshold 0.5', folder)
    assert (folder/'people.csv').stat().st_size > 100
    assert (folder/'people.png').stat().st_size > 5000
    assert {file.name for file in (folder/'boxes').iterdir()} <= {'cam1_cam1.txt', 'cam2_cam2.txt'}
