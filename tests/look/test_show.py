"show_batch, show_results, show_occlusion: what is drawn, from what, and that looking changes nothing"
import random
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.vision.all import Interpretation
from PIL import Image
from magnifier.data.masks import stripe_masks
from magnifier.look.drawing import Figure
from magnifier.look.show import batch_to_show, contact_sheet, draw_results, draw_samples, show_masks
from magnifier.regions import NO_MASK, REGIONS
from magnifier.train.callbacks import RegionOcclusion


@pytest.fixture(scope='module')
def dls(seer): return seer.dls


def words(picture): return [t.get_text() for ax in picture.axes for t in ax.texts]

def legend(picture): return [t.get_text() for t in picture.legends[0].get_texts()] if picture.legends else []


def test_show_batch_shows_pictures_masks_and_titles(dls, tmp_path):
    picture = dls.show_batch(max_n=4, save=tmp_path/'deep'/'batch.png')
    assert isinstance(picture, Figure)
    assert (tmp_path/'deep'/'batch.png').stat().st_size > 5000
    assert len(picture.axes) == 8
    assert sum(w.startswith('id ') and ' cam ' in w for w in words(picture)) == 4
    assert legend(picture) == ['head', 'chest', 'upper arm', 'lower arm', 'upper leg', 'lower leg', 'foot']
    assert picture.get_facecolor() == (1, 1, 1, 1)
    assert plt.gcf() is picture


def test_show_batch_of_a_batch_in_hand_shows_that_batch(dls):
    x, m, y = dls.one_batch()
    titles = [w for w in words(dls.train.show_batch((x, m, y), max_n=3)) if w]
    assert titles == [f'id {int(pid)} cam {int(cam)}' for pid, cam in y[:3, 1:3].tolist()]


def test_validation_batches_show_their_roles(dls):
    titles = [w for w in words(dls.valid.show_batch(max_n=2)) if w]
    assert len(titles) == 2
    assert all(title.endswith(('query', 'gallery')) for title in titles)


@pytest.mark.slow
def test_unique_shows_one_picture_under_augmentation(dls):
    assert len({w for w in words(dls.show_batch(max_n=6, unique=True)) if w}) == 1


def test_show_false_gives_the_decoded_batch(dls):
    x, y, samples = dls.show_batch(show=False, max_n=2)
    assert len(samples) == 2
    assert len(samples[0]) == 3


def test_looking_moves_no_generator(dls):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), dls.train.epoch, \
        dls.train.after_batch[-1].generator.get_state().tolist()
    before = state()
    dls.show_batch()
    assert state() == before


@pytest.mark.slow
def test_seeds_draw_other_batches(dls):
    first, again, other = (words(dls.show_batch(seed=s)) for s in (0, 0, 1))
    assert first == again != other


def test_a_batch_without_masks_has_no_legend_and_one_row(blind):
    picture = blind.dls.show_batch(max_n=3)
    assert len(picture.axes) == 3
    assert not picture.legends


def test_what_is_asked_for_is_not_swallowed(dls):
    with pytest.raises(TypeError, match='split'): dls.show_batch(split='valid')


def test_stripes_are_called_stripes():
    "No 'true mask', no 'upper arm'"
    stripes = stripe_masks((64, 32))
    images = [np.zeros((64, 32, 3))]*2
    samples = draw_samples(images, [stripes, np.full((64, 32), NO_MASK)], ['a', 'b'])
    assert legend(samples) == ['horizontal stripes, not body parts']
    results = draw_results(images, ['a', 'b'], true=[stripes, None], predicted=[stripes]*2)
    assert words(results)[:3] == ['a', 'stripes', 'predicted stripes']
    assert legend(results) == ['horizontal stripes, not body parts']
    learnt = draw_results(images, ['a', 'b'], predicted=[np.ones((4, 2), int)]*2, stripes=True)
    assert words(learnt)[:2] == ['a', 'predicted stripes']


def test_a_picture_without_a_mask_among_others_says_so():
    pictures = [np.zeros((16, 8, 3))]*2
    picture = draw_samples(pictures, [np.ones((16, 8), int), np.full((16, 8), NO_MASK)], ['a', 'b'])
    assert words(picture).count('no mask') == 1
    rows = draw_results(pictures, ['a', 'b'], true=[np.ones((4, 2), int), None], predicted=None)
    assert words(rows) == ['a', 'true mask', 'b', 'no mask']


@pytest.mark.parametrize('call', [lambda dls, few: dls.show_batch(max_n=0), lambda dls, few: contact_sheet(few, 0)])
def test_nothing_to_show_is_refused(dls, few, call):
    with pytest.raises(ValueError, match='no images to show: ask for at least one'): call(dls, few)


def test_masks_of_a_catalog(few):
    assert len(show_masks(few, 3).axes) == 6
    assert len(contact_sheet(few, 13).axes) == 24
    half = few.assign(mask=few['mask'].where(few.index != 0, None))
    for figure in (show_masks(half, 2, seed=None), contact_sheet(half, 2, seed=None)):
        assert words(figure).count('no mask') == 1
    for none in (few.assign(mask=None), few.iloc[:0], few.drop(columns='mask')):
        with pytest.raises(ValueError, match='no image of this catalog has a part mask'): show_masks(none)


def test_show_results_has_a_column_for_each_thing(seer, tmp_path):
    picture = seer.show_results(max_n=1, save=tmp_path/'r.png')
    assert (tmp_path/'r.png').exists()
    assert len(picture.axes) == 6
    assert words(picture)[1:] == ['true mask', 'predicted', 'global', 'SAB', 'SFB']
    assert legend(picture)[-1] == 'the embedding is made of this'
    energy = seer.show_results(max_n=1, branches='stage3', kind='energy')
    assert words(energy)[1:] == ['true mask', 'predicted', 'stage3']
    assert legend(energy)[-1] == 'channel energy'
    assert words(seer.show_results(max_n=1, branches=()))[1:] == ['true mask', 'predicted']


@pytest.mark.slow
def test_show_results_draws_by_its_seed_and_from_any_source(seer, catalog):
    titles = lambda **kwargs: [w for w in words(seer.show_results(max_n=3, branches=(), **kwargs))
                               if w.startswith('id')]
    assert titles(seed=1) == titles(seed=1) != titles(seed=2)
    rows = catalog[catalog.split == 'train'].iloc[:3]
    assert titles(dl=rows, shuffle=False) == [f'id {r.pid} cam {r.camid}' for r in rows.itertuples()]
    assert titles(ds_idx=0, shuffle=False) == titles(dl=seer.dls.train, shuffle=False)


def test_show_results_of_mere_images(seer, few):
    "Loaders over paths, as users make them: no identity, no true mask, the file's name"
    paths = few.path.tolist()[:1]
    for dl in (seer.loader(paths), seer.dls.test_dl(paths)):
        assert words(seer.show_results(dl=dl, branches=())) == [Path(paths[0]).name[:18], 'predicted']


def test_show_results_of_images_without_a_loader(seer, few):
    path = few.path.iat[0]
    assert words(seer.show_results(dl=path, branches=()))[0] == Path(path).name[:18]
    assert len(seer.show_results(dl=[Image.open(path)]*2, branches=()).axes) == 4


def test_show_results_without_masks_or_branches(blind):
    picture = blind.show_results(max_n=2)
    assert words(picture)[1::2] == ['global', 'global']
    assert legend(picture) == ['the embedding is made of this']
    with pytest.raises(ValueError, match="no map 'sab' of kind 'pixels' in this model: it has global$"):
        blind.show_results(branches='sab')
    with pytest.raises(ValueError, match='use one of pixels, share, energy'): blind.show_results(kind='gradient')
    with pytest.raises(ValueError, match='no images: give at least one'): blind.show_results(max_n=0)


@pytest.mark.slow
def test_show_results_leaves_the_model_as_it_was(seer):
    seer.model.train()
    seer.show_results(max_n=1)
    assert seer.model.training
    assert all(p.grad is None for p in seer.model.parameters())


@pytest.mark.slow
def test_fastais_interpretation_shows_results(seer):
    interp = Interpretation.from_learner(seer)
    assert interp.show_results([0, 1]) is None  # fastai's own method returns nothing, and draws through the overload


ALONE = """import sys
from fastai.vision.all import Interpretation, load_learner
learn = load_learner(sys.argv[1])
assert 'magnifier.look' not in sys.modules
for draw in (learn.show_results, learn.dls.valid.show_results):
    try: draw()
    except ImportError as e: assert 'from magnifier.all import *' in str(e)
    else: sys.exit(f'{draw} drew')
"""


@pytest.mark.slow
def test_a_learner_without_drawing_says_how_to_have_it(seer, tmp_path):
    "In a process that has imported fastai alone"
    seer.export(tmp_path/'l.pkl')
    told = subprocess.run([sys.executable, '-W', 'ignore', '-c', ALONE, tmp_path/'l.pkl'], capture_output=True,
                          text=True)
    assert told.returncode == 0, told.stderr


@pytest.mark.slow
def test_an_exported_learner_asks_for_data(seer, catalog, tmp_path):
    from fastai.vision.all import load_learner
    seer.export(tmp_path/'l.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'l.pkl')
    with loaded.no_bar():
        with pytest.raises(ValueError, match='has no'): loaded.show_ranking()
        with pytest.raises(ValueError, match='has no'): loaded.show_results()
        assert loaded.show_ranking(catalog=catalog[catalog.split != 'train'], n=1, k=2)


def test_occlusions_are_those_of_the_callback(dls, tmp_path):
    occlusion, twin = RegionOcclusion('random', 5, seed=3), RegionOcclusion('random', 5, seed=3)
    figure = dls.show_occlusion(4, images=2, occlusion=occlusion, save=tmp_path/'o.png')
    assert (tmp_path/'o.png').exists()
    assert len(figure.axes) == 2*(1 + 4)
    kept = [twin.draw().numpy() for _ in range(4)]
    said = [ax.get_title() for ax in figure.axes[:5]]
    assert said[0] == 'image'
    for words, keep in zip(said[1:], kept):
        names = words.removeprefix('dropped:\n').replace(',\n', ', ').split(', ')
        assert names == [r.replace('_', ' ') for r, k in zip(REGIONS, keep) if not k]
    assert (occlusion.draw().numpy() == kept[0]).all()  # a copy drew


def test_occlusions_blank_what_they_name(dls):
    "Tiles differ from their image in the dropped regions alone"
    figure = dls.show_occlusion(3, images=1, seed=1)
    image, *blanked = [ax.images[0].get_array() for ax in figure.axes]
    _, masks, _ = batch_to_show(dls.train, 1)
    for tile, ax in zip(blanked, figure.axes[1:]):
        names = ax.get_title().removeprefix('dropped:\n').replace(',\n', ', ').replace(' ', '_').split(',_')
        dropped = np.isin(masks[0].numpy(), [REGIONS.index(n) for n in names])
        assert (tile == image).all(2)[~dropped].all()
        assert (tile != image).any(2)[dropped].mean() > .95


def test_refused_occlusions(dls, blind):
    with pytest.raises(ValueError, match='no image of this batch'): blind.dls.show_occlusion()
