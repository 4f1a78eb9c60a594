"The body of a drawn pedestrian: limbs, trunk, head and bag, as tubes with region labels"

import math
from magnifier.regions import region_indices
from magnifier.walkers.clothes import bag_paint, head_paint, limb_paint, shoe_paint, top_paint

__all__ = ['Body']

HEAD, CHEST, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG, FOOT = region_indices(range(1, 8))

# How far a garment reaches along the upper and the lower half of a limb: 9 is all of it, -1 nothing
LEGS = dict(trousers=(9, 9), cropped=(9, .5), shorts=(.82, -1), skirt=(-1, -1))
ARMS = dict(none=(-1, -1), short=(.62, -1), elbow=(9, .3), long=(9, .96))

# Half-widths and half-depths of the trunk from hem to neck, in body heights; the upper half goes with the shoulders
TRUNK_WIDE = (.122, .118, .108, .102, .104, .11), (.116, .121, .12, .108, .06)
TRUNK_DEEP = (.09, .086, .08, .077, .077, .079, .08, .077, .07, .062, .048)
RADIUS = .054  # Of a head, before its own size
BACKPACK = .074, .086, .088, .088, .084, .07
BRIM = .5, .8, .95, 1., 1., 1., .95, .8, .5  # A disc seen from its edge
SKIRT_WIDE, SKIRT_DEEP = (.108, .12, .132, .142), (.084, .1, .116, .13)


def _sleeved(start, end, wider, reach, n=12):
    "Radii of a limb with a wider garment as far as `reach`"
    radii = [start + (end - start) * i / n for i in range(n + 1)]
    return [r * (wider if i / n <= reach else 1) for i, r in enumerate(radii)]


class Body:
    "One pedestrian, to be drawn on a canvas"
    def __init__(self,
        canvas,  # Canvas
        appearance,  # Appearance
        joints,  # From `skeleton`
        projection,  # Projection from body to canvas coordinates
        labels:bool=True,  # False: the mask has background where this body is seen, an occluder
    ):
        "Draws nothing yet"
        self.canvas, self.a, self.joints, self.p, self.labels = canvas, appearance, joints, projection, labels

    def draw(self):
        "Draw all of it"
        for side in ('left', 'right'):
            self._leg(side)
            self._arm(side)
        self._trunk()
        if self.a.lower == 'skirt': self._skirt()
        self._head()
        if self.a.hat != 'none': self._hat()
        if self.a.bag != 'none': self._bag()

    def _tube(self, start, end, radii, label, paint, **kwargs):
        "A tube between two joints (names or points), radii in body heights"
        a, b = (self.joints[v] if isinstance(v, str) else v for v in (start, end))
        if isinstance(radii, (int, float)): radii = [radii]
        projected = [self.p.size(r, a if 2 * i < len(radii) else b) for i, r in enumerate(radii)]
        self._raw(a, b, projected, label, paint, **kwargs)

    def _raw(self, a, b, radii, label, paint, **kwargs):
        "A tube between two points, radii in canvas pixels"
        self.canvas.tube(self.p(a), self.p(b), radii, label if self.labels else 0, paint, **kwargs)

    def _leg(self, side):
        "The knee, like the elbow, belongs to the lower part only, because two round ends would overlap"
        a, g = self.a, self.a.girth
        thigh, calf = LEGS[a.lower]
        self._tube(f'{side}_hip', f'{side}_knee', _sleeved(.063 * g, .046 * g, 1.12, thigh), UPPER_LEG,
                   limb_paint(thigh, a.lower_colour, a.skin), caps=(False, False))
        self._tube(f'{side}_knee', f'{side}_ankle', _sleeved(.044 * g, .028 * g, 1.2, calf), LOWER_LEG,
                   limb_paint(calf, a.lower_colour, a.skin))
        self._tube(f'{side}_heel', f'{side}_toe', (.037, .036, .03), FOOT, shoe_paint(a.shoe_colour))
        self._tube(f'{side}_ankle', f'{side}_heel', (.032, .036), FOOT, shoe_paint(a.shoe_colour))

    def _arm(self, side):
        a, g = self.a, self.a.girth
        upper, fore = ARMS[a.sleeve]
        self._tube(f'{side}_shoulder', f'{side}_elbow', _sleeved(.04 * g, .034 * g, 1.17, upper), UPPER_ARM,
                   limb_paint(upper, a.top_colour, a.skin), caps=(True, False))
        self._tube(f'{side}_elbow', f'{side}_wrist', _sleeved(.033 * g, .024 * g, 1.2, fore), LOWER_ARM,
                   limb_paint(fore, a.top_colour, a.skin))
        self._tube(f'{side}_wrist', f'{side}_hand', (.024, .028, .02), LOWER_ARM, a.skin)

    def _trunk(self):
        a, p = self.a, self.p
        x, y, z = self.joints['pelvis']
        wide = [w * a.girth for w in TRUNK_WIDE[0]] + [w * a.shoulders for w in TRUNK_WIDE[1]]
        radii = [p.span(w, d * a.girth) for w, d in zip(wide, TRUNK_DEEP)]
        self._raw((x, y - .035, z), self.joints['neck'], radii, CHEST, top_paint(a, p.yaw), caps=(False, False),
                  flat=p.span(.08, .118) / p.span(.118, .08), lift=p.size(.035))

    def _skirt(self):
        a, p = self.a, self.p
        x, y, z = self.joints['pelvis']
        kx, ky, kz = ((u + v) / 2 for u, v in zip(self.joints['left_knee'], self.joints['right_knee']))
        radii = [p.span(w * a.girth, d * a.girth) for w, d in zip(SKIRT_WIDE, SKIRT_DEEP)]
        self._raw((x, y + .01, z), (kx, ky + .03, kz * .6), radii, UPPER_LEG, limb_paint(9, a.lower_colour, a.skin),
                  caps=(False, False), flat=p.span(.1, .13) / p.span(.13, .1), lift=p.size(.02))

    def _head(self):
        a, r = self.a, RADIUS * self.a.head
        x, y, z = self.joints['crown']
        cx, cy, cz = self.joints['chin']
        nx, ny, nz = self.joints['nose']
        covered, bottom = a.hat != 'none', cy + .95 * r
        self._tube('neck', (cx, cy + .03, cz - .01), (.043, .038), HEAD, a.skin)
        face = head_paint(a, self.p.yaw, (y - r - bottom) / r)
        self._tube((cx, bottom, cz), (x, y - r, z), (r * .88, r * .98, r), HEAD, face)
        self._tube((nx, ny + .008, nz - .014), (nx, ny, nz - .006), (.007, .009), HEAD, a.skin)
        if a.hair_style == 'long':
            high = .105 if covered else .07
            self._tube((x, y - high, z - .02), (x, y - .19, z - .045), (r, r * 1.04, r * .95), HEAD, a.hair_colour)
        if a.hair_style == 'bun':
            high = .09 if covered else .03
            self._tube((x, y - high, z - .05), (x, y - high - .005, z - .06), .03, HEAD, a.hair_colour)

    def _hat(self):
        hat, colour, r = self.a.hat, self.a.hat_colour, RADIUS * self.a.head
        x, y, z = self.joints['crown']
        if hat == 'cap':
            for dx in (-.024, 0, .024):
                self._tube((x + dx, y - r * .72, z + .03), (x + dx, y - r * .8, z + .1 - abs(dx)), .014, HEAD, colour)
        if hat == 'beanie':
            radii = r * 1.12, r * 1.08, r * .8
            self._tube((x, y - r, z - .004), (x, y - r * .3, z - .008), radii, HEAD, colour, caps=(False, True))
        if hat == 'brim':
            self._tube((x, y - r * .85, z), (x, y - r * .5, z), (r * 1.1, r), HEAD, colour, caps=(False, True))
            c, f = .1 * math.cos(self.p.yaw), .1 * math.sin(self.p.yaw)
            thick = .014 + .06 * abs(math.sin(self.p.pitch))
            radii = [thick * v for v in BRIM]
            self._tube((x - c, y - r * .8, z - f), (x + c, y - r * .8, z + f), radii, HEAD, colour, flat=.08 / thick)

    def _bag(self):
        "A bag has no label: in front of the body the mask keeps the body's label, elsewhere it is background"
        a, p, g = self.a, self.p, self.a.girth
        x, y, z = self.joints['pelvis']
        hx, hy, hz = self.joints['left_hand']
        low, high, radii = dict(
            backpack=((x, y + .07, z - .09 * g), (x, y + .3, z - .085 * g), [p.span(w, .055) for w in BACKPACK]),
            shoulder=((x + .115 * g, y - .075, z), (x + .115 * g, y + .04, z), [p.span(.04, .085)]),
            handbag=((hx, hy - .13, hz), (hx, hy - .015, hz), [p.span(.04, .08)] * 4 + [p.span(.012, .05)]),
        )[a.bag]
        self._raw(low, high, radii, None, bag_paint(a.bag_colour), caps=(a.bag == 'backpack',) * 2, flat=.6)
