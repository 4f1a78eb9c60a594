"Parameters are explained where users look: help, ? and doc"
import inspect
import pydoc

import magnifier.all as everything
import pytest
from fastcore.docments import docments
from magnifier import docs

NAMES = sorted(name for name, thing in vars(everything).items()
               if inspect.isfunction(thing) and (getattr(thing, '__module__', None) or '').startswith('magnifier.'))


@pytest.mark.parametrize('name', NAMES)
def test_texts_are_those_that_fastcore_reads(name):
    function = getattr(everything, name)
    read = docments(function, full=True, returns=False)
    for p in docs.parameters(function):
        if p.name.startswith('*'): continue  # fastcore does not read the comment of a last **kwargs
        assert p.text == (read[p.name].docment or ''), p.name


@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_is_in_the_docstring(name):
    function = getattr(everything, name)
    said = inspect.getdoc(function)
    for p in docs.parameters(function):
        if p.text: assert f'{p.name}={p.default}  ' in said or f'{p.name} ' in said, p.name
        assert p.text in said


def test_help_explains_the_learner():
    said = pydoc.plain(pydoc.render_doc(everything.magnifier_learner))
    assert 'Segmentation head (M), needed by the part branches' in said
    assert 'arch=resnet50 ' in said
    # a parameter of create_magnifier, and one of create_branches, to which that delegates
    assert 'Stride of stage 4' in said
    assert "SFB's recurrent cell" in said


def test_methods_patches_and_fields_are_explained():
    learner = everything.ReIDLearner
    assert 'Hits of each query' in inspect.getdoc(learner.show_ranking)
    assert 'Images a batch' in inspect.getdoc(learner.embed)
    assert 'Cosine similarity' in inspect.getdoc(everything.Explanation)


def test_a_second_reading_adds_nothing():
    before = everything.magnifier_learner.__doc__
    docs._document(inspect.getmodule(everything.magnifier_learner))
    assert everything.magnifier_learner.__doc__ == before
