"What thresholds stand for, against pairs counted one by one"
import numpy as np
import pandas as pd
import pytest
from magnifier.app.search import PER_IDENTITY, SAMPLE, pair_rates, sample_keys
from magnifier.regions import N_REGIONS, REGIONS


def unit(x): return x/np.linalg.norm(x)


class Shelf:
    "As much of a gallery as the rates ask for"

    def __init__(self, pids, cameras, seed=0, d=6):
        rng = np.random.default_rng(seed)
        visible = rng.integers(0, 256, len(pids))
        parts = rng.normal(size=(len(pids), N_REGIONS, 3)).astype(np.float32)
        parts /= np.linalg.norm(parts, axis=2, keepdims=True)
        parts *= (visible[:, None] >> np.arange(N_REGIONS) & 1)[..., None]
        vectors = [unit(rng.normal(size=d).astype(np.float32)) for _ in pids]
        self.rows = [dict(key=f'k{i}', pid=pids[i], camid=cameras[i], vector=vectors[i], regions=parts[i].ravel(),
                          visible=int(visible[i])) for i in range(len(pids))]

    def images(self): return pd.DataFrame(self.rows)[['key', 'pid', 'camid']].astype({'pid': 'Int64', 'camid': 'Int64'})

    def embeddings(self, keys):
        rows = {r['key']: r for r in self.rows}
        return np.stack([rows[key]['vector'] for key in keys])

    def region_embeddings(self, keys):
        rows = {r['key']: r for r in self.rows}
        seen = [[rows[key]['visible'] >> region & 1 for region in range(N_REGIONS)] for key in keys]
        return np.stack([rows[key]['regions'].reshape(N_REGIONS, -1) for key in keys]), np.array(seen, bool)


PIDS, CAMERAS = [1, 1, 1, 2, 2, 3, None, 0, 0, 3], [1, 2, 2, 1, None, 1, 1, 1, 2, 1]


def slow(shelf, similarity):
    "Pairs of people with names, one by one"
    impostor, genuine = [], []
    rows = [r for r in shelf.rows if r['pid']]
    for i, a in enumerate(rows):
        for b in rows[i + 1:]:
            s = similarity(a, b)
            if s is None: continue
            if a['pid'] != b['pid']: impostor.append(s)
            elif a['camid'] is None or b['camid'] is None or a['camid'] != b['camid']: genuine.append(s)
    return sorted(impostor), sorted(genuine)


def cosine(a, b): return float(a['vector'] @ b['vector']/np.linalg.norm(a['vector'])/np.linalg.norm(b['vector']))


def by_regions(wanted):
    def similarity(a, b):
        both = [k for k in map(REGIONS.index, wanted) if a['visible'] & b['visible'] >> k << k & 1 << k]
        if not both: return None
        x, y = a['regions'].reshape(N_REGIONS, -1), b['regions'].reshape(N_REGIONS, -1)
        return float(np.mean([x[k] @ y[k] for k in both]))
    return similarity


@pytest.mark.parametrize('regions', [(), ('foot',), ('head', 'chest', 'foot')])
def test_pairs_are_those_counted_one_by_one(regions):
    shelf = Shelf(PIDS, CAMERAS)
    rates = pair_rates(shelf, regions)
    impostor, genuine = slow(shelf, by_regions(regions) if regions else cosine)
    np.testing.assert_allclose(np.sort(rates.impostor), impostor, atol=1e-5)
    np.testing.assert_allclose(np.sort(rates.genuine), genuine, atol=1e-5)


def test_nobody_seen_by_two_cameras():
    rates = pair_rates(Shelf([1, 2, 3], [1, 1, 1]))
    assert len(rates.impostor) == 3
    assert len(rates.genuine) == 0


@pytest.mark.parametrize('pids', [[None, None, None], [1, 1, 1], [0, 0, 1], [1, None, 0]])
def test_unknown_without_two_people(pids): assert pair_rates(Shelf(pids, [1, 2, 3])) is None


def test_one_person_with_many_pictures_is_not_many_people():
    keys = sample_keys(Shelf([7]*500 + list(range(10, 30)), [1]*520).images())
    assert len(keys) == PER_IDENTITY + 20
    assert len(set(keys)) == len(keys)


def test_a_sample_holds_whole_identities_and_is_the_same_again():
    images = Shelf(np.repeat(np.arange(1, 601), 4).tolist(), [1, 2, 3, 4]*600).images()
    keys = sample_keys(images)
    sizes = images[images['key'].isin(keys)]['pid'].value_counts()
    assert len(keys) == SAMPLE
    assert (sizes == 4).all()
    assert keys == sample_keys(images)
    assert keys != sample_keys(images, seed=1)
