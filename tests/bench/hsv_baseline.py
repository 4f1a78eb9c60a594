"What colour alone reaches: HSV histograms of horizontal stripes, compared by cosine"

import argparse
from pathlib import Path
import numpy as np
import torch
from magnifier.data.images import read_image
from magnifier.data.readers import market1501
from magnifier.walkers.dataset import walkers
from magnifier.retrieval.ranking import rank


def hsv_stripes(
    image,  # Image file, or a PIL image
    stripes: int = 6,  # Horizontal stripes, each with a histogram of its own
    bins=(8, 8, 8),  # Of hue, saturation and value
) -> np.ndarray:  # (stripes * 512,) float32
    "Square roots of each stripe's joint HSV histogram of sum 1, whose cosine is Bhattacharyya's coefficient"
    hsv = np.array(read_image(image).convert('HSV'))
    index = np.ravel_multi_index([hsv[..., c].astype(int) * b // 256 for c, b in enumerate(bins)], bins)
    counts = [np.bincount(s.ravel(), minlength=int(np.prod(bins))) / s.size for s in np.array_split(index, stripes)]
    return np.sqrt(np.concatenate(counts)).astype(np.float32)


def hsv_baseline(
    root,  # Folder in Market-1501's layout
    **kwargs,  # Passed on to `hsv_stripes`
):  # Ranking
    "Rank a data set by colour histograms"
    catalog = market1501(root)
    sides = [catalog[catalog.split == s] for s in ('query', 'gallery')]
    feats = [torch.from_numpy(np.stack([hsv_stripes(p, **kwargs) for p in side.path])) for side in sides]
    q, g = sides
    return rank(*feats, q.pid.values, g.pid.values, q.camid.values, g.camid.values)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', nargs='?', type=Path, help='folder in Market-1501 layout; default: the walkers')
    result = hsv_baseline(parser.parse_args().root or walkers())
    figures = dict(R1=result.cmc(1), R5=result.cmc(5), R10=result.cmc(10), mAP=result.mAP, mINP=result.mINP)
    print('  '.join(f'{name} {value:.3f}' for name, value in figures.items()))
