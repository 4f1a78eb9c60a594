"Part-mask files, other parsers' labels, and figures about masks"

import os

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from magnifier.data.catalog import CatalogWarning, find_masks, make_catalog
from magnifier.data.images import read_mask, write_mask
from magnifier.data.masks import (convert_mask, convert_masks, make_stripe_masks, mask_agreement, mask_report,
                                  mask_targets, read_label_table, regions_from_fields, stripe_masks)
from magnifier.regions import LABEL_TABLES, N_REGIONS, REGIONS


def some_labels(seed=0, size=(12, 7), n=8): return np.random.default_rng(seed).integers(0, n, size).astype(np.uint8)


# --- files

@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_what_is_written_is_read(tmp_path_factory, h, w, seed):
    path, labels = tmp_path_factory.mktemp('m')/'deep'/'er'/'x.png', some_labels(seed, (h, w))
    assert write_mask(path, labels) == path
    read = read_mask(path)
    assert read.dtype == np.uint8
    assert (read == labels).all()
    assert os.listdir(path.parent) == ['x.png']


def test_palette_files_give_indices_not_colours(tmp_path):
    labels = some_labels()
    image = Image.fromarray(labels).convert('P')
    image.putpalette([v for i in range(256) for v in (255 - i, (i * 37) % 256, 3)])
    image.save(tmp_path/'x.png')
    with Image.open(tmp_path/'x.png') as again:
        assert again.mode == 'P'
        assert not (np.asarray(again.convert('L')) == labels).all()
    assert (read_mask(tmp_path/'x.png') == labels).all()


def test_other_one_channel_files(tmp_path):
    labels = some_labels(n=2)
    Image.fromarray(labels.astype(bool)).save(tmp_path/'bits.png')
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path/'deep.png')
    for name in ('bits.png', 'deep.png'):
        assert (read_mask(tmp_path/name) == labels).all()
        assert read_mask(tmp_path/name).dtype == np.uint8


@pytest.mark.parametrize('values, message', [
    (np.full((3, 3), 9, np.uint8), r'x.png: labels 9, but a part mask has labels 0 to 7.*convert_masks'),
    (np.array([[0, 255]], np.uint8), 'labels 0, 255,'),
    (np.arange(20, dtype=np.uint8)[None], r'labels 0, 1, .*, 11, \.\.\., but'),
    (np.zeros((3, 3, 3), np.uint8), 'x.png is RGB, but a label file is grey or has a palette')])
def test_files_that_are_no_part_mask(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path/'x.png')
    with pytest.raises(ValueError, match=message): read_mask(tmp_path/'x.png')


def test_files_that_do_not_decode(tmp_path):
    (tmp_path/'x.png').write_bytes(b'')
    with pytest.raises(ValueError, match='x.png: not a readable part mask .*mend or remove it'):
        read_mask(tmp_path/'x.png')
    with pytest.raises(FileNotFoundError, match='gone.png'): read_mask(tmp_path/'gone.png')
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path/'f.tif')
    with pytest.raises(ValueError, match='f.tif is F,'): read_mask(tmp_path/'f.tif')


@pytest.mark.parametrize('labels, message', [
    (np.full((2, 2), 8), 'labels 8, but a part mask has labels 0 to 7'), (np.full((2, 2), -1), 'labels -1,'),
    (np.full((2, 2), 255), 'labels 255,'),
    (np.zeros((2, 2)), r'is \(h, w\) integers, not \(2, 2\) float64'),
    (np.zeros((2, 2, 1), int), 'is .h, w. integers'), (np.zeros((0, 2), int), 'is .h, w.')])
def test_nothing_is_written_for_other_labels(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message): write_mask(tmp_path/'x.png', labels)
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    write_mask(tmp_path/'x.png', np.ones((2, 2), int))
    def fail(*args): raise OSError('disk full')
    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'): write_mask(tmp_path/'x.png', np.zeros((2, 2), int))
    assert os.listdir(tmp_path) == ['x.png']
    assert read_mask(tmp_path/'x.png').all()


# --- conversion

@pytest.mark.parametrize('name', [n for n, t in LABEL_TABLES.items() if not t.splits])
def test_plain_tables_label_by_label(name):
    table = LABEL_TABLES[name]
    labels = some_labels(n=len(table.regions))
    expected = [[table.regions[v] for v in row] for row in labels]
    assert convert_mask(labels, name).tolist() == expected
    assert convert_mask(labels, name).dtype == np.uint8


def test_own_table():
    assert convert_mask(np.array([[0, 1, 2]]), [0, 'foot', 2]).tolist() == [[0, 7, 2]]
    with pytest.raises(ValueError, match=r'labels 3, but the table has 0 to 2 \(given by the caller\)'):
        convert_mask(np.array([[3]]), [0, 1, 2])


NAMES = ('bg hat hair glove sunglasses upper dress coat socks pants jumpsuit scarf skirt face '
         'larm rarm lleg rleg lshoe rshoe').split()
LIP = {name: label for label, name in enumerate(NAMES)}


def lip_person():
    "100 rows tall of 120: head 10, torso 40, trousers 46 (two legs), shoes 4; bare arms of 44 at its sides"
    m = np.zeros((120, 60), int)
    m[10:20, 25:35] = LIP['face']
    m[20:60, 20:40] = LIP['upper']
    m[60:106, 20:28] = m[60:106, 32:40] = LIP['pants']
    m[106:110, 18:28], m[106:110, 32:42] = LIP['lshoe'], LIP['rshoe']
    m[22:66, 14:18], m[22:66, 42:46] = LIP['larm'], LIP['rarm']
    return m


def rows_with(mask, region): return np.flatnonzero((mask == REGIONS.index(region)).any(1))


def test_a_whole_figure_is_cut_at_knee_and_elbow():
    r = convert_mask(lip_person(), 'lip')
    assert rows_with(r, 'head').tolist() == list(range(10, 20))
    assert rows_with(r, 'chest').tolist() == list(range(20, 60))
    assert rows_with(r, 'foot').tolist() == list(range(106, 110))
    upper, lower = rows_with(r, 'upper_leg'), rows_with(r, 'lower_leg')  # 46 rows: a quarter of 100 is more than half
    assert (upper[0], upper[-1], lower[0], lower[-1]) == (60, 80, 81, 105)
    upper, lower = rows_with(r, 'upper_arm'), rows_with(r, 'lower_arm')  # 44 rows: 25 of them lower
    assert (upper[0], upper[-1], lower[0], lower[-1]) == (22, 40, 41, 65)
    assert ((r == 3) | (r == 4))[:, :18].sum() == ((r == 3) | (r == 4))[:, 42:].sum() == 44 * 4


def test_shorts_and_bare_legs_are_one_limb():
    m = lip_person()
    expected = convert_mask(m, 'lip')
    legs = m == LIP['pants']
    legs[:75] = False
    m[legs] = LIP['lleg']
    assert (convert_mask(m, 'lip') == expected).all()


def test_short_sleeve_and_long_sleeve():
    m = lip_person()
    whole = convert_mask(m, 'lip')
    m[22:34, 14:18] = LIP['upper']  # the sleeve: what is left is cut at the same elbow
    assert (convert_mask(m, 'lip')[34:, 14:18] == whole[34:, 14:18]).all()
    m[22:58, 14:18] = LIP['upper']  # only the hand is left
    assert (convert_mask(m, 'lip')[58:66, 14:18] == REGIONS.index('lower_arm')).all()


@pytest.mark.parametrize('mirror', [False, True])
def test_arm_stretched_out_sideways_or_up(mirror):
    m = lip_person()
    m[m == LIP['larm']] = 0
    m[24:28, 0:20] = LIP['larm']  # from the shoulder at 20 to the hand at 0: within a quarter of the height
    m[m == LIP['rarm']] = 0
    m[0:22, 40:44] = LIP['rarm']
    if mirror: m = m[:, ::-1]
    r = convert_mask(m, 'lip')
    r = r[:, ::-1] if mirror else r
    assert (r[24:28, 0:20] == 4).all()
    far = convert_mask(np.pad(m[:, ::-1] if mirror else m, ((0, 0), (40, 0)), constant_values=0), 'lip')
    assert (far[24:28, 40:60] == 4).all()
    long = np.zeros((120, 100), int)
    long[:, 40:] = lip_person()
    long[22:66, 54:58] = 0
    long[24:28, 10:60] = LIP['larm']  # 50 columns, the hand at 10: the half of it, 25, is lower
    r = convert_mask(long, 'lip')
    assert (r[24:28, 10:35] == 4).all()
    assert (r[24:28, 36:60] == 3).all()


def test_sapiens_trousers_and_shorts():
    m = np.zeros((100, 20), int)
    m[0:10], m[10:50] = 2, 22
    m[50:96] = 12
    assert (convert_mask(m, 'sapiens')[50:72] == 5).all()
    assert (convert_mask(m, 'sapiens')[72:96] == 6).all()
    m[65:75], m[75:96] = 11, 7  # shorts: bare legs come divided, and shorts above the knee stay upper leg
    r = convert_mask(m, 'sapiens')
    assert (r[50:75] == 5).all()
    assert (r[75:96] == 6).all()


@pytest.mark.parametrize('name', ['lip', 'atr', 'cihp', 'sapiens'])
def test_degenerate_figures(name):
    n = len(LABEL_TABLES[name].regions)
    assert (convert_mask(np.zeros((5, 5), int), name) == 0).all()
    assert convert_mask(np.zeros((0, 5), int), name).shape == (0, 5)
    for label in range(n):  # one pixel, one row, no head
        assert convert_mask(np.array([[label]]), name)[0, 0] in range(N_REGIONS)
        assert convert_mask(np.full((1, 9), label), name).shape == (1, 9)
    random = some_labels(3, (20, 9), n)
    r, t = convert_mask(random, name), LABEL_TABLES[name]
    divided = np.isin(random, [v for s in t.splits for v in s.labels])
    assert (r[~divided] == np.array(t.regions)[random[~divided]]).all()
    assert set(np.unique(r[divided])) <= {3, 4, 5, 6}


def test_convert_folder(tmp_path):
    src, dst = tmp_path/'lip', tmp_path/'out'
    (src/'a').mkdir(parents=True)
    for name in ('a/1.png', '2.png'): Image.fromarray(lip_person().astype(np.uint8)).save(src/name)
    Image.fromarray(np.full((3, 3), 99, np.uint8)).save(src/'bad.png')
    (src/'empty.png').write_bytes(b'')
    (src/'.hidden.png').write_bytes(b'')
    with pytest.warns(CatalogWarning, match=r'2 of 4 files were not converted \(first: .*bad.png: labels 99'):
        report = convert_masks(src, dst, 'lip')
    assert sorted(report['result']) == ['converted', 'converted', 'failed', 'failed']
    assert 'empty.png' in report['problem'].iloc[3]
    assert (read_mask(dst/'a'/'1.png') == convert_mask(lip_person(), 'lip')).all()
    assert not (dst/'bad.png').exists()
    written = os.stat(dst/'2.png').st_mtime_ns
    with pytest.warns(CatalogWarning): again = convert_masks(src, dst, 'lip', workers=1)
    assert again['result'].value_counts().to_dict() == {'already there': 2, 'failed': 2}
    assert os.stat(dst/'2.png').st_mtime_ns == written


def test_convert_folder_refuses(tmp_path):
    with pytest.raises(ValueError, match="unknown labels 'coco'"): convert_masks(tmp_path, tmp_path/'out', 'coco')
    with pytest.raises(ValueError, match='holds no .png file'): convert_masks(tmp_path, tmp_path/'out')
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder'):
        convert_masks(tmp_path/'nowhere', tmp_path/'out')


def test_densepose_iuv_files_by_their_first_channel(tmp_path):
    (tmp_path/'iuv').mkdir()
    parts = some_labels(n=25)
    iuv = np.stack([parts, some_labels(1, n=255), some_labels(2, n=255)], -1)
    Image.fromarray(np.ascontiguousarray(iuv[..., ::-1])).save(tmp_path/'iuv'/'x.png')  # OpenCV writes blue, green, red
    Image.fromarray(parts).save(tmp_path/'iuv'/'y.png')
    assert (convert_masks(tmp_path/'iuv', tmp_path/'out', 'densepose24')['result'] == 'converted').all()
    for name in 'xy': assert (read_mask(tmp_path/'out'/f'{name}.png') == convert_mask(parts, 'densepose24')).all()


# --- stripes

def test_stripe_files(tmp_path):
    for name in ('a/x.jpg', 'b/y.png'):
        (tmp_path/'set'/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 16)).save(tmp_path/'set'/name)
    files = make_stripe_masks(tmp_path/'set')
    assert [str(f.relative_to(tmp_path)) for f in files] == ['set_ps_label/a/x.png', 'set_ps_label/b/y.png']
    rows = [dict(path=tmp_path/'set'/name, pid=1, camid=1, split='train') for name in ('a/x.jpg', 'b/y.png')]
    catalog = find_masks(make_catalog(rows))
    assert catalog['mask'].tolist() == [str(f) for f in files]
    assert (read_mask(files[0]) == stripe_masks((16, 8))).all()
    write_mask(files[0], np.ones((16, 8), int))
    assert make_stripe_masks(catalog) == files
    assert (read_mask(files[0]) == 1).all()  # what is there stays


def test_mask_targets_refuse(tmp_path):
    with pytest.raises(ValueError, match='a.jpg and .*a.bmp would have the same mask'):
        mask_targets([tmp_path/'a.jpg', tmp_path/'a.bmp'])
    with pytest.raises(ValueError, match='a.png would be overwritten'): mask_targets([tmp_path/'a.png'], tmp_path)
    with pytest.raises(ValueError, match='no images given'): mask_targets([])
    assert mask_targets([tmp_path/'q'/'a.jpg', tmp_path/'t'/'a.jpg'], 'm')[1][1].parts == ('m', 't', 'a.png')


# --- figures

def test_report(tmp_path):
    a, b = np.zeros((4, 4), int), np.zeros((4, 4), int)
    a[0], a[1], b[:2] = 1, 2, 7
    rows = [dict(path=f'{i}.jpg', pid=i, camid=1, split=s, mask=m) for i, (s, m) in enumerate(
        [('train', write_mask(tmp_path/'a.png', a)), ('train', write_mask(tmp_path/'b.png', b)), ('train', None),
         ('query', None)])]
    report = mask_report(make_catalog(rows))
    train = report.loc['train']
    assert (train['images'], train['masks'], train['coverage'], train['regions']) == (3, 2, pytest.approx(2/3), 1.5)
    assert train[list(REGIONS)].tolist() == [.5, .125, .125, 0, 0, 0, 0, .25]
    assert report.loc['query', ['images', 'masks', 'coverage']].tolist() == [1, 0, 0]
    assert report.index.tolist() == ['train', 'query', 'all']
    assert report.loc['all', 'coverage'] == .5
    assert mask_report(make_catalog(rows[3:])).loc['all', 'masks'] == 0


def test_agreement_against_the_loop(tmp_path):
    pairs = [(some_labels(i, (9, 6), 6), some_labels(i + 10, (9, 6), 7)) for i in range(3)]
    for i, (x, y) in enumerate(pairs):
        write_mask(tmp_path/'a'/'s'/f'{i}.png', x), write_mask(tmp_path/'b'/'s'/f'{i}.png', y)
    table = mask_agreement(tmp_path/'a', tmp_path/'b')
    assert table.index.tolist() == list(REGIONS)
    for k, region in enumerate(REGIONS):
        both, either = (sum(int(f(x == k, y == k).sum()) for x, y in pairs) for f in (np.logical_and, np.logical_or))
        assert table.loc[region, 'both'] == both
        assert table.loc[region, 'iou'] == pytest.approx(both / either if either else np.nan, nan_ok=True)
    assert np.isnan(table.loc['foot', 'iou'])
    assert table['pixels_a'].sum() == table['pixels_b'].sum() == 3 * 54
    assert (mask_agreement(tmp_path/'a', tmp_path/'a')['iou'].dropna() == 1).all()


def test_agreement_refuses(tmp_path):
    write_mask(tmp_path/'a'/'x.png', np.ones((4, 4), int)), write_mask(tmp_path/'b'/'y.png', np.ones((4, 4), int))
    with pytest.raises(ValueError, match=r'\(1 PNG files\) and .* no file name in common'):
        mask_agreement(tmp_path/'a', tmp_path/'b')
    write_mask(tmp_path/'b'/'x.png', np.ones((4, 4), int))
    with pytest.warns(CatalogWarning, match='1 masks are in only one of'): mask_agreement(tmp_path/'a', tmp_path/'b')
    write_mask(tmp_path/'b'/'x.png', np.ones((5, 4), int)), (tmp_path/'b'/'y.png').unlink()
    with pytest.raises(ValueError, match=r'x.png is \(4, 4\) and .*x.png is \(5, 4\)'):
        mask_agreement(tmp_path/'a', tmp_path/'b')


# --- other parsers' files

@pytest.mark.parametrize('name', ['a.npy', 'a.jpg.npy', 'a.jpg.confidence_fields.npy'])
def test_fields_of_openpifpaf_become_masks_of_their_images_size(tmp_path, name):
    fields = np.zeros((36, 8, 4), np.float32)
    fields[0, :4] = .9  # nose
    fields[15, 4:] = .9  # ankle
    for folder in ('fields', 'images'): (tmp_path/folder/'query').mkdir(parents=True)
    np.save(tmp_path/'fields'/'query'/name, fields)
    np.save(tmp_path/'fields'/'query'/'gone.npy', fields)
    (tmp_path/'fields'/'query'/'text.npy').write_text('hello')
    for image in ('a', 'text'): Image.new('RGB', (32, 64)).save(tmp_path/'images'/'query'/f'{image}.jpg')
    with pytest.warns(CatalogWarning, match='2 of 3 files were not converted'):
        report = convert_masks(tmp_path/'fields', tmp_path/'masks', 'pifpaf', images=tmp_path/'images', progress=False)
    mask = read_mask(tmp_path/'masks'/'query'/'a.png')
    assert mask.shape == (64, 32)
    assert set(mask[:28].ravel()) == {1}
    assert set(mask[36:].ravel()) == {7}
    problems = report.problem.dropna().tolist()
    assert any('gone.npy: no image' in p for p in problems)
    assert any('text.npy: no array of NumPy' in p for p in problems)
    with pytest.raises(ValueError, match='name the folder of these as images'):
        convert_masks(tmp_path/'fields', tmp_path/'masks', 'pifpaf')


def test_a_table_of_ones_own(tmp_path):
    (tmp_path/'own.csv').write_text('label,region\n3,head\n1,foot\n0,0\n')
    assert read_label_table(tmp_path/'own.csv').regions == (0, 7, 0, 1)
    (tmp_path/'labels').mkdir()
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).save(tmp_path/'labels'/'x.png')
    convert_masks(tmp_path/'labels', tmp_path/'masks', str(tmp_path/'own.csv'), progress=False)
    assert read_mask(tmp_path/'masks'/'x.png').tolist() == [[0, 7], [0, 1]]


@pytest.mark.parametrize('text, message', [
    ('a,b\n1,2\n', 'columns label and region'), ('label,region\nx,head\n', "label 'x' is not a whole number"),
    ('label,region\n1,hat\n', "label 1: unknown region 'hat'"),
    ('label,region\n1,9\n', 'unknown region 9'), ('label,region\n1,head\n1,foot\n', 'label 1 is listed twice'),
    ('label,region\n', 'names no label')])
def test_tables_that_make_no_sense_are_named(tmp_path, text, message):
    (tmp_path/'own.csv').write_text(text)
    with pytest.raises(ValueError, match=f'own.csv.*{message}'): read_label_table(tmp_path/'own.csv')


# --- stripes and fields of confidence

@pytest.mark.parametrize('size', [(128, 64), (384, 192), (7, 1), (100, 3)])
def test_stripes_are_stripes(size):
    mask = stripe_masks(size)
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert (mask == mask[:, :1]).all()
    assert (np.diff(mask[:, 0].astype(int)) >= 0).all()
    if size[0] >= 100: assert set(np.unique(mask)) == set(range(1, 8))
    equal = stripe_masks((70, 2), [i / 7 for i in range(7)])
    assert (np.bincount(equal[:, 0])[1:] == 10).all()


@pytest.mark.parametrize('kwargs,message', [
    (dict(size=(10, 0)), 'size='), (dict(size=(9, 9), edges=(0, .5)), 'use seven rising shares'),
    (dict(size=(9, 9), edges=(0, .1, .2, .2, .4, .5, .6)), 'rising'),
    (dict(size=(9, 9), edges=(0, .1, .2, .3, .4, .5, 1)), 'all below 1')])
def test_bad_stripes(kwargs, message):
    with pytest.raises(ValueError, match=message): stripe_masks(**kwargs)


def test_fields_of_confidence_are_regions():
    "A field a corner: the most confident wins, and what is below .3 is background"
    fields = np.zeros((36, 4, 2), np.float32)
    fields[0, 0] = .9  # nose
    fields[24, 1] = .8  # between the shoulders
    fields[18, 2] = .5  # left knee to hip
    fields[17, 2] = .4  # left ankle to knee
    fields[15, 3] = .29  # left ankle
    assert regions_from_fields(fields, (4, 2)).tolist() == [[1, 1], [2, 2], [5, 5], [0, 0]]
    large = regions_from_fields(fields, (64, 32))
    assert large.shape == (64, 32)
    assert large[2].tolist() == [1]*32
    assert large[40].tolist() == [5]*32
    for wrong in (fields[:35], fields[0], fields.astype(int), fields[:, :0]):
        with pytest.raises(ValueError, match=r'\(36, h, w\) floats'): regions_from_fields(wrong, (4, 2))
