"Tables of crops from file names and from CSV files"
import pandas as pd
import pytest
from PIL import Image
from magnifier.gallery.entries import crops_csv, crops_folder


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
    assert (row.pid, row.camid, row.time) == (pid, camid, time) and row.path == str(tmp_path/name)


def test_a_pattern_of_ones_own(tmp_path):
    t = crops_folder(folder(tmp_path, 'door/p5_99.5.png', 'hall/x.png'), r'p(?P<pid>\d+)_(?P<time>[\d.]+\d)\.png')
    assert t['pid'].tolist() == [5, None] and t['time'].tolist() == [99.5, None]


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
