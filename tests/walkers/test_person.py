from dataclasses import fields, replace
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from magnifier.walkers.canvas import stream
from magnifier.walkers.person import ARMS, DETAILS, Appearance, Pose, Projection, family, random_appearance, skeleton

SOMEBODY = replace(random_appearance(stream('somebody')), girth=1., shoulders=1., legs=1., head=1.)


@pytest.mark.parametrize('detail', DETAILS)
def test_families_differ_in_one_detail(detail):
    for seed in range(40):
        four = family(stream(seed, detail), detail)
        differing = {f.name for f in fields(Appearance) if len({getattr(a, f.name) for a in four}) > 1}
        assert differing == set(DETAILS[detail])
        for field in DETAILS[detail]:
            assert len({getattr(a, field) for a in four}) == (3 if field == 'hair_style' else 4)


@given(yaw=st.floats(0, 360), phase=st.floats(0, 1), stride=st.floats(0, 1.1), arms=st.sampled_from(ARMS))
@settings(deadline=None)
def test_bones_keep_their_length(yaw, phase, stride, arms):
    joints = skeleton(SOMEBODY, Pose(yaw, phase, stride, arms))
    for side in ('left', 'right'):
        for a, b, length in (('hip', 'knee', .24), ('knee', 'ankle', .24), ('shoulder', 'elbow', .168)):
            bone = np.subtract(joints[f'{side}_{a}'], joints[f'{side}_{b}'])
            assert np.linalg.norm(bone) == pytest.approx(length, abs=.003)
    assert min(y for _, y, _ in joints.values()) >= 0


def test_projection_turns_and_rolls():
    assert Projection(yaw=90)((0, .5, 1))[0] > .9                  # forward becomes right
    x, y, _ = Projection(roll=90, scale=10)((0, 1.5, 0))
    assert x == pytest.approx(10)
    assert y == pytest.approx(0, abs=1e-9)
    assert Projection(pitch=30)((0, .5, .5))[1] > 0                # from above, what is nearer lies lower


def test_unknown_detail():
    with pytest.raises(ValueError, match="unknown detail 'nose': use one of hair, hat"): family(stream(0), 'nose')
