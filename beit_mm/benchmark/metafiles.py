"""Results for others' indexes: OpenMMLab's metafile (model-index) and Hugging Face's `.eval_results`, from records.

Embedded data are never called by the name of another data set here, whatever a config calls them.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..compat import CONFIG_ROOT
from .leaderboard import Row, short
from .records import Record, RecordError
from .reference import MULTI_SCALE

EMBEDDED_NOTE = 'embedded data (mosaics of photographs in the scikit-image and scikit-learn wheels)'
EMBEDDED_NAME = re.compile(r'Embedded(Scenes|Digits)( in colour| in grey| as files)*')
TASKS = {  # of records: as OpenMMLab's metafiles call them
    'classification': 'Image Classification',
    'segmentation': 'Semantic Segmentation',
    'pretrain': 'Masked Image Modeling',
    'tokenizer': 'Image Tokenization',
}
METRICS = {'accuracy/top1': 'Top 1 Accuracy', 'accuracy/top5': 'Top 5 Accuracy'}
OPENMMLAB = {'ImageNet': 'ImageNet-1k', 'CIFAR10': 'CIFAR-10', 'CIFAR100': 'CIFAR-100'}
HUB = {  # data sets on the Hugging Face Hub; others keep their own name, which is of no data set there
    'ImageNet': 'ILSVRC/imagenet-1k',
    'ADE20K': 'zhoubolei/scene_parse_150',
    'CIFAR10': 'uoft-cs/cifar10',
    'CIFAR100': 'uoft-cs/cifar100',
}
HUB_TASKS = {'classification': 'image_classification', 'segmentation': 'semantic_segmentation'}
HEADER = (
    '# Written by tools/publish.py --metafile from result records; not to be edited by hand.\n'
    '# FLOPs are multiply-accumulates of one image, as in the metafiles of mmpretrain. Metrics are the mean\n'
    '# over Seeds (accuracies and IoU in percent), with the sample standard deviation (n - 1) as `<metric> std`.\n'
)


def dataset_of(record: Record, names: dict[str, str]) -> str:
    """What a data set is called elsewhere. Embedded data keep a name of their own alone; with another in a config they
    are told apart by the config, as `short` has it: without its data, which may be of the other name too."""
    if not record.embedded:
        return names.get(record.dataset, record.dataset)
    if EMBEDDED_NAME.fullmatch(record.dataset):
        return record.dataset
    kind = 'EmbeddedDigits' if 'digits' in record.dataset.lower() else 'EmbeddedScenes'
    return f'{kind} ({short(record.config)})'


def _metrics(records: Sequence[Record]) -> dict[str, float]:
    """Mean and spread over seeds of all metrics but those of single classes."""
    found: dict[str, float] = {}
    for name in records[0].metrics:
        values = [record.metrics[name] for record in records if name in record.metrics]
        if '.' in name or not values:
            continue
        label = METRICS.get(name, name)
        label = f'{label}(ms+flip)' if MULTI_SCALE in records[0].protocol else label
        found[label] = _short(statistics.mean(values))
        if len(values) > 1:
            found[f'{label} std'] = _short(statistics.stdev(values))
    return found


def _short(value: float) -> float:
    return float(f'{value:.4g}')


def metafile(rows: Sequence[Row]) -> str:
    """The text of a metafile: a model per config, a result per row of the leaderboard."""
    by_config: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_config[row.config].append(row)
    models = []
    for config, several in by_config.items():
        first = several[0]
        metadata = dict(Architecture=first.preset)
        for label, key in (('FLOPs', 'macs'), ('Parameters', 'parameters')):
            if first.cost(key) is not None:
                metadata[label] = round(first.cost(key))
        if first.cost('train_seconds'):
            device = first.records[0].device
            metadata['Training Resources'] = f'{first.cost("train_seconds") / 3600:.2f} h on {device}'
        found = sorted(CONFIG_ROOT.glob(f'*/{config}.py'))
        models.append(dict(
            Name=config,
            **({'In Collection': 'BEiT', 'Config': f'configs/{found[0].relative_to(CONFIG_ROOT)}'} if found else {}),
            Metadata=metadata,
            Results=[_result(row) for row in several],
        ))  # fmt: skip
    return HEADER + yaml.safe_dump(dict(Models=models), sort_keys=False, allow_unicode=True, width=120)


def _result(row: Row) -> dict:
    entry = dict(Task=TASKS.get(row.task, row.task), Dataset=dataset_of(row.records[0], OPENMMLAB))
    entry.update(Protocol=row.protocol, **({'Starts from': row.start} if row.start else {}))
    if row.recipe:  # two rows that differ in settings alone
        entry['Recipe'] = row.recipe
    if row.embedded:
        entry['Notes'] = EMBEDDED_NOTE
    return dict(entry, Split=row.split, Images=row.num_images, Seeds=list(row.values), Metrics=_metrics(row.records))


def hub_entry(record: Record, source: str | None = None) -> dict:
    """One entry of `.eval_results/*.yaml`: https://huggingface.co/docs/hub/eval-results."""
    commit = record.revision.get('commit', '')[:8] + ('-dirty' if record.revision.get('dirty') else '')
    notes = [
        f'{METRICS.get(record.metric, record.metric)} in percent, {record.protocol}, {record.preset}',
        f'{record.num_images} images of {record.split}, {record.origin}'
        + (f', seed {record.seed}' if record.seed is not None else ''),
        f'beit_mm {record.revision.get("version", "")} {commit}'.strip(),
    ]
    if record.embedded:
        notes.insert(0, EMBEDDED_NOTE)
    entry = dict(
        dataset=dict(id=dataset_of(record, HUB), task_id=HUB_TASKS[record.task]),
        value=round(record.value, 2),
        date=record.date,
    )
    if source:
        entry['source'] = dict(url=source, name='beit_mm')
    return dict(entry, notes='; '.join(notes))


def write_eval_results(rows: Sequence[Row], out: str, source: str | None = None) -> list[Path]:
    """OUT/<config>-<sha256[:8] of the checkpoint>/.eval_results/<data set>_<split>-<images>_<protocol>.yaml: a folder
    per checkpoint, for the repository of its model. Tokenizers and pre-training have no benchmark there: left out.

    source: an address that readers are sent to. What is written is read back by huggingface_hub where that is there.
    Raises RecordError, before anything is written, where two results would be one file.
    """
    texts: dict[Path, str] = {}
    for record in (record for row in rows for record in row.records if row.task in HUB_TASKS):
        entry = hub_entry(record, source)
        _parsed(entry)
        path = Path(out) / f'{record.config}-{record.checkpoint_sha256[:8]}' / '.eval_results' / _file_name(record)
        if path in texts:
            raise RecordError(
                f'{path}: two results of {record.checkpoint} ({record.config}, {record.dataset}, {record.protocol}, '
                f'{record.metric}) would be this file. Move the record of one out of the folder, or test it again '
                f'with a dataset_name or protocol of its own in the config'
            )
        texts[path] = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=120)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(texts)


def _file_name(record: Record) -> str:
    parts = (dataset_of(record, {}), f'{record.split}-{record.num_images}', record.protocol)
    plain = (''.join(c if c.isalnum() else '-' for c in part.lower()).strip('-') for part in parts)
    return f'{"_".join(plain)}.yaml'


def _parsed(entry: dict) -> None:
    try:
        from huggingface_hub import parse_eval_result_entries
    except ImportError:
        return
    (parsed,) = parse_eval_result_entries([entry])
    if (parsed.dataset_id, parsed.value) != (entry['dataset']['id'], entry['value']):
        raise RecordError(f'huggingface_hub reads {entry} as {parsed}')
