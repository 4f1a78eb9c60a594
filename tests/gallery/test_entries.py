"Labels, times, pictures and tables of crops on their way into a gallery"
import os
import re
from datetime import datetime, timedelta, timezone
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from magnifier.gallery.entries import (
    content_key, crops_csv, crops_folder, entries, identity, number, read_entry, stored_image, timestamp)
from magnifier.gallery.hits import as_table

T = 1_769_863_500.0  # 2026-01-31 12:45:00 UTC


@pytest.mark.parametrize('t', [
    T, int(T), np.int64(T),
    '2026-01-31T12:45:00', '2026-01-31 12:45', '2026-01-31T13:45:00+01:00', '2026-01-31T12:45:00Z',
    datetime(2026, 1, 31, 12, 45), datetime(2026, 1, 31, 13, 45, tzinfo=timezone(timedelta(hours=1))),
    pd.Timestamp('2026-01-31 12:45'), np.datetime64('2026-01-31T12:45'),
])
def test_times_in_every_form(t): assert timestamp(t) == T


def test_missing_times():
    assert all(timestamp(t) is None for t in (None, float('nan'), pd.NaT, pd.NA, np.float32('nan'), 'NaT'))


@pytest.mark.parametrize('t, error, message', [
    (T*1000, ValueError, 'divide milliseconds by 1000'),
    (float('inf'), ValueError, 'years 1679 to 2260'),
    (-1e10, ValueError, 'years 1679 to 2260'),
    ('0000-05-05', ValueError, 'years 1679 to 2260'),
    (np.datetime64('-0100-01-01'), ValueError, 'years 1679 to 2260'),
    (datetime(9999, 12, 31), ValueError, 'years 1679 to 2260'),
    ('yesterday evening', ValueError, 'not a date and time'),
    (True, TypeError, 'seconds, an ISO text or a datetime'),
    ([1], TypeError, 'seconds')])
def test_what_is_no_time(t, error, message):
    with pytest.raises(error, match=message): timestamp(t)


@given(st.floats(-9.1e9, 9.1e9))
@settings(deadline=None, max_examples=50)
def test_seconds_stay_what_they_are(t): assert timestamp(t) == t


@pytest.mark.parametrize('t', ['1679-01-01', '2260-12-31T23:59:59'])
def test_every_time_that_is_taken_can_be_shown(t):
    assert as_table([dict(path='a', time=timestamp(t), key='k')])['time'][0] == pd.Timestamp(t, tz='UTC')


def test_numbers():
    assert [number(x, 'pids') for x in (3, np.int32(3), 3., None, float('nan'), pd.NA)] == [3, 3, 3, None, None, None]
    assert [identity(x) for x in (3, 0, -1, -1., None, pd.NA)] == [3, 0, None, None, None, None]
    for x in ('3', 'ann', 2.5, True, [1], float('inf'), -float('inf')):
        with pytest.raises(TypeError, match='pids: whole numbers wanted'): number(x, 'pids')


def test_numbers_that_went_through_floats_are_refused_where_floats_are_not_exact():
    assert number(2.**53, 'pids') == 2**53
    assert number(2**53 + 1, 'pids') == 2**53 + 1
    for x in (2.**53 + 2, -2.**60, np.float64(2**62)):
        with pytest.raises(ValueError, match='pids: .* float, which keeps whole numbers up to'): number(x, 'pids')


def test_tables():
    t = entries(['a.png', 'b.png'], pids=[1, -1], camids=None, times=['2026-01-31T12:45', None], paths=None)
    wanted = dict(path=['a.png', 'b.png'], pid=[1, None], camid=[None, None], time=[T, None])
    assert t[list(wanted)].to_dict('list') == wanted
    t = entries(np.zeros((4, 2, 3), np.uint8), pids=7, paths='x.png')
    assert t['path'][0] == 'x.png'
    assert t['pid'][0] == 7
    t = entries(pd.DataFrame(dict(path=['a', 'b'], pid=[1., np.nan], split='gallery'), index=[5, 9]))
    assert list(t.index) == [0, 1]
    assert list(t['pid']) == [1, None]
    with pytest.raises(ValueError, match='pids beside a catalog: put them into its columns'):
        entries(pd.DataFrame(dict(path=['a'])), pids=[1])
    with pytest.raises(ValueError, match='no column path, only file'): entries(pd.DataFrame(dict(file=['a'])))


def test_pictures_have_the_key_of_their_content(tmp_path):
    a = np.arange(96, dtype=np.uint8).reshape(8, 4, 3)
    Image.fromarray(a).save(tmp_path/'a.png')
    assert read_entry(a).key == read_entry(a.copy()).key == read_entry(Image.fromarray(a)).key
    assert read_entry(a).key != read_entry(a[::-1].copy()).key
    assert read_entry(a).key != read_entry(a.reshape(4, 8, 3)).key
    assert len(read_entry(tmp_path/'a.png').key) == 32
    assert (np.asarray(read_entry(str(tmp_path/'a.png')).image) == a).all()


@pytest.mark.parametrize('item, problem', [
    (np.zeros((3, 3)), 'an image is .h,w,3. uint8'),
    (np.zeros((0, 4, 3), np.uint8), 'a crop with an area'),
    ('/no/such.png', '^no such image file'),
    ('/dev/zero', '^not a regular file'),
    ('/', '^not a regular file'),
    ('a\0b', 'null'),
    (7, 'int given: an image is a path'),
])
def test_what_cannot_be_read_is_said(item, problem):
    read = read_entry(item)
    assert read.image is None
    assert re.search(problem, read.problem)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'a.jpg')
    assert read_entry(tmp_path/'a.jpg').problem == 'not a regular file'


def test_bytes_and_open_files_are_images(tmp_path):
    Image.new('RGB', (8, 16), 'red').save(tmp_path/'a.png')
    data = (tmp_path/'a.png').read_bytes()
    keys = {read_entry(item).key for item in (tmp_path/'a.png', str(tmp_path/'a.png'), data, BytesIO(data))}
    assert keys == {content_key(data)}


def test_decompression_bombs_are_no_images(tmp_path, monkeypatch):
    Image.new('RGB', (64, 64)).save(tmp_path/'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 3000)
    read = read_entry(tmp_path/'bomb.png')
    assert read.image is None
    assert '4096 pixels' in read.problem
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 64*64)
    assert read_entry(tmp_path/'bomb.png').image.size == (64, 64)


def test_palette_images_have_the_key_of_their_colours():
    red, blue = (Image.new('RGB', (8, 16), colour).quantize(4) for colour in ((200, 0, 0), (0, 0, 200)))
    assert red.mode == 'P'
    assert red.tobytes() == blue.tobytes()
    assert read_entry(red).key != read_entry(blue).key == read_entry(blue.copy()).key


def test_a_stored_image_is_what_was_added_or_none(tmp_path):
    path, image = str(tmp_path/'a.png'), Image.new('RGB', (8, 16), 'red')
    image.save(path)
    assert stored_image(path, content_key(path)).size == (8, 16)
    assert stored_image(path, content_key(image)).size == (8, 16)  # added from memory, with a path to remember
    assert stored_image('', content_key(image)) is None
    Image.new('RGB', (8, 16), 'blue').save(path)
    assert stored_image(path, content_key(image)) is None
    (tmp_path/'a.png').unlink()
    assert stored_image(path, content_key(image)) is None


# Tables of crops from file names and from CSV files

def folder(root, *names):
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 8)).save(root/name)
    return root


@pytest.mark.parametrize('name, pid, camid, time', [
    ('0172_c4s3_000691_03.jpg', 172, 4, None), ('-1_c2s1_000001_01.jpg', -1, 2, None), ('cam7/x.png', None, 7, None),
    ('cam_12/20260131_124500_3.png', None, 12, 1769863500.), ('Camera-2/2026-01-31T12-45-00.png', None, 2, 1769863500.),
    ('c3_2026-01-31 12:45:00.png', None, 3, 1769863500.),
    ('clip/1.png', None, None, None),
    ('abc4.png', None, None, None),
    ('12345678.png', None, None, None)])
def test_what_names_say(tmp_path, name, pid, camid, time):
    row = crops_folder(folder(tmp_path, name)).iloc[0]
    assert (row.pid, row.camid, row.time) == (pid, camid, time)
    assert row.path == str(tmp_path/name)


def test_a_pattern_of_ones_own(tmp_path):
    t = crops_folder(folder(tmp_path, 'door/p5_99.5.png', 'hall/x.png'), r'p(?P<pid>\d+)_(?P<time>[\d.]+\d)\.png')
    assert t['pid'].tolist() == [5, None]
    assert t['time'].tolist() == [99.5, None]


@pytest.mark.parametrize('pattern, message', [
    ('(', 'not a regular expression'),
    (r'\d+', 'named groups pid, camid, time wanted'),
    ('(?P<cam>x)', r"it has \['cam'\]"),
    (r'(?P<camid>[a-z]+)\.png', "camid 'x' is no whole number"),
    (r'(?P<time>[a-z]+)\.png', "time 'x' is no time")])
def test_patterns_that_do_not_fit(tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message): crops_folder(folder(tmp_path, 'x.png'), pattern)


def test_impossible_times_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match="time '20261331_124500' is no time"):
        crops_folder(folder(tmp_path/'a', '20261331_124500.png'))
    (tmp_path/'b').mkdir()
    with pytest.raises(ValueError, match='holds no image'): crops_folder(tmp_path/'b')
    with pytest.raises(FileNotFoundError): crops_folder(tmp_path/'c')


def test_csv(tmp_path):
    pd.DataFrame(dict(path=['a.png', '/else/b.png'], camid=[1, None])).to_csv(tmp_path/'t.csv', index=False)
    t = crops_csv(tmp_path/'t.csv')
    assert t['path'].tolist() == [str(tmp_path/'a.png'), '/else/b.png']
    assert crops_csv(tmp_path/'t.csv', '/root')['path'][0] == '/root/a.png'
    problems = {'file\nx\n': 'no column path, only file', 'path\n': 'has no rows', '': 'bad.csv is empty',
                'path,pid\na,ann\n': "bad.csv: pid 'ann' is no whole number", 'path\na,b\n': 'line 2: 2 fields',
                'path,time\na,noon\n': "bad.csv: time 'noon' is no time"}
    for text, message in problems.items():
        (tmp_path/'bad.csv').write_text(text)
        with pytest.raises(ValueError, match=message): crops_csv(tmp_path/'bad.csv')
    with pytest.raises(FileNotFoundError, match='no such file'): crops_csv(tmp_path/'gone.csv')


def test_labels_of_a_table_are_exact_or_unknown(tmp_path):
    rows = ['NA,9007199254740993,1.0,1769863500,7', 'b,,nan,2026-01-31T12:45:00,']
    (tmp_path/'t.csv').write_text('\n'.join(['path,pid,camid,time,tracklet', *rows]))
    t = crops_csv(tmp_path/'t.csv', '/root')
    assert t['path'].tolist() == ['/root/NA', '/root/b']
    assert t['pid'].tolist() == [2**53 + 1, None]
    assert t['camid'].tolist() == [1, None]
    assert t['time'].tolist() == [1769863500, 1769863500]
    assert t['tracklet'].tolist() == ['7', None]
    (tmp_path/'t.csv').write_bytes('path\nü\n'.encode('utf-16'))
    with pytest.raises(ValueError, match='t.csv is not in UTF-8'): crops_csv(tmp_path/'t.csv')
