"""Whole trainings as data: arguments of loaders, model and loss, and the stages of the fit. Importing this module is
fast"""

from typing import NamedTuple

from magnifier.checks import refuse

__all__ = ['Stage', 'Recipe', 'RECIPES', 'recipe']

SCHEDULES = ('constant', 'annealed', 'one_cycle', 'steps')
FULL = 120  # Epochs that warm-up and milestones are meant for; in a shorter stage they move together
DROP = 0.1  # What a milestone multiplies the rate by


class Stage(NamedTuple):
    "One fit of a training, as data"

    epochs: int  # Epochs
    lr: float | None  # Highest rate; None for the rate that the stage before ends with
    schedule: str = 'constant'  # constant, annealed (cosine, down to 0), one_cycle, or steps (warm-up and milestones)
    warmup: int = 0  # steps: epochs of linear warm-up
    milestones: tuple = ()  # steps: epochs that begin with a tenth of the rate
    diversity_from: float = 1.  # Share of the stage, 0 to 1, after which the semantic diversity loss counts; 1: never
    gamma: float = 2e-3  # Weight of that loss (paper, section 4.1)
    rank_every: int = 1  # Epochs from one ranking of the test images to the next
    channels_last: bool = False  # Whether the weights are in channels-last order, which a CPU convolves faster
    bfloat16: bool = False  # Whether the forward pass is in bfloat16, on a CPU that multiplies it

    def of(
        self,
        epochs: int,  # Epochs that the stage shall have
    ) -> 'Stage':  # The same stage in as many epochs
        "With `FULL` epochs or more, warm-up and milestones stay; with fewer, they shrink in proportion"
        share = min(1, epochs / FULL)
        milestones = tuple(max(1, round(m * share)) for m in self.milestones)
        return self._replace(epochs=epochs, warmup=round(self.warmup * share), milestones=milestones)

    @property
    def diversity_epoch(self) -> int | None:
        "First epoch, counted from 0, with the semantic diversity loss; None if no epoch has it"
        first = round(self.diversity_from * self.epochs)
        return first if first < self.epochs else None

    @property
    def last_rate(self) -> float:
        "The learning rate at the end of the stage"
        if self.schedule == 'steps': return self.lr * DROP**sum(m < self.epochs for m in self.milestones)
        return self.lr if self.schedule == 'constant' else self.lr / 1e5

    def __str__(self):
        said = [_counted(self.epochs, 'epoch'), f'rate {self.lr:g}', *self._schedule_words()]
        if self.diversity_epoch is not None:
            start = f' from epoch {self.diversity_epoch + 1} on' if self.diversity_epoch else ''
            said.append(f'semantic diversity loss x {self.gamma:g}{start}')
        if self.rank_every > 1: said.append(f'ranked every {self.rank_every} epochs')
        return ', '.join(said)

    def _schedule_words(self):
        if self.schedule == 'one_cycle': yield 'one cycle with that rate at its top'
        if self.schedule == 'annealed': yield 'falling to 0'
        if self.schedule != 'steps': return
        if self.warmup: yield f'linear warm-up over {_counted(self.warmup, "epoch")}'
        if self.milestones: yield f'x {DROP} from epoch {" and ".join(str(m + 1) for m in self.milestones)} on'


class Recipe(NamedTuple):
    "A training: arguments of the loaders, the learner and the loss, and its stages"

    says: str  # What it does, in one sentence
    stages: tuple  # Of `Stage`
    loading: dict  # Arguments of `ReIDDataLoaders.from_df`
    model: dict  # Arguments of `magnifier_learner`
    loss: dict = {}  # Arguments of `MagnifierLoss`
    diversity: bool = True  # Whether its stages have the semantic diversity loss where nobody says

    @property
    def epochs(self) -> int:
        "Epochs of all stages"
        return sum(stage.epochs for stage in self.stages)

    def plan(
        self,
        epochs: int | None = None,  # Epochs of all stages together; None for the recipe's
        *,
        diversity: bool | None = None,  # Whether there is a semantic diversity loss; None for the recipe's choice
        gamma: float | None = None,  # Weight of that loss
        lr: float | None = None,  # First stage: highest rate
        schedule: str | None = None,  # First stage: constant, annealed, one_cycle or steps
        warmup: int | None = None,  # First stage: epochs of linear warm-up
        milestones: tuple | None = None,  # First stage: epochs that begin with a tenth of the rate
        second_lr: float | None = None,  # Second stage: highest rate; 0 for the rate that the first stage ends with
        second_schedule: str | None = None,  # Second stage: constant or annealed
        rank_every: int | None = None,  # Epochs from one ranking of the test images to the next
    ) -> list[Stage]:
        "The stages with all numbers; given numbers replace the recipe's. A ValueError for invalid numbers"
        stages = self._shares(self.epochs if epochs is None else epochs)
        first = _given(lr=lr, schedule=schedule, warmup=warmup, milestones=milestones)
        if {'warmup', 'milestones'} & set(first): first.setdefault('schedule', 'steps')
        stages[0] = stages[0]._replace(**first)
        second = _given(lr=second_lr, schedule=second_schedule)
        refuse({'second_lr and second_schedule: this recipe has a single stage': second and len(self.stages) == 1})
        stages[1:2] = [stage._replace(**second) for stage in stages[1:2]]
        changes = _given(gamma=gamma, rank_every=rank_every)
        if not (self.diversity if diversity is None else diversity): changes['diversity_from'] = 1.
        for i, stage in enumerate(stages):
            if not stage.lr: stage = stage._replace(lr=stages[i - 1].last_rate)
            stages[i] = stage._replace(**changes)
            _check(stages[i])
        return stages

    def _shares(self, epochs):
        """The stages shortened or lengthened to this number of epochs; each has at least one, except in a training of
        one epoch"""
        refuse({f'epochs={epochs}: train one or more': epochs < 1})
        later = [max(round(epochs * stage.epochs / self.epochs), int(epochs > 1)) for stage in self.stages[1:]]
        counts = [epochs - sum(later), *later]
        return [stage.of(n) for stage, n in zip(self.stages, counts) if n]


def _given(**kwargs): return {name: value for name, value in kwargs.items() if value is not None}


def _counted(n, what): return f'{n} {what}' + 's'*(n != 1)


def _check(stage):
    "Refuses invalid numbers of a stage"
    refuse({
        f'unknown schedule {stage.schedule!r}: use one of {", ".join(SCHEDULES)}': stage.schedule not in SCHEDULES,
        f'lr={stage.lr}: a rate is positive': stage.lr <= 0,
        f'warmup={stage.warmup}: give 0 or more epochs': stage.warmup < 0,
        f'milestones={stage.milestones}: give them in order': list(stage.milestones) != sorted(stage.milestones),
        f'gamma={stage.gamma}: a weight is zero or positive': stage.gamma < 0,
        f'rank_every={stage.rank_every}: rank every epoch (1) or less often': stage.rank_every < 1,
    })


RECIPES = {
    'quick': Recipe(
        'a residual network of ten narrow layers, from random weights at 128 x 64: a demonstration sized for two '
        'CPU cores',
        (Stage(16, 3e-3, 'one_cycle', diversity_from=0.8, rank_every=5, channels_last=True, bfloat16=True),),
        dict(size=(128, 64), bs=64, pad=4, erase=0.0, cache='ram'),
        # Weight decay apart from the gradient and nothing erased learn faster in few steps than the baseline's ways.
        # From random weights all branches are equally good, and rank best with equal weights
        dict(
            arch='resnet10_narrow',
            pretrained=False,
            hidden=128,
            branch_weights=None,
            opt_func='adamw',
            wd=0.01,
            wd_bn_bias=False,
        ),
        # With the paper's weight of 2 the masks say what the place in the image says and no more (after 6 epochs their
        # loss is 0.84, and with 20 it is 0.45)
        dict(mask_weight=20.0),
    ),
    # In float32: bfloat16 is slower for convolutions of one channel, which this network is made of
    'light': Recipe(
        'MobileNetV2 (of timm) from ImageNet weights at 128 x 64, one cycle of 5 epochs: photographs on a CPU',
        (Stage(5, 1e-3, 'one_cycle', rank_every=5, channels_last=True),),
        dict(size=(128, 64), bs=64, n_per_id=4, pad=5, erase=0.0, cache='ram'),
        # After a few epochs the part branches, which start from random weights, are behind the global one. They find
        # more in maps of twice the size. The network's last convolution needs more epochs than these
        dict(
            arch='mobilenetv2_100',
            pretrained=True,
            last_convolution=False,
            hidden=512,
            upsample_maps=True,
        ),
        diversity=False,
    ),
    'one_cycle': Recipe(
        'ResNet-50 from ImageNet weights at 384 x 192, one cycle of 60 epochs',
        (Stage(60, 3.5e-4, 'one_cycle', diversity_from=5 / 6),),
        dict(size=(384, 192), bs=64),
        dict(arch='resnet50', pretrained=True),
    ),
    'baseline': Recipe(
        "reid-strong-baseline's 120 epochs at the paper's size, the global branch alone (row G of the paper's Table 2)",
        (Stage(120, 3.5e-4, 'steps', warmup=10, milestones=(40, 70), diversity_from=70 / 120, rank_every=10),),
        dict(size=(384, 192), bs=64, n_per_id=4, cache='disk'),
        dict(arch='resnet50', pretrained=True, mask=False, sab=False, sfb=False, opt_func='adam'),
        diversity=False,
    ),
    # The paper gives no milestones for its 460 epochs: these are the baseline's. Its authors' code has (40,) for
    # CUHK03, and goes on at the decayed rate in the second stage. The paper names a rate of 1e-3 there and no schedule.
    # Held constant, it costs 2 points of mAP on photographs; annealed, it adds 1 (tests/bench/README.md)
    'paper': Recipe(
        "the paper's two stages (section 4.1): all branches, then the semantic diversity loss too",
        (
            Stage(460, 3.5e-4, 'steps', warmup=10, milestones=(40, 70), rank_every=20),
            Stage(40, 1e-3, 'annealed', diversity_from=0.0, rank_every=20),
        ),
        dict(size=(384, 192), bs=64, n_per_id=4, cache='disk'),
        dict(arch='resnet50', pretrained=True, opt_func='adam', normalise_branches=False, branch_weights=None),
    ),
}


def recipe(
    name: str,  # One of `RECIPES`
) -> Recipe:  # The recipe of that name
    "Recipe by name; a ValueError for an unknown one lists the known ones"
    refuse({f'unknown recipe {name!r}: use one of {", ".join(RECIPES)}': name not in RECIPES})
    return RECIPES[name]
