"""Export a model with its weights, to torch.export (.pt2) or ONNX, and compare what is in the file with the model.

A classifier gives logits (B, classes), a segmentor logits (B, classes, H, W) at the size of its input, any model with
a backbone its features. Images are (B, C, H, W) float32, normalised as in training, or RGB of 0..255 with
`with_normalisation`. Tables of relative positions are resized by constant matrices for the size of the export.
"""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from mmseg.models.utils import resize
from torch import nn
from torch.export import Dim

from ..apis import init_model, task_of
from ..checkpoints.load import sha256
from ..engine.checkpointing import code_revision
from ..models.probe import KNNProbe, LinearProbe
from .analysis.flops import input_shape
from .publish import check_out_file

ENDINGS = {'torch': '.pt2', 'onnx': '.onnx'}
NEEDED = {'onnx': ('onnx', 'onnxscript')}  # packages, by format; onnxruntime compares if it is there
TOLERANCE = 1e-4  # of the largest output, or of 1
NUM_IMAGES = 4  # of the test data
OPSET = 20
MOST_IMAGES = 1024  # in a batch of dynamic size
OTHER_SIZE = 'random images of another size'  # than the export's
META = 'beit_mm.json'  # in a .pt2


class ExportError(ValueError):
    """A model that cannot be exported as asked, or a file that does not compute what the model does."""


class Request(NamedTuple):
    """What is wanted. to: torch or onnx. size: (H, W), default the config's. dynamic: '' fixed, `batch`, or `size`
    (batch, height and width). features: the backbone's instead of logits."""

    to: str = 'torch'
    size: tuple[int, int] | None = None
    dynamic: str = ''
    features: bool = False
    with_normalisation: bool = False
    opset: int = OPSET
    tolerance: float = TOLERANCE


class Deployed(nn.Module):
    """Images in, numbers out: what is exported of a model."""

    def __init__(self, model: nn.Module, task: str, normalises: bool) -> None:
        super().__init__()
        self.task, self.backbone = task, model.backbone
        self.neck = self.head = None
        if task != 'features':
            self.neck = getattr(model, 'neck', None)
            self.head = model.decode_head if task == 'segmentation' else model.head
        self.normalises = normalises
        if normalises:
            self.register_buffer('mean', model.data_preprocessor.mean.clone())
            self.register_buffer('std', model.data_preprocessor.std.clone())

    def forward(self, images: torch.Tensor):
        """(B, C, H, W) -> logits, or a tuple of the backbone's outputs."""
        if self.normalises:
            images = (images - self.mean) / self.std
        features = self.backbone(images)
        if self.task == 'features':
            return tuple(features)
        logits = self.head(features if self.neck is None else self.neck(features))
        if self.task == 'segmentation':
            logits = resize(logits, images.shape[2:], mode='bilinear', align_corners=self.head.align_corners)
        return logits


def _task(config: Config, model: nn.Module, features: bool) -> str:
    if features and hasattr(model, 'backbone'):
        return 'features'
    if isinstance(model, (KNNProbe, LinearProbe)):
        bank = 'needs its bank of images to answer' if isinstance(model, KNNProbe) else 'is a comparison of blocks'
        raise ExportError(
            f'{config.filename}: a {type(model).__name__} {bank}: export what it reads, the features of its blocks, '
            f'by --features'
        )
    if not hasattr(model, 'backbone'):
        tokenizer = '; the tokens of a tokenizer: beit_mm.apis.tokenize' if hasattr(model, 'tokens') else ''
        raise ExportError(f'{config.filename}: {type(model).__name__} has no backbone to export{tokenizer}')
    task = task_of(model)
    if task not in ('classification', 'segmentation'):
        raise ExportError(
            f'{config.filename}: {type(model).__name__} predicts tokens of masked patches, which nobody deploys. '
            f'Export its backbone by --features, or fine-tune it first'
        )
    return task


def load(config: Config, checkpoint: str, request: Request) -> tuple[nn.Module, Deployed]:
    """The model with its weights, and what is exported of it; on the CPU, without gradients.

    Raises ExportError for a model that cannot be exported, naming the way out.
    """
    MMLogger.get_instance('export', log_level='WARNING')  # what models say while they are built
    target = config.model.get('target')
    if target and target.get('checkpoint'):
        config.model.target = dict(target, checkpoint=None)  # is not asked
    model = init_model(config, checkpoint, device='cpu').requires_grad_(False)
    task = _task(config, model, request.features)
    if request.with_normalisation and getattr(model.data_preprocessor, 'mean', None) is None:
        raise ExportError(f'{config.filename}: --with-normalisation: its data_preprocessor has no mean and std')
    return model, Deployed(model, task, request.with_normalisation).eval()


def _reference(model: nn.Module, task: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's own way from normalised images to the same numbers, for the comparison."""
    if task == 'features':
        return lambda images: tuple(model.backbone(images))
    if task == 'segmentation':
        return lambda images: model.encode_decode(images, [dict(img_shape=images.shape[2:])] * len(images))
    return lambda images: model(images, mode='tensor')


def test_images(config: Config, model: nn.Module, size: tuple[int, int]) -> torch.Tensor | None:
    """Some images of the test data, normalised, (B, C, H, W) in this size; None where they are not here."""
    try:
        with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
            dataset = DATASETS.build(config.test_dataloader.dataset)
        samples = [dataset[i] for i in range(min(NUM_IMAGES, len(dataset)))]
    except (OSError, ValueError, AttributeError):
        return None
    images = []
    for sample in samples:
        if 'patches' in sample:
            sample = dict(patches=sample['patches'][None])
            image = model.data_preprocessor(sample, False)['patches']
        else:
            image = model.data_preprocessor(pseudo_collate([sample]), False)['inputs']
        images.append(nn.functional.interpolate(image, size=size, mode='bilinear', antialias=True))
    return torch.cat(images)


def export(config: Config, checkpoint: str, out: str | None, request: Request) -> list[str]:
    """Write the file and compare it with the model; returns lines to print.

    Raises ExportError for what cannot be exported, and for a file whose numbers differ, which is removed then.
    """
    if request.to not in ENDINGS:
        raise ExportError(f'--to {request.to}: there are {", ".join(ENDINGS)}')
    if missing := [name for name in NEEDED.get(request.to, ()) if importlib.util.find_spec(name) is None]:
        raise ExportError(f'--to {request.to} needs {" and ".join(missing)}: pip install {" ".join(missing)}')
    path = Path(out or Path(checkpoint).with_suffix(ENDINGS[request.to]).name)
    if path.suffix != ENDINGS[request.to]:
        raise ExportError(f'--out {path}: --to {request.to} writes a file that ends in {ENDINGS[request.to]}')
    check_out_file(path)
    model, deployed = load(config, checkpoint, request)
    channels, height, width = input_shape(config, model, request.size)
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    try:
        program = _program(deployed, _raw(model, images, request), request)
    except Exception as error:  # torch.export and a model's own checks raise anything
        raise ExportError(_why_not(config, (height, width), request, error)) from error
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths of this machine
    temporary = path.with_name(f'.{os.getpid()}{path.name}')
    about = _about(config, checkpoint, model, deployed.task, (channels, height, width), request)
    try:
        run = (_save_torch if request.to == 'torch' else _save_onnx)(program, temporary, about, request)
        lines = _compare(config, model, deployed.task, run, images, request)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    shapes = f'{"B" if request.dynamic else 1} x {channels} x ' + (
        'H x W' if request.dynamic == 'size' else f'{height} x {width}'
    )
    return [*lines, f'{path}: {deployed.task}, images {shapes}, {path.stat().st_size / 1e6:.1f} MB']


def _raw(model: nn.Module, images: torch.Tensor, request: Request) -> torch.Tensor:
    """Normalised images as the exported model reads them."""
    if not request.with_normalisation:
        return images
    return images * model.data_preprocessor.std + model.data_preprocessor.mean


def _program(deployed: Deployed, images: torch.Tensor, request: Request):
    """The ExportedProgram, of a batch of one unless the batch is dynamic."""
    if not request.dynamic:
        return torch.export.export(deployed, (images[:1],))
    shape = {0: Dim('batch', min=1, max=MOST_IMAGES)}
    if request.dynamic == 'size':
        patch = deployed.backbone.patch_size
        shape |= {2: patch * Dim('rows', min=2, max=256), 3: patch * Dim('columns', min=2, max=256)}
    return torch.export.export(deployed, (images,), dynamic_shapes=(shape,))


def _why_not(config: Config, size: tuple[int, int], request: Request, error: Exception | str) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if request.dynamic == 'size':
        return (
            f'{config.filename}: height and width are constants in this model: tables of relative positions are '
            f"resized by matrices that belong to one size, and some heads (SETR's) compute sizes as numbers. Export "
            f'one file per size: --size H W, with --dynamic batch ({first})'
        )
    return f'{config.filename}: cannot be exported at {size[0]} x {size[1]}: {first}'


def _about(
    config: Config, checkpoint: str, model: nn.Module, task: str, shape: Sequence[int], request: Request
) -> dict:
    """What a user of the file must know, kept in it."""
    preprocessor = model.data_preprocessor
    told = {
        name: getattr(preprocessor, name).flatten().tolist()
        for name in ('mean', 'std')
        if getattr(preprocessor, name, None) is not None
    }
    return dict(
        task=task,
        input=f'images, (B, C, H, W) float32, {"RGB" if shape[0] == 3 else f"{shape[0]} bands"}, '
        f'{"0..255" if request.with_normalisation else "normalised"}',
        shape=list(shape),
        dynamic=request.dynamic or 'no',
        normalisation=dict(told, inside=request.with_normalisation),
        classes=list(model.dataset_meta['classes'] or ()),
        config=Path(config.filename).stem,
        checkpoint_sha256=sha256(checkpoint),
        revision=code_revision(),
    )


Runner = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def _save_torch(program, path: Path, about: dict, request: Request) -> Runner:
    """Write the program; what runs is read back from the file."""
    with open(path, 'wb') as file:
        torch.export.save(program, file, extra_files={META: json.dumps(about)})
    with open(path, 'rb') as file:
        module = torch.export.load(file).module()
    return lambda images: _as_tuple(module(images))


def _as_tuple(outputs) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _save_onnx(program, path: Path, about: dict, request: Request) -> Runner | None:
    """Write the graph, in one file; it is run by onnxruntime, None without that."""
    import onnx

    names = ['logits'] if about['task'] != 'features' else None
    for noisy in ('torch.onnx', 'onnxscript', 'onnx_ir'):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        made = torch.onnx.export(
            program, input_names=['images'], output_names=names, opset_version=request.opset, dynamo=True, verbose=False
        )
    graph = made.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]
    for key, value in about.items():
        graph.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(graph, path)
    onnx.checker.check_model(path, full_check=True)
    if importlib.util.find_spec('onnxruntime') is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {'images': images.numpy()})))


@torch.no_grad()
def _compare(
    config: Config, model: nn.Module, task: str, run: Runner | None, images: torch.Tensor, request: Request
) -> list[str]:
    """Lines on how far the file is from the model; ExportError where that is too far."""
    if run is None:
        return ['not compared with the model: onnxruntime is not installed (pip install onnxruntime)']
    by = 'onnxruntime' if request.to == 'onnx' else 'the file'
    reference = _reference(model, task)
    batches = {'random images': images}
    real = test_images(config, model, images.shape[2:])
    if real is not None:
        batches['test images'] = real
    if request.dynamic == 'size':
        patch = model.backbone.patch_size
        batches[OTHER_SIZE] = torch.randn(1, images.shape[1], images.shape[2] + patch, images.shape[3])
    lines = []
    for name, batch in batches.items():
        parts = [batch] if request.dynamic else batch.split(1)
        wanted = [_as_tuple(reference(part)) for part in parts]
        try:
            found = [run(_raw(model, part, request)) for part in parts]
        except Exception as error:  # a size that was taken for a constant stops the program, by any error
            raise ExportError(_why_not(config, tuple(batch.shape[2:]), request, error)) from error
        pairs = [(w, f) for a, b in zip(wanted, found, strict=True) for w, f in zip(a, b, strict=True)]
        worst = max(float((w - f).abs().max()) for w, f in pairs)
        largest = max(float(w.abs().max()) for w, _ in pairs)
        same = ''
        if task != 'features':
            hits = torch.cat([(w.argmax(1) == f.argmax(1)).flatten() for w, f in pairs])
            same = f', {100 * float(hits.float().mean()):.2f} % the same class'
        lines.append(f'{by}, {len(batch)} {name}: largest difference {worst:.2e} of outputs up to {largest:.3g}{same}')
        if not worst <= request.tolerance * max(1.0, largest):  # nan is too far as well
            if name == OTHER_SIZE:
                raise ExportError(_why_not(config, tuple(batch.shape[2:]), request, lines[-1]))
            raise ExportError(
                f'{lines[-1]}: more than --tolerance {request.tolerance:g} of that allows; nothing is written'
            )
    if real is None:
        lines.append('the test data are not here: compared on random images alone')
    return lines
