"nbs/make.py: the notebooks' figures take fewer bytes, and look the same"
import importlib.util
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image, ImageDraw, ImageFilter

MAKE = Path(__file__).resolve().parents[1]/'nbs'/'make.py'


@pytest.fixture(scope='module')
def make():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location('make', MAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path  # to which the script adds its own folder
    return module


def png(image):
    file = BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


def curve():
    "Lines and words on white, with an opaque alpha channel, as matplotlib writes them"
    image = Image.new('RGBA', (300, 200), 'white')
    draw = ImageDraw.Draw(image)
    for i, colour in enumerate(('#0072b2', '#d55e00', '#009e73')):
        draw.line([(20, 180), (280, 20 + 40*i)], colour, 3)
        draw.text((120, 20 + 40*i), 'mAP', colour)
    return image


def photograph():
    "Smooth in all colours, with some noise"
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))


def test_a_plot_keeps_every_pixel(make):
    mime, content = make.compressed(png(curve()))
    assert mime == 'image/png'
    assert len(content) < len(png(curve()))
    np.testing.assert_array_equal(Image.open(BytesIO(content)).convert('RGB'), curve().convert('RGB'))


def test_a_figure_of_images_becomes_a_smaller_jpeg_that_looks_the_same(make):
    image = photograph()
    mime, content = make.compressed(png(image))
    assert mime == 'image/jpeg'
    assert len(content) < len(png(image))/3
    shown = Image.open(BytesIO(content))
    assert shown.size == image.size
    assert np.abs(np.asarray(shown, dtype=int) - np.asarray(image, dtype=int)).mean() < 4  # of 255


def test_only_the_pictures_of_a_notebook_change(make):
    words = new_output('stream', text='R1 0.9\n')
    figures = [new_output('display_data', {'image/png': b64encode(png(image)).decode(), 'text/plain': 'Figure'})
               for image in (curve(), photograph())]
    notebook = new_notebook(cells=[new_code_cell('plot()', outputs=[words, *figures])])
    make.compress_figures(notebook)
    cell, = notebook.cells
    assert cell.source == 'plot()'
    assert cell.outputs[0].text == 'R1 0.9\n'
    assert [sorted(o.data) for o in cell.outputs[1:]] == [['image/png', 'text/plain'], ['image/jpeg', 'text/plain']]
    assert Image.open(BytesIO(b64decode(cell.outputs[2].data['image/jpeg']))).size == (300, 200)


def test_a_second_time_changes_nothing(make):
    figures = [new_output('display_data', {'image/png': b64encode(png(image)).decode()})
               for image in (curve(), photograph())]
    notebook = new_notebook(cells=[new_code_cell('plot()', outputs=figures)])
    make.compress_figures(notebook)
    once = [dict(o.data) for o in notebook.cells[0].outputs]
    make.compress_figures(notebook)
    assert [dict(o.data) for o in notebook.cells[0].outputs] == once
