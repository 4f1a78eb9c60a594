"A learner's preprocessing in words, and the fingerprint of what it embeds with"

import re

from fastai.vision.all import (AddMaskCodes, IntToFloatTensor, Normalize, Resize, ResizeMethod, ToTensor, patch)
from PIL import Image

from magnifier.data.block import SameSize
from magnifier.data.pixel_batches import ResizeBatch
from magnifier.model.fingerprint import fingerprint as fingerprint_of
from magnifier.train.learner import ReIDLearner

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
    return fingerprint_of(self.model, preprocessing)
