"The paper's ablations from a shell"
from magnifier.cli.common import command, read_catalog, say

__all__ = ['magnifier_ablate']


@command('data', 'path')
def magnifier_ablate(
    data:str='walkers',       # Data set: walkers (embedded), market1501, ...
    path:str=None,            # Its folder; the embedded set is drawn if it is not there yet
    recipe:str='quick',       # How each run is trained, as in magnifier_train
    out:str='runs/ablation',  # Folder of the runs, the tables and the picture
    studies:str=None,         # Some alone, with commas between: Table 2, Figure 4, Figure 5, cell, background, region stage
    seeds:str='0,1,2',        # Seeds, with commas between; each setting is trained once with each
    epochs:int=None,          # Epochs of a run; the recipe's where not given
    arch:str=None,            # Backbone; the recipe's where not given
    masks:str=None,           # Folder of part masks; found beside the data where not given
    workers:int=None,         # Loader processes; fastai's choice where not given
    weights:bool=False,       # Keeps each run's weights too
    debug:bool=False,         # Shows the traceback of an error
):
    """Trains the rows of the paper's Table 2, of its Figures 4 and 5, and three choices more, over seeds, and writes
    ablation.csv (a row a run), summary.csv (means and spreads) and ablation.png. Runs that are there are not repeated:
    a stopped ablation goes on where it was.

    Examples: `magnifier_ablate --studies "Table 2" --seeds 0` ·
    `magnifier_ablate market1501 /data/Market-1501 --recipe paper --out runs/market-ablation`"""
    import logging
    from pathlib import Path
    import matplotlib
    matplotlib.use('Agg')
    from magnifier.look.training import plot_studies
    from magnifier.train.ablation import ablate, settings_of, summary
    wanted, numbers = _parts(studies), _seeds(seeds)
    names = settings_of(wanted)
    catalog = read_catalog(data, path, masks)
    say(f'{len(names)} settings x {len(numbers)} seeds with recipe {recipe}: {", ".join(names)}')
    logging.basicConfig(format='%(asctime)s %(message)s')
    logging.getLogger('magnifier.train.ablation').setLevel(logging.INFO)
    runs = ablate(catalog, out, recipe=recipe, studies=wanted, seeds=numbers, epochs=epochs, arch=arch, workers=workers, weights=weights)
    table = summary(runs)
    runs.to_csv(Path(out)/'ablation.csv', index=False)
    table.round(2).to_csv(Path(out)/'summary.csv')
    plot_studies(runs, save=Path(out)/'ablation.png')
    say(f'in %, means over seeds and their standard deviation:\n{table.drop(columns="setting").round(1).to_string()}\nwritten to {Path(out).resolve()}')


def _parts(text): return None if text is None else [part.strip() for part in text.split(',') if part.strip()]


def _seeds(text):
    try: return [int(part) for part in _parts(str(text))]
    except ValueError: raise ValueError(f'seeds {text!r}: whole numbers with commas between are wanted, as 0,1,2') from None
