"Learners saved so that loading runs nothing, on the disk or on the hub; their preprocessing in words, and their fingerprint"

import re
import tempfile
from pathlib import Path

from fastai.vision.all import patch

from magnifier.data.loaders import ReIDDataLoaders, preprocessing_of
from magnifier.data.preprocess import Preprocessing
from magnifier.model.fingerprint import fingerprint as fingerprint_of
from magnifier.model.saved import MODEL_FILES, read_model, write_model
from magnifier.train.learner import ReIDLearner, magnifier_learner

__all__ = []


def _of_validation(dls):
    # A transform of split 0 acts on training pictures alone
    return [tfm for pipeline in (dls.valid.after_item, dls.valid.after_batch) for tfm in pipeline.fs if tfm.split_idx != 0]


@patch(as_prop=True)
def fingerprint(self: ReIDLearner) -> str:  # 16 hexadecimal digits, the same for the saved folder and the exported file
    "Hash of the weights and the preprocessing: which model made an embedding"
    try: preprocessing = preprocessing_of(self.dls).to_json()
    except ValueError: preprocessing = re.sub(' at 0x[0-9a-f]+', '', repr(_of_validation(self.dls)))  # of one's own, which has no other words
    return fingerprint_of(getattr(self.model, 'module', self.model), preprocessing)  # in a distributed fit the model is wrapped


@patch
def save_pretrained(self: ReIDLearner,
    folder,  # Made where it is not there
) -> Path:  # The folder: model.safetensors and config.json
    """Saves the model, its arguments, its preprocessing and its identities for `from_pretrained` and `Embedder`. Unlike the pickle of `export`,
    whoever loads the folder runs nothing of it. Loss, optimiser and callbacks are not in it"""
    return write_model(self.model, folder, preprocessing_of(self.dls).to_json(), list(self.dls.vocab))


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
    if dls is None: dls = ReIDDataLoaders.without_images(Preprocessing.from_json(config['preprocessing']), config['classes'])
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
