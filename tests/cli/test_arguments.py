"Arguments by name: where they go, what they become, and what is refused"
import pytest

from magnifier.cli.train import known_arguments, parse_arguments


def test_each_goes_to_who_takes_it_with_its_type():
    found = parse_arguments(['keep=6', 'strategy=random', 'sfb=ab', 'sab=false', 'cell=lstm', 'keep_background=no',
                             'gamma=1', 'second_lr=0',
                             'milestones=40', 'sab_triplet=plain', 'margin=.5', 'n_per_id=8', 'erase=0'])
    assert found == dict(
        fitting=dict(gamma=1., second_lr=0., milestones=(40,)), loss=dict(sab_triplet='plain', margin=.5),
        model=dict(keep=6, strategy='random', sfb='ab', sab=False, cell='lstm', keep_background=False),
        loading=dict(n_per_id=8, erase=0.))
    assert type(found['fitting']['gamma']) is float
    assert parse_arguments([]) == dict(fitting={}, loss={}, model={}, loading={})


def test_an_optimiser_by_name(): assert parse_arguments(['opt_func=adam'])['model'] == dict(opt_func='adam')


def test_several_numbers(): assert parse_arguments(['milestones=40,70'])['fitting'] == dict(milestones=(40, 70))


def test_an_equals_sign_in_a_value_stays(): assert parse_arguments(['cell=a=b'])['model'] == dict(cell='a=b')


@pytest.mark.parametrize('text, message', [
    ('kep=6', "unknown argument 'kep': use one of .*cell, .*keep, .*second_lr"),
    ('keep=four', 'keep=four: a whole number is wanted'),
    ('keep=4.5', 'keep=4.5: a whole number is wanted'), ('sab=2', 'sab=2: true or false is wanted'),
    ('margin=wide', 'margin=wide: a number is wanted'),
    ('keep', "'keep': give name=value"), ('milestones=soon', 'milestones=soon: numbers with commas between')])
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message): parse_arguments([text])


def test_what_an_ablation_varies_can_be_given():
    from magnifier.train.ablation import SETTINGS
    varied = {name for setting in SETTINGS.values() for name in setting.model}
    assert varied | {'diversity', 'gamma', 'second_lr', 'milestones'} <= set(known_arguments())
