"Frames from files and folders, people cut out of them, and boxes in MOTChallenge files"
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from magnifier.gallery.video import (
    BOX_COLUMNS, Video, cut_boxes, person_network, read_frame, read_mot, track_people, write_mot)


def frame(number, size=(48, 64)):
    "A frame whose grey tells its number"
    return np.full((*size, 3), 20 * number, np.uint8)


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 4): Image.fromarray(frame(number)).save(tmp_path/f'{number:06d}.png')
    (tmp_path/'notes.txt').write_text('no frame')
    return tmp_path


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "Ten frames as an MP4, one shade each"
    av = pytest.importorskip('av')
    file = tmp_path_factory.mktemp('film')/'cam1.mp4'
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('mpeg4', rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for number in range(1, 11):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame(number), format='rgb24')):
                container.mux(packet)
        for packet in stream.encode(): container.mux(packet)
    return file


def boxes(rows): return pd.DataFrame(rows, columns=['frame', 'left', 'top', 'width', 'height'])


def test_a_folder_gives_its_frames_by_number(folder):
    found = list(Video(folder, fps=5).frames())
    assert [number for number, _ in found] == [1, 2, 4]
    assert all((image == 20 * number).all() for number, image in found)


def test_only_the_wanted_frames(folder):
    assert [number for number, _ in Video(folder, fps=5).frames([2, 3, 9])] == [2]


def test_a_film_gives_its_frames_and_its_rate(film):
    video = Video(film)
    assert video.fps == 5
    shades = [(number, int(image.mean())) for number, image in video.frames()]
    assert [number for number, _ in shades] == list(range(1, 11))
    assert all(abs(shade - 20 * number) < 6 for number, shade in shades)


def test_a_film_that_ends_in_the_middle_gives_what_it_has(film, tmp_path):
    cut = tmp_path/'cut.avi'
    av = pytest.importorskip('av')
    with av.open(str(cut), 'w') as container:  # a container that is read without its end
        stream = container.add_stream('mpeg4', rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        noise = np.random.default_rng(0)
        for _ in range(30):
            picture = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')): container.mux(packet)
        for packet in stream.encode(): container.mux(packet)
    whole = len(list(Video(cut).frames()))
    data = cut.read_bytes()
    cut.write_bytes(data[:len(data) // 2])
    assert 0 < len(list(Video(cut).frames())) < whole == 30


def test_boxes_are_cut_where_they_are(folder):
    table = boxes([(1, 2, 3, 10, 20), (2, 0, 0, 5, 5), (4, 1, 1, 4, 4)])
    crops = list(cut_boxes(Video(folder, fps=5), table))
    assert [(c.row, c.frame, c.image.size) for c in crops] == [(0, 1, (10, 20)), (1, 2, (5, 5)), (2, 4, (4, 4))]


def test_a_box_is_cut_at_the_frames_edge(folder):
    crop, = cut_boxes(Video(folder, fps=5), boxes([(1, -5, 40, 20, 20)]))
    assert crop.image.size == (15, 8)


@pytest.mark.parametrize('box', [(1, 70, 0, 9, 9), (1, -9, 0, 9, 9), (1, 0, -100, 9, 101), (3, 0, 0, 9, 9)])
def test_boxes_outside_the_frame_and_missing_frames_are_left_out(folder, box):
    assert list(cut_boxes(Video(folder, fps=5), boxes([box]))) == []


def test_one_frame(folder):
    assert read_frame(folder, 2).getpixel((0, 0)) == (40, 40, 40)
    with pytest.raises(ValueError, match='no frame 3'): read_frame(folder, 3)


def test_what_is_no_video_is_refused_by_name(tmp_path, folder):
    text = tmp_path/'cam.mp4'
    text.write_text('nothing')
    empty = tmp_path/'empty'
    empty.mkdir()
    with pytest.raises(ValueError, match='cam.mp4: not a video'): Video(text)
    with pytest.raises(ValueError, match='holds no frames'): Video(empty, fps=5)
    with pytest.raises(ValueError, match='give fps'): Video(folder)
    with pytest.raises(ValueError, match='fps=0'): Video(folder, fps=0)
    with pytest.raises(FileNotFoundError, match='nowhere.mp4'): Video(tmp_path/'nowhere.mp4')


# MOTChallenge files

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


# Boxes from a video itself: a detector that is a stub, and a real tracker

class Finds(torch.nn.Module):
    "Finds two people who walk apart, one of whom it is unsure of, and a dog"
    frame = 0

    def forward(self, images):
        found = []
        for _ in images:
            x = 4.*self.frame
            boxes = torch.tensor([[10 + x, 10, 26 + x, 50], [90 - x, 10, 106 - x, 50], [60, 60, 70, 70]])
            found.append(dict(boxes=boxes, labels=torch.tensor([1, 1, 18]), scores=torch.tensor([.9, .95, .99])))
            self.frame += 1
        return found


@pytest.fixture
def video(tmp_path):
    pytest.importorskip('trackers')
    for number in range(1, 10): Image.fromarray(np.zeros((100, 120, 3), np.uint8)).save(tmp_path/f'{number:04d}.png')
    return Video(tmp_path, fps=5)


@pytest.mark.parametrize('tracker', ['bytetrack', 'sort'])
def test_two_people_are_two_tracks(video, tracker):
    boxes = track_people(video, Finds(), tracker=tracker, bs=4)
    assert boxes['track'].nunique() == 2
    lefts = {track: rows['left'].tolist() for track, rows in boxes.groupby('track')}
    assert sorted(np.sign(np.diff(left)).mean() for left in lefts.values()) == [-1, 1]
    assert (boxes['width'] == 16).all()
    assert (boxes['height'] == 40).all()
    assert not boxes.duplicated(['frame', 'track']).any()


def test_nobody_is_a_sentence(video):
    with pytest.raises(ValueError, match='nobody was followed'): track_people(video, Finds(), min_score=.99)


def test_an_unknown_tracker(video):
    with pytest.raises(ValueError, match='use one of bytetrack, sort'): track_people(video, Finds(), tracker='deepsort')


@pytest.mark.slow
def test_other_weights_are_refused_by_name(tmp_path):
    torch.save({'a': torch.zeros(1)}, tmp_path/'weights.pth')
    with pytest.raises(ValueError, match='weights.pth does not hold the weights of .*fasterrcnn'):
        person_network(tmp_path/'weights.pth')
