"Export from a shell: a trained learner as an ONNX file, or as a folder that runs no code when it is loaded"
from magnifier.cli.common import command, open_learner, say

__all__ = ['magnifier_export']

FORMATS = {'onnx': 'model.onnx', 'pretrained': 'pretrained'}  # and how the result is called where no name is given


@command('learner', 'out')
def magnifier_export(
    learner: str,  # A learner.pkl of magnifier_train (a pickle: load only what you trust), or a saved folder
    out: str = None,  # File or folder to write; model.onnx or pretrained beside the learner where not given
    format: str = 'onnx',  # onnx (one file, for onnxruntime) or pretrained (a folder: safetensors and JSON)
    masks: bool = False,  # onnx: part labels as a second output
    json: bool = False,  # Prints JSON instead of a line
    debug: bool = False,  # Shows the traceback of an error
):
    """Writes what a tracker or another program needs to embed crops, without fastai: `Embedder(OUT)(crops)`.

    Examples: `magnifier_export runs/quick/learner.pkl people.onnx` · `magnifier_export runs/quick/learner.pkl
    --format pretrained people` · `magnifier_export runs/quick/learner.pkl --json | jq -r .fingerprint`"""
    if format not in FORMATS: raise ValueError(f'unknown format {format!r}: use {" or ".join(FORMATS)}')
    if masks and format != 'onnx':
        raise ValueError('--masks goes with --format onnx: a saved folder has the whole model')
    from json import dumps
    from pathlib import Path
    from magnifier.model.embedder import Embedder
    out = Path(learner).absolute().parent/FORMATS[format] if out is None else Path(out)
    learn = open_learner(learner)
    written = learn.export_onnx(out, masks=masks) if format == 'onnx' else learn.save_pretrained(out)
    embedder = Embedder(written)
    size = sum(f.stat().st_size for f in written.iterdir()) if written.is_dir() else written.stat().st_size
    about = dict(
        file=str(written),
        format=format,
        fingerprint=embedder.fingerprint,
        dimensions=embedder.dim,
        size=embedder.size,
        bytes=size,
    )
    say(
        dumps(about)
        if json
        else f'{written}: {embedder.dim} dimensions, crops of {embedder.size[0]} x {embedder.size[1]}, '
        f'{size / 1e6:.0f} MB, fingerprint {embedder.fingerprint}'
    )
