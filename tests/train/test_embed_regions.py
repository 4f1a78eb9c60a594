"A learner in a gallery"
import numpy as np
import pytest
from magnifier.gallery.entries import crops_folder
from magnifier.gallery.gallery import Gallery
from magnifier.train.learner import magnifier_learner
from magnifier.train.metrics import embed_parts

pytest.importorskip('lance')


@pytest.mark.slow
def test_walkers_are_added_and_found(learn, catalog, tmp_path):
    gallery = catalog[catalog.split == 'gallery'].iloc[:24]
    with Gallery(tmp_path/'people', regions=True) as g:
        assert g.add(learn, gallery, progress=False)[:2] == (24, 0)
        row = gallery.iloc[5]
        hits = g.search(learn, row.path, k=24)
        assert hits[0].path == row.path and hits[0].pid == row.pid and hits[0].similarity == pytest.approx(1, abs=1e-4)
        similarity = learn.embed(gallery).numpy() @ learn.embed(row.path).numpy()[0]
        np.testing.assert_allclose(hits.table['similarity'], np.sort(similarity)[::-1], atol=1e-4)
        assert g.add(learn, crops_folder(row.path.rsplit('/', 1)[0]).query('path == @row.path'))[:2] == (0, 1)
        parts = embed_parts(learn, gallery)
        assert g.search(learn, row.path, k=1,
                        regions=[int(np.flatnonzero(parts.visible[5])[0])])[0].similarity == pytest.approx(1, abs=1e-3)
        with pytest.raises(ValueError, match='made by the model'):
            learn.model.cpu()
            next(learn.model.parameters()).data.add_(1)
            g.search(learn, row.path)


def test_a_model_that_knows_no_regions(dls, catalog, tmp_path, arch):
    learn = magnifier_learner(dls, arch, pretrained=False, mask=False, sab=False, sfb=False, hidden=32)
    with learn.no_bar(), Gallery(tmp_path/'people', regions=True) as g:
        with pytest.raises(ValueError, match='the regions are not known'): g.add(learn, catalog['path'].iloc[:2])


def test_embeddings_and_what_can_be_seen_in_one_pass(learn, catalog):
    paths = catalog['path'].iloc[:5].tolist()
    embeddings, visible = learn.embed_visible(paths)
    np.testing.assert_allclose(embeddings, learn.embed(paths), atol=1e-5)
    np.testing.assert_allclose(visible, embed_parts(learn, paths).visible[:, 1:].mean(1), atol=1e-6)


def test_without_masks_everything_counts_as_seen(dls, catalog, arch):
    learn = magnifier_learner(dls, arch, pretrained=False, mask=False, sab=False, sfb=False, hidden=32)
    with learn.no_bar(): assert learn.embed_visible(catalog['path'].iloc[:3].tolist())[1].tolist() == [1, 1, 1]
