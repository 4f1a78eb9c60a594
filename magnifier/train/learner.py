"The learner: a fastai Learner for MagnifierNet that trains, embeds, evaluates, saves and exports"

import platform
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from fastai.vision.all import (
    Adam, CastToTensor, DataLoader, L, Learner, TrainEvalCallback, delegates, detuplify, progress_bar, rank_distrib,
    resnet50, to_device, tuplify)
from torch.nn.functional import interpolate

import magnifier
from magnifier.checks import choose, needs, refuse
from magnifier.data.batches import NO_DRAWING
from magnifier.data.images import as_images, read_image, write_mask
from magnifier.data.loaders import ReIDDataLoaders, preprocessing_of
from magnifier.data.masks import mask_targets
from magnifier.data.preprocess import Preprocessing
from magnifier.files import aside
from magnifier.model.net import EmbeddingNet, MagnifierNet, create_magnifier, model_splitter
from magnifier.model.saved import MODEL_FILES, fingerprint as fingerprint_of, read_model, write_model, write_onnx
from magnifier.regions import N_REGIONS, REGIONS
from magnifier.retrieval.distance import normalise
from magnifier.retrieval.verification import (
    Comparison, SimilarityThreshold, compare, similarity_threshold, verification_pairs)
from magnifier.train.callbacks import (RegionOcclusion, SemanticDiversityPhase, TeacherMasks, autocast_of,
                                       stage_callbacks)
from magnifier.train.distributed import Share, distributed
from magnifier.train.losses import MagnifierLoss, gradient_norms
from magnifier.train.metrics import (VISIBLE, by_role, embed_parts, rank_embeddings, rank_parts, region_areas,
                                     reid_metrics)
from magnifier.train.monitoring import CalmProgress, DeviceRecorder, LossParts, TrackersWait, check_callbacks
from magnifier.train.recipes import Stage, recipe as named

__all__ = ['ReIDLearner', 'magnifier_learner', 'recipe_learner']


class ReIDLearner(Learner):
    """A fastai Learner that also trains by recipe, embeds images, ranks a gallery for queries, and saves models for
    galleries and other programs"""

    def __init__(
        self,
        dls,  # Loaders
        model,  # The network
        loss_func=None,  # Its loss; None for the loaders' own
        *,
        cbs=None,  # Callbacks beside fastai's
        **kwargs,  # Passed to fastai's Learner
    ):
        "Uses fastai's callbacks, with a recorder and a progress bar that do not wait for the device"
        own = [TrainEvalCallback(), DeviceRecorder(), CastToTensor(), CalmProgress()]
        super().__init__(dls, model, loss_func, cbs=[*own, *L(cbs)], default_cbs=False, **kwargs)

    @contextmanager
    def no_bar(self):
        "Without progress bars"
        with self.removed_cbs(L(cb for cb in self.cbs if cb.name == 'progress')): yield self

    # Images in

    def loader(
        self,
        images,  # A path, PIL image or (h,w,3) uint8 array, a list of these, a catalog, or a DataLoader
        *,
        bs: int | None = None,  # Images a batch; None for the given or else the validation loader's
        num_workers: int | None = None,  # Loader processes; None for fastai's choice, and none for under 256 images
    ) -> DataLoader:  # With the validation transforms, in the order given; a catalog's has masks and identities too
        "Loader over any images; a given one is returned as it is. A ValueError if there are no images"
        if isinstance(images, DataLoader): return images if bs in (None, images.bs) else images.new(bs=bs)
        if isinstance(images, pd.DataFrame): table = images
        else: table = pd.DataFrame({'path': pd.Series(list(as_images(images)), dtype=object)})
        refuse({'no images: give at least one path, image or catalog row': not len(table)})
        if num_workers is None and len(table) < 256: num_workers = 0
        kwargs = {k: v for k, v in dict(bs=bs, num_workers=num_workers).items() if v is not None}
        return self.dls.test_dl(table, with_labels={'pid', 'camid', 'split'} <= set(table.columns), **kwargs)

    @contextmanager
    def evaluating(self):
        """Gives (model, its device) with the model in evaluation mode, without gradients, in the learner's precision;
        restores it afterwards"""
        was = self.model.training
        device = next(self.model.parameters()).device
        try:
            # In a distributed fit: without the wrapper, which waits for other ranks
            with torch.no_grad(), autocast_of(self, device.type): yield self.net.eval(), device
        finally: self.model.train(was)

    @property
    def net(self) -> torch.nn.Module:  # A MagnifierNet
        "The model itself; in a distributed fit, the model inside the wrapper"
        return getattr(self.model, 'module', self.model)

    def batches_of(
        self,
        dl,  # A DataLoader
    ):  # Gives (images, [masks, identities]) for each batch: plain tensors on the model's device
        "The loader's batches, with a progress bar if this learner shows bars and there are several"
        device = next(self.model.parameters()).device
        has_bar = hasattr(self, 'progress') and len(dl) > 1
        for batch in progress_bar(dl, leave=False) if has_bar else dl:
            images, *targets = (x.as_subclass(torch.Tensor) for x in tuplify(to_device(batch, device)))
            yield images, targets

    # Training

    def fit(
        self,
        n_epoch: int,  # Epochs
        lr=None,  # As in fastai
        wd=None,  # As in fastai
        cbs=None,  # Further callbacks
        reset_opt: bool = False,  # Whether the optimiser starts anew
        start_epoch: int = 0,  # Epochs passed over
    ):
        "fastai's `fit`; a ValueError for callbacks that do not work for identities"
        check_callbacks([*self.cbs, *L(cbs)])
        super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)

    def plan(
        self,
        recipe: str,  # One of `RECIPES`
        epochs: int | None = None,  # Epochs in all; None for the recipe's
        **changes,  # Passed to `Recipe.plan`: lr, milestones, gamma, ...
    ) -> list[Stage]:
        "The stages that `fit_recipe` would run; a model without SFB has no semantic diversity loss"
        stages = named(recipe).plan(epochs, **changes)
        return stages if self.net.sfb is not None else [stage._replace(diversity_from=1.) for stage in stages]

    def fit_recipe(
        self,
        recipe: str,  # One of `RECIPES`
        epochs: int | None = None,  # Epochs in all; None for the recipe's
        **changes,  # Passed to `Recipe.plan`: lr, milestones, gamma, ...
    ):
        "Trains by a recipe"
        self.fit_stages(self.plan(recipe, epochs, **changes))

    def fit_stages(
        self,
        stages: list,  # Of `Stage`
        *,
        done: int = 0,  # Epochs done before, which are passed over
    ):
        """One fit for each stage. A stage whose epochs are all done is entered too where it is the last of them, since
        `Checkpoints` restores the state within a fit"""
        for stage in stages:
            if done <= stage.epochs:
                if stage.channels_last: self.model.to(memory_format=torch.channels_last)
                self.fit(stage.epochs, stage.lr, cbs=stage_callbacks(stage, self), start_epoch=done)
            done = max(0, done - stage.epochs)

    def fit_semantic_diversity(
        self,
        n_epoch: int,  # Epochs of the second stage; the paper's 40
        lr: float | None = 1e-3,  # Highest rate (paper, section 4.1); None for the rate that the training ended with
        gamma: float = 2e-3,  # Weight of the semantic diversity loss (paper, section 4.1)
        schedule: str = 'annealed',  # The rate: falling to 0, or 'constant', which may cost 2 points of mAP
        cbs=None,  # Further callbacks
        **kwargs,  # Passed to `fit`
    ):
        "The second stage of the paper: trains further with the semantic diversity loss"
        refuse({f'unknown schedule {schedule!r}: use constant or annealed': schedule not in ('constant', 'annealed')})
        if lr is None: lr = self.lr if self.opt is None else self.opt.hypers[-1]['lr']
        stage = Stage(n_epoch, lr, schedule)
        self.fit(n_epoch, lr, cbs=[SemanticDiversityPhase(gamma), *stage_callbacks(stage, self), *L(cbs)], **kwargs)

    @contextmanager
    def distrib_ctx(
        self,
        sync_bn: bool | None = None,  # Batch norms over all ranks' batches; None: where there are GPUs
        *,
        timeout: float = 60.,  # Seconds that a rank waits for the others in one exchange; the first call's holds
        **kwargs,  # Passed to fastai's, as cpu
    ):
        """Inside, the processes that `torchrun` started share training, `validate`, `embed` and `evaluate`; no effect
        in a single process.

        Every rank must call each of them, and gets the same results. The ranks share the embedding, which takes most of
        the time; each then ranks the same embeddings for itself, which takes seconds. An ImportError without
        accelerate"""
        with distributed(self, sync_bn, timeout=timeout, **kwargs): yield self

    # Embeddings and what they are worth

    def embed(
        self,
        images,  # A path, PIL image or (h,w,3) uint8 array, a list of these, a catalog, or a DataLoader
        *,
        bs: int | None = None,  # Images a batch; None for the validation loader's
        flip_test: bool = False,  # Adds the embedding of the mirrored image
        with_identity: bool = False,  # Returns the identities beside the embeddings, where the loader has them
    ):  # (n,d) float32 on the CPU, L2-normalised, in the loader's order; with `with_identity` also (n,4) integers
        "Embeddings for retrieval. In `distrib_ctx` each rank embeds its share, and every rank gets all"
        share = Share(self, self.loader(images, bs=bs))
        embeddings = []
        identities = []
        with self.evaluating() as (model, _):
            embed = _embedder(model, len(share.dl))
            for x, targets in self.batches_of(share.dl):
                embedding = embed(x)
                if flip_test: embedding = normalise(embedding + embed(x.flip(-1)))
                embeddings.append(embedding.float().cpu())
                if with_identity: identities.append(targets[-1].cpu())
        embeddings = share.whole(torch.cat(embeddings))
        return (embeddings, share.whole(torch.cat(identities))) if with_identity else embeddings

    def embed_visible(
        self,
        images,  # Whatever `loader` takes
    ) -> tuple:  # (n,d) embeddings, L2-normalised; (n,) share of the body's regions seen, 1 without masks
        """Embeddings and, in the same pass, the visible share of each person by the model's own masks: the weights of a
        tracklet's mean"""
        embeddings = []
        visible = []
        with self.evaluating() as (model, _):
            for x, _ in self.batches_of(self.loader(images)):
                out = model(x)
                embeddings.append(out.embedding.float().cpu())
                visible.append(_visible_share(out))
        return torch.cat(embeddings), torch.cat(visible)

    def embed_regions(
        self,
        images,  # Whatever `loader` takes
    ) -> tuple:  # (n,k,c) embeddings, L2-normalised, on the CPU; (n,k) booleans, which regions are seen
        "Region embeddings of images, for `Gallery(regions=True)`; a ValueError for a model without regions"
        parts = embed_parts(self, images)
        return parts.embeddings, parts.visible

    def evaluate(
        self,
        catalog=None,  # Catalog or DataLoader with queries and gallery; None for the validation set
        *,
        by_branch: bool = False,  # Adds a row for each branch alone
        distance: str = 'cosine',  # Of the embeddings; 'regions': of the regions that both images show, each by itself
        regions=None,  # With 'regions': names or indices of those to compare; None for the body's
        given_masks: bool = False,  # With 'regions': what is seen is by the catalog's part masks
        rerank: bool = False,  # Adds a row re-ranked by k-reciprocal encoding; it uses the other test images
        flip_test: bool = False,  # Adds the embedding of the mirrored image; not with 'regions'
        bs: int | None = None,  # Images a batch
        k1: int = 20,  # Re-ranking: neighbours considered
        k2: int = 6,  # Re-ranking: neighbours averaged
        lambda_value: float = 0.3,  # Re-ranking: share of the original distance
        **kwargs,  # Passed to `rank`: ap, no_match, separate_cameras
    ) -> pd.DataFrame:  # R1 R5 R10 mAP mINP in [0,1]; rows 'plain' (or 'regions'), 're-ranked', the branches
        """Table of retrieval figures: CMC at ranks 1, 5 and 10, mean average precision, mean inverse negative penalty.
        Its `.attrs` hold the number of `queries`, and of those `left_out` because the gallery has no match for them"""
        by_regions = distance == 'regions'
        refuse({
            f'unknown distance {distance!r}: use cosine or regions': distance not in ('cosine', 'regions'),
            'flip_test and by_branch need embeddings: they do not go with distance="regions"':
                by_regions and (flip_test or by_branch),
            'regions and given_masks go with distance="regions"':
                not by_regions and (regions is not None or given_masks),
        })
        again = dict(k1=k1, k2=k2, lambda_value=lambda_value) if rerank else None
        dl = self.loader(self._test_images(catalog), bs=bs)
        if by_regions: rows = rank_parts(embed_parts(self, dl, regions, given_masks=given_masks), again, **kwargs)
        else:
            embeddings, identity = self.embed(dl, flip_test=flip_test, with_identity=True)
            rows = rank_embeddings(embeddings, identity, again, self.net.branch_slices if by_branch else {}, **kwargs)
        refuse({'nothing to evaluate: the catalog needs rows of split "query" and of split "gallery"': not rows})
        table = pd.concat([ranking.table().set_axis([name]) for name, ranking in rows.items()])
        first = next(iter(rows.values()))
        table.attrs = dict(queries=len(first.ap), left_out=int(first.n_skipped))
        return table

    def _test_images(self, catalog):
        if catalog is not None: return catalog
        refuse({'this learner was loaded and has no images: give a catalog with queries and gallery':
                not self.dls.valid.n})
        return self.dls.valid

    def threshold(
        self,
        test=None,  # Catalog or DataLoader with queries and gallery; None for the validation set
        *,
        far: float = .01,  # Share of the pairs of two people that may be taken for one, 0 to 1
    ) -> SimilarityThreshold:  # The similarity, what it lets in and what it misses
        "The similarity from which two images count as one person; `compare` uses the last result"
        embeddings, identity = self.embed(self._test_images(test), with_identity=True)
        sides = by_role(identity)
        refuse({'nothing to compare: the catalog needs rows of split "query" and of split "gallery"': sides is None})
        pairs = verification_pairs(embeddings[sides.query], embeddings[sides.gallery], *sides.ids)
        self.last_threshold = similarity_threshold(pairs, far=far)
        return self.last_threshold

    def compare(
        self,
        a,  # An image of a person, as `embed` takes it
        b,  # Another
        threshold: float | None = None,  # Smallest similarity of one person; None for the last one of `threshold`
    ) -> Comparison:  # True or false by itself; its words say the similarity and the threshold
        "Are these two the same person? A ValueError where no threshold is known"
        threshold = getattr(self, 'last_threshold', None) if threshold is None else threshold
        refuse({'no threshold is set: learn.threshold(test, far=.01) finds one, or give threshold=...':
                threshold is None})
        return compare(*self.embed([a, b]), threshold)

    def gradient_shares(
        self,
        batch=None,  # (images, part masks, identities); None for one of the training loader's
    ) -> pd.DataFrame:  # By part of the loss: value, weight in the total, norm of its gradient, share of all norms
        "The share of each part of the loss in the gradient on the backbone; the learner is not changed"
        images, masks, identity = to_device(batch or self.dls.train.new(num_workers=0).one_batch(), self.dls.device)
        net = deepcopy(self.net).train()
        occlusion = getattr(self, 'region_occlusion', None)
        kept = None if occlusion is None else occlusion.draw(deepcopy(occlusion.rng)).to(images.device)
        output = net(images, masks if net.segmentation is not None else None, kept)
        parts = self.loss_func.parts(output, masks, identity)
        norms = gradient_norms(parts, net.backbone)
        rows = {part.name: dict(loss=part.value.item(), weight=part.weight, gradient=norms[part.name])
                for part in parts}
        table = pd.DataFrame.from_dict(rows, orient='index')
        return table.assign(share=table['gradient']/table['gradient'].sum())

    # Predictions

    def tta(self, *args, **kwargs):
        "Not available: fastai's `tta` averages class probabilities"
        raise NotImplementedError(
            'tta averages class probabilities, but the people of a search are not classes: use '
            'learn.embed(images, flip_test=True) or learn.evaluate(flip_test=True), which add the mirrored image'
        )

    def get_preds(self, *args, **kwargs):
        """fastai's `get_preds`, in the data set's order; in `distrib_ctx` every rank processes all data, because fastai
        changes the order of gathered results"""
        with self._alone(): return super().get_preds(*args, **kwargs)

    def to_detach(
        self,
        b,  # Tensor, or tuples of them
        cpu=True,  # Whether they come to the CPU
        gather=True,  # Whether of all processes
    ):
        """fastai's `to_detach`, but it gathers only results that the processes shared, not those that each has computed
        for itself"""
        return super().to_detach(b, cpu, gather and hasattr(self.dl, 'to_detach'))

    def _alone(self): return self.removed_cbs(L(cb for cb in self.cbs if cb.name == 'distributed_trainer'))

    def predict(
        self,
        item,  # A path, PIL image or (h,w,3) uint8 array
        rm_type_tfms=None,  # As in fastai; not needed here
        with_input: bool = False,  # Whether the image comes first
    ) -> 'Prediction':  # (part mask, nearest training identity) decoded; the same as tensors; embedding (d,)
        "The model's outputs for one image: part mask, most similar training identity, and embedding"
        dl = self.loader([item])
        x, preds, _, decoded = self.get_preds(dl=dl, with_input=True, with_decoded=True, reorder=False)
        shown = self.dls.decode_batch((x, *decoded))[0]
        result = Prediction(tuple(shown[1:]), tuple(d[0] for d in decoded), preds.embedding[0])
        return (detuplify(shown[:1]), *result) if with_input else result

    def show_results(self, *args, **kwargs):
        "An ImportError; the module `magnifier.look`, which draws, puts its own method here"
        raise ImportError(NO_DRAWING)

    def predict_masks(
        self,
        images,  # A folder, a catalog, or paths
        dst=None,  # Folder of the masks, same sub-paths; None for `<folder>_ps_label`, where `find_masks` looks
        *,
        bs: int | None = None,  # Images a batch; None for the validation loader's
        overwrite: bool = False,  # Whether to replace masks that are there already
    ) -> list:  # The files, in the order of the images
        """Writes the segmentation head's part masks, each at its image's own size, as labels for the next training.
        A ValueError for a model without that head, and for masks that are there already"""
        refuse({'this model has no segmentation head: build the learner with mask=True':
                self.model.segmentation is None})
        targets = mask_targets(images, dst)
        if rank_distrib(): return [mask for _, mask in targets]  # the first of several processes writes
        there = [] if overwrite else [mask for _, mask in targets if mask.exists()]
        refuse({f'{len(there)} of {len(targets)} masks exist (first: {next(iter(there), None)}): name another dst, or '
                'pass overwrite=True': there})
        dl = self.loader([path for path, _ in targets], bs=bs)
        left = iter(targets)
        with self.evaluating() as (model, _):
            for x, _ in self.batches_of(dl):
                for logits, (image, mask) in zip(model(x).mask_logits.float(), left):
                    size = read_image(image).size[::-1]
                    write_mask(mask, interpolate(logits[None], size, mode='bilinear')[0].argmax(0).cpu().numpy())
        return [mask for _, mask in targets]

    # Files

    @property
    def fingerprint(self) -> str:  # 16 hexadecimal digits, the same for the saved folder and the exported file
        "Hash of the weights and the preprocessing, which identifies the model of an embedding"
        try: preprocessing = preprocessing_of(self.dls).to_json()
        except ValueError: preprocessing = _steps_of(self.dls)  # custom transforms
        return fingerprint_of(self.net, preprocessing)

    def export(
        self,
        fname='export.pkl',  # File below `path`
        **kwargs,  # As in fastai
    ):
        """fastai's `export`; a kill leaves no partial file. In `distrib_ctx` rank 0 writes it, without the distributed
        callback"""
        if rank_distrib(): return
        self.made_with = versions()
        dls, opt = self.dls, self.opt
        try:
            with self._alone(), aside(self.path/fname) as part: super().export(part.absolute(), **kwargs)
        except BaseException:
            self.dls, self.opt = dls, opt  # fastai's empties the learner while it writes
            raise

    def __setstate__(self, state):
        "Loads a pickle; warns if it was made by other library versions"
        super().__setstate__(state)
        made_with = state.get('made_with', {})
        for name, now in versions().items():
            was = made_with.get(name, now)
            if was.split('.')[:2] != now.split('.')[:2]:
                warnings.warn(
                    f'this learner was exported with {name} {was} and is loaded with {now}: it may fail or differ. '
                    '`save_pretrained` writes a form that other versions can read'
                )

    def __getattr__(self, name):
        "fastai's, which asks the model; an AttributeError says where the methods that draw come from"
        try: return super().__getattr__(name)
        except AttributeError as e:
            raise AttributeError(
                f'a learner has no {name}; those that draw, as explain and show_ranking, are there after '
                '`from magnifier.all import *`'
            ) from e

    def __repr__(self):
        arch = (self.net.arguments or {}).get('arch') or 'a network of your own'
        return f'ReIDLearner: {arch}, branches {" + ".join(self.net.branches)}, d = {self.net.embedding_dim}'

    def export_onnx(
        self,
        file='model.onnx',  # Where to write; a file that is there is replaced
        *,
        masks: bool = False,  # A second output, `masks`: n x 2h x 2w uint8 part labels
    ) -> Path:  # The file
        """Writes an ONNX file: images n x 3 x H x W in (`images`; any n, this learner's H and W), L2-normalised
        embeddings n x d out (`embedding`). Its metadata hold preprocessing, fingerprint and version as JSON under
        'magnifier', which `Embedder` reads. A RuntimeError if the exported network differs from torch, a ValueError
        for loaders with custom transforms, an ImportError without the libraries; then nothing is written"""
        return write_onnx(self.model, file, preprocessing_of(self.dls).to_json(), self.fingerprint, masks=masks)

    def save_pretrained(
        self,
        folder,  # Made where it is not there
    ) -> Path:  # The folder: model.safetensors and config.json
        """Saves the model, its arguments, its preprocessing and its identities, for `from_pretrained` and `Embedder`,
        other versions and machines. Unlike the pickle of `export`, loading the folder runs no code. Loss, optimiser
        and callbacks are not saved"""
        return write_model(self.model, folder, preprocessing_of(self.dls).to_json(), list(self.dls.vocab))

    @classmethod
    def from_pretrained(
        cls,
        source,  # A folder of `save_pretrained`, or 'user/name' on the Hugging Face hub
        dls=None,  # Loaders of the same identities to train or evaluate with; None for a learner that embeds
        *,
        hub=None,  # Arguments of `huggingface_hub.snapshot_download`, as dict(revision=..., token=...)
        **kwargs,  # Passed to `magnifier_learner`: loss, callbacks, occlusion
    ) -> 'ReIDLearner':  # As `magnifier_learner` builds it, with the saved weights
        """The learner of a saved model. A ValueError for files that do not fit together, and for loaders of other
        identities"""
        model, config = read_model(source, **hub or {})
        classes = config['classes']
        if dls is None: dls = ReIDDataLoaders.without_images(Preprocessing.from_json(config['preprocessing']), classes)
        refuse({f'{source} was trained on {len(classes)} identities, and dls has {len(dls.vocab)} others: give its '
                'loaders vocab=..., or start from its weights with '
                f'magnifier_learner(dls, weights="{source}/{MODEL_FILES[0]}")': list(dls.vocab) != classes})
        arguments = {k: v for k, v in config['model'].items() if k != 'n_classes'}
        learn = magnifier_learner(dls, pretrained=False, **arguments, **kwargs)
        learn.model.load_state_dict(model.state_dict())
        learn.model.arguments = model.arguments
        return learn

    def push_to_hub(
        self,
        name,  # 'user/name' of the repository, made where it is not there
        *,
        private: bool = False,  # Whether a new repository is private
        token=None,  # Of the hub; None for the one that `hf auth login` keeps
        message: str = 'Model',  # Of the commit
    ):  # What `huggingface_hub.upload_folder` returns: the commit
        "Saves the model (`save_pretrained`) to the Hugging Face hub. An ImportError without its library"
        with needs("no huggingface_hub: pip install 'magnifier-reid[hub]' to push to it"):
            from huggingface_hub import HfApi
        with tempfile.TemporaryDirectory() as parent:
            folder = self.save_pretrained(Path(parent)/'model')
            api = HfApi(token=token)
            api.create_repo(name, private=private, exist_ok=True)
            return api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message,
                                     allow_patterns=list(MODEL_FILES))


class Prediction(NamedTuple):
    "A model's outputs for one image"

    decoded: tuple  # (part mask, nearest training identity), to be shown
    tensors: tuple  # The same as tensors
    embedding: torch.Tensor  # (d,), L2-normalised

    def __repr__(self):
        *masks, identity = self.decoded
        labels = set(self.tensors[0].flatten().tolist()) if masks else set()
        parts = ', '.join(REGIONS[k] for k in sorted(labels) if k < N_REGIONS)
        return (f'of the people that training knew, {identity} (a stranger too resembles one of them most: compare '
                f'embeddings to know); regions seen: {parts or "unknown"}; embedding of {len(self.embedding)} numbers')


LIBRARIES = ('torch', 'torchvision', 'fastai', 'fastcore', 'numpy')


def versions() -> dict:  # name -> version
    "Python, the package, and the libraries that a pickled learner depends on"
    libraries = {name: version(name) for name in LIBRARIES}
    return dict(magnifier=magnifier.__version__, python=platform.python_version(), **libraries)


def _steps_of(dls):
    "The validation's transforms as text; a transform with split_idx 0 is for training images only"
    tfms = [*dls.valid.after_item.fs, *dls.valid.after_batch.fs]
    steps = [tfm for tfm in tfms if tfm.split_idx != 0]
    return re.sub(' at 0x[0-9a-f]+', '', repr(steps))


def _visible_share(out):  # (n,)
    if out.mask_logits is None: return torch.ones(len(out.embedding))
    areas = region_areas(dict(mask_logits=out.mask_logits))[:, 1:]  # without the background
    return torch.from_numpy(areas >= VISIBLE).float().mean(1)


def _embedder(model, n_batches):
    """images -> embeddings, by the folded network if there are several batches; for a single batch, copying the weights
    takes longer than it saves"""
    if n_batches > 1 and isinstance(model, MagnifierNet): return EmbeddingNet(model)
    return lambda images: model(images).embedding


# Optimisers by name. The papers' Adam adds the weight decay to the gradient, and is torch's; fastai's keeps it apart,
# has eps 1e-5, and averages the squared gradient over 100 steps instead of 1,000
OPTIMISERS = {'adam': partial(Adam, decouple_wd=False, mom=.9, sqr_mom=.999, eps=1e-8), 'adamw': Adam}


@delegates(create_magnifier)
def magnifier_learner(
    dls,  # ReIDDataLoaders, or any whose batches are (image, mask, identity)
    arch=resnet50,  # Backbone: a torchvision function or its name
    *,
    pretrained: bool = True,  # ImageNet weights, as in fastai
    mask: bool = True,  # Segmentation head (M), needed by the part branches
    sab: bool = True,  # Semantic adversarial branch
    sfb: bool | str = True,  # Semantic fusion branch; 'ab' for its ablation twin
    strategy: str = 'torso',  # Occlusion of the adversarial branch: 'torso', 'random' or 'random_all'
    keep: int = 4,  # Regions the adversarial branch keeps (K-hat)
    seed: int = 0,  # Seed of the occlusions
    loss_func=None,  # None for MagnifierLoss as in the paper; a loss, or a class or partial that makes one
    opt_func: str | Callable = partial(Adam, decouple_wd=False),  # The baseline's; or 'adam' (torch's), 'adamw'
    lr: float = 3.5e-4,  # Default learning rate, the baseline's
    wd: float = 5e-4,  # Weight decay, the baseline's
    wd_bn_bias: bool = True,  # The baseline decays everything, norms and biases too
    metrics=None,  # None for R1 and mAP
    cbs=None,  # Further callbacks
    path=None,  # Where models are written; None for the loaders' path
    model_dir='models',  # Folder of `save` below it
    **kwargs,  # Passed to `create_magnifier`
) -> ReIDLearner:  # Learner with the losses, callbacks and metrics of the rows of Table 2
    "Learner for MagnifierNet or any row of the paper's Table 2; a ValueError names arguments that do not go together"
    refuse({'no training image has a part mask, and without masks the mask module, SAB and SFB cannot be trained: name '
            'a folder of masks to the reader (masks=...), make some with `magnifier_masks make`, or pass mask=False, '
            'sab=False, sfb=False': mask and getattr(dls, 'masks_found', 1.) == 0})
    model = create_magnifier(arch, n_classes=dls.c, pretrained=pretrained, mask=mask, sab=sab, sfb=sfb, **kwargs)
    callbacks = [LossParts(), TrackersWait()]
    if mask: callbacks.append(TeacherMasks())
    if sab: callbacks.append(RegionOcclusion(strategy, keep, seed=seed))
    if loss_func is None: loss_func = MagnifierLoss()
    elif isinstance(loss_func, (type, partial)): loss_func = loss_func()
    if isinstance(opt_func, str):
        choose(opt_func, OPTIMISERS, 'opt_func')
        opt_func = OPTIMISERS[opt_func]
    return ReIDLearner(dls, model, loss_func, opt_func=opt_func, lr=lr, splitter=model_splitter,
                       cbs=[*callbacks, *L(cbs)], metrics=reid_metrics() if metrics is None else metrics,
                       path=path, model_dir=model_dir, wd=wd, wd_bn_bias=wd_bn_bias)


def recipe_learner(
    dls,  # Loaders
    recipe: str = 'quick',  # One of `RECIPES`
    *,
    loss: dict | None = None,  # Arguments of `MagnifierLoss` beside or instead of the recipe's
    **kwargs,  # Arguments of `magnifier_learner` beside or instead of the recipe's
) -> ReIDLearner:  # Nothing is trained; `fit_recipe` does that
    "The learner that a recipe trains"
    plan = named(recipe)
    loss_func = partial(MagnifierLoss, **{**plan.loss, **(loss or {})})
    return magnifier_learner(dls, **{'loss_func': loss_func, **plan.model, **kwargs})
