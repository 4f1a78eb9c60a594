"MOTChallenge files: what is read, what is refused"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from magnifier.gallery.video import BOX_COLUMNS, read_mot, write_mot


def written(tmp_path, text):
    file = tmp_path/'cam1.txt'
    file.write_text(text)
    return file


def test_a_worked_file(tmp_path):
    boxes = read_mot(written(tmp_path, '2,7,11,21,30,60,0.5,-1,-1,-1\n1,7,10.5,20,30,60,0.9,-1,-1,-1\n'))
    assert tuple(boxes.columns) == BOX_COLUMNS
    assert boxes.frame.tolist() == [1, 2]
    assert boxes.left.tolist() == [9.5, 10]  # MOTChallenge counts pixels from 1
    assert boxes.top.tolist() == [19, 20]
    assert boxes.confidence.tolist() == [.9, .5]


def test_ground_truth_has_fewer_columns_and_confidence_is_one(tmp_path):
    assert read_mot(written(tmp_path, '1,1,1,1,5,5\n')).confidence.tolist() == [1]


def test_weak_boxes_are_left_out(tmp_path):
    text = '1,1,1,1,5,5,0.2\n1,2,1,1,5,5,0.8\n'
    assert read_mot(written(tmp_path, text), min_confidence=.5).track.tolist() == [2]


@pytest.mark.parametrize('text, said', [
    ('', 'holds no boxes'),
    ('\n\n', 'holds no boxes'),
    ('1,2,3\n', '3 columns'),
    ('1,1,1,1,5,five\n', 'not a MOTChallenge file'),
    ('1,1,1,1,5,5\n0,1,1,1,5,5\n', r'box 2 \(0,1,1,1,5,5\): frames are whole numbers from 1'),
    ('1.5,1,1,1,5,5\n', 'frames are whole numbers'),
    ('1,-1,1,1,5,5\n', 'track ids are whole numbers from 0'),
    ('1,1,1,1,0,5\n', 'width and height are above 0'),
    ('1,1,1,1,5,nan\n', 'missing or infinite'),
    ('1,1,1,1,5,inf\n', 'missing or infinite'),
    ('1,1,1,1,5,5\n1,1,9,9,5,5\n', 'second box in this frame'),
])
def test_what_is_no_file_of_boxes_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as error: read_mot(written(tmp_path, text))
    assert 'cam1.txt' in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='cam9.txt'): read_mot(tmp_path/'cam9.txt')


def test_bytes_that_are_no_text(tmp_path):
    file = tmp_path/'cam1.txt'
    file.write_bytes(b'\xff\xfe1\x00,\x00')
    with pytest.raises(ValueError, match='cam1.txt'): read_mot(file)


numbers = st.integers(0, 400)
rows = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), numbers, numbers, st.integers(1, 99),
                          st.integers(1, 99)), min_size=1, max_size=20,
                unique_by=lambda row: row[:2])


@given(rows)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, rows):
    table = pd.DataFrame(rows, columns=BOX_COLUMNS[:6]).assign(confidence=1.)
    file = tmp_path_factory.mktemp('mot')/'boxes.txt'
    write_mot(table, file)
    wanted = table.sort_values(['frame', 'track'], ignore_index=True)
    assert np.allclose(read_mot(file), wanted)
