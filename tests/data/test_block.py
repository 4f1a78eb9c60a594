"The triple: types, roles, classes, missing masks, and what is refused"
import cloudpickle
import numpy as np
import pytest
import torch
from fastai.vision.all import TensorImage
from PIL import Image
from magnifier.data.block import (IdentityCategorize, IdentityTitle, PILPartMask, PILPerson, ReIDDataBlock, SameSize,
                                  TensorIdentity, TensorPartMask)
from magnifier.regions import NO_MASK


def saved_mask(path, labels, palette=False):
    image = Image.fromarray(np.asarray(labels, np.uint8))
    if palette: image.putpalette([200, 10, 10]*256)  # one colour for every index: a reader of colours would see nothing
    image.save(path)
    return path


@pytest.mark.parametrize('palette', [False, True])
def test_mask_files_keep_their_labels(tmp_path, palette):
    labels = np.arange(8, dtype=np.uint8).reshape(2, 4)
    mask = PILPartMask.create(saved_mask(tmp_path/'m.png', labels, palette))
    assert isinstance(mask, PILPartMask)
    assert (np.asarray(mask) == labels).all()


def test_masks_come_from_arrays_tensors_pictures_and_nothing():
    labels = np.arange(8).reshape(2, 4)
    for source in (labels, torch.as_tensor(labels), Image.fromarray(labels.astype(np.uint8))):
        assert (np.asarray(PILPartMask.create(source)) == labels).all()
    assert np.asarray(PILPartMask.create(None)).tolist() == [[NO_MASK]]


def test_a_person_comes_from_a_tensor_too():
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 4, 3)
    assert isinstance(PILPerson.create(pixels), PILPerson)
    assert np.asarray(PILPerson.create(pixels)).tolist() == pixels.tolist()


def test_a_mask_of_another_size_is_named(tmp_path):
    image, mask = PILPerson(Image.new('RGB', (4, 8))), PILPartMask.create(saved_mask(tmp_path/'small.png',
                                                                                     np.zeros((4, 2))))
    with pytest.raises(ValueError, match=r'small.png: mask of 2 x 4 pixels for an image of 4 x 8'):
        SameSize()((image, mask))
    fits = (image, PILPartMask.create(saved_mask(tmp_path/'fits.png', np.zeros((8, 4)))))
    assert SameSize()(fits) == fits
    assert SameSize()((image, PILPartMask.create(None)))[0] is image
    assert SameSize()((image,)) == (image,)


def test_label_9_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'nine.png.*9.*0 to 7'):
        PILPartMask.create(saved_mask(tmp_path/'nine.png', [[9]]))


def test_classes_are_the_sorted_training_identities():
    tfm = IdentityCategorize()
    tfm.setups([[30, 1, 'train'], [4, 2, 'train'], [30, 3, 'train']])
    assert tfm.c == 2
    assert list(tfm.vocab) == [4, 30]
    assert tfm([4, 2, 'train']).tolist() == [0, 4, 2, 0]
    assert tfm([30, 1, 'gallery']).tolist() == [1, 30, 1, 2]
    assert tfm([5, 2, 'query']).tolist() == [-1, 5, 2, 1], 'not in training'
    assert tfm.decode(TensorIdentity([-1, 5, 2, 1])) == 'id 5 cam 2 query'
    assert tfm.decode(TensorIdentity([0, 4, 2, 0])) == 'id 4 cam 2'
    assert tfm.decode(TensorIdentity([1, -1, -1, -1])) == 'like id 30'
    with pytest.raises(ValueError): tfm([4, 2, 'test'])
    assert list(IdentityCategorize([9, 3]).vocab) == [9, 3]


def test_identity_columns_have_names():
    identity = TensorIdentity([[1, 30, 2, 0], [-1, 5, 3, 2]])
    for name, column in zip(('label', 'pid', 'camid', 'role'), identity.T):
        assert getattr(identity, name).tolist() == column.tolist()
    assert type(identity.pid) is torch.Tensor


def test_an_identity_is_a_title():
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    IdentityTitle('id 3').show(ctx=ax)
    assert ax.get_title() == 'id 3'
    plt.close(fig)


def test_batches_are_triples_with_one_input(dls, catalog):
    x, mask, identity = dls.one_batch()
    assert (type(x), type(mask), type(identity)) == (TensorImage, TensorPartMask, TensorIdentity)
    assert x.shape == (8, 3, 64, 32)
    assert mask.shape == (8, 64, 32)
    assert identity.shape == (8, 4)
    assert mask.dtype == torch.int64
    assert dls.n_inp == 1
    assert dls.c == catalog[catalog.split == 'train'].pid.nunique()
    assert mask.max() < 8
    assert len(mask.unique()) > 4
    assert (identity.label >= 0).all()
    assert (identity.role == 0).all()
    assert torch.equal(torch.tensor([dls.vocab[i] for i in identity.label]), identity.pid)


def test_validation_is_query_and_gallery_in_order_with_roles(dls, catalog):
    rows = catalog[catalog.split != 'train']
    identity = torch.cat([b[2] for b in dls.valid])
    assert identity.pid.tolist() == rows.pid.tolist()
    assert identity.camid.tolist() == rows.camid.tolist()
    assert (identity.label == -1).all()
    assert set(identity.role.tolist()) == {1, 2}


def test_images_without_a_mask_are_unlabelled_to_the_last_pixel(small):
    some = small.copy()
    gone = some.index[some.split == 'train'][::2]
    some.loc[gone, 'mask'] = None
    from magnifier.data.preprocess import Preprocessing
    from magnifier.data.transforms import batch_transforms, item_transforms
    dls = ReIDDataBlock(item_transforms(Preprocessing((64, 32)), 6),
                        batch_transforms(Preprocessing())).dataloaders(some, bs=8, num_workers=0)
    for _, mask, _ in dls.train:
        unlabelled = (mask == NO_MASK).flatten(1)
        assert torch.equal(unlabelled.any(1), unlabelled.all(1))
        assert 0 < unlabelled.all(1).sum() < 8


def test_blocks_pickle(dls):
    again = cloudpickle.loads(cloudpickle.dumps(dls.train_ds.tls[2].tfms))
    assert list(again.fs[1].vocab) == list(dls.vocab)
