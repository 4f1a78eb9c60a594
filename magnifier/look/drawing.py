"Pictures, part masks, heat and frames on an axis, from plain arrays"
import math

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch.nn.functional import interpolate
from magnifier.look.palette import FALSE_COLOUR, HEAT, NEUTRAL_COLOUR, REGION_COLOURS, TRUE_COLOUR, region_name
from magnifier.look.picture import TEXT
from magnifier.model.resize import resize_labels
from magnifier.regions import N_REGIONS

__all__ = ['resized_labels', 'resized_heat', 'paint_mask', 'paint_heat', 'blank_regions', 'spotlight', 'outline', 'frame', 'put_picture',
           'put_note', 'region_legend', 'legend_room', 'FRAMES']

# kind -> colour, line style, mark: told apart without colour too
FRAMES = {'true': (TRUE_COLOUR, '-', '✓'), 'false': (FALSE_COLOUR, (0, (3, 1.6)), '✗'), 'removed': (NEUTRAL_COLOUR, ':', '–'),
          'query': ('#222222', '-', '')}


def resized_labels(
    labels:np.ndarray, # (h,w) part labels
    size:tuple,        # Height and width wanted
) -> np.ndarray:  # (height, width), nearest: no region appears that was not there
    "Labels at the size of a picture"
    return resize_labels(torch.from_numpy(np.ascontiguousarray(labels))[None], tuple(size))[0].numpy()


def resized_heat(
    heat:np.ndarray, # (h,w) in [0,1]
    size:tuple,      # Height and width wanted
) -> np.ndarray:  # (height, width), bilinear
    "A map at the size of a picture"
    heat = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32))
    return interpolate(heat[None, None], tuple(size), mode='bilinear', align_corners=False)[0, 0].numpy()


def paint_mask(
    picture:np.ndarray, # (h,w,3) in [0,1]
    labels:np.ndarray,  # (h',w') part labels, any size
    alpha:float=.62,    # Opacity of the regions
) -> np.ndarray:  # (h,w,3): the picture in grey, its body regions in their colours
    "Part mask over a picture; the background stays as it is, in grey"
    labels = resized_labels(labels, picture.shape[:2])
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2)
    share = np.where(labels[..., None] > 0, alpha, 0.)
    return grey*(1 - share) + REGION_COLOURS[np.minimum(labels, N_REGIONS - 1)]*share


def paint_heat(
    picture:np.ndarray, # (h,w,3) in [0,1]
    heat:np.ndarray,    # (h',w') in [0,1], any size
    alpha:float=.85,    # Opacity where the heat is 1
) -> np.ndarray:  # (h,w,3): paler and dimmer where cold, glowing where hot
    "A map over a picture; the picture stays readable where the map is low"
    heat = resized_heat(heat, picture.shape[:2]).clip(0, 1)[..., None]
    pale = .35*picture.mean(2, keepdims=True) + .45*picture
    share = alpha*heat**.75
    return pale*(1 - share) + colormaps[HEAT](.25 + .75*heat[..., 0])[..., :3]*share


def blank_regions(
    picture:np.ndarray, # (h,w,3) in [0,1]
    labels:np.ndarray,  # (h',w') part labels
    dropped,            # Indices of regions that are taken away
) -> np.ndarray:  # (h,w,3) hatched in white and grey where they were
    "What a branch sees when regions are dropped"
    h, w = picture.shape[:2]
    rows, cols = np.arange(h)[:, None], np.arange(w)
    hatch = np.where((rows + cols)//max(2, h//32) % 2, .93, .72)[..., None]
    return np.where(np.isin(resized_labels(labels, (h, w)), list(dropped))[..., None], hatch, picture)


def spotlight(
    picture:np.ndarray, # (h,w,3) in [0,1]
    labels:np.ndarray,  # (h',w') part labels
    regions,            # Indices of regions to keep
) -> np.ndarray:  # (h,w,3): those regions as they are, all else pale and grey
    "What a search by region looks at"
    kept = np.isin(resized_labels(labels, picture.shape[:2]), list(regions))[..., None]
    return np.where(kept, picture, .72 + .22*picture.mean(2, keepdims=True))


def outline(
    ax,                # Axis that already holds a picture of the labels' size
    labels:np.ndarray, # (h,w) part labels
    regions=range(1, N_REGIONS), # Regions to draw
    width:float=1.3,   # Line width in points
):
    "Edges of regions, in their colours, on a dark line that keeps them visible on anything"
    for k in regions:
        inside = np.pad((labels == k).astype(float), 1)
        if not inside.any(): continue
        y, x = np.arange(-1, labels.shape[0] + 1), np.arange(-1, labels.shape[1] + 1)
        for colour, line in (('#111111', width + 1.2), (REGION_COLOURS[k], width)):
            ax.contour(x, y, inside, levels=[.5], colors=[colour], linewidths=line)
    ax.set_xlim(-.5, labels.shape[1] - .5)
    ax.set_ylim(labels.shape[0] - .5, -.5)


def put_picture(
    ax,                    # Where
    picture:np.ndarray,    # (h,w,3) in [0,1]
    *,
    title:str|None=None,   # Over it
    caption:str|None=None, # Under it
    kind:str|None=None,    # One of `FRAMES`, drawn around it
):
    "One picture on its tile"
    ax.imshow(np.clip(picture, 0, 1), aspect='auto', interpolation='nearest' if picture.shape[0] < 64 else 'antialiased')
    if title: ax.text(.5, 1.03, title, transform=ax.transAxes, ha='center', va='bottom', fontsize=TEXT, linespacing=1.1)
    if caption: ax.text(.5, -.035, caption, transform=ax.transAxes, ha='center', va='top', fontsize=TEXT)
    if kind: frame(ax, kind)


def frame(
    ax,       # Tile
    kind:str, # 'true' (solid, tick), 'false' (dashed, cross), 'removed' (dotted, dash) or 'query'
):
    "Frame around a tile, with a mark in its corner: readable without telling green from red"
    colour, style, mark = FRAMES[kind]
    ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False, edgecolor='white', linewidth=4.5, clip_on=False, zorder=4))
    ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False, edgecolor=colour, linestyle=style,
                           linewidth=1.2 if kind == 'query' else 3, clip_on=False, zorder=5))
    if mark: ax.text(.95, .975, mark, transform=ax.transAxes, ha='right', va='top', fontsize=TEXT, color='white', weight='bold', zorder=6,
                     bbox=dict(boxstyle='circle,pad=.18', facecolor=colour, edgecolor='white', linewidth=.8))


def put_note(
    ax,       # An empty tile
    text:str, # What is not there, and why
):
    "Words in the place of a picture"
    ax.text(.5, .5, text, transform=ax.transAxes, ha='center', va='center', fontsize=TEXT, color='#555555', wrap=False)


def legend_room(
    picture_width:float, # Inches
    entries:int,         # Of the legend
) -> float:  # Inches that a legend of so many entries needs
    "Height of the legend, before its picture exists"
    return .12 + .22*math.ceil(entries/_legend_columns(picture_width))


def _legend_columns(width): return max(1, int((width - .1)/.98))


def region_legend(
    picture,          # The sheet, with `legend_room` left at its foot
    *,
    regions:bool=True,# Entries of the seven body regions
    heat:str|None=None, # What bright means, or None without heat
    frames=(),        # (kind, words) of frames to explain
    line:float=0.,    # Inches from the foot
):
    "One legend for the whole sheet"
    handles = [Patch(facecolor=REGION_COLOURS[k], label=region_name(k)) for k in range(1, N_REGIONS)] if regions else []
    for kind, words in frames:
        colour, style, mark = FRAMES[kind]
        handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=2.5, label=f'{mark} {words}'.strip()))
    if heat: handles.append(Patch(facecolor=colormaps[HEAT](.75), label=heat))
    width, height = picture.get_size_inches()
    picture.legend(handles=handles, loc='lower center', bbox_to_anchor=(.5, line/height), ncols=min(len(handles), _legend_columns(width)),
                   fontsize=TEXT, frameon=False, handlelength=1.5, handletextpad=.4, columnspacing=1., borderaxespad=.2)
