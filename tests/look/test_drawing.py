"Palette, sheets and drawing functions on plain arrays"
import gc
import itertools
import weakref
from threading import Thread

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from magnifier.data.masks import stripe_masks
from magnifier.data.images import read_mask
from magnifier.look import drawing
from magnifier.look.drawing import (HEAT, REGION_COLOURS, Figure, all_stripes, are_stripes, blank_regions, finish,
                                    legend_room, outline, paint_heat, paint_mask, plot, put_image, region_legend,
                                    region_name, resized_labels, spotlight, stack, tiles)
from magnifier.regions import N_REGIONS, REGIONS

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
SIGHTS = dict(normal=np.eye(3),
              protanopia=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
              deuteranopia=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
              tritanopia=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])
TOUCHING = [('head', 'chest'), ('chest', 'upper_arm'), ('upper_arm', 'lower_arm'), ('chest', 'lower_arm'),
            ('chest', 'upper_leg'),
            ('lower_arm', 'upper_leg'), ('upper_leg', 'lower_leg'), ('lower_leg', 'foot'), ('head', 'upper_arm')]


def lab(linear):
    xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]]) @ np.clip(linear, 0,
                                                                                                    1)/[.9505, 1, 1.089]
    f = np.where(xyz > .008856, np.cbrt(xyz), 7.787*xyz + 16/116)
    return np.array([116*f[1] - 16, 500*(f[0] - f[1]), 200*(f[1] - f[2])])


@pytest.mark.parametrize('sight', SIGHTS)
def test_regions_that_touch_stay_apart_for_everybody(sight):
    linear = np.where(REGION_COLOURS <= .04045, REGION_COLOURS/12.92, ((REGION_COLOURS + .055)/1.055)**2.4)
    seen = {r: lab(np.asarray(SIGHTS[sight]) @ c) for r, c in zip(REGIONS, linear)}
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in TOUCHING) > 24
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(REGIONS[1:], 2)) > 15


@pytest.mark.parametrize('sight', SIGHTS)
def test_heat_has_a_colour_of_its_own(sight):
    "Nowhere along its way can it be taken for a region, and the hotter the darker"
    def seen(colour):
        linear = np.where(colour <= .04045, colour/12.92, ((colour + .055)/1.055)**2.4)
        return lab(np.asarray(SIGHTS[sight]) @ linear)
    way = [seen(np.array(HEAT(x)[:3])) for x in np.linspace(.6, 1, 9)]
    assert min(np.linalg.norm(a - seen(b)) for a in way for b in REGION_COLOURS) > 15
    lightness = [seen(np.array(HEAT(x)[:3]))[0] for x in np.linspace(0, 1, 21)]
    assert (np.diff(lightness) < 0).all()


def test_stripes_are_told_from_parts(catalog):
    stripes = stripe_masks((64, 32))
    assert are_stripes(stripes)
    assert are_stripes(np.pad(stripes[6:, 4:], ((6, 0), (4, 0))))  # shifted, as training does
    assert not any(are_stripes(read_mask(path)) for path in catalog['mask'])
    assert not are_stripes(np.zeros((8, 4), int))
    assert not are_stripes(np.ones((8, 4), int))
    assert all_stripes([None, stripes])
    assert not all_stripes([stripes, np.zeros((8, 4), int)])
    assert not all_stripes([None])


def test_a_stack_is_both():
    image, below = np.zeros((80, 4, 3)), np.full((80, 4, 3), .5)
    both = stack(image, below)
    assert (both[:80] == image).all()
    assert (both[-80:] == below).all()
    assert (both[80:-80] == 1).all()


def test_a_figure_saves_itself(tmp_path):
    path = plot()[0].save(tmp_path/'a'/'b.png')
    with Image.open(path) as image: assert image.width > 100


def test_names(): assert [region_name(3), region_name(0)] == ['upper arm', 'background']


@pytest.mark.parametrize('size', [(7, 3), (3, 7), (1, 1), (64, 32)])
def test_resized_labels_invent_nothing(size):
    labels = np.where(np.random.default_rng(0).random((9, 5)) < .5, 0, 7)
    got = resized_labels(labels, size)
    assert got.shape == size
    assert set(np.unique(got)) <= {0, 7}
    for y in range(size[0]):
        for x in range(size[1]): assert got[y, x] == labels[int((y + .5)*9/size[0]), int((x + .5)*5/size[1])]


def test_painting():
    picture, labels = np.random.default_rng(0).random((8, 4, 3)), np.array([[0, 1], [7, 2]])
    painted = paint_mask(picture, labels)
    assert np.allclose(painted[0, 0], picture[0, 0].mean())  # background: grey, and nothing over it
    assert np.allclose(painted[0, 3], .38*picture[0, 3].mean() + .62*REGION_COLOURS[1])
    cold, hot = paint_heat(picture, np.zeros((2, 2))), paint_heat(picture, np.ones((2, 2)))
    assert np.allclose(cold, .42 + .4*picture.mean(2, keepdims=True) + .18*picture)
    assert np.allclose(hot, .1*cold + .9*np.array(HEAT(1.)[:3]))
    assert 0 <= min(cold.min(), hot.min())
    assert max(cold.max(), hot.max()) <= 1
    blank = blank_regions(picture, labels, [7])
    assert (blank[:4] == picture[:4]).all()
    assert (blank[4:, 2:] == picture[4:, 2:]).all()
    assert not (blank[4:, :2] == picture[4:, :2]).any()
    lit = spotlight(picture, labels, [2])
    assert (lit[4:, 2:] == picture[4:, 2:]).all()
    assert (lit[:4] > .7).all()


def test_outlines_hold_their_region():
    sheet, axes = tiles(1, 1, aspect=2)
    labels = np.zeros((20, 10), int)
    labels[5:9, 2:6] = 3
    labels[19, 9] = 7  # a single pixel at the very edge
    put_image(axes[0, 0], np.zeros((20, 10, 3)))
    outline(axes[0, 0], labels)
    found = {tuple(np.round(c.get_edgecolor()[0][:3], 3)): c.get_paths()[0].get_extents()
             for c in axes[0, 0].collections[1::2]}
    box = found[tuple(np.round(REGION_COLOURS[3], 3))]
    assert np.allclose([box.x0, box.y0, box.x1, box.y1], [1.5, 4.5, 5.5, 8.5])
    assert len(found) == 2
    assert axes[0, 0].get_xlim() == (-.5, 9.5)
    assert axes[0, 0].get_ylim() == (19.5, -.5)


@pytest.mark.parametrize('rows, cols', [(1, 1), (2, 9), pytest.param(7, 3, marks=pytest.mark.slow)])
def test_tiles_and_legend_overlap_nowhere(rows, cols):
    room = legend_room(max(3.4, cols*1.2), 10)
    sheet, axes = tiles(rows, cols, aspect=2, above=.3, below=.2, left=.5, bottom=room, title='title', split=1, head=.2)
    for ax in axes.flat:
        put_image(ax, np.zeros((4, 2, 3)), title='id 1501 cam 3\ngallery', caption='0.123', kind='false')
    region_legend(sheet, heat='heat', frames=[('true', 'same person'), ('false', 'another person')])
    sheet.canvas.draw()
    words = [t.get_window_extent() for ax in axes.flat for t in ax.texts
             if t.get_text() not in '✗'] + [t.get_window_extent() for t in sheet.texts]
    tiles_ = [ax.get_window_extent() for ax in axes.flat]
    legend = sheet.legends[0].get_window_extent()
    for a, b in itertools.combinations(words, 2): assert not touches(a, b)
    for a, b in itertools.combinations(tiles_, 2): assert not touches(a, b)
    assert not any(touches(w, t) for w in words for t in tiles_)
    assert not any(touches(legend, o) for o in words + tiles_)
    inside = sheet.bbox
    assert all(inside.x0 <= o.x0 and o.x1 <= inside.x1 and inside.y0 <= o.y0 and o.y1 <= inside.y1
               for o in [*words, *tiles_, legend])


def touches(a, b): return a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1


@pytest.mark.parametrize('ending', ['png', 'jpg', 'pdf', 'svg'])
def test_finish_saves_what_the_ending_says(ending, tmp_path):
    sheet, _ = plot()
    assert finish(sheet, tmp_path/'a'/f'b.{ending}') is sheet
    assert (tmp_path/'a'/f'b.{ending}').stat().st_size > 1000


def test_pictures_are_opaque_white(tmp_path):
    finish(tiles(1, 1, aspect=1)[0], tmp_path/'a.png')
    image = np.asarray(Image.open(tmp_path/'a.png').convert('RGBA'))
    assert (image == 255).all()


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match='is not supported'): finish(plot()[0], tmp_path/'a.xyz')


def test_a_notebook_shows_a_picture_once_a_cell(monkeypatch):
    import IPython.display
    shown, cell = [], [1]
    monkeypatch.setattr(IPython.display, 'publish_display_data', lambda data: shown.append(data['image/png'][:4]))
    monkeypatch.setattr(drawing, 'notebook_cell', lambda: cell[0])
    sheet = finish(plot()[0])
    assert shown == [b'\x89PNG']
    sheet._ipython_display_()  # the cell's last value: it is there already
    assert len(shown) == 1
    cell[0] = 2
    sheet._ipython_display_()
    assert len(shown) == 2


def test_pyplot_saves_the_figure_that_was_drawn_last(tmp_path):
    own = plt.figure()
    first, second = (finish(tiles(1, cols, aspect=1)[0]) for cols in (1, 5))
    assert plt.gcf() is second
    plt.savefig(tmp_path/'pyplot.png')
    second.save(tmp_path/'own.png')
    assert (tmp_path/'pyplot.png').read_bytes() == (tmp_path/'own.png').read_bytes()
    assert (tmp_path/'pyplot.png').read_bytes() != first.png()
    assert first.save(tmp_path/'first.png').exists()  # pyplot lets it go; whoever has it may use it
    plt.close(second)
    assert plt.gcf() is own  # a figure of the user's own stays open
    plt.close('all')


def test_pyplot_holds_one_figure_of_ours():
    plt.close('all')
    drawn = [weakref.ref(finish(tiles(1, 1, aspect=1)[0])) for _ in range(4)]
    gc.collect()
    assert [figure() for figure in drawn[:-1]] == [None]*3
    assert plt.gcf() is drawn[-1]()
    assert len(plt.get_fignums()) == 1


def test_a_figure_of_a_widget_or_of_another_thread_is_not_pyplots():
    "A server draws in threads, where windows cannot be opened"
    plt.close('all')
    finish(tiles(1, 1, aspect=1)[0], show=False)
    thread = Thread(target=lambda: finish(tiles(1, 1, aspect=1)[0]))
    thread.start()
    thread.join()
    assert not plt.get_fignums()


def test_outside_of_a_notebook_there_is_no_cell():
    assert drawing.notebook_cell() is None
    assert isinstance(finish(plot()[0]), Figure)


def test_palette_has_every_region(): assert REGION_COLOURS.shape == (N_REGIONS, 3)
