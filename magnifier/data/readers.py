"Readers: the folder of a published data set in, its catalog out"

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from magnifier.data.layouts import MARKET_FOLDERS, expects, find_root, market_style

__all__ = ['market1501']

MARKET_NAMES = ('Market-1501-v15.09.15', 'Market-1501', 'market1501')
MARKET_COUNTS = dict(train=(12936, 751), query=(3368, 750), gallery=(15913, 751))  # the gallery: 750 and the distractors' 0000


def market1501(
    path: str | Path,  # The root with `bounding_box_train`, `query`, `bounding_box_test`, or a folder that holds it by a usual name
    masks: str | Path | Callable | bool | None = None,  # As `find_masks` takes it; default: `<root>_ps_label`
    expected: bool | str = 'auto',  # Warn where counts differ from the published; 'auto': where the root has the real set's name
) -> pd.DataFrame:  # Catalog
    """Market-1501 (Zheng et al. 2015), or any set with its layout and names, `0002_c1s1_000451_03.jpg`.

    Junk (-1) is left out and counted in the log; distractors (0000) stay in the gallery. Cameras keep the numbers of the names.
    FileNotFoundError where the folders are not there; ValueError for an empty one or an image whose name does not parse.
    """
    root = find_root(path, MARKET_FOLDERS.values(), MARKET_NAMES, 'Market-1501')
    return market_style(root, 'Market-1501', MARKET_COUNTS, masks=masks, expected=expects(expected, root, MARKET_NAMES))
