import numpy as np
import pytest
from magnifier.walkers.canvas import stream
from magnifier.walkers.person import random_appearance
from magnifier.walkers.scene import Person, Place, Stage, View, Visit, things_of, visits_of


def test_nobody_is_at_two_cameras_at_once():
    view = View(288, 512)
    things = [things_of(view, c, 0) for c in range(1, 4)]
    for person in range(1, 30):
        visits = visits_of(view, person, things, 120., 0)
        for a, b in zip(visits, visits[1:]):
            assert b.start >= a.end + 3
            assert a.camera != b.camera


def test_people_walk_where_they_look():
    visit = Visit(1, 1, 'swing', ((0., -2., 5.), (4., 2., 5.), (6., 2., 5.), (8., 2., 3.)))
    assert (visit.start, visit.end) == (0, 8)
    middle = visit.at(2.)
    assert (middle.x, middle.d, middle.stride, middle.yaw) == (0, 5, 1, 90)   # to the right
    stands = visit.at(5.)
    assert (stands.x, stands.d, stands.stride) == (2, 5, 0)
    assert stands.yaw > 90      # still looks to the right, seen from further left
    near = visit.at(8.)
    assert (near.x, near.d) == (2, 3)
    assert near.yaw == pytest.approx(np.degrees(np.arctan2(2, 3)))


@pytest.mark.parametrize('side, shows', [(.4, False), (-.4, True)])
def test_things_hide_who_is_behind_them(side, shows):
    view = View(144, 256)
    booth = next(t for t in things_of(view, 1, 0) if t.kind == 'booth')
    stage, rng = Stage(1, view, 0), stream('hidden')
    d = booth.d + side
    person = Person(5, random_appearance(rng), Place(booth.x * d / booth.d, d, 0., .25, 0.), 'folded')
    frame = stage.frame([person], rng)
    assert [s.person for s in frame.seen] == [5]
    assert (frame.seen[0].visibility == 1) == shows
    assert ((frame.mask >> 3) == 5).any() or frame.seen[0].visibility == 0
    assert frame.seen[0].whole[3] == pytest.approx(view.scale(d), rel=.15)  # as high as a body
    assert stage.frame([], rng).seen == []


def test_the_nearer_person_hides_the_farther():
    view, rng = View(144, 256), stream('two')
    stage, d = Stage(2, view, 0), view.depth(.9)
    people = [Person(n, random_appearance(rng), Place(0., d + n, 0., .25, 0.), 'pockets') for n in (1, 2)]
    frame = stage.frame(people, rng)
    near, far = frame.seen
    assert near.visibility == 1
    assert far.visibility < .6
    alone = stage.frame(people[:1], rng)
    np.testing.assert_array_equal(frame.mask[frame.mask >> 3 == 1], alone.mask[alone.mask >> 3 == 1])
