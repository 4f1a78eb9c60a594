"A gallery's embedder without a model: the picture's own colours, by region as bands from top to bottom"
import numpy as np
import pandas as pd
from PIL import Image

HEIGHT, WIDTH = 40, 80  # Of painted frames
# Camera -> person -> (first frame, last frame, left), for `paint`: six people in the first camera, at most three at
# once, and four of them in the second
WALKS = {
    1: {100 + i: (1 + 2*i, 8 + 2*i, 10*i) for i in range(6)},
    2: {100 + i: (30 + 3*i, 37 + 3*i, 10*i) for i in (3, 0, 5, 1)},
}


class Colours:
    "Embeds 16 x 8 pictures: eight bands of one colour each are the eight regions; a black band is hidden"
    def __init__(self, fingerprint='colours'): self.fingerprint, self.n = fingerprint, 0

    def pixels(self, images):
        return np.stack([np.asarray(i.convert('RGB').resize((8, 16), 0), np.float32) for i in images])

    def embed(self, images):
        self.n += len(images)
        return self.pixels(images).reshape(len(images), -1) - 127.3

    def embed_regions(self, images):
        bands = self.pixels(images).reshape(len(images), 8, 2*8, 3).mean(2)  # (n, k, c)
        return np.where(bands > 0, bands - 127.3, 0), bands.sum(2) > 0


class Watching(Colours):
    "Also tells how much is seen: the share of bands that are not black"
    def embed_visible(self, images): return self.embed(images), (self.pixels(images).max((2, 3)) > 0).mean(1)


def person(seed, bands=None):
    "A (16,8,3) picture; `bands` {region: colour} are painted over the random ones"
    colours = np.random.default_rng(seed).integers(1, 255, (8, 3))
    for region, colour in (bands or {}).items(): colours[region] = colour
    return np.repeat(np.repeat(colours[:, None], 2, 0), 8, 1).astype(np.uint8)


def people(n, start=0): return [person(start + i) for i in range(n)]


def files(folder, images):
    "PNG files of pictures"
    paths = [folder/f'{i:04d}.png' for i in range(len(images))]
    for path, image in zip(paths, images): Image.fromarray(image).save(path)
    return paths


def paint(folder, walks, seed=0):
    "Frames of one camera and its boxes. walks: person -> (first frame, last frame, left); noise tells frames apart"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    boxes = []
    for number in range(1, 1 + max(last for _, last, _ in walks.values())):
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for track, (who, (first, last, left)) in enumerate(walks.items()):
            if not first <= number <= last: continue
            noisy = person(who) + rng.integers(-3, 4, (16, 8, 3))
            frame[10:26, left:left + 8] = noisy.clip(1, 255)
            boxes.append((number, track, left, 10, 8, 16))
        Image.fromarray(frame).save(folder/f'{number:06d}.png')
    return pd.DataFrame(boxes, columns=['frame', 'track', 'left', 'top', 'width', 'height'])
