"Masks that a trained head writes"
import numpy as np
import pytest
import torch
from PIL import Image
from magnifier.data.images import read_mask
from magnifier.data.masks import mask_agreement
from magnifier.train.learner import magnifier_learner


@pytest.fixture
def people(tmp_path):
    for i, size in enumerate([(64, 128), (50, 90), (33, 60)]):
        (tmp_path/'set'/str(i % 2)).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path/'set'/str(i % 2)/f'{i}.png')
    return tmp_path/'set'


def test_masks_have_their_images_names_sizes_and_labels(learn, people, tmp_path):
    files = learn.predict_masks(people, bs=2)
    assert [p.relative_to(tmp_path/'set_ps_label').as_posix() for p in files] == ['0/0.png', '0/2.png', '1/1.png']
    for mask in files:
        with Image.open(people/mask.relative_to(tmp_path/'set_ps_label')) as image:
            assert read_mask(mask).shape == image.size[::-1]
    again = learn.predict_masks([people/'0'/'0.png', people/'1'/'1.png'], tmp_path/'other')
    assert all((read_mask(a) == read_mask(b)).all() for a, b in zip(again, (files[0], files[2])))
    assert learn.model.training
    assert mask_agreement(tmp_path/'set_ps_label', tmp_path/'set_ps_label').iou.dropna().eq(1).all()


def test_the_label_is_the_largest_logit_of_the_place(learn, people, monkeypatch):
    class Halves(torch.nn.Module):
        segmentation = True
        def __init__(self): super().__init__(); self.weight = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x):
            out = torch.zeros(len(x), 8, 8, 4)
            out[:, 3, :4], out[:, 6, 4:] = 1, 1  # upper arm above, lower leg below
            return type('Output', (), dict(mask_logits=out))
    monkeypatch.setattr(learn, 'model', Halves())
    for mask in map(read_mask, learn.predict_masks(people)):
        h = len(mask)
        assert (mask[:h//2 - 1] == 3).all() and (mask[h//2 + 1:] == 6).all()


def test_what_is_there_stays_unless_asked(learn, people, tmp_path):
    files = learn.predict_masks(people)
    files[1].write_bytes(b'kept')
    with pytest.raises(ValueError,
                       match=r'3 of 3 masks exist \(first: .*0.png\): name another dst, or pass overwrite=True'):
        learn.predict_masks(people)
    assert files[1].read_bytes() == b'kept'
    learn.predict_masks(people, overwrite=True)
    read_mask(files[1])


def test_a_model_without_the_head(dls, people, arch):
    bare = magnifier_learner(dls, arch, pretrained=False, mask=False, sab=False, sfb=False)
    with pytest.raises(ValueError, match='no segmentation head'): bare.predict_masks(people)
