"Every command, where the installed scripts find it"
from magnifier.cli.ablate import *
from magnifier.cli.data import *
from magnifier.cli.evaluate import *
from magnifier.cli.train import *

__all__ = ['magnifier_ablate', 'magnifier_eval', 'magnifier_masks', 'magnifier_train', 'magnifier_walkers']
