"Batches of P identities x M images, drawn by the loader's own generator"

import random
import sys
from collections import defaultdict

from fastai.vision.all import TfmdDL, delegates, num_distrib

from magnifier.checks import refuse

__all__ = ['IdentityBatches']

NO_DRAWING = 'show_results draws: it is there after `from magnifier.all import *`'


def identity_groups(
    pids: list,  # Identity of each image, in the data set's order
    n_per_id: int,  # M: images of an identity in a batch
    rng: random.Random,  # The caller's generator
) -> dict:  # pid -> list of groups, each M indices into `pids`
    """Every identity's images shuffled and cut into groups of M.

    If an identity has fewer than M images, some are drawn twice; a remainder is left out in this epoch."""
    by_pid = defaultdict(list)
    for i, pid in enumerate(pids): by_pid[pid].append(i)
    groups = {}
    for pid in sorted(by_pid):
        images = rng.sample(by_pid[pid], len(by_pid[pid]))
        images += rng.choices(images, k=max(0, n_per_id - len(images)))
        groups[pid] = [images[i:i + n_per_id] for i in range(0, len(images) - n_per_id + 1, n_per_id)]
    return groups


def n_full_batches(
    n_groups: list,  # Groups of each identity
    n_ids: int,  # P: different identities in a batch
) -> int:  # The most batches that hold P different identities each
    "Largest number b of batches that the identities can fill if each gives at most b groups"
    n_groups = list(n_groups)
    most = 0
    too_many = sum(n_groups)//n_ids + 1
    while too_many - most > 1:  # by halves: identities that fill b batches fill any smaller number too
        b = (most + too_many)//2
        if sum(min(g, b) for g in n_groups) >= b*n_ids: most = b
        else: too_many = b
    return most


def identity_batches(
    groups: dict,  # pid -> groups of indices; not changed
    n_ids: int,  # P: different identities in a batch
    n_batches: int,  # At most `n_full_batches`
    rng: random.Random,  # The caller's generator
) -> list:  # Batches, each a list of P x M indices
    """Draws P identities that still have groups, at random, until fewer than P have any (reid-strong-baseline's
    sampler).

    An identity with as many groups as there are batches left goes into each of them. Otherwise its groups could not all
    be used, and the length of an epoch, which a schedule must know in advance, would depend on the draw."""
    left = {pid: list(g) for pid, g in groups.items() if g}
    waiting = _Pool(left)
    urgent = []  # Identities that go into every batch from now on
    due = defaultdict(list)  # Batches left -> identities that become urgent then, unless they are drawn before
    for pid, g in left.items(): due[min(len(g), n_batches)].append(pid)
    batches = []
    for b in range(n_batches, 0, -1):
        for pid in due[b]:
            if pid in waiting and len(left[pid]) >= b: urgent.append(waiting.remove(pid))
        chosen = rng.sample(urgent, min(len(urgent), n_ids))
        drawn = rng.sample(waiting.members, n_ids - len(chosen))
        batches.append([i for pid in chosen + drawn for i in left[pid].pop()])
        for pid in drawn:
            if left[pid]: due[len(left[pid])].append(pid)
            else: waiting.remove(pid)
    return batches


class _Pool:
    "A list to draw from, with removal in constant time: the last member takes the place of the removed one"
    def __init__(self, members):
        self.members = list(members)
        self.place = {m: i for i, m in enumerate(self.members)}

    def __contains__(self, member): return member in self.place

    def remove(self, member):
        "Removes a member and returns it"
        last = self.members.pop()
        i = self.place.pop(member)
        if last != member:
            self.members[i] = last
            self.place[last] = i
        return member


@delegates()
class IdentityBatches(TfmdDL):
    """Loader whose shuffled batches are P identities x M images, the same stream for the same seed.

    Epoch e of the stream depends on `seed` and e alone, so a run resumes by setting `epoch`. Without shuffling
    (validation, test, `get_preds`) it goes through its data in order. Several processes share the batches that a single
    process would have, and each takes whole batches: if their number is not a multiple of the number of processes, the
    first few are repeated at the end of the epoch."""
    def __init__(self,
        dataset=None,  # A fastai Datasets over a catalog
        n_per_id: int | None = 4,  # M; P is `bs // M`. None shuffles as fastai does
        seed: int = 0,  # Seed of the stream
        **kwargs
    ):
        self.n_per_id = n_per_id
        self.seed = seed
        self.epoch = 0
        super().__init__(dataset, **kwargs)
        if self._by_identity: self._n_batches = self._check()

    def show_results(self, *args, **kwargs):
        "fastai's, which finds in `magnifier.look` how to draw such a batch"
        if 'magnifier.look' not in sys.modules: raise ImportError(NO_DRAWING)
        return super().show_results(*args, **kwargs)

    @property
    def _by_identity(self): return self.shuffle and self.n_per_id is not None and self.n  # an exported loader is empty

    def _check(self):
        "Number of batches an epoch; a ValueError if there cannot be a single one"
        m = self.n_per_id
        pids = [int(p) for p in self.dataset.items['pid']]
        refuse({f'bs={self.bs}, n_per_id={m}: a batch is at least 2 identities x 2 images, so bs must be a multiple of '
                'n_per_id, and at least twice as large': m < 2 or self.bs % m or self.bs < 2*m})
        self.n_ids = self.bs // m
        counts = [len(g) for g in identity_groups(pids, m, random.Random(0)).values()]
        n = n_full_batches(counts, self.n_ids)
        refuse({
            '1 training identity: at least 2 are needed, since training distinguishes identities': len(counts) < 2,
            f'{len(counts)} training identities, but bs={self.bs} with n_per_id={m} needs {self.n_ids} different ones '
            f'in a batch: take bs={m*len(counts)} or less': len(counts) < self.n_ids,
            f'{n} batches an epoch for {num_distrib()} processes: take a smaller bs or fewer processes':
                n < num_distrib()})
        return n

    def get_idxs(self):
        "Indices of this epoch, batch after batch; computed in the main process"
        if not self._by_identity: return super().get_idxs()
        rng = random.Random(f'{self.seed} {self.epoch}')
        self.epoch += 1
        groups = identity_groups([int(p) for p in self.dataset.items['pid']], self.n_per_id, rng)
        batches = identity_batches(groups, self.n_ids, self._n_batches, rng)
        return [i for b in batches + batches[:self._n_repeated] for i in b]

    @property
    def _n_repeated(self): return -self._n_batches % max(1, num_distrib())

    def __len__(self): return self._n_batches + self._n_repeated if self._by_identity else super().__len__()

    def new(self, dataset=None, cls=None, **kwargs):
        "A loader like this one, with its stream at the start"
        return super().new(dataset, cls, **{'n_per_id': self.n_per_id, 'seed': self.seed, **kwargs})
