"Data sets and part masks from a shell"

import warnings

from magnifier.cli.common import command, say

__all__ = ['magnifier_walkers', 'magnifier_masks']


@command('path')
def magnifier_walkers(
    path: str = None,  # Folder to draw into; a cache in the home folder where not given
    n_train: int = 96,  # Training identities
    n_test: int = 96,  # Test identities
    seed: int = 0,  # The same seed gives the same pictures
    mask_noise: float = 0.,  # 0 exact part masks, 1 those of a poor parser
    debug: bool = False,  # Shows the traceback of an error
):
    """Draws the built-in data set, walkers, in Market-1501's layout with part masks, and prints where it is.

    Example: `magnifier_walkers /data/walkers --n-train 200`"""
    from magnifier.walkers.dataset import walkers
    say(walkers(path, n_train=n_train, n_test=n_test, seed=seed, mask_noise=mask_noise))


@command('action', 'src', 'dst')
def magnifier_masks(
    action: str,  # convert (a parser's files), make (by a keypoint network) or stripes (bands, no parts)
    src: str,  # Folder: of label files for convert, of images for the others
    dst: str = None,  # Folder of the part masks; beside the images, as <folder>_ps_label, where not given
    labels: str = 'lip',  # convert: ps_label densepose14 densepose24 lip pascal atr cihp sapiens pifpaf, or a CSV
    images: str = None,  # convert, of pifpaf's fields: folder of their images
    weights: str = None,  # make: file of Keypoint R-CNN's weights; torchvision downloads them where not given
    bs: int = 8,  # make: images a batch
    debug: bool = False,  # Shows the traceback of an error
):
    """Writes part masks. Existing files stay, so a run that was stopped continues where it was.

    Examples: `magnifier_masks convert lip_labels market_ps_label --labels lip` · `magnifier_masks make
    /data/Market-1501 --weights keypointrcnn.pth` · `magnifier_masks stripes /data/own`"""
    from pathlib import Path
    if action not in ACTIONS: raise ValueError(f'unknown action {action!r}: use {", ".join(ACTIONS)}')
    src = Path(src).expanduser().absolute()
    if not src.is_dir(): raise FileNotFoundError(f'{src} is not a folder')  # before anything heavy is imported
    from magnifier.data.catalog import CatalogWarning
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', CatalogWarning)  # the report says the same
        ACTIONS[action](src, dst, labels=labels, images=images, weights=weights, bs=bs)


def _convert(src, dst, *, labels, images, **others):
    if dst is None:
        raise ValueError('name the folder of the part masks, as in `magnifier_masks convert SRC DST --labels lip`')
    from magnifier.data.masks import convert_masks
    _report(convert_masks(src, dst, labels, images=images), dst)
    say('The loaders look in <folder of the images>_ps_label by themselves; else name it: '
        f'masks={dst!r}, or --masks {dst} in a shell')


def _make(src, dst, *, weights, bs, **others):
    "Makes masks, and writes a report and a contact sheet beside their folder"
    from pathlib import Path
    from magnifier.data.images import mask_folder
    from magnifier.data.keypoint_masks import make_masks
    from magnifier.look.show import contact_sheet
    folder = mask_folder(src) if dst is None else Path(dst)
    report = make_masks(src, folder, weights, bs=bs)
    sheet = folder.with_name(folder.name + '_sheet.png')
    if report['mask'].notna().any():
        contact_sheet(report, save=sheet)
        say(f'{sheet} shows how good they are')
    _report(report, folder)
    say(_found_by_loaders(src, dst))


def _stripes(src, dst, **others):
    from magnifier.data.masks import make_stripe_masks
    files = make_stripe_masks(src, dst)
    say(f'{len(files)} files of horizontal stripes (they are not body parts) for the images of {src}. '
        f'{_found_by_loaders(src, dst)}')


ACTIONS = dict(convert=_convert, make=_make, stripes=_stripes)


def _found_by_loaders(src, dst):
    "Where the loaders look for masks"
    from magnifier.data.images import mask_folder
    if dst is None: return f'The loaders look in {mask_folder(src)} by themselves'
    return f'Name their folder to the loaders: masks={str(dst)!r}, or --masks {dst} in a shell'


def _report(report, dst):
    "The number of files by result, in one line; the table is written beside the masks"
    from pathlib import Path
    table = Path(dst).with_name(Path(dst).name + '_report.csv')
    report.to_csv(table, index=False)
    counts = ', '.join(f'{n} {result}' for result, n in report['result'].value_counts().items())
    failed = report[report['mask'].isna()]
    first = f'; the first without a mask: {failed["path"].iat[0]}' if len(failed) else ''
    say(f'{dst}: {counts}; file by file in {table}{first}')
    if len(failed) == len(report):
        raise ValueError(f'no mask was written: {failed["problem"].iat[0] or "no person was found"}')
