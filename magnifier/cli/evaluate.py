"Evaluate from a shell"
from magnifier.cli.common import command, open_learner, percent, quietly, read_catalog, say

__all__ = ['magnifier_eval']


@command('learner', 'data', 'path')
def magnifier_eval(
    learner:str,            # A learner of magnifier_train, as runs/quick/learner.pkl (a pickle: load only what you trust), or a saved folder
    data:str='walkers',     # Data set: walkers (embedded), market1501, ...
    path:str=None,          # Its folder
    rerank:bool=False,      # Adds a row after k-reciprocal re-ranking
    flip_test:bool=False,   # Adds the mirrored picture's embedding
    json:bool=False,        # Prints JSON instead of a table
    debug:bool=False,       # Shows the traceback of an error
):
    """Evaluates an exported learner: R1, R5, R10, mAP and mINP, queries against gallery.

    Examples: `magnifier_eval runs/quick/learner.pkl market1501 /data/Market-1501 --rerank` ·
    `torchrun --nproc_per_node 4 --no-python magnifier_eval ...` (embedding shared by four GPUs, or processes)"""
    from fastai.vision.all import rank_distrib
    from magnifier.train.distributed import join_ranks, on_all_ranks, rank0_first
    join_ranks()  # of several processes each has its GPU from here on
    learn = open_learner(learner, bar=not json)
    with rank0_first(): catalog = read_catalog(data, path, None) if not json else quietly(read_catalog, data, path, None)
    with on_all_ranks(learn): table = learn.evaluate(catalog[catalog.split != 'train'], rerank=rerank, flip_test=flip_test)
    if rank_distrib(): return
    say(table.to_json(orient='index') if json else f'query against gallery, in %:\n{percent([table])}')
