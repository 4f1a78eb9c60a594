"The thorough check: one table of everything that is wrong"

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from magnifier.data.catalog import make_catalog
from magnifier.data.catalog import check_catalog
from magnifier.data.images import write_mask


def picture(seed,
            size=(8, 16)): return Image.fromarray(np.random.default_rng(seed).integers(0, 255,
                                                                                       (*size[::-1],
                                                                                        3)).astype(np.uint8))


@pytest.fixture
def good(tmp_path):
    "Two images of a training identity, a query and its match, all with masks"
    rows = []
    for i, (pid, cam, split) in enumerate([(1, 1, 'train'), (1, 2, 'train'), (5, 1, 'query'), (5, 2, 'gallery')]):
        picture(i).save(tmp_path/f'{i}.jpg')
        write_mask(tmp_path/f'{i}.png', np.ones((16, 8), int))
        rows.append(dict(path=tmp_path/f'{i}.jpg', pid=pid, camid=cam, split=split, mask=tmp_path/f'{i}.png'))
    return make_catalog(rows)


def found(table, path): return table.loc[table['path'] == str(path), 'problem'].tolist()


def test_nothing_wrong(good):
    table = check_catalog(good)
    assert len(table) == 0 and list(table) == ['path', 'problem', 'advice']


def cmyk(path): Image.new('CMYK', (8, 16)).save(path, format='JPEG')
def deep(path): Image.fromarray(np.full((16, 8), 40000, np.uint16)).save(path, format='PNG')
def floats(path): Image.fromarray(np.ones((16, 8), np.float32)).save(path, format='TIFF')
def truncated(path): picture(7, (64, 64)).save(path, format='JPEG'); path.write_bytes(path.read_bytes()[:1500])
def png_truncated(path): picture(7, (64, 64)).save(path, format='PNG'); path.write_bytes(path.read_bytes()[:1500])


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
def test_image_files(good, tmp_path, spoil, problem):
    spoil(tmp_path/'1.jpg')
    table = check_catalog(good)
    assert table['path'].tolist() == [str(tmp_path/'1.jpg')]
    assert pd.Series(table['problem']).str.match(problem).all() and table['advice'].str.len().min() > 5


@pytest.mark.parametrize('spoil, problem', [
    (lambda p: write_mask(p, np.ones((8, 16), int)), r'16 x 8 pixels, its image 8 x 16 \(w x h\)'),
    (lambda p: write_mask(p, np.zeros((16, 8), int)), 'all background'),
    (lambda p: Image.fromarray(np.full((16, 8), 9, np.uint8)).save(p), 'labels 9, but a part mask has labels 0 to 7'),
    (lambda p: picture(0).save(p), ' is RGB, but'),
    (lambda p: p.write_bytes(b''), 'of no format that Pillow knows'),
    (lambda p: p.unlink(), 'the mask does not exist')])
def test_mask_files(good, tmp_path, spoil, problem):
    spoil(tmp_path/'2.png')
    table = check_catalog(good, workers=1)
    assert table['path'].tolist() == [str(tmp_path/'2.png')] and table['problem'].str.contains(problem).all()


def test_without_decoding_only_missing_files_are_found(good, tmp_path):
    (tmp_path/'0.jpg').write_bytes(b''), (tmp_path/'1.jpg').unlink(), (tmp_path/'2.png').unlink()
    assert sorted(check_catalog(good, decode=False)['problem']) == ['the file does not exist',
                                                                    'the mask does not exist']


def test_the_same_image_in_two_splits(good, tmp_path):
    shutil.copy(tmp_path/'2.jpg', tmp_path/'3.jpg')
    assert found(check_catalog(good), tmp_path/'3.jpg') == [f'the same image as {tmp_path}/2.jpg (query and gallery)']
    shutil.copy(tmp_path/'0.jpg', tmp_path/'1.jpg')  # twice in training: no leak
    assert len(check_catalog(good)) == 1
    assert len(check_catalog(good, decode=False)) == 0


def test_rows(good):
    assert found(check_catalog(good.assign(split=['train', 'val', 'query', 'gallery'])),
                 good['path'][1])[0] == "split 'val'"
    assert 'identity -1: junk' in found(check_catalog(good.assign(pid=[1, 1, 5, -1])), good['path'][3])
    assert found(check_catalog(good.assign(mask=[None, *good['mask'][1:]])),
                 good['path'][0]) == ['no part mask, and others have one']
    assert len(check_catalog(good.assign(mask=None))) == 0  # none at all: nothing to say
    assert found(check_catalog(good.assign(pid=[1, 5, 5, 5])), good['path'][2]) == ['identity 5 is in training too']
    assert found(check_catalog(good.assign(pid=[1, 2, 5, 5])), good['path'][1]) == ['identity 2 trains with one image']
    assert found(check_catalog(good.assign(camid=4)),
                 good['path'][2]) == ['query without a match: only gallery images of its own camera']
    twice = check_catalog(pd.concat([good, good[:1]], ignore_index=True))
    assert found(twice, good['path'][0]) == ['the path is in the catalog more than once']


def test_everything_at_once(good, tmp_path):
    cmyk(tmp_path/'0.jpg'), (tmp_path/'1.jpg').unlink(), (tmp_path/'3.png').unlink()
    table = check_catalog(good.assign(camid=1, pid=[1, 5, 5, 5]))
    # CMYK, gone, gone, identity 5 on both sides, 1 and 5 with one training image, the query's match by its own camera
    assert len(table) == 7 and table['path'].nunique() == 4


def test_a_table_that_is_none():
    with pytest.raises(ValueError, match='lacks the column'): check_catalog(pd.DataFrame(dict(path=['a'])))
    frame = pd.DataFrame(dict(path=['a'], mask=None, pid='x', camid=1, split='train'))
    with pytest.raises(ValueError, match="a: pid 'x' is not a whole number"): check_catalog(frame)


def test_copies_are_named_with_both_paths(good, tmp_path):
    "Every copy of an image of another identity or split, with its twin"
    (tmp_path/'1.jpg').write_bytes((tmp_path/'0.jpg').read_bytes())
    rows = good.to_dict('records')
    same = [r['path'] for r in rows if r['path'].endswith(('0.jpg', '1.jpg'))]
    catalog = pd.DataFrame(rows).assign(mask=None)
    catalog.loc[catalog.path == same[1], 'pid'] = 99
    found = check_catalog(catalog)
    assert found[found.problem.str.startswith(f'the same image as {same[0]} (')].path.tolist() == [same[1]]
