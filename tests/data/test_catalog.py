"The catalog: its form, its quick and its thorough check, its masks, and joining"

import logging
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from magnifier.data.catalog import (COLUMNS, CatalogWarning, check_catalog, describe, find_masks, join_catalogs,
                                    lost_queries, lost_queries_message, make_catalog, validate_catalog)
from magnifier.data.images import write_mask


def draw(path, size=(4, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', size, 1).save(path)
    return path


def rows_of(*rows): return [dict(path=p, pid=pid, camid=cam, split=s) for p, pid, cam, s in rows]


@pytest.fixture
def good(tmp_path):
    "Two training identities; one query with a match; files that exist"
    rows = [('a', 2, 1, 'train'), ('b', 2, 2, 'train'), ('c', 1, 1, 'train'), ('d', 5, 1, 'query'),
            ('e', 5, 2, 'gallery'), ('f', 0, 2, 'gallery')]
    return make_catalog(rows_of(*((str(draw(tmp_path/'set'/s/f'{n}.png')), p, c, s) for n, p, c, s in rows)))


# --- form

def test_form_and_order():
    catalog = make_catalog(rows_of(('g1', 3, 1, 'gallery'), ('q', 3, 2, 'query'), ('t2', 9, 0, 'train'),
                                   ('t1', 9, 5, 'train'), ('t0', 1, 0, 'train')))
    assert tuple(catalog) == COLUMNS
    assert catalog['path'].tolist() == ['t0', 't1', 't2', 'q', 'g1']
    assert catalog.index.tolist() == [0, 1, 2, 3, 4]
    assert str(catalog['pid'].dtype) == str(catalog['camid'].dtype) == 'int64'
    assert catalog['mask'].tolist() == [None] * 5
    assert all(type(p) is str for p in catalog['path'])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(['train', 'query', 'gallery'])),
                min_size=1, max_size=12), st.randoms())
@settings(deadline=None, max_examples=40)
def test_order_does_not_depend_on_the_order_of_rows(people, random):
    rows = rows_of(*((f'{i}.jpg', *p) for i, p in enumerate(people)))
    shuffled = random.sample(rows, len(rows))
    pd.testing.assert_frame_equal(make_catalog(rows), make_catalog(shuffled))


def test_missing_masks_become_none_and_own_columns_stay(tmp_path):
    rows = pd.DataFrame(dict(path=[tmp_path/'a', tmp_path/'b', tmp_path/'c', tmp_path/'d'],
                             mask=['m', np.nan, '', pd.NA], pid=[1., 2., 3., 4.], camid=1,
                             split='train', hat=[True, False, True, False]), index=[7, 7, 7, 7])
    catalog = make_catalog(rows)
    assert catalog['mask'].tolist() == ['m', None, None, None]
    assert catalog['hat'].tolist() == [True, False, True, False]
    assert catalog['pid'].tolist() == [1, 2, 3, 4]
    assert catalog['camid'].tolist() == [1, 1, 1, 1]
    assert type(catalog['path'][0]) is str


@pytest.mark.parametrize('change, message', [
    (dict(pid='bob'), "x.jpg: pid 'bob' is not a whole number"),
    (dict(pid=None), 'x.jpg: pid .* is not a whole number'),
    (dict(camid=1.5), 'x.jpg: camid 1.5 is not a whole number'), (dict(pid='7'), r"pid '7' is not .*astype\(int\)"),
    (dict(pid=float('inf')), 'pid inf is not'), (dict(camid=-np.inf), 'camid -inf is not'),
    (dict(pid=True), 'pid True is not'),
    (dict(pid=2**63), 'pid 9223372036854775808 is not a whole number of at most 64 bits'),
    (dict(pid=1e22), 'pid 1e.22 is not'),
    (dict(pid=float(2**53 + 2)), 'is not a whole number of'),
    (dict(split='test'), "x.jpg: split 'test', use train, query, gallery")])
def test_wrong_rows_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_catalog([dict(path='x.jpg', pid=1, camid=1, split='train') | change])


def test_large_numbers_are_exact():
    pids = list(range(2**53 - 1, 2**53 + 5)) + [2**63 - 1]
    catalog = make_catalog(rows_of(*((f'{i}.png', p, p, 'train') for i, p in enumerate(pids))))
    assert catalog.pid.tolist() == pids
    assert catalog.camid.tolist() == pids
    with pytest.raises(ValueError, match='cannot be moved up'):
        join_catalogs(make_catalog(rows_of(('a', 1, 1, 'train'))), catalog)


def test_no_rows_and_no_columns():
    with pytest.raises(ValueError, match='no images'): make_catalog([])
    with pytest.raises(ValueError, match='path None is not a path'):
        make_catalog([dict(path=None, pid=1, camid=1, split='train')])
    with pytest.raises(ValueError, match=r'lacks the column\(s\) camid, split: it has path, pid, mask'):
        make_catalog([dict(path='a', pid=1)])


# --- the door

def test_a_good_catalog_passes_untouched(good):
    before = good.copy()
    assert validate_catalog(good, ['train', 'query', 'gallery']) is good
    pd.testing.assert_frame_equal(good, before)


def test_relative_paths(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path/'set'/'train')
    catalog = good[good['split'] == 'train'].assign(path=['c.png', 'a.png', 'b.png'])
    validate_catalog(catalog)


BAD = [
    (lambda c: c.drop(columns=['mask', 'pid']), ValueError,
     r'lacks the column\(s\) mask, pid: it has path, camid, split'),
    (lambda c: c[:0], ValueError, 'has no rows'),
    (lambda c: c.set_axis([0] * len(c)), ValueError, 'reset_index'),
    (lambda c: c.assign(split='val'), ValueError, "split 'val', use train, query, gallery"),
    (lambda c: c.assign(pid='x'), ValueError, "pid 'x' is not a whole number"),
    (lambda c: c.assign(camid=np.nan), ValueError, 'camid nan is not a whole number'),
    (lambda c: c.assign(pid=-1), ValueError,
     r'6 images have a negative identity \(first: .*c.png\).*catalog\[catalog.pid >= 0\]'),
    (lambda c: c.assign(path=c['path'].where(c['split'] != 'query', c['path'][4])), ValueError,
     r'1 paths are .* more than once .*f.png, as query and gallery'),
    (lambda c: c.assign(path=c['path'].where(c['split'] != 'query', 'gone.png')), FileNotFoundError,
     r'1 of 6 image files do not exist \(first: gone.png\)'),
    (lambda c: c.assign(path=c['path'].where(c['split'] != 'query', '/no/folder/x.png')), FileNotFoundError,
     '1 of 6 image files'),
    (lambda c: c.assign(mask=['gone_mask.png', None, None, None, None, None]), FileNotFoundError,
     r'1 of 1 mask files do not exist \(first: gone_mask.png'),
    (lambda c: c.assign(path=c['path'].where(c['split'] != 'query', 3)), ValueError, 'path 3 is not a path'),
    (lambda c: c.assign(path=c['path'].where(c['split'] != 'query', '')), ValueError, "path '' is not a path"),
]


@pytest.mark.parametrize('change, error, message', BAD, ids=[m[:24] for *_, m in BAD])
def test_the_door(good, change, error, message):
    with pytest.raises(error, match=message): validate_catalog(change(good))


def test_the_door_wants_a_table_and_the_splits_asked_for(good):
    with pytest.raises(TypeError, match='DataFrame, not a list'): validate_catalog([1])
    with pytest.raises(ValueError, match='no query images: found 3 train, 2 gallery'):
        validate_catalog(good[good['split'] != 'query'], ['query'])
    validate_catalog(good[good['split'] == 'train'])  # no test images: nothing to match


def test_identities_in_training_and_test(good):
    with pytest.warns(CatalogWarning, match=r'1 identities are in both training and test \(first: 5\).*too high'):
        validate_catalog(good.assign(pid=good['pid'].replace(2, 5)))


# --- queries without a match

def slow_lost(catalog):
    gallery = [r for r in catalog.itertuples() if r.split == 'gallery']
    def matched(q): return any(g.pid == q.pid and g.camid != q.camid for g in gallery)
    return [q.Index for q in catalog.itertuples() if q.split == 'query' and not matched(q)]


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(['train', 'query', 'gallery'])),
                min_size=1, max_size=20))
@settings(deadline=None, max_examples=80)
def test_lost_queries_against_the_loop(people):
    catalog = make_catalog(rows_of(*((f'{i}.jpg', *p) for i, p in enumerate(people))))
    lost = lost_queries(catalog)
    assert lost.index.tolist() == slow_lost(catalog)
    galleried = set(catalog.loc[catalog['split'] == 'gallery', 'pid'])
    assert all(('own camera' in r.why) == (r.pid in galleried) for r in lost.itertuples())
    assert len(lost_queries(catalog.drop(lost.index))) == 0  # the second way out works
    if len(lost): assert lost_queries_message(catalog, lost).startswith(f'{len(lost)} of ')


def test_some_queries_lost_is_one_warning(good):
    extra = good.iloc[[3, 3]].assign(path=[good['path'][0], good['path'][1]], pid=[5, 77], camid=2)
    catalog = pd.concat([good.iloc[3:], extra], ignore_index=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        validate_catalog(catalog)
    assert len(caught) == 1
    assert caught[0].category is CatalogWarning
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert text.startswith('2 of 3 queries have no match left')
    assert '1 with no gallery image of the identity' in text
    assert '1 with only gallery images of its own camera' in text
    assert 'Two ways out' in text
    assert '0 for queries, 1 for the gallery' in text
    assert 'catalog.drop(lost_queries(catalog).index)' in text


def test_one_camera_for_everything_is_an_error(good):
    with pytest.raises(ValueError,
                       match='1 of 1 queries have no match left.*has the one camera 3.*Two ways out'):
        validate_catalog(good.assign(camid=3))


# --- masks

def tree(root, *names): return [str(draw(root/n)) for n in names]


def catalog_of(paths): return make_catalog(rows_of(*((p, i, 0, 'train') for i, p in enumerate(paths))))


def test_masks_beside_the_root(tmp_path, caplog):
    paths = tree(tmp_path/'set', 'train/a.jpg', 'query/b.JPEG', 'deep/er/c.jpg', 'query/none.jpg', 'd.jpg.jpg')
    masks = tree(tmp_path/'set_ps_label', 'train/a.png', 'query/b.png', 'deep/er/c.png', 'd.png')
    with caplog.at_level(logging.INFO, 'magnifier'): found = find_masks(catalog_of(paths))
    assert found['mask'].tolist() == [*masks[:3], None, masks[3]]
    assert '4 of 5 images have a part mask' in caplog.text


def test_nearest_label_folder_wins(tmp_path):
    paths = tree(tmp_path/'all', 'set/x/a.jpg')
    far = tree(tmp_path/'all_ps_label', 'set/x/a.png')
    assert find_masks(catalog_of(paths))['mask'].tolist() == far
    near = tree(tmp_path/'all'/'set_ps_label', 'x/a.png')
    assert find_masks(catalog_of(paths))['mask'].tolist() == near


def test_masks_in_a_folder_of_the_caller_s(tmp_path):
    paths = tree(tmp_path/'set', 'train/a.jpg', 'query/a.jpg', 'query/b.jpg')
    nested = tree(tmp_path/'m1', 'train/a.png', 'query/a.png')
    assert find_masks(catalog_of(paths), tmp_path/'m1')['mask'].tolist() == [*nested, None]
    flat = tree(tmp_path/'m2', 'b.png')
    assert find_masks(catalog_of(paths), str(tmp_path/'m2'))['mask'].tolist() == [None, None, *flat]
    tree(tmp_path/'m2', 'a.png')
    with pytest.raises(ValueError, match='train/a.jpg and .*query/a.jpg have the same mask .*m2/a.png'):
        find_masks(catalog_of(paths), tmp_path/'m2')


def test_masks_by_function_and_none(tmp_path):
    paths = tree(tmp_path, 'a.jpg', 'b.jpg', 'c.jpg')
    mask, = tree(tmp_path, 'a_mask.png')
    found = find_masks(catalog_of(paths),
                       lambda p: {'a.jpg': tmp_path/'a_mask.png', 'b.jpg': np.nan}.get(p[-5:], 'gone.png'))
    assert found['mask'].tolist() == [mask, None, None]
    assert find_masks(found, False)['mask'].tolist() == [None] * 3
    assert find_masks(found)['mask'].tolist() == [None] * 3  # the default finds none here, and says nothing


def test_mask_folder_with_other_names(tmp_path):
    catalog = catalog_of(tree(tmp_path/'set', 'a.jpg'))
    with pytest.raises(FileNotFoundError, match='the mask folder .*nowhere does not exist'):
        find_masks(catalog, tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='it holds no PNG file, and .*a.jpg needs a.png'):
        find_masks(catalog, tmp_path/'empty')
    tree(tmp_path/'other', 'a_parsing.png')
    with pytest.raises(ValueError, match='it holds 1 PNG files such as a_parsing.png, and .*a.jpg needs a.png in it'):
        find_masks(catalog, tmp_path/'other')
    with pytest.raises(ValueError, match='the function gives no existing mask'): find_masks(catalog, lambda p: None)
    with pytest.raises(ValueError, match='a.png is its own mask'):
        find_masks(catalog_of(tree(tmp_path/'png', 'a.png')), tmp_path/'png')


# --- joining and describing

def test_join_keeps_people_and_cameras_apart():
    first = make_catalog(rows_of(('a', 0, 0, 'train'), ('b', 4, 2, 'query'), ('c', 4, 1, 'gallery')))
    second = make_catalog(rows_of(('d', 0, 0, 'train'), ('e', 1, 1, 'gallery')))
    third = make_catalog(rows_of(('f', 4, 2, 'train')))
    joined = join_catalogs(first, second, third).set_index('path')
    assert joined['pid'].to_dict() == dict(a=0, b=4, c=4, d=5, e=6, f=11)
    assert joined['camid'].to_dict() == dict(a=0, b=2, c=1, d=3, e=4, f=7)
    assert set(join_catalogs(first, second, third, test=0)['path']) == set('abcdf')
    assert set(join_catalogs(first, second, test=1)['path']) == set('ade')


def test_join_refuses(good):
    with pytest.raises(ValueError, match='6 paths are in the catalog more than once'): join_catalogs(good, good)
    with pytest.raises(ValueError, match='test=2: the position of one of the 1 catalogs'): join_catalogs(good, test=2)
    with pytest.raises(ValueError, match='negative identity'): join_catalogs(good.assign(pid=-1))
    pd.testing.assert_frame_equal(join_catalogs(good), good)


def test_describe(good):
    good.loc[0, 'mask'] = good['path'][0]
    table = describe(good)
    assert table.index.tolist() == ['train', 'query', 'gallery', 'all']
    assert table.loc['train'].to_dict() == dict(images=3, identities=2, cameras=2, images_per_identity=1.5, masks=1)
    assert table.loc['all'].to_dict() == dict(images=6, identities=4, cameras=2, images_per_identity=1.5, masks=1)
    assert describe(good[good['split'] == 'train']).index.tolist() == ['train', 'all']


# --- the thorough check: one table of everything that is wrong

def picture(seed, size=(8, 16)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def whole(tmp_path):
    "Two images of a training identity, a query and its match, all with masks"
    rows = []
    for i, (pid, cam, split) in enumerate([(1, 1, 'train'), (1, 2, 'train'), (5, 1, 'query'), (5, 2, 'gallery')]):
        picture(i).save(tmp_path/f'{i}.jpg')
        write_mask(tmp_path/f'{i}.png', np.ones((16, 8), int))
        rows.append(dict(path=tmp_path/f'{i}.jpg', pid=pid, camid=cam, split=split, mask=tmp_path/f'{i}.png'))
    return make_catalog(rows)


def found(table, path): return table.loc[table['path'] == str(path), 'problem'].tolist()


def test_check_of_a_whole_set(whole):
    table = check_catalog(whole)
    assert len(table) == 0
    assert list(table) == ['path', 'problem', 'advice']


def cmyk(path): Image.new('CMYK', (8, 16)).save(path, format='JPEG')


def deep(path): Image.fromarray(np.full((16, 8), 40000, np.uint16)).save(path, format='PNG')


def floats(path): Image.fromarray(np.ones((16, 8), np.float32)).save(path, format='TIFF')


def truncated(path, kind='JPEG'):
    picture(7, (64, 64)).save(path, format=kind)
    path.write_bytes(path.read_bytes()[:1500])


def png_truncated(path): truncated(path, 'PNG')


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7, (16, 8)).save(path, format='JPEG', exif=exif)  # upright it is 8 x 16, as its mask


@pytest.mark.parametrize('spoil, problem', [
    (cmyk, 'CMYK colours'), (deep, 'more than 8 bits a pixel'), (floats, r'more than 8 bits a pixel \(mode F\)'),
    (turned, 'rotated by its EXIF tag'),
    (truncated, r'not a readable image \(.*truncated'), (png_truncated, r'not a readable image \(.*truncated'),
    (lambda p: p.write_bytes(b''), r'the file is empty \(0 bytes\)'),
    (lambda p: p.write_text('hello'), r'not a readable image \(of no format'),
    (lambda p: p.unlink(), 'the file does not exist')])
def test_check_of_image_files(whole, tmp_path, spoil, problem):
    spoil(tmp_path/'1.jpg')
    table = check_catalog(whole)
    assert table['path'].tolist() == [str(tmp_path/'1.jpg')]
    assert pd.Series(table['problem']).str.match(problem).all()
    assert table['advice'].str.len().min() > 5


@pytest.mark.parametrize('spoil, problem', [
    (lambda p: write_mask(p, np.ones((8, 16), int)), r'16 x 8 pixels, its image 8 x 16 \(w x h\)'),
    (lambda p: write_mask(p, np.zeros((16, 8), int)), 'all background'),
    (lambda p: Image.fromarray(np.full((16, 8), 9, np.uint8)).save(p), 'labels 9, but a part mask has labels 0 to 7'),
    (lambda p: picture(0).save(p), ' is RGB, but'),
    (lambda p: p.write_bytes(b''), 'of no format that Pillow knows'),
    (lambda p: p.unlink(), 'the mask does not exist')])
def test_check_of_mask_files(whole, tmp_path, spoil, problem):
    spoil(tmp_path/'2.png')
    table = check_catalog(whole, workers=1)
    assert table['path'].tolist() == [str(tmp_path/'2.png')]
    assert table['problem'].str.contains(problem).all()


def test_without_decoding_only_missing_files_are_found(whole, tmp_path):
    (tmp_path/'0.jpg').write_bytes(b'')
    (tmp_path/'1.jpg').unlink()
    (tmp_path/'2.png').unlink()
    assert sorted(check_catalog(whole, decode=False)['problem']) == ['the file does not exist',
                                                                    'the mask does not exist']


def test_the_same_image_in_two_splits(whole, tmp_path):
    shutil.copy(tmp_path/'2.jpg', tmp_path/'3.jpg')
    assert found(check_catalog(whole), tmp_path/'3.jpg') == [f'the same image as {tmp_path}/2.jpg (query and gallery)']
    shutil.copy(tmp_path/'0.jpg', tmp_path/'1.jpg')  # twice in training: no leak
    assert len(check_catalog(whole)) == 1
    assert len(check_catalog(whole, decode=False)) == 0


def test_check_of_rows(whole):
    def problems(row, **changes): return found(check_catalog(whole.assign(**changes)), whole['path'][row])
    assert problems(1, split=['train', 'val', 'query', 'gallery'])[0] == "split 'val'"
    assert 'identity -1: junk' in problems(3, pid=[1, 1, 5, -1])
    assert problems(0, mask=[None, *whole['mask'][1:]]) == ['no part mask, and others have one']
    assert len(check_catalog(whole.assign(mask=None))) == 0  # none at all: nothing to say
    assert problems(2, pid=[1, 5, 5, 5]) == ['identity 5 is in training too']
    assert problems(1, pid=[1, 2, 5, 5]) == ['identity 2 trains with one image']
    assert problems(2, camid=4) == ['query without a match: only gallery images of its own camera']
    twice = check_catalog(pd.concat([whole, whole[:1]], ignore_index=True))
    assert found(twice, whole['path'][0]) == ['the path is in the catalog more than once']


def test_everything_at_once(whole, tmp_path):
    cmyk(tmp_path/'0.jpg')
    (tmp_path/'1.jpg').unlink()
    (tmp_path/'3.png').unlink()
    table = check_catalog(whole.assign(camid=1, pid=[1, 5, 5, 5]))
    # CMYK, gone, gone, identity 5 on both sides, 1 and 5 with one training image, the query's match by its own camera
    assert len(table) == 7
    assert table['path'].nunique() == 4


def test_a_table_that_is_none():
    with pytest.raises(ValueError, match='lacks the column'): check_catalog(pd.DataFrame(dict(path=['a'])))
    frame = pd.DataFrame(dict(path=['a'], mask=None, pid='x', camid=1, split='train'))
    with pytest.raises(ValueError, match="a: pid 'x' is not a whole number"): check_catalog(frame)


def test_copies_are_named_with_both_paths(whole, tmp_path):
    "Every copy of an image of another identity or split, with its twin"
    (tmp_path/'1.jpg').write_bytes((tmp_path/'0.jpg').read_bytes())
    rows = whole.to_dict('records')
    same = [r['path'] for r in rows if r['path'].endswith(('0.jpg', '1.jpg'))]
    catalog = pd.DataFrame(rows).assign(mask=None)
    catalog.loc[catalog.path == same[1], 'pid'] = 99
    found = check_catalog(catalog)
    assert found[found.problem.str.startswith(f'the same image as {same[0]} (')].path.tolist() == [same[1]]
