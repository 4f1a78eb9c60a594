"Regions compared: which by default, and by whose masks"
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from magnifier.data.masks import read_mask, write_mask
from magnifier.regions import BODY_REGIONS, REGIONS
from magnifier.train.learner import magnifier_learner
from magnifier.train.parts import NO_OWN_REGIONS, Parts, embed_parts, rank_parts


def planted(background):
    """Two people, whose body tells who they are and whose background the camera; `background` is where it
    stands among the eight"""
    embeddings = torch.zeros(4, 8, 2)
    embeddings[[0, 2], :, 0] = 1
    embeddings[[1, 3], :, 1] = 1
    embeddings[:2, background], embeddings[2:, background] = torch.tensor([100., 0]), torch.tensor([[0., 1], [1, 0]])
    identity = torch.tensor([[-1, 0, 0, 1], [-1, 1, 0, 1], [-1, 0, 1, 2], [-1, 1, 1, 2]])
    areas = np.zeros((4, 8))
    areas[:, [0, 7]] = .5
    return Parts(embeddings, areas, identity)


def test_the_background_is_compared_where_it_is_named_and_nowhere_else():
    parts = planted(0)
    assert rank_parts(parts)['regions'].hits(0)['distance'].tolist() == pytest.approx([0, 1])
    everywhere = rank_parts(parts._replace(regions=REGIONS))['regions']
    assert everywhere.hits(0)['distance'].tolist() == pytest.approx([.5, .5])
    both = rank_parts(parts, dict(k1=1, k2=1, lambda_value=1.))
    assert both['re-ranked'].ap.tolist() == both['regions'].ap.tolist() == [1, 1]


def test_evaluation_takes_the_body(learn):
    table = learn.evaluate(distance='regions')
    pd.testing.assert_frame_equal(table, learn.evaluate(distance='regions', regions=BODY_REGIONS))
    parts = embed_parts(learn, learn.dls.valid)
    assert parts.regions is None and embed_parts(learn, learn.dls.valid, REGIONS).regions == REGIONS
    every = rank_parts(parts._replace(regions=REGIONS))['regions'].table()
    assert learn.evaluate(distance='regions', regions=REGIONS).iloc[0].tolist() == pytest.approx(every.iloc[0].tolist())


@pytest.fixture
def halved(catalog, tmp_path):
    "The test rows, the lower half of every query's mask cut off; the pictures are as they were"
    test = catalog[catalog.split != 'train'].reset_index(drop=True)
    for i in test.index[test.split == 'query']:
        labels = read_mask(test['mask'][i]).copy()
        labels[len(labels)//2:] = 0
        test.loc[i, 'mask'] = str(write_mask(tmp_path/f'{i}.png', labels))
    return test


def test_given_masks_say_what_is_seen(learn, halved):
    own, given = embed_parts(learn, halved), embed_parts(learn, halved, given_masks=True)
    assert torch.equal(own.embeddings, given.embeddings) and not np.array_equal(own.areas, given.areas)
    size = learn.dls.valid.one_batch()[0].shape[-2:]
    for i in (0, len(halved) - 1):
        labels = np.asarray(Image.fromarray(read_mask(halved['mask'][i])).resize(size[::-1], 0))
        assert np.abs(given.areas[i] - [(labels == k).mean() for k in range(8)]).max() < .01
    some = embed_parts(learn, halved, ['foot', 'head'], given_masks=True)
    assert np.array_equal(some.areas, given.areas[:, [7, 1]])
    wanted = rank_parts(given)['regions'].table().iloc[0]
    assert learn.evaluate(halved, distance='regions',
                          given_masks=True).iloc[0].tolist() == pytest.approx(wanted.tolist())


def test_given_masks_must_be_there(learn, halved):
    with pytest.raises(ValueError, match='given_masks=True: these images come without part masks'):
        embed_parts(learn, list(halved.path[:2]), given_masks=True)
    halved.loc[0, 'mask'] = None
    with pytest.raises(ValueError, match='given_masks=True: 1 of .* images of a batch have no part mask'):
        embed_parts(learn, halved, given_masks=True)
    with pytest.raises(ValueError, match='given_masks go with distance="regions"'):
        learn.evaluate(halved, given_masks=True)


def test_a_model_without_a_mask_module_is_told_the_regions(dls, halved):
    learn = magnifier_learner(dls, 'resnet18', pretrained=False, mask=False, sab=False, sfb=False)
    with learn.no_bar():
        with pytest.raises(ValueError) as e: embed_parts(learn, halved)
        assert str(e.value) == NO_OWN_REGIONS and 'given_masks=True' in NO_OWN_REGIONS
        parts = embed_parts(learn, halved, given_masks=True)  # what the error advises
        assert parts.embeddings.shape[:2] == (len(halved), 8) and parts.embeddings.isfinite().all()
        assert len(learn.evaluate(halved, distance='regions', given_masks=True)) == 1
