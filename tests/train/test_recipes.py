"Recipes: what they fit, found without training, and what their numbers are"
import pytest
from magnifier.train.records import planned_stages
from magnifier.train.recipes import RECIPES, fit_baseline, fit_paper, recipe


class Fits:
    "Stands in for a learner: notes what it is asked to fit"
    def __init__(self, sfb=True):
        from types import SimpleNamespace
        self.model, self.fitted = SimpleNamespace(sfb=sfb or None), []

    def fit(self, n_epoch, lr, cbs): self.fitted.append((n_epoch, lr, {type(cb).__name__: cb for cb in cbs}))


def fitted(fit, *args, sfb=True, **kwargs):
    fits = Fits(sfb)
    fit(fits, *args, **kwargs)
    return fits.fitted


def test_the_papers_two_stages():
    one, two = fitted(fit_paper)
    assert one[:2] == (460, 3.5e-4) and two[:2] == (40, 1e-3)
    schedule = one[2]['WarmupMilestones']
    assert schedule.lr == 3.5e-4 and schedule.how == dict(warmup=10, start=.01, milestones=(40, 70), decay=.1)
    assert 'SemanticDiversityPhase' not in one[2] and 'WarmupMilestones' not in two[2]
    assert two[2]['SemanticDiversityPhase'].gamma == 2e-3 and two[2]['SemanticDiversityPhase'].start_epoch == 0


def test_the_diversity_loss_goes_where_it_can():
    assert not any('SemanticDiversityPhase' in cbs for _, _, cbs in fitted(fit_paper, sfb=False) + fitted(fit_paper, diversity=False))
    assert not any('SemanticDiversityPhase' in cbs for _, _, cbs in fitted(fit_baseline))
    assert fitted(fit_baseline, diversity=True)[0][2]['SemanticDiversityPhase'].start_epoch == 70


def test_the_baselines_120_epochs():
    (n, lr, cbs), = fitted(fit_baseline)
    assert (n, lr) == (120, 3.5e-4) and cbs['WarmupMilestones'].how == dict(warmup=10, start=.01, milestones=(40, 70), decay=.1)
    (n, _, cbs), = fitted(fit_baseline, 60)
    assert n == 60 and cbs['WarmupMilestones'].how == dict(warmup=5, start=.01, milestones=(20, 35), decay=.1)
    (n, _, cbs), = fitted(fit_baseline, 240, milestones=(40,))
    assert cbs['WarmupMilestones'].how['milestones'] == (80,) and cbs['WarmupMilestones'].how['warmup'] == 20


@pytest.mark.parametrize('epochs, first, second, warmup, milestones', [
    (500, 460, 40, 10, (40, 70)), (250, 230, 20, 10, (40, 70)), (130, 120, 10, 10, (40, 70)), (65, 60, 5, 5, (20, 35)), (5, 4, 1, 0, (1, 2)), (2, 1, 1, 0, (1, 1))])
def test_shorter_papers(epochs, first, second, warmup, milestones):
    one, two = fitted(fit_paper, epochs)
    assert (one[0], two[0]) == (first, second) and one[0] + two[0] == epochs
    assert (one[2]['WarmupMilestones'].how['warmup'], one[2]['WarmupMilestones'].how['milestones']) == (warmup, milestones)


def test_one_epoch_is_one_stage(): assert [n for n, *_ in fitted(fit_paper, 1)] == [1]


@pytest.mark.parametrize('name', ['paper', 'baseline'])
def test_the_papers_numbers(name):
    plan = RECIPES[name]
    assert plan.loading['size'] == (384, 192) and plan.loading['bs'] == 64 and plan.loading['n_per_id'] == 4 and plan.model['arch'] == 'resnet50'
    import torch
    from fastai.vision.all import Adam
    p = torch.nn.Parameter(torch.zeros(3))
    opt = plan.model['opt_func']([p], lr=.1)
    assert plan.model['opt_func'].func is Adam and (opt.hypers[0]['mom'], opt.hypers[0]['sqr_mom'], opt.hypers[0]['eps']) == (.9, .999, 1e-8)


def test_their_adam_is_torchs():
    import torch
    a, b = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    ours, torchs = RECIPES['paper'].model['opt_func']([a], lr=.01, wd=5e-4), torch.optim.Adam([b], lr=.01, weight_decay=5e-4)
    for step in range(20):
        for p, opt in ((a, ours), (b, torchs)):
            opt.zero_grad()
            ((p - step)**2).sin().sum().backward()
            opt.step()
    assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('name', RECIPES)
def test_a_plan_is_found_without_training(name, learn):
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    plan = recipe(name)
    stages = planned_stages(learn, plan.fit, plan.epochs)
    assert sum(s.epochs for s in stages) == plan.epochs and len(stages) == (2 if name == 'paper' else 1)
    assert all((v == before[k]).all() for k, v in learn.model.state_dict().items()) and learn.opt is None and 'fit' not in vars(learn)


def test_the_plan_is_what_will_be_done(learn):
    one, two = planned_stages(learn, fit_paper, 500)
    assert str(one) == '460 epochs, rate 0.00035, linear warm-up from 0.01 of it over 10 epochs, x 0.1 at epochs 40 and 70, ranked every 20 epochs'
    assert str(two) == '40 epochs, rate 0.001, ranked every 20 epochs, semantic diversity loss x 0.002'
    quick, = planned_stages(learn, RECIPES['quick'].fit, 16)
    assert quick.lr == 3e-3 and {'one cycle with that rate at its top', 'semantic diversity loss x 0.002 from epoch 14 on'} <= set(quick.says)


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match='unknown recipe \'fast\': use one of quick, one_cycle, baseline, paper'): recipe('fast')
