"Learners saved so that loading runs nothing, on the disk or on the hub; their preprocessing in words, and their fingerprint"

import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.vision.all import AddMaskCodes, IntToFloatTensor, Normalize, Resize, ResizeMethod, ToTensor, patch
from PIL import Image

from magnifier.data.block import ReIDDataBlock, SameSize
from magnifier.data.pixel_batches import ResizeBatch
from magnifier.data.transforms import NormalizeInPlace
from magnifier.model.fingerprint import fingerprint as fingerprint_of
from magnifier.model.saved import MODEL_FILES, read_model, write_model
from magnifier.train.learner import ReIDLearner, magnifier_learner

__all__ = ['describe_preprocessing']

NEUTRAL = (AddMaskCodes, SameSize, ToTensor, IntToFloatTensor)  # they change a type, or a mask


def describe_preprocessing(
    dls,  # Loaders of the package; their validation side counts
) -> dict:  # 'size' (height, width), 'resize', 'interpolation', 'channels', 'scale', 'mean', 'std': values that JSON takes
    "What the loaders do to a picture before the model sees it. A ValueError where they do what these words cannot say"
    size = mean = std = None
    for tfm in _of_validation(dls):
        if isinstance(tfm, ResizeBatch): size = tfm.size
        elif isinstance(tfm, Resize) and tfm.method == ResizeMethod.Squish and tfm.mode == Image.Resampling.BILINEAR: size = tfm.size[::-1]
        elif isinstance(tfm, Normalize): mean, std = ([round(v, 6) for v in t.flatten().tolist()] for t in (tfm.mean, tfm.std))
        elif not isinstance(tfm, NEUTRAL): raise ValueError(f'{type(tfm).__name__} is no step that another program could repeat: build the '
                                                            'loaders without item_tfms and batch_tfms of your own')
    if size is None or mean is None: raise ValueError('the loaders do not resize (squish, bilinear) and normalise: build them by ReIDDataLoaders')
    return dict(size=list(size), resize='squish', interpolation='bilinear', channels='RGB', scale=1/255, mean=mean, std=std)


def _of_validation(dls):
    # A transform of split 0 acts on training pictures alone
    return [tfm for pipeline in (dls.valid.after_item, dls.valid.after_batch) for tfm in pipeline.fs if tfm.split_idx != 0]


@patch(as_prop=True)
def fingerprint(self: ReIDLearner) -> str:  # 16 hexadecimal digits, the same for the saved folder and the exported file
    "Hash of the weights and the preprocessing: which model made an embedding"
    try: preprocessing = describe_preprocessing(self.dls)
    except ValueError: preprocessing = re.sub(' at 0x[0-9a-f]+', '', repr(_of_validation(self.dls)))  # of one's own, which has no other words
    return fingerprint_of(getattr(self.model, 'module', self.model), preprocessing)  # in a distributed fit the model is wrapped


@patch
def save_pretrained(self: ReIDLearner,
    folder,  # Made where it is not there
) -> Path:  # The folder: model.safetensors and config.json
    """Saves the model, its arguments, its preprocessing and its identities for `from_pretrained` and `Embedder`. Unlike the pickle of `export`,
    whoever loads the folder runs nothing of it. Loss, optimiser and callbacks are not in it"""
    return write_model(self.model, folder, describe_preprocessing(self.dls), list(self.dls.vocab))


@patch(cls_method=True)
def from_pretrained(cls: ReIDLearner,
    source,    # A folder of `save_pretrained`, or 'user/name' on the Hugging Face hub
    dls=None,  # Loaders of the same identities to train or evaluate with; None for a learner that embeds
    *,
    hub=None,  # Arguments of `huggingface_hub.snapshot_download`, as dict(revision=..., token=...)
    **kwargs   # Passed to `magnifier_learner`: loss, callbacks, occlusion
) -> ReIDLearner:  # As `magnifier_learner` builds it, with the saved weights
    "The learner of a saved model. A ValueError for files that do not fit together, and for loaders of other identities"
    model, config = read_model(source, **hub or {})
    if dls is None: dls = _no_pictures(config['preprocessing'], config['classes'])
    elif list(dls.vocab) != config['classes']:
        raise ValueError(f'{source} was trained on {len(config["classes"])} identities, and dls has {len(dls.vocab)} others: give its loaders '
                         f'vocab=..., or start from its weights with magnifier_learner(dls, weights="{source}/{MODEL_FILES[0]}")')
    learn = magnifier_learner(dls, pretrained=False, **{k: v for k, v in config['model'].items() if k != 'n_classes'}, **kwargs)
    learn.model.load_state_dict(model.state_dict())
    return learn


@patch
def push_to_hub(self: ReIDLearner,
    name,  # 'user/name' of the repository, made where it is not there
    *,
    private: bool = False,  # Whether a new repository is private
    token=None,  # Of the hub; None for the one that `hf auth login` keeps
    message: str = 'Model',  # Of the commit
):  # What `huggingface_hub.upload_folder` returns: the commit
    "Saves the model (`save_pretrained`) to the Hugging Face hub. An ImportError without its library"
    try: from huggingface_hub import HfApi
    except ImportError as e: raise ImportError("no huggingface_hub: pip install 'magnifier-reid[hub]' to push to it") from e
    with tempfile.TemporaryDirectory() as aside:
        folder, api = self.save_pretrained(Path(aside)/'model'), HfApi(token=token)
        api.create_repo(name, private=private, exist_ok=True)
        return api.upload_folder(repo_id=name, folder_path=str(folder), commit_message=message, allow_patterns=list(MODEL_FILES))


def _no_pictures(preprocessing, classes):
    "Loaders of no pictures that do to pictures what `preprocessing` says, as fastai's `load_learner` has them"
    blank = np.zeros((16, 16, 3), np.uint8)  # fastai looks at one item to know what a batch is
    catalog = pd.DataFrame(dict(path=[blank, blank], pid=classes[0], camid=0, split=['train', 'query']))
    block = ReIDDataBlock([Resize(tuple(preprocessing['size']), method=ResizeMethod.Squish)],
                          [NormalizeInPlace.from_stats(preprocessing['mean'], preprocessing['std'])], vocab=classes)
    return block.dataloaders(catalog, bs=64).new_empty()
