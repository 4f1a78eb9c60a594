"magnifier_walkers and magnifier_masks as a shell sees them"
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from magnifier.cli.data import magnifier_masks, magnifier_walkers
from magnifier.data import keypoint_masks
from magnifier.data.images import read_mask
from magnifier.regions import LABEL_TABLES


def test_walkers_prints_where_they_are(walkers_root, tmp_path, capsys):
    # another set is there
    with pytest.raises(SystemExit, match='magnifier_walkers'): magnifier_walkers(str(walkers_root), n_train=3)
    new = tmp_path/'more'
    magnifier_walkers(str(new), n_train=1, n_test=1)
    assert capsys.readouterr().out.strip() == str(new)
    assert (new/'query').is_dir()


def test_the_keyboard_stops_a_command(monkeypatch, capsys):
    monkeypatch.setattr('magnifier.walkers.dataset.walkers', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as e: magnifier_walkers(n_train=3)
    assert e.value.code == 130
    assert capsys.readouterr().err == 'magnifier_walkers: stopped by the keyboard\n'


# --- magnifier_masks

# Somebody who stands and faces us, 100 pixels tall, in COCO's order
JOINTS = np.array([
    (32, 20), (33, 18), (31, 18), (35, 19), (29, 19), (42, 32), (22, 32), (43, 49), (21, 49), (43, 64), (21, 64),
    (37, 60), (27, 60), (37, 84), (27, 84), (37, 109), (27, 109)], np.float32)


class OnePerson(torch.nn.Module):
    "Sees somebody who stands in every picture that is not black"
    def forward(self, images):
        found = dict(boxes=torch.tensor([[20., 10, 44, 115]]), scores=torch.tensor([.9]),
                     keypoints_scores=torch.full((1, 17), 9.),
                     keypoints=torch.cat([torch.from_numpy(JOINTS), torch.ones(17, 1)], 1)[None])
        return [found if image.any() else {k: v[:0] for k, v in found.items()} for image in images]


@pytest.fixture
def images(tmp_path):
    for name, colour in (('a', 90), ('sub/b', 120), ('dark', 0)):
        path = tmp_path/'images'/f'{name}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (64, 128), (colour,)*3).save(path)
    return tmp_path/'images'


def test_convert(tmp_path, capsys):
    lip = np.zeros((40, 20), np.uint8)
    lip[2:8, 8:12] = 13  # face
    lip[8:20, 6:14] = 5  # upper clothes
    lip[20:38, 6:14] = 9  # trousers
    (tmp_path/'lip').mkdir()
    Image.fromarray(lip).save(tmp_path/'lip'/'a.png')
    Image.fromarray(lip + 60).save(tmp_path/'lip'/'b.png')
    magnifier_masks('convert', str(tmp_path/'lip'), str(tmp_path/'out'))
    assert {1, 2, 5, 6} <= set(np.unique(read_mask(tmp_path/'out'/'a.png')))
    said = capsys.readouterr().out
    assert '1 converted, 1 failed' in said
    assert 'b.png' in said
    assert f'--masks {tmp_path/"out"}' in said
    assert pd.read_csv(tmp_path/'out_report.csv')['result'].tolist() == ['converted', 'failed']


def test_make(images, monkeypatch, capsys):
    monkeypatch.setattr(keypoint_masks, 'keypoint_network', lambda weights: OnePerson())
    magnifier_masks('make', str(images))
    masks = images.with_name('images_ps_label')
    assert sorted(p.relative_to(masks).as_posix() for p in masks.rglob('*.png')) == ['a.png', 'sub/b.png']
    said = capsys.readouterr().out
    assert '2 made, 1 no person' in said
    assert 'dark.jpg' in said
    assert f'The loaders look in {masks} by themselves' in said
    with Image.open(images.with_name('images_ps_label_sheet.png')) as sheet: assert sheet.width > 100
    magnifier_masks('make', str(images))
    assert '2 already there, 1 no person' in capsys.readouterr().out


def test_stripes(images, capsys):
    magnifier_masks('stripes', str(images))
    assert set(np.unique(read_mask(images.with_name('images_ps_label')/'dark.png'))) == set(range(1, 8))
    said = capsys.readouterr().out
    assert 'not body parts' in said
    assert f'The loaders look in {images.with_name("images_ps_label")} by themselves' in said


@pytest.mark.parametrize('arguments, message', [
    (('convert', 'images'), 'name the folder of the part masks'), (('convert', 'gone', 'out'), 'gone is not a folder'),
    (('paint', 'images'), "unknown action 'paint': use convert, make, stripes"),
    (('make', 'gone'), 'gone is not a folder'),
])
def test_mistakes_are_one_line(images, monkeypatch, arguments, message):
    monkeypatch.chdir(images.parent)
    monkeypatch.setattr(keypoint_masks, 'keypoint_network', lambda weights: OnePerson())
    with pytest.raises(SystemExit, match=f'^magnifier_masks: .*{message}'): magnifier_masks(*arguments)


def test_unknown_labels_and_nobody_found(images, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match='unknown labels'): magnifier_masks('convert', str(images), 'out', labels='dog')
    for p in (images/'a.jpg', images/'sub'/'b.jpg'): p.unlink()
    monkeypatch.setattr(keypoint_masks, 'keypoint_network', lambda weights: OnePerson())
    with pytest.raises(SystemExit, match='no mask was written: no person was found'):
        magnifier_masks('make', str(images))


def test_help_names_every_labelling():
    from fastcore.docments import docments
    assert all(name in docments(magnifier_masks, full=True).labels.docment for name in LABEL_TABLES)
