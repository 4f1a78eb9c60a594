"What is stored about a run, and how two runs' arguments are compared"
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from magnifier.train.records import as_json, describe_data, differing, environment, read_json, write_json


def test_data_are_described_wherever_they_lie(catalog):
    said = describe_data(catalog)
    train = catalog[catalog.split == 'train']
    assert ((said['images'], said['identities'], said['queries'])
            == (len(train), train.pid.nunique(), (catalog.split == 'query').sum()))
    assert said['masks'] == train['mask'].notna().sum() and said['gallery'] == (catalog.split == 'gallery').sum()
    moved = catalog.assign(path=catalog.path.map(lambda p: '/elsewhere' + str(p)))
    assert describe_data(moved) == said != describe_data(catalog.assign(mask=None))
    for other in (catalog[1:], catalog.assign(pid=catalog.pid + 1)):
        assert describe_data(other)['digest'] != said['digest']


def test_one_image_is_described(catalog): assert describe_data(catalog[:1])['images'] == 1


def test_the_environment_is_json_and_says_the_commit(monkeypatch, tmp_path):
    said = environment()
    assert json.loads(json.dumps(said)) == said
    assert re.fullmatch('[0-9a-f]{40}[+]?', said['commit'] or '0'*40)
    assert said['hardware']['cpu']
    import magnifier
    monkeypatch.setattr(magnifier, '__file__', str(tmp_path/'magnifier/__init__.py'))
    assert environment()['commit'] is None
    (tmp_path/'.git').mkdir()  # a clone that git cannot read
    assert environment()['commit'] is None


def test_what_json_does_not_know_is_named():
    from fastai.vision.all import Adam
    from torchvision.models import resnet50
    said = as_json(dict(arch=resnet50, opt=partial(Adam, decouple_wd=False), size=(4, 2), rate=np.float64(.5),
                        none=None, yes=True, path=pd.NA is None))
    assert said == dict(arch='resnet50', opt='Adam(decouple_wd=False)', size=[4, 2], rate=.5, none=None, yes=True,
                        path=False)
    assert as_json(partial(max, 1, 'a')) == "max(1, 'a')" and type(as_json(np.str_('a'))) is str


def test_differences_are_named_by_their_path():
    assert differing(dict(a=1, b=dict(c=2, d=3)), dict(a=1, b=dict(c=2, d=4), e=5)) == [('b.d', 3, 4), ('e', None, 5)]
    assert differing({}, {}) == []


def test_json_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path/'a/run.json', {'a': [1, 2.5, None, 'ä']})
    assert read_json(tmp_path/'a/run.json') == {'a': [1, 2.5, None, 'ä']} and read_json(tmp_path/'none.json') is None
    (tmp_path/'bad.json').write_text('{"a": ')
    with pytest.raises(ValueError, match='bad.json: not the record of a run .* remove it'):
        read_json(tmp_path/'bad.json')


def test_masks_of_another_kind_are_other_data(catalog, tmp_path):
    import shutil
    own = catalog.assign(mask=[str(tmp_path/'a'/f'{i}.png') for i in range(len(catalog))])
    for place, mask in zip(own['mask'], catalog['mask']):
        Path(place).parent.mkdir(exist_ok=True)
        shutil.copy(mask, place)
    moved = own.assign(mask=own['mask'].str.replace('/a/', '/b/'))
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    assert describe_data(moved) == describe_data(own)  # where they lie does not matter
    assert describe_data(own.assign(mask=own['mask'].map(Path))) == describe_data(own)
    with open(moved['mask'][3], 'ab') as f: f.write(b'another')
    assert describe_data(moved)['digest'] != describe_data(own)['digest']
    assert describe_data(own.assign(mask=None))['digest'] != describe_data(own)['digest']


class Nameless: pass


@pytest.mark.parametrize('value', [lambda x: x, Nameless(), dict(model=dict(loss_func=Nameless()))])
def test_what_has_no_name_cannot_be_recorded(value):
    with pytest.raises(ValueError, match='cannot be recorded.*functools.partial'): as_json(value)
