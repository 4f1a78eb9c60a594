"The learner: MagnifierNet with its losses and callbacks as fastai knows them, evaluated and used for retrieval"
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (Adam, AMPMode, DataLoader, L, Learner, delegates, detuplify, progress_bar, rank_distrib, resnet50, to_device, tuplify)
from PIL import Image
from torch.nn.functional import interpolate
from magnifier.data.images import read_image
from magnifier.data.masks import mask_targets, write_mask
from magnifier.files import aside
from magnifier.model.embedding import EmbeddingNet
from magnifier.model.net import MagnifierNet, create_magnifier, model_splitter
from magnifier.retrieval.distance import normalise
from magnifier.train.callbacks import LossParts, RegionOcclusion, SemanticDiversityPhase, TeacherMasks
from magnifier.train.distributed import Share, distributed
from magnifier.train.losses import MagnifierLoss
from magnifier.train.metrics import rank_embeddings, reid_metrics
from magnifier.train.parts import embed_parts, rank_parts
from magnifier.train.recording import without_waiting

__all__ = ['ReIDLearner', 'magnifier_learner']


class ReIDLearner(Learner):
    "A fastai Learner that also embeds, evaluates by query and gallery, and trains the paper's second stage"

    def loader(self,
        images, # A path, PIL image or (h,w,3) uint8 array, a list of these, a catalog, or a DataLoader (returned as it is)
        *,
        bs:int|None=None,  # Images a batch; None for the validation loader's, or the loader's that is given
        num_workers:int|None=None, # Loader processes; None for one's own process where there are few images
    ) -> DataLoader:  # Loader with the validation transforms, in the order given; a catalog's has its masks and identities too
        "Loader over anything that holds pictures"
        if isinstance(images, DataLoader): return images if bs in (None, images.bs) else images.new(bs=bs)
        table = images if isinstance(images, pd.DataFrame) else pd.DataFrame({'path': pd.Series(_as_list(images), dtype=object)})
        if not len(table): raise ValueError('no images: give at least one path, picture or catalog row')
        if num_workers is None and len(table) < 256: num_workers = 0
        kwargs = {k: v for k, v in dict(bs=bs, num_workers=num_workers).items() if v is not None}
        return self.dls.test_dl(table, with_labels={'pid', 'camid', 'split'} <= set(table.columns), **kwargs)

    def add_cb(self,
        cb, # A callback, or the class of one
    ):
        "fastai's, but for its recorder and progress bar, in whose place come those that let a device work on (`without_waiting`)"
        return super().add_cb(without_waiting(cb))

    @contextmanager
    def evaluating(self):
        "Gives (model, its device): the model in evaluation mode, without gradients, in the learner's precision; then as it was"
        was, device = self.model.training, next(self.model.parameters()).device
        try:
            model = getattr(self.model, 'module', self.model)  # in a distributed fit: without the wrapper, which waits for other ranks
            with torch.no_grad(), self._precision(device.type): yield model.eval(), device
        finally: self.model.train(was)

    def _precision(self, device):
        "What the learner's callbacks train in: fastai's own knows GPUs alone"
        if device == 'cpu': return torch.autocast('cpu', torch.bfloat16, enabled=hasattr(self, 'cpu_bfloat16'))
        half = getattr(self, 'mixed_precision', None)
        return torch.autocast(device, torch.bfloat16 if half and half.amp_mode == AMPMode.BF16 else torch.float16, enabled=half is not None)

    def with_progress(self,
        dl,  # A DataLoader, or anything with a length
    ):       # The same to iterate over
        "`dl` under a progress bar, where this learner shows any and it is worth one"
        return progress_bar(dl, leave=False) if hasattr(self, 'progress') and len(dl) > 1 else dl

    @contextmanager
    def distrib_ctx(self,
        sync_bn:bool|None=None, # Batch norms over all ranks' batches; None: where there are GPUs (on CPUs torch has none)
        *,
        timeout:float=60.,      # Seconds that a rank waits for the others in one exchange before it ends with an error; the first call's holds
        **kwargs                # Passed to fastai's, as cpu
    ):
        """Training, `validate`, `embed` and `evaluate` inside are shared by the processes that `torchrun` started; nothing in a single one.

        Every rank must come to each of them, and has the same figures: embedding, which costs most, is shared; each rank then ranks for
        itself, on the same embeddings, which takes seconds and spares another exchange. An ImportError without accelerate."""
        with distributed(self, sync_bn, timeout=timeout, **kwargs): yield self

    def get_preds(self,
        *args,   # As in fastai
        **kwargs # As in fastai
    ) -> tuple:  # As in fastai
        "fastai's, in the data set's order; in `distrib_ctx` every rank goes through all of it, for fastai mixes up the order of what it gathers"
        with self._alone(): return super().get_preds(*args, **kwargs)

    def to_detach(self,
        b,           # Tensor, or tuples of them
        cpu=True,    # Whether they come to the CPU
        gather=True, # Whether of all processes
    ):
        "fastai's, which gathers wherever there are several processes; here only what they shared, not what each computed for itself"
        return super().to_detach(b, cpu, gather and hasattr(self.dl, 'to_detach'))

    def export(self,
        fname='export.pkl', # File below `path`
        **kwargs            # As in fastai
    ):
        "fastai's, whole or not at all; in `distrib_ctx` rank 0 writes it, without what belongs to the processes"
        if rank_distrib(): return
        dls, opt = self.dls, self.opt
        try:
            with self._alone(), aside(self.path/fname) as part: super().export(part.absolute(), **kwargs)
        except BaseException:
            self.dls, self.opt = dls, opt  # fastai's empties the learner while it writes
            raise

    def _alone(self): return self.removed_cbs(L(cb for cb in self.cbs if cb.name == 'distributed_trainer'))

    def embed(self,
        images,                # A path, PIL image or (h,w,3) uint8 array, a list of these, a catalog, or a DataLoader
        *,
        bs:int|None=None,      # Images a batch; None for the validation loader's
        flip_test:bool=False,  # Adds the embedding of the mirrored picture
        with_identity:bool=False, # Returns the identities beside the embeddings, where the loader has them
    ):  # (n,d) float32 on the CPU, L2-normalised, in the loader's order; with `with_identity` also (n,4) integers
        "Embeddings for retrieval (METHOD: Heads). In `distrib_ctx` each rank embeds its share, and every rank has them all"
        share, parts, identities = Share(self, self.loader(images, bs=bs)), [], []
        with self.evaluating() as (model, device):
            # Folding its norms copies the weights, which one batch does not earn back
            embed = EmbeddingNet(model) if len(share.dl) > 1 and isinstance(model, MagnifierNet) else lambda x: model(x).embedding
            for batch in self.with_progress(share.dl):
                x, *targets = tuplify(to_device(batch, device))
                x = x.as_subclass(torch.Tensor)
                embedding = embed(x)
                if flip_test: embedding = normalise(embedding + embed(x.flip(-1)))
                parts.append(embedding.float().cpu().as_subclass(torch.Tensor))
                if with_identity: identities.append(targets[-1].cpu().as_subclass(torch.Tensor))
        embeddings = share.whole(torch.cat(parts))
        return (embeddings, share.whole(torch.cat(identities))) if with_identity else embeddings

    def embed_regions(self,
        images, # Whatever `loader` takes
    ) -> tuple: # (n,k,c) embeddings, L2-normalised, on the CPU; (n,k) booleans, which regions are seen
        "Region embeddings of pictures, for `Gallery(regions=True)`; a ValueError for a model that knows no regions"
        parts = embed_parts(self, images)
        return parts.embeddings, parts.visible

    def predict_masks(self,
        images,               # A folder, a catalog, or paths
        dst=None,             # Folder of the masks, same sub-paths; None for `<folder>_ps_label`, where `find_masks` looks
        *,
        bs:int|None=None,     # Images a batch; None for the validation loader's
        overwrite:bool=False, # Whether to replace masks that are there already
    ) -> list:  # The files, in the order of the images
        """Writes the segmentation head's part masks, each at its image's own size: labels for the next training (self-training).

        ValueError for a model without that head, and for masks that are there already."""
        if self.model.segmentation is None: raise ValueError('this model has no segmentation head: build the learner with mask=True')
        targets = mask_targets(images, dst)
        if rank_distrib(): return [mask for _, mask in targets]  # the first of several processes writes
        there = [mask for _, mask in targets if mask.exists()]
        if there and not overwrite: raise ValueError(f'{len(there)} of {len(targets)} masks exist (first: {there[0]}): name another dst, '
                                                     'or pass overwrite=True')
        dl, left = self.loader([path for path, _ in targets], bs=bs), iter(targets)
        with self.evaluating() as (model, device):
            for batch in self.with_progress(dl):
                for logits, (image, mask) in zip(model(tuplify(to_device(batch, device))[0]).mask_logits.float(), left):
                    size = read_image(image).size[::-1]
                    write_mask(mask, interpolate(logits[None], size, mode='bilinear')[0].argmax(0).cpu().numpy())
        return [mask for _, mask in targets]

    def evaluate(self,
        catalog=None,          # Catalog or DataLoader with queries and gallery; None for the validation set
        *,
        distance:str='cosine', # Of the embeddings; 'regions': of the regions that both pictures show, each by itself
        regions=None,          # With 'regions': names or indices of those to compare; None for the body's, without the background
        given_masks:bool=False,# With 'regions': what is seen is by the catalog's part masks, not by the model's own
        rerank:bool=False,     # Adds a row re-ranked by k-reciprocal encoding; it uses the other test images
        flip_test:bool=False,  # Adds the embedding of the mirrored picture; not with 'regions'
        bs:int|None=None,      # Images a batch
        k1:int=20,             # Re-ranking: neighbours considered
        k2:int=6,              # Re-ranking: neighbours averaged
        lambda_value:float=0.3,# Re-ranking: share of the original distance
        **kwargs               # Passed to `rank`: ap, no_match, separate_cameras
    ) -> pd.DataFrame:  # Columns R1 R5 R10 mAP mINP in [0,1]; rows 'plain' (or 'regions') and, if asked for, 're-ranked'
        "Table of retrieval figures (PROTOCOLS: CMC, mAP, mINP)"
        if distance not in ('cosine', 'regions'): raise ValueError(f'unknown distance {distance!r}: use cosine or regions')
        if flip_test and distance == 'regions': raise ValueError('flip_test adds embeddings up, and distance="regions" has none: leave one out')
        if (regions is not None or given_masks) and distance == 'cosine': raise ValueError('regions and given_masks go with distance="regions"')
        again = dict(k1=k1, k2=k2, lambda_value=lambda_value) if rerank else None
        dl = self.loader(self.dls.valid if catalog is None else catalog, bs=bs)
        if distance == 'regions': rows = rank_parts(embed_parts(self, dl, regions, given_masks=given_masks), again, **kwargs)
        else: rows = rank_embeddings(*self.embed(dl, flip_test=flip_test, with_identity=True), again, **kwargs)
        if not rows: raise ValueError('nothing to evaluate: the catalog needs rows of split "query" and of split "gallery"')
        return pd.concat([r.table().set_axis([name]) for name, r in rows.items()])

    def fit_semantic_diversity(self,
        n_epoch:int,        # Epochs of the second stage; the paper's 40
        lr:float=1e-3,      # Learning rate, constant (paper, section 4.1)
        gamma:float=2e-3,   # Weight of the semantic diversity loss (paper, section 4.1)
        cbs=None,           # Further callbacks
        **kwargs            # Passed to `fit`
    ):
        "Second stage of the paper: goes on training with the semantic diversity loss"
        self.fit(n_epoch, lr, cbs=[SemanticDiversityPhase(gamma), *tuplify(cbs)], **kwargs)

    def predict(self,
        item,                  # A path, PIL image or (h,w,3) uint8 array
        rm_type_tfms=None,     # As in fastai; not needed here
        with_input:bool=False, # Whether the picture comes first
    ) -> tuple:  # (part mask, nearest training identity) decoded; the same as tensors; embedding (d,)
        "What the model makes of one picture: its parts, who of the training set it resembles, and its embedding"
        dl = self.loader([item])
        x, preds, _, decoded = self.get_preds(dl=dl, with_input=True, with_decoded=True, reorder=False)
        shown = self.dls.decode_batch((x, *decoded))[0]
        result = (tuple(shown[1:]), tuple(d[0] for d in decoded), preds.embedding[0])
        return (detuplify(shown[:1]), *result) if with_input else result


def _as_list(images):
    "One picture or many, as a list"
    return [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)


@delegates(create_magnifier)
def magnifier_learner(
    dls,                      # ReIDDataLoaders, or any whose batches are (image, mask, identity)
    arch=resnet50,            # Backbone: a torchvision function or its name
    *,
    pretrained:bool=True,     # ImageNet weights, as in fastai
    mask:bool=True,           # Segmentation head (M), needed by the part branches
    sab:bool=True,            # Semantic adversarial branch
    sfb:bool|str=True,        # Semantic fusion branch; 'ab' for its ablation twin
    strategy:str='torso',     # Occlusion of the adversarial branch: 'torso', 'random' or 'random_all' (the background is drawn too)
    keep:int=4,               # Regions the adversarial branch keeps (K-hat)
    seed:int=0,               # Seed of the occlusions
    loss_func=None,           # None for MagnifierLoss as in the paper; a loss, or a class or partial that makes one
    opt_func=partial(Adam, decouple_wd=False), # The baseline's Adam: weight decay as part of the gradient
    lr:float=3.5e-4,          # Default learning rate, the baseline's
    wd:float=5e-4,            # Weight decay, the baseline's
    wd_bn_bias:bool=True,     # The baseline decays everything, norms and biases too
    metrics=None,             # None for R1 and mAP
    cbs=None,                 # Further callbacks
    path=None,                # Where models are written; None for the loaders' path
    model_dir='models',       # Folder of `save` below it
    **kwargs                  # Passed to `create_magnifier`
) -> ReIDLearner:  # Learner with the losses, callbacks and metrics of the rows of Table 2
    "Learner for MagnifierNet or any row of the paper's Table 2; a combination that makes no sense is a ValueError"
    if mask and getattr(dls, 'masks_found', 1.) == 0:
        raise ValueError('no training image has a part mask, and without masks the mask module, SAB and SFB cannot be trained: name a folder of '
                         'masks to the reader (masks=...), make some with `magnifier_masks make`, or pass mask=False, sab=False, sfb=False')
    model = create_magnifier(arch, n_classes=dls.c, pretrained=pretrained, mask=mask, sab=sab, sfb=sfb, **kwargs)
    callbacks = [LossParts()]
    if mask: callbacks.append(TeacherMasks())
    if sab: callbacks.append(RegionOcclusion(strategy, keep, seed=seed))
    if loss_func is None or isinstance(loss_func, (type, partial)): loss_func = (loss_func or MagnifierLoss)()
    return ReIDLearner(dls, model, loss_func, opt_func=opt_func, lr=lr, splitter=model_splitter,
                       cbs=[*callbacks, *tuplify(cbs)], metrics=reid_metrics() if metrics is None else metrics,
                       path=path, model_dir=model_dir, wd=wd, wd_bn_bias=wd_bn_bias)
