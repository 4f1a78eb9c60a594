"Labels, times, conditions and pictures on their way into a gallery"
import warnings
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from magnifier.gallery.entries import entries, expression, identity, number, read_entry, timestamp

T = 1_769_863_500.0  # 2026-01-31 12:45:00 UTC


@pytest.mark.parametrize('t', [T, int(T), np.int64(T), '2026-01-31T12:45:00', '2026-01-31 12:45', '2026-01-31T13:45:00+01:00', '2026-01-31T12:45:00Z',
                               datetime(2026, 1, 31, 12, 45), datetime(2026, 1, 31, 13, 45, tzinfo=timezone(timedelta(hours=1))),
                               pd.Timestamp('2026-01-31 12:45'), np.datetime64('2026-01-31T12:45')])
def test_times_in_every_form(t): assert timestamp(t) == T


def test_missing_times(): assert all(timestamp(t) is None for t in (None, float('nan'), pd.NaT, pd.NA, np.float32('nan'), 'NaT'))


@pytest.mark.parametrize('t, error, message', [(T*1000, ValueError, 'divide milliseconds by 1000'), ('yesterday evening', ValueError, 'not a date and time'),
                                               (True, TypeError, 'seconds, an ISO text or a datetime'), ([1], TypeError, 'seconds')])
def test_what_is_no_time(t, error, message):
    with pytest.raises(error, match=message): timestamp(t)


@given(st.floats(-1e10, 1e10))
@settings(deadline=None, max_examples=50)
def test_seconds_stay_what_they_are(t): assert timestamp(t) == t


def test_numbers():
    assert [number(x, 'pids') for x in (3, np.int32(3), 3., None, float('nan'), pd.NA)] == [3, 3, 3, None, None, None]
    assert [identity(x) for x in (3, 0, -1, -1., None, pd.NA)] == [3, 0, None, None, None, None]
    for x in ('3', 'ann', 2.5, True, [1]):
        with pytest.raises(TypeError, match='pids: whole numbers wanted'): number(x, 'pids')


@pytest.mark.parametrize('kwargs, wanted', [
    ({}, ''), (dict(cameras=3), 'camid in [3]'), (dict(cameras=[3, 1, 3]), 'camid in [1, 3]'),
    (dict(not_camera=np.int64(2)), '(camid is null or camid not in [2])'), (dict(since=10, until=20), 'time >= 10.0 and time <= 20.0'),
    (dict(pids=[1], paths='a"b\\c'), 'pid in [1] and path in ["a\\"b\\\\c"]')])
def test_conditions(kwargs, wanted): assert expression(**kwargs) == wanted


@pytest.mark.parametrize('kwargs, error, message', [
    (dict(cameras=[]), ValueError, 'cameras: at least one number'), (dict(not_camera='3'), TypeError, 'not_camera: whole numbers'),
    (dict(since=20, until=10), ValueError, 'lies after'), (dict(pids=[None]), ValueError, 'pids: at least one number')])
def test_conditions_that_mean_nothing(kwargs, error, message):
    with pytest.raises(error, match=message): expression(**kwargs)


def test_tables():
    t = entries(['a.png', 'b.png'], pids=[1, -1], camids=None, times=['2026-01-31T12:45', None], paths=None)
    assert t[['path', 'pid', 'camid', 'time']].to_dict('list') == dict(path=['a.png', 'b.png'], pid=[1, None], camid=[None, None], time=[T, None])
    t = entries(np.zeros((4, 2, 3), np.uint8), pids=7, paths='x.png')
    assert t['path'][0] == 'x.png' and t['pid'][0] == 7
    t = entries(pd.DataFrame(dict(path=['a', 'b'], pid=[1., np.nan], split='gallery'), index=[5, 9]))
    assert list(t.index) == [0, 1] and list(t['pid']) == [1, None]
    with pytest.raises(ValueError, match='pids beside a catalog: put them into its columns'): entries(pd.DataFrame(dict(path=['a'])), pids=[1])
    with pytest.raises(ValueError, match='no column path, only file'): entries(pd.DataFrame(dict(file=['a'])))


def test_pictures_have_the_key_of_their_content(tmp_path):
    a = np.arange(96, dtype=np.uint8).reshape(8, 4, 3)
    Image.fromarray(a).save(tmp_path/'a.png')
    assert read_entry(a).key == read_entry(a.copy()).key == read_entry(Image.fromarray(a)).key != read_entry(a[::-1].copy()).key
    assert read_entry(a).key != read_entry(a.reshape(4, 8, 3)).key and len(read_entry(tmp_path/'a.png').key) == 32
    assert (np.asarray(read_entry(str(tmp_path/'a.png')).image) == a).all()


@pytest.mark.parametrize('item, problem', [(np.zeros((3, 3)), 'an image is .h,w,3. uint8'), ('/no/such.png', 'FileNotFoundError'), (7, 'TypeError')])
def test_what_cannot_be_read_is_said(item, problem):
    import re
    read = read_entry(item)
    assert read.image is None and re.search(problem, read.problem)


def test_decompression_bombs_are_no_pictures(tmp_path, monkeypatch):
    Image.new('RGB', (64, 64)).save(tmp_path/'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 3000)
    read = read_entry(tmp_path/'bomb.png')
    assert read.image is None and 'Decompression' in read.problem
    def fail(*args, **kwargs): raise AssertionError('filters of warnings belong to all threads')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with monkeypatch.context() as m:
            for name in ('catch_warnings', 'simplefilter', 'filterwarnings'): m.setattr(warnings, name, fail)
            read = read_entry(tmp_path/'bomb.png')
            m.setattr(Image, 'MAX_IMAGE_PIXELS', 64*64)
            largest = read_entry(tmp_path/'bomb.png')
    assert read.image is None and '64 x 64 pixels, and Pillow allows 3000' in read.problem and largest.image.size == (64, 64)


def test_palette_pictures_have_the_key_of_their_colours():
    red, blue = (Image.new('RGB', (8, 16), colour).quantize(4) for colour in ((200, 0, 0), (0, 0, 200)))
    assert red.mode == 'P' and red.tobytes() == blue.tobytes() and read_entry(red).key != read_entry(blue).key == read_entry(blue.copy()).key
    assert read_entry(Image.new('P', (2, 2))).image is not None
