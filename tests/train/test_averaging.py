"Averaged weights against the formula, step by step; who sees which weights"
import pickle

import pytest
import torch
from fastai.vision.all import Callback, CancelFitException, DataLoader, DataLoaders, Learner, SaveModelCallback
from magnifier.train.averaging import AveragedWeights, average_into


def learner(tmp_path, n=5, **kwargs):
    g = torch.Generator().manual_seed(0)
    items = [(torch.randn(3, generator=g), torch.randn(1, generator=g)) for _ in range(4*n)]
    dls = DataLoaders(*(DataLoader(items, bs=4, num_workers=0) for _ in range(2)), path=tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    learn = Learner(dls, model, torch.nn.functional.mse_loss, lr=.1, **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = lambda *a: None
    return learn


def state(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}

def same(a, b, **kw): return all(torch.allclose(a[k].double(), b[k].double(), **kw) for k in a)


class Watch(Callback):
    "Trained weights after each step, and what validation sees"
    order = 40
    def __init__(self): self.trained, self.validated = [], []
    def after_step(self): self.trained.append(state(self.learn))
    def before_validate(self): self.validated.append(state(self.learn))


@pytest.mark.parametrize('decay, warm_up', [(.9, False), (.9, True), (0., False), (.05, True)])
def test_the_average_is_the_formulas(tmp_path, decay, warm_up):
    learn, watch = learner(tmp_path), Watch()
    average = state(learn)
    learn.add_cb(AveragedWeights(decay, warm_up))
    learn.fit(3, cbs=watch)
    n = 0
    for epoch in range(3):
        for now in watch.trained[epoch*5:epoch*5 + 5]:
            n += 1
            d = min(decay, (1 + n)/(10 + n)) if warm_up else decay
            average = {k: d*average[k] + (1 - d)*v if v.is_floating_point() else v for k, v in now.items()}
        assert same(watch.validated[epoch], average, atol=1e-5)
    assert same(state(learn), average, atol=1e-5), 'and stays for what comes after the fit'


def test_training_is_as_without(tmp_path):
    watches = [Watch(), Watch()]
    for watch, cbs in zip(watches, ([], [AveragedWeights()])):
        learn = learner(tmp_path, cbs=cbs)
        learn.fit(2, cbs=watch); learn.fit(1, cbs=watch)
    assert len(watches[0].trained) == 15 and all(same(a, b, atol=0, rtol=0) for a, b in zip(*(w.trained for w in watches)))


def test_another_model_loaded_meanwhile_starts_anew(tmp_path):
    learn, watch = learner(tmp_path, cbs=AveragedWeights(.9)), Watch()
    learn.save('start', with_opt=False)
    learn.fit(1, cbs=watch)
    first = watch.trained[0]
    learn.load('start', with_opt=False)
    learn.fit(1, cbs=watch, reset_opt=True)
    assert same(watch.trained[5], first, atol=0, rtol=0) and learn.averaged_weights.n == 5


def test_a_cancelled_fit_leaves_the_averages_and_an_error_the_trained(tmp_path):
    class End(Callback):
        what = CancelFitException
        def after_batch(self):
            if self.training and self.iter == 2: raise self.what('here')
    learn, watch = learner(tmp_path, cbs=AveragedWeights(.9)), Watch()
    learn.fit(1, cbs=[watch, End()])
    assert not same(state(learn), watch.trained[-1])
    end = End(); end.what = RuntimeError
    with pytest.raises(RuntimeError): learn.fit(1, cbs=[watch, end])
    learn.remove_cb(end); learn.remove_cb(watch)
    assert same(state(learn), watch.trained[-1], rtol=0, atol=0)
    n, again = learn.averaged_weights.n, Watch()
    learn.fit(1, 0., cbs=again)
    assert learn.averaged_weights.n == n + 5 and torch.equal(again.trained[0]['0.weight'], watch.trained[-1]['0.weight']), 'and goes on from there'


def test_the_best_epoch_is_kept_with_its_averages(tmp_path):
    learn, watch = learner(tmp_path, cbs=AveragedWeights(.9)), Watch()
    learn.fit(2, cbs=[watch, SaveModelCallback(monitor='valid_loss', fname='best', every_epoch=True, with_opt=False)])
    for epoch in range(2): assert same(torch.load(tmp_path/f'models/best_{epoch}.pth', weights_only=True), watch.validated[epoch], atol=0, rtol=0)


def test_a_checkpoint_goes_on_as_if_nothing_had_been(tmp_path):
    whole, watch = learner(tmp_path, cbs=AveragedWeights(.9)), Watch()
    whole.fit(2, cbs=watch)
    first = learner(tmp_path, cbs=AveragedWeights(.9))
    first.fit(1)
    first.save('half')
    torch.save(first.averaged_weights.state_dict(), tmp_path/'average.pt')
    second = learner(tmp_path, cbs=AveragedWeights(.9))
    second.load('half')
    second.averaged_weights.load_state_dict(torch.load(tmp_path/'average.pt', weights_only=True))
    second.fit(1)
    assert same(state(second), state(whole), rtol=0, atol=0) and second.averaged_weights.n == 10


def test_an_export_carries_one_model(tmp_path):
    learn = learner(tmp_path, cbs=AveragedWeights())
    learn.fit(1)
    cb = learn.averaged_weights
    learn.remove_cb(cb)
    again = pickle.loads(pickle.dumps(cb))
    assert (again.n, again.other, again.left, again.decay) == (0, None, None, .999)


def test_impossible_decays_and_nothing_to_average():
    for decay in (1., -.1):
        with pytest.raises(ValueError, match='decay='): AveragedWeights(decay)
    average_into([], [], .5)
