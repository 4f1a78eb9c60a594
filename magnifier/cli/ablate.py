"The paper's ablations from a shell"
from typing import Annotated

from magnifier.cli.common import EMBEDDED, check_data, command, read_catalog, say, say_imports
from magnifier.cli.train import REPEATED, check_settings, loading_of, model_of

__all__ = ['magnifier_ablate']


@command('data', 'path')
def magnifier_ablate(
    data: str = EMBEDDED,  # Data set: walkers (embedded), market1501, cuhk03_np_labelled, ...
    path: str = None,  # Its folder; the embedded set is drawn if it is not there yet
    recipe: str = 'quick',  # How each run is trained, as in magnifier_train
    out: str = 'runs/ablation',  # Folder of the runs, the tables and the figure
    studies: str = None,  # Some alone, with commas between: Table 2, Figure 4, Figure 5 (whole network), cell, ...
    seeds: str = '0,1,2',  # Seeds, with commas between; each setting is trained once with each
    epochs: int = None,  # Epochs of a run; the recipe's where not given
    arch: str = None,  # Backbone; the recipe's where not given
    weights: str = None,  # File of weights to start from, or none for random ones; the recipe's where not given
    size: str = None,  # Height x width in pixels, as 256x128; the recipe's where not given
    bs: int = None,  # Images a batch; the recipe's where not given
    cache: str = None,  # Originals decoded once: ram, disk or none; the recipe's where not given
    set: Annotated[str, REPEATED] = None,  # Any other argument of a training, the same for all; may be repeated
    masks: str = None,  # Folder of part masks; found beside the data where not given
    workers: int = None,  # Loader processes; fastai's choice where not given
    fast: bool = False,  # bfloat16 where the hardware has it, and a compiled network (minutes at the start)
    keep_learners: bool = False,  # Keeps each run's learner too
    debug: bool = False,  # Shows the traceback of an error
):
    """Trains the rows of the paper's Table 2, of its Figures 4 and 5, and three more choices, over several seeds, and
    writes ablation.csv (a row a run), summary.csv (means and spreads) and ablation.png. Finished runs are not repeated:
    a stopped ablation continues after the last epoch that it finished.

    Examples: `magnifier_ablate --studies "Table 2" --seeds 0` · `magnifier_ablate market1501 /data/Market-1501 --recipe
    paper --out runs/market-ablation --size 256x128`"""
    loading, model, settings = loading_of(size, bs, cache), model_of(arch, weights), check_settings(set)
    from pathlib import Path
    from magnifier.train.recipes import recipe as named
    named(recipe)
    numbers = _seeds(seeds)
    check_data(data, path)
    say_imports()
    import logging
    from magnifier.look.graphs import plot_studies
    from magnifier.train.ablation import ablate, settings_of, summary
    from magnifier.train.arguments import parse_arguments
    asked = parse_arguments(settings)
    asked['loading'] |= loading
    asked['model'] |= model
    wanted = None if studies is None else [part.strip() for part in studies.split(',') if part.strip()]
    names = settings_of(wanted)
    catalog = read_catalog(data, path, masks)
    say(f'{len(names)} settings x {len(numbers)} seeds with recipe {recipe}: {", ".join(names)}')
    logging.basicConfig(format='%(asctime)s %(message)s')
    logging.getLogger('magnifier.train.ablation').setLevel(logging.INFO)
    runs = ablate(
        catalog,
        out,
        recipe=recipe,
        studies=wanted,
        seeds=numbers,
        epochs=epochs,
        workers=workers,
        **asked,
        fast=fast,
        learners=keep_learners,
    )
    table = summary(runs)
    runs.to_csv(Path(out)/'ablation.csv', index=False)
    table.round(2).to_csv(Path(out)/'summary.csv')
    plot_studies(runs, save=Path(out)/'ablation.png')
    shown = table.drop(columns='setting').round(1).to_string()
    say(f'in %, means over seeds and their standard deviation:\n{shown}\nwritten to {Path(out).resolve()}')


def _seeds(text):
    try:
        return [int(part) for part in str(text).split(',') if part.strip()]
    except ValueError:
        raise ValueError(f'seeds {text!r}: whole numbers separated by commas are wanted, as 0,1,2') from None
