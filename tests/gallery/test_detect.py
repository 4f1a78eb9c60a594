"Boxes from a video itself: a detector that is a stub, and a real tracker"
import numpy as np
import pytest
import torch
from PIL import Image

from magnifier.gallery.video import Video, person_network, track_people

pytest.importorskip('trackers')


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
