"""The tables of scale.py: what ranks hold and send, how long a run is, what it reads, and how long it may take."""

import argparse
import logging
import multiprocessing
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from mmengine.config import Config
from simulated import GATHER, REDUCE, SCATTER, Plan, Taken, simulate
from torch import nn

from beit_mm.benchmark.cost import BACKWARD, FLOPS_PER_MAC, build_on_meta
from beit_mm.benchmark.estimate import sizes_of
from beit_mm.engine.configs import load_config, parse_overrides
from beit_mm.engine.scaling import step_of
from beit_mm.engine.sharding import blocks_of

# The one published time: BEiT-B, 800 epochs of ImageNet-1K, "about 500k steps ... about five days using 16 Nvidia Tesla
# V100 32GB GPU cards" (arXiv:2106.08254, section 2.5)
PUBLISHED = 'configs/pretrain/beit-base-p16_dalle_16xb128-800e_in1k-224.py'
PUBLISHED_IMAGES, PUBLISHED_SECONDS, PUBLISHED_CARDS = 800 * 1_281_167, 5 * 86_400, 16
IMAGES = 14_197_122  # of ImageNet-22K, as the config's length
IMAGE_BYTES = 1.31e12 / 14_197_122  # the Fall 2011 release is 1.31 TB as it is distributed; not measured by us
TAR_BYTES = 512 + 256  # of a member: its header, and half a block of padding on average
IN_A_PASS = 64  # images of a rank at once, at most: the config's own
ON_A_MACHINE = 8  # cards
MIB, GB = 2**20, 1e9
LINK = 50e9  # bytes a second that a machine can send to others: assumed, four adapters of 100 Gb/s
WORTH_CHECKPOINTING = 16  # images of a pass: below, activations are less than what does not depend on them


class Length(NamedTuple):
    """Of a run: images of a step, steps, epochs; how many images a rank has in a step, and in a pass."""

    batch: int
    steps: int
    epochs: float
    of_rank: int
    in_pass: int


def length_of(config: Config, gpus: int) -> Length:
    """The recipe's batch on so many cards."""
    batch = step_of(config, gpus).reference
    steps = config.train_cfg.max_iters
    of_rank = max(1, batch // gpus)
    return Length(batch, steps, batch * steps / IMAGES, of_rank, min(IN_A_PASS, of_rank))


def plans(config: Config, gpus: int) -> Iterator[tuple[str, Plan]]:
    """What is worth a look on so many cards, in words."""
    batch = length_of(config, gpus).in_pass
    yield 'DDP', Plan(gpus, batch)
    yield 'FSDP2', Plan(gpus, batch, gpus)
    if gpus > ON_A_MACHINE:
        yield f'FSDP2 in machines of {ON_A_MACHINE}', Plan(gpus, batch, ON_A_MACHINE)
    if batch >= WORTH_CHECKPOINTING:
        yield 'DDP, checkpointing', Plan(gpus, batch, 1, True)
        yield 'FSDP2, checkpointing', Plan(gpus, batch, gpus, True)


def matrices_of_blocks(model: nn.Module) -> int:
    """Parameters that `--strategy fsdp2` gathers in bfloat16, block by block: of attention and MLP."""
    parts = [part for block in blocks_of(model) for part in block.children()]
    parts = [part for part in parts if any(parameter.ndim > 1 for parameter in part.parameters())]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def formula(config: Config, plan: Plan) -> dict[str, float]:
    """Bytes that a rank sends in a step of one pass, without padding.

    FSDP2 gathers blocks in bfloat16, for the forward pass and again for the backward pass, and the rest in float32,
    once. Gradients are summed up in float32, as DDP's are.
    """
    model = build_on_meta(config)
    learning = sum(parameter.numel() for parameter in model.parameters())
    blocks = matrices_of_blocks(model)
    if plan.shard == 1:
        return {REDUCE: 2 * 4 * learning * (plan.ranks - 1) / plan.ranks}
    share, copies = (plan.shard - 1) / plan.shard, plan.ranks // plan.shard
    sent = {GATHER: (2 * 2 * blocks + 4 * (learning - blocks)) * share, SCATTER: 4 * learning * share}
    return sent if copies == 1 else {**sent, REDUCE: 2 * 4 * learning / plan.shard * (copies - 1) / copies}


def _simulated(task: tuple[Config, Plan]) -> Taken:
    return simulate(*task)


def all_taken(config: Config, wanted: list[Plan]) -> list[Taken]:
    """Simulated in two processes, one after the other in each."""
    with multiprocessing.get_context('fork').Pool(2, maxtasksperchild=1) as pool:
        return pool.map(_simulated, [(config, plan) for plan in wanted], chunksize=1)


def flops_of_image(config: Config) -> float:
    """Of a training step, the tokenizer's forward pass included."""
    sizes = sizes_of(config)
    return FLOPS_PER_MAC * ((1 + BACKWARD) * sizes.learned + sizes.frozen)


def sustained() -> float:
    """FLOP/s of a card in the paper's own run."""
    return flops_of_image(load_config(PUBLISHED)) * PUBLISHED_IMAGES / PUBLISHED_SECONDS / PUBLISHED_CARDS


def table(header: tuple, rows: list[tuple], markdown: bool) -> str:
    texts = [[str(cell) for cell in row] for row in (header, *rows)]
    if markdown:
        lines = [f'| {" | ".join(row)} |' for row in texts]
        return '\n'.join([lines[0], f'|{"---|" * len(header)}', *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in texts)


def of_memory(config: Config, found: list[tuple[int, str, Plan, Taken]]) -> tuple[tuple, list[tuple]]:
    rows = []
    for gpus, name, plan, taken in found:
        length = length_of(config, gpus)
        parts = length.of_rank // plan.batch
        # What earlier parts of the step have summed up is there in the pass of the last
        peak = taken.peak + (taken.gradients if parts > 1 else 0)
        state = (taken.parameters, taken.gradients + taken.buckets, taken.optimizer, taken.tokenizer, taken.kept, peak)
        rows.append(
            (gpus, name, f'{plan.batch}{f" x {parts}" if parts > 1 else ""}', *(f'{n / MIB:,.0f}' for n in state))
        )
    header = (
        'GPUs',
        'strategy',
        'images of a rank',
        'parameters',
        'gradients',
        'AdamW',
        'tokenizer',
        'activations',
        'peak',
    )
    return header, rows


def leaving(plan: Plan, taken: Taken) -> int:
    """Bytes that a machine sends to others: a ring of all ranks leaves it once; copies of a shard are on different
    machines, each with a ring of its own."""
    if plan.ranks <= ON_A_MACHINE:
        return 0
    return ON_A_MACHINE * taken.sent[REDUCE] if plan.shard == ON_A_MACHINE else sum(taken.sent.values())


def of_communication(config: Config, found: list[tuple[int, str, Plan, Taken]]) -> tuple[tuple, list[tuple]]:
    rows = []
    for gpus, name, plan, taken in found:
        if plan.checkpointing:  # sends the same
            continue
        expected = formula(config, plan)
        differs = max(abs(taken.sent[key] / expected[key] - 1) for key in expected)
        sent = [f'{taken.sent[key] / MIB:,.0f}' if key in taken.sent else '' for key in (GATHER, SCATTER, REDUCE)]
        total = sum(taken.sent.values())
        out = leaving(plan, taken)
        numbers = (f'{total / MIB:,.0f}', f'{100 * differs:.2f} %', f'{out / MIB:,.0f}', f'{1000 * out / LINK:.0f}')
        rows.append((gpus, name, *sent, *numbers))
    header = (
        'GPUs',
        'strategy',
        GATHER,
        SCATTER,
        REDUCE,
        'in all',
        'from the formula',
        'leaves a machine',
        'ms at 50 GB/s',
    )
    return header, rows


def of_run(config: Config, gpus: list[int], rate: float, image_bytes: float) -> tuple[tuple, list[tuple]]:
    """Of computing alone: what is sent at the same time costs nothing only where it takes less time."""
    flops, rows = flops_of_image(config), []
    for count in gpus:
        length = length_of(config, count)
        per_card = rate / flops
        images = length.batch * length.steps
        per_second = per_card * count
        machines = -(-count // ON_A_MACHINE)
        rows.append((
            count, length.of_rank, f'{length.batch:,}', f'{config.optim_wrapper.optimizer.lr:g}', f'{length.steps:,}',
            f'{length.epochs:.1f}', f'{per_card:.0f}', f'{1000 * length.of_rank / per_card:,.0f}',
            f'{images / per_second / 86400:,.1f}', f'{per_second / machines * (image_bytes + TAR_BYTES) / 1e6:,.0f}',
            f'{per_second * (image_bytes + TAR_BYTES) / 1e6:,.0f}',
        ))  # fmt: skip
    header = ('GPUs', 'images of a rank', 'batch', 'lr', 'steps', 'epochs', 'images/s of a card', 'ms a step', 'days',
              'MB/s of a machine', 'MB/s in all')  # fmt: skip
    return header, rows


class PlanError(ValueError):
    """A number of cards that the batch cannot be split over."""


def report(args: argparse.Namespace) -> str:
    """All tables, for the arguments of scale.py. Raises PlanError."""
    config = load_config(args.config, parse_overrides(args.cfg_options))
    batch = step_of(config, 1).reference
    if wrong := [n for n in args.gpus if n < 1 or batch % n or (n > ON_A_MACHINE and n % ON_A_MACHINE)]:
        raise PlanError(f'--gpus {wrong[0]}: must divide the batch of {batch}, and fill machines of {ON_A_MACHINE}')
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    wanted = [(gpus, name, plan) for gpus in args.gpus for name, plan in plans(config, gpus)]
    taken = all_taken(config, [plan for _, _, plan in wanted])
    found = [(*each, one) for each, one in zip(wanted, taken, strict=True)]
    rate = args.tflops * 1e12 if args.tflops else sustained()
    learned = sum(parameter.numel() for parameter in build_on_meta(config).parameters())
    sizes, source = sizes_of(config), '' if args.tflops else ' (in the run of the paper)'
    of_tokenizer = FLOPS_PER_MAC * sizes.frozen / GB
    image_bytes = args.image_bytes or IMAGE_BYTES
    lines = [
        f'{learned:,} parameters that learn; a checkpoint is {sizes.bytes / GB:.2f} GB;',
        f'{flops_of_image(config) / GB:,.1f} GFLOPs an image, of which the tokenizer {of_tokenizer:,.1f};',
        f'a card sustains {rate / 1e12:.1f} TFLOP/s{source}',
    ]
    for title, (header, rows) in {
        'MiB of a rank in a step': of_memory(config, found),
        'MiB that a rank sends in a step of one pass, bf16': of_communication(config, found),
        'The run': of_run(config, args.gpus, rate, image_bytes),
    }.items():
        lines += ['', title, '', table(header, rows, args.markdown)]
    size = IMAGES * (image_bytes + TAR_BYTES)
    return '\n'.join(
        [*lines, '', f'tar shards: {size / 1e12:.2f} TB, of {image_bytes / 1000:.1f} kB an image (assumed)']
    )
