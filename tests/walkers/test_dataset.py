import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from magnifier.data.readers import MARKET_FOLDERS
from magnifier.files import aside_folder, clear_leftovers
from magnifier.walkers import dataset as module
from magnifier.walkers.canvas import stream
from magnifier.walkers.dataset import identities, noisy_mask, plan, walkers, walkers_truth
from magnifier.walkers.person import DETAILS

SMALL = dict(n_train=2, n_test=3, n_images=5, n_queries=3, n_gallery=4, n_distractors=4, n_junk=2)  # 37 images
TINY = dict(n_train=2, n_test=2, n_images=2, n_queries=2, n_gallery=1, n_distractors=1, n_junk=1)   # 12 images


def labels_of(root): return root.with_name(root.name + '_ps_label')


def files(root): return sorted(p.relative_to(root) for p in root.rglob('*') if p.is_file())


def contents(root): return {f: hashlib.sha256((root/f).read_bytes()).hexdigest() for f in files(root)}


def leftovers(root): return [p for p in root.parent.iterdir() if p.name.startswith('.')]


@pytest.fixture(scope='module')
def small(tmp_path_factory): return walkers(tmp_path_factory.mktemp('walkers')/'set', **SMALL)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return walkers(tmp_path_factory.mktemp('walkers')/'tiny', **TINY)


def test_layout_is_market1501s(small):
    counts = {f: len(list((small/f).iterdir())) for f in MARKET_FOLDERS.values()}
    assert counts == dict(bounding_box_train=2 * 5, query=3 * 3, bounding_box_test=3 * 4 + 4 + 2)
    for file in small.glob('*/*'):
        assert re.fullmatch(r'(-1|\d{4})_c[1-6]s\d_\d{6}_\d\d\.jpg', file.name)
        with Image.open(file) as image:
            assert (image.size, image.mode, image.format) == ((64, 128), 'RGB', 'JPEG')


def test_masks_lie_beside_under_the_same_names(small):
    seen = set()
    for file in small.glob('*/*.jpg'):
        with Image.open(labels_of(small)/file.relative_to(small).with_suffix('.png')) as mask:
            assert mask.mode == 'L'
            assert mask.size == (64, 128)
            seen |= set(np.unique(np.array(mask)))
    assert seen == set(range(8))
    assert len(list(labels_of(small).glob('*/*.png'))) == 37


def test_the_real_reader_reads_it(small):
    from magnifier.data.readers import market1501
    catalog = market1501(small)
    assert (catalog.pid >= 0).all()
    assert catalog['mask'].notna().all()
    assert catalog.groupby('split').size().to_dict() == dict(train=10, query=9, gallery=16)


def test_splits_share_no_identity_and_every_query_has_a_match(small):
    table = walkers_truth(small)
    train, query, gallery = (table[table.split == s] for s in MARKET_FOLDERS)
    assert not set(train.pid) & (set(query.pid) | set(gallery.pid))
    assert (query.groupby('pid').camid.nunique() == 3).all()
    assert len(query) == 9
    for row in query.itertuples(): assert ((gallery.pid == row.pid) & (gallery.camid != row.camid)).any()
    assert (train.groupby('pid').camid.nunique() >= 4).all()


@given(n=st.integers(1, 12), n_gallery=st.integers(1, 8), seed=st.integers(0, 10**9))
@settings(deadline=None, max_examples=20)
def test_plans_hold_for_any_size(n, n_gallery, seed):
    people = identities(2 * n, seed)
    shots = plan(people, n_train=n, n_images=3, n_queries=4, n_gallery=n_gallery, n_distractors=n, n_junk=n, seed=seed)
    assert len({s.file for s in shots}) == len(shots) == 3 * n + (4 + n_gallery) * n + 2 * n
    for q in shots:
        if q.split == 'query': assert any(g.split == 'gallery' and g.pid == q.pid and g.camid != q.camid for g in shots)
    assert all(s.who.pid > n for s in shots if s.pid == -1)
    assert all(s.who is None for s in shots if s.pid == 0)


def test_a_third_are_families_of_four(small):
    people = identities(30, 0)
    assert [p.pid for p in people] == list(range(1, 31))
    for first in (1, 13, 25):
        four = people[first-1:first+3]
        looks = [asdict(p.appearance) for p in four]
        differing = {name for name in looks[0] if len({str(look[name]) for look in looks}) > 1}
        assert {p.family for p in four} == {first}
        assert differing == set(DETAILS[four[0].detail])
        assert len({p.value for p in four}) == 4
    assert all(p.family is None and p.detail == p.value == '' for p in people[4:12] + people[16:24])
    assert len({p.appearance for p in people}) == 30
    kept = json.loads((small/'identities.json').read_text())
    assert kept['1']['appearance']['hat'] == people[0].appearance.hat
    assert kept['5']['family'] is None


def test_relatives_seldom_pass_the_camera_of_the_query():
    "One of a family's three query cameras holds gallery images of it, a quarter of them; the others hold none"
    shots = plan(identities(96, 1), n_train=12, n_images=1, n_queries=6, n_gallery=8, n_distractors=0, n_junk=0, seed=1)
    family = {s.who.pid: s.who.family for s in shots}
    for query in (s for s in shots if s.split == 'query' and s.who.family):
        others = [s for s in shots if s.split == 'gallery' and s.pid != query.pid]
        relatives = [s for s in others if family[s.pid] == query.who.family]
        assert sum(s.camid == query.camid for s in relatives) in (0, 6)
        assert len(relatives) == 24


def test_the_truth_table(small):
    table = walkers_truth(small)
    assert sorted(table.file) == sorted(str(p.relative_to(small)) for p in small.glob('*/*.jpg'))
    for row in table.itertuples():
        assert row.file.split('/')[1].startswith('-1' if row.pid < 0 else f'{row.pid:04d}')
        assert f'_c{row.camid}s' in row.file
        with Image.open(labels_of(small)/f'{row.file[:-4]}.png') as mask: mask = np.array(mask)
        if row.joints is None:
            assert not mask.any()
            assert row.view == ''
        else:
            assert row.joints.shape == (17, 3)
            x, y, seen = row.joints[row.joints[:, 2] > 0].T.astype(int)
            assert (x < 64).all()
            assert (y < 128).all()
    junk = table[table.pid == -1]
    assert len(junk) == 2
    assert set(junk.person.astype(int)) <= {3, 4, 5}
    assert ((table.occluded > 0) <= (table.occluder != '')).all()


@pytest.mark.slow
def test_a_third_is_occluded():
    shots = plan(identities(8, 0), n_train=8, n_images=25, n_queries=1, n_gallery=1, n_distractors=0, n_junk=0, seed=0)
    drawn = [module.take(shot, 0, .33)[1]['occluder'] for shot in shots]
    kinds = {k: drawn.count(k) for k in set(drawn)}
    assert .25 < 1 - kinds[''] / 200 < .42
    assert len(kinds) == 4
    assert min(kinds.values()) >= 10


def test_the_same_seed_gives_the_same_files(tiny, tmp_path):
    again = walkers(tmp_path/'again', **TINY)
    assert contents(again) == contents(tiny)
    assert contents(labels_of(again)) == contents(labels_of(tiny))
    other = walkers(tmp_path/'other', **TINY, seed=1)
    assert not set(contents(other).values()) & {v for k, v in contents(tiny).items() if k.suffix == '.jpg'}


def test_an_image_depends_on_no_other(tmp_path, tiny):
    "More images of each identity, the same ones first"
    more = walkers(tmp_path/'more', **{**TINY, 'n_images': 3, 'n_distractors': 4})
    before, after = contents(tiny), contents(more)
    kept = [f for f in before if f.suffix == '.jpg' and f in after]
    assert len(kept) == 12
    assert all(before[f] == after[f] for f in kept)


def test_a_second_call_finds_it(tiny, monkeypatch):
    def fail(*args): raise AssertionError('drawn again')
    monkeypatch.setattr(module, '_draw_all', fail)
    times = {p: p.stat().st_mtime_ns for p in tiny.rglob('*')}
    assert walkers(str(tiny), **TINY) == tiny
    assert times == {p: p.stat().st_mtime_ns for p in tiny.rglob('*')}


def test_without_a_path_it_is_cached_by_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    one, two = walkers(**TINY), walkers(**TINY, mask_noise=.5)
    assert one.parent == two.parent == tmp_path/'data'
    assert one != two
    assert walkers(**TINY) == one
    assert walkers(None, 2, 2, 0, n_images=2, n_queries=2, n_gallery=1, n_distractors=1, n_junk=1) == one
    assert leftovers(one) == []


def test_an_empty_folder_is_filled_and_defaults_follow(tmp_path):
    (tmp_path/'here').mkdir()
    root = walkers(tmp_path/'here', n_train=1, n_test=2, n_images=1, n_queries=1, n_gallery=1)
    arguments = json.loads((root/'walkers.json').read_text())['arguments']
    assert arguments['n_distractors'] == 2
    assert arguments['n_junk'] == 1


def test_mask_noise_leaves_images_alone(tmp_path, tiny):
    noisy = walkers(tmp_path/'noisy', **TINY, mask_noise=.6)
    pictures = [f for f in contents(tiny) if f.suffix == '.jpg']
    assert all(contents(tiny)[f] == contents(noisy)[f] for f in pictures)
    exact, noised = contents(labels_of(tiny)), contents(labels_of(noisy))
    changed = [f for f in exact if f.suffix == '.png' and exact[f] != noised[f]]
    assert len(changed) >= 8


def test_noisy_masks_move_boundaries_and_lose_limbs():
    mask = np.zeros((128, 64), np.uint8)
    mask[20:60, 20:44], mask[60:100, 20:30], mask[60:100, 34:44] = 2, 5, 5
    np.testing.assert_array_equal(noisy_mask(mask, 0., stream(0)), mask)
    wrong, lost = [], 0
    for strength in (.1, .4, 1.):
        drawn = [noisy_mask(mask, strength, stream('noise', i)) for i in range(40)]
        assert all(set(np.unique(m)) <= {0, 2, 5} for m in drawn)
        wrong.append(np.mean([(m != mask).mean() for m in drawn]))
        lost = sum((m == 5)[:, :31].sum() < 60 or (m == 5)[:, 31:].sum() < 60 for m in drawn)
    assert .005 < wrong[0] < wrong[1] < wrong[2] < .4
    assert 3 < lost < 25
    empty = np.zeros((128, 64), np.uint8)
    np.testing.assert_array_equal(noisy_mask(empty, 1., stream(0)), empty)


# ---- killed, at the same time, in the way

CHILD = '''
import os, signal, sys
from magnifier.walkers import dataset as module
where, root = sys.argv[1:3]
def die(): os.kill(os.getpid(), signal.SIGKILL)
def killing(function, nth):
    calls = []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth: die()
        return function(*args, **kwargs)
    return wrapped
from magnifier import files
if where == 'images': module.take = killing(module.take, 5)
if where == 'labels': files.os.rename = killing(files.os.rename, 1)
if where == 'between': files.os.rename = killing(files.os.rename, 2)
if where == 'after': files.shutil.rmtree = killing(files.shutil.rmtree, 2)
module.walkers(root, n_train=2, n_test=2, n_images=2, n_queries=2, n_gallery=1, n_distractors=1, n_junk=1)
'''


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL on this system')
@pytest.mark.parametrize('where', [
    'images', *(pytest.param(w, marks=pytest.mark.slow) for w in ('labels', 'between', 'after'))])
def test_killed(tmp_path, tiny, where):
    root = tmp_path/'killed'
    assert subprocess.run([sys.executable, '-c', CHILD, where, str(root)]).returncode == -signal.SIGKILL
    assert root.exists() == (where == 'after')
    assert labels_of(root).exists() == (where in ('between', 'after'))
    assert walkers(root, **TINY) == root
    assert contents(root) == contents(tiny)
    assert contents(labels_of(root)) == contents(labels_of(tiny))
    if where != 'after': assert leftovers(root) == []


def test_what_a_living_process_draws_is_left_alone(tmp_path):
    "However long it has been at it"
    with aside_folder(tmp_path/'set') as part:
        os.utime(part.parent, (time.time() - 7200,) * 2)
        os.utime(part, (time.time() - 7200,) * 2)
        walkers(tmp_path/'other', **TINY)
        clear_leftovers(tmp_path)
        assert part.exists()


@pytest.mark.slow
def test_calls_at_the_same_time(tmp_path, tiny):
    root = tmp_path/'shared'
    children = [subprocess.Popen([sys.executable, '-c', CHILD, 'nowhere', str(root)]) for _ in range(2)]
    assert [c.wait() for c in children] == [0, 0]
    assert contents(root) == contents(tiny)
    assert contents(labels_of(root)) == contents(labels_of(tiny))
    assert leftovers(root) == []


@pytest.mark.parametrize('late', ['set', pytest.param('set_ps_label', marks=pytest.mark.slow)])
def test_another_call_was_first(tmp_path, tiny, monkeypatch, late):
    "The root or its masks appear after the check and before the rename"
    root, rename = tmp_path/'set', os.rename
    def race(source, target):
        if target.name == late and not target.exists():
            shutil.copytree(tiny if target == root else labels_of(tiny), target)
        rename(source, target)
    monkeypatch.setattr('magnifier.files.os.rename', race)
    assert walkers(root, **TINY) == root
    assert contents(root) == contents(tiny)
    assert contents(labels_of(root)) == contents(labels_of(tiny))
    assert leftovers(root) == []


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module, 'take', full)
    with pytest.raises(OSError, match='No space left'): walkers(tmp_path/'set', **TINY)
    assert list(tmp_path.iterdir()) == []


def test_lost_masks_are_drawn_again(tmp_path, tiny):
    root = shutil.copytree(tiny, tmp_path/'set')
    walkers(root, **TINY)
    assert contents(labels_of(root)) == contents(labels_of(tiny))


def test_lost_images_are_named(tmp_path, tiny):
    root = shutil.copytree(tiny, tmp_path/'set')
    next((root/'query').iterdir()).unlink()
    with pytest.raises(ValueError, match=r'lacks files \(query has 3 of 4 files\): remove it, and draw it again'):
        walkers(root, **TINY)


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('years')
    with pytest.raises(ValueError, match='mine exists and does not hold drawn walkers: choose'):
        walkers(tmp_path/'mine', **TINY)
    assert (tmp_path/'mine'/'thesis.txt').read_text() == 'years'
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path/'file').write_text('a file')
    with pytest.raises(ValueError, match='does not hold drawn walkers'): walkers(tmp_path/'file', **TINY)
    (tmp_path/'new_ps_label').mkdir()
    (tmp_path/'new_ps_label'/'own.png').write_text('mine')
    with pytest.raises(ValueError, match='new_ps_label exists and does not hold'):
        walkers(tmp_path/'new', **TINY)
    assert not (tmp_path/'new').exists()


def test_a_set_with_other_arguments_is_named(tiny):
    said = r"tiny holds walkers drawn with .*'seed': 0.*wanted are .*'seed': 3.*choose another path"
    with pytest.raises(ValueError, match=said): walkers(tiny, **TINY, seed=3)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='cannot write .*set.*name another folder'): walkers(tmp_path/'file'/'set', **TINY)


@pytest.mark.parametrize('kwargs,error,message', [
    (dict(n_train=0), ValueError, 'n_train=0: use 1 or more'),
    (dict(n_test=0), ValueError, 'n_test=0'),
    (dict(seed=-1), ValueError, 'seed=-1: use 0 or more'),
    (dict(n_train=2.5), TypeError, 'n_train=2.5: use a whole number'),
    (dict(n_test='9'), TypeError, "n_test='9'"),
    (dict(seed=True), TypeError, 'seed=True'),
    (dict(n_gallery=0), ValueError, 'n_gallery=0'),
    (dict(n_images=8000), ValueError, 'n_images=8000: use 1 or more, at most 7000'),
    (dict(n_junk=-1), ValueError, 'n_junk=-1: use 0'),
    (dict(n_train=6000, n_test=6000), ValueError, '6000 . 6000 identities: names have four digits'),
    (dict(occluded=1.5), ValueError, 'occluded=1.5: use a number from 0 to 1'),
    (dict(mask_noise=float('nan')), ValueError, 'mask_noise=nan'),
    (dict(mask_noise='a'), ValueError, "mask_noise='a'")])
def test_bad_arguments(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message): walkers(tmp_path/'set', **kwargs)
    assert list(tmp_path.iterdir()) == []


def test_truth_of_another_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='was not written by walkers'): walkers_truth(tmp_path)


def test_the_table_has_unix_lines_everywhere(tiny):
    raw = (tiny/'walkers.csv').read_bytes()
    assert b'\r' not in raw
    assert len(list(csv.DictReader(raw.decode().splitlines()))) == 12
