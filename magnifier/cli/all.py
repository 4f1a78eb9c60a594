"Every command, where the installed scripts find it"
from magnifier.cli.data import *
from magnifier.cli.evaluate import *
from magnifier.cli.gallery import *
from magnifier.cli.train import *

__all__ = ['magnifier_ablate', 'magnifier_app', 'magnifier_delete', 'magnifier_eval', 'magnifier_export',
           'magnifier_index', 'magnifier_masks', 'magnifier_people', 'magnifier_search', 'magnifier_train',
           'magnifier_walkers']
