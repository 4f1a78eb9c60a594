"magnifier_app before it serves; tests/app/test_browser.py runs it"
import pytest
from magnifier.cli import all as cli


def test_a_gallery_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(SystemExit) as e: cli.magnifier_app(gallery=str(tmp_path/'people'))
    assert 'no such gallery; make one with `magnifier_index' in str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_learner_that_is_not_there(tmp_path):
    (tmp_path/'people').mkdir()
    wrong = ((tmp_path, 'holds no model.safetensors'), (tmp_path/'learner.pkl', 'no such learner; train one'))
    for learner, message in wrong:
        with pytest.raises(SystemExit, match=message):
            cli.magnifier_app(gallery=str(tmp_path/'people'), learner=str(learner))
