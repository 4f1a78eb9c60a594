"A learner describes the regions of pictures as a gallery keeps them"
from fastcore.basics import patch
from magnifier.train.learner import ReIDLearner
from magnifier.train.parts import embed_parts

__all__ = []


@patch
def embed_regions(
    self:ReIDLearner,
    images,  # Whatever `loader` takes
) -> tuple:  # (n,k,c) embeddings, L2-normalised, on the CPU; (n,k) booleans, which regions are seen
    "Region embeddings of pictures, for `Gallery(regions=True)`; a ValueError for a model that knows no regions"
    parts = embed_parts(self, images)
    return parts.embeddings, parts.visible
