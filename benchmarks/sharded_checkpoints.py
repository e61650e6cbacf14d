"""What a checkpoint of a sharded training costs: seconds in which it stands still, and memory, on gloo processes.

    python benchmarks/sharded_checkpoints.py [--ranks 2 4] [--blocks 5] [--rounds 5] [--plan 64]

The state is that of `--blocks` blocks of BEiT-L in training: weights, averages and two moments, 202 MB a block. `ours`
writes a folder, and syncs, reads back, digests (SHA-256) and lists it; `dcp.save` is torch's with its default writer,
which syncs; `dcp.async_save` copies the state, and writes while the training goes on: its second line is the time until
the checkpoint is there; `gathered` sends all to the first rank, which writes one file with the same guarantees. CPU s
and MiB are those of the rank that takes most, MiB beyond the state. `--plan`: what DCP's plan of all that all ranks
write takes on the first of so many, of the whole of BEiT-L, where ours makes none; and what each takes to learn what
is in which shard, when a run goes on.
"""

import argparse
import contextlib
import ctypes
import json
import os
import pickle
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

from harness import aligned, machine, reset_peak, resident

WIDTH, BLOCKS = 1024, 24  # of BEiT-L
NAMES = 'ours', 'dcp.save', 'dcp.async_save', 'gathered, one file', 'reading: a part each', 'reading: all, one rank'


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    """The parameters of BEiT-L's blocks."""
    one = {
        'attn.qkv.weight': (3 * WIDTH, WIDTH), 'attn.q_bias': (WIDTH,), 'attn.v_bias': (WIDTH,),
        'attn.proj.weight': (WIDTH, WIDTH), 'attn.proj.bias': (WIDTH,), 'attn.relative_position_bias_table': (732, 16),
        'ffn.layers.0.0.weight': (4 * WIDTH, WIDTH), 'ffn.layers.0.0.bias': (4 * WIDTH,),
        'ffn.layers.1.weight': (WIDTH, 4 * WIDTH), 'ffn.layers.1.bias': (WIDTH,),
        **dict.fromkeys(('ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias', 'gamma_1', 'gamma_2'), (WIDTH,)),
    }  # fmt: skip
    return {f'backbone.layers.{i}.{name}': shape for i in range(blocks) for name, shape in one.items()}


def state(blocks: int, mesh) -> dict:
    """A training checkpoint of this rank's parts."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    def made(shape):
        rows = torch.randn(shape[0] // mesh.size() + (mesh.get_rank() < shape[0] % mesh.size()), *shape[1:])
        stride = (1,) if len(shape) == 1 else (shape[1], 1)
        return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)

    def all_of():
        return {name: made(shape) for name, shape in shapes(blocks).items()}

    weights = all_of()
    moments = {i: dict(step=torch.tensor(1.0), exp_avg=made(w.shape), exp_avg_sq=made(w.shape))
               for i, w in enumerate(weights.values())}  # fmt: skip
    meta = dict(iter=1, epoch=0)
    return dict(meta=meta, message_hub={}, state_dict=weights, ema_state_dict=all_of(), optimizer=dict(state=moments))


def gathered(value):
    """Whole tensors on the first rank."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    if isinstance(value, dict):
        return {key: gathered(one) for key, one in value.items()}
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole if dist.get_rank() == 0 else None


def cases(content: dict, folder: Path) -> dict:
    """By name, what saves, and returns what is to be waited for."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    from beit_mm.checkpoints.load import read
    from beit_mm.checkpoints.sharded import read_shards
    from beit_mm.checkpoints.store import save, save_sharded

    background = dist.new_group(backend='gloo')

    def one_file() -> None:
        whole = gathered(content)
        if dist.get_rank() == 0:
            save(whole, folder / 'iter_1.pth')

    def alone() -> None:
        if dist.get_rank() == 0:
            read(folder / 'iter_1.dcp')

    calls = (
        lambda: save_sharded(content, folder / 'iter_1.dcp'),
        lambda: dcp.save(content, checkpoint_id=str(folder / 'plain')),
        lambda: dcp.async_save(content, checkpoint_id=str(folder / 'a'), process_group=background),
        one_file,
        lambda: read_shards(folder / 'iter_1.dcp', content),
        alone,
    )
    return dict(zip(NAMES, calls, strict=True))


def worker(rank: int, count: int, args, folder: Path) -> dict[str, list]:
    """Of each case, (seconds, CPU seconds, MiB) of every round on this rank."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    store = dist.FileStore(str(folder / 'store'), count)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=count)
    content = state(args.blocks, init_device_mesh('cpu', (count,)))
    found: dict[str, list] = {}

    def note(name: str, started: tuple[float, float], before: float) -> None:
        now = time.perf_counter(), time.process_time()
        found.setdefault(name, []).append((now[0] - started[0], now[1] - started[1], resident('VmHWM') - before))

    todo = cases(content, folder)
    for number in range(args.rounds + 1):  # the first is for what is made once
        for name, do in todo.items():
            shutil.rmtree(folder / 'plain', ignore_errors=True)
            shutil.rmtree(folder / 'a', ignore_errors=True)
            _return_what_is_free()
            dist.barrier()
            reset_peak()
            before, started = resident('VmRSS'), (time.perf_counter(), time.process_time())
            waiting = do()
            dist.barrier()
            note(name, started, before)
            if hasattr(waiting, 'result'):
                waiting.result()
                dist.barrier()
                note(f'{name}, until it is there', started, before)
            del waiting
        if number == 0:
            found.clear()
    dist.barrier()
    return found


def _return_what_is_free() -> None:
    """To the system: what the allocator keeps of the case before would hide what this one takes."""
    with contextlib.suppress(OSError, AttributeError):  # of glibc
        ctypes.CDLL(None).malloc_trim(0)


def measured(count: int, args) -> dict[str, list]:
    """Of each case, every round's (seconds, CPU seconds, MiB), of the rank that takes most."""
    folder = Path(tempfile.mkdtemp(dir='.', prefix='.sharded-'))  # of this disk: /tmp may be memory
    try:
        children = [_forked(rank, count, args, folder) for rank in range(count)]
        if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
            sys.exit('a rank has failed; see above')
        ranks = [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(count)]
        return {
            name: [tuple(map(max, zip(*each))) for each in zip(*(rank[name] for rank in ranks))] for name in ranks[0]
        }
    finally:
        shutil.rmtree(folder)


def _forked(rank: int, count: int, args, folder: Path) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        (folder / str(rank)).write_bytes(pickle.dumps(worker(rank, count, args, folder)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def all_shapes() -> dict[str, tuple[int, ...]]:
    """Of BEiT-L's training checkpoint."""
    kinds = ('state_dict', 'ema_state_dict', 'exp_avg', 'exp_avg_sq')
    return {f'{kind}.{name}': shape for kind in kinds for name, shape in shapes(BLOCKS).items()}


def found(count: int) -> float:
    """CPU seconds in which a rank learns what is where in the shards of so many ranks: a number each of each tensor."""
    import torch
    from safetensors.torch import save_file

    from beit_mm.checkpoints.chunks import Reader, chunks_of, tiled

    tensors = {name: torch.zeros(1) for name in all_shapes()}
    whole = {name: torch.empty(count, device='meta') for name in tensors}
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(count):
            places = json.dumps({name: dict(saved_offsets=[rank]) for name in tensors})
            save_file(tensors, f'{folder}/shard-{rank}.safetensors', metadata=dict(DCP_SHARDING_INFO=places))
        started = time.process_time()
        chunks = chunks_of(Path(folder), os.listdir(folder))
        if not all(tiled(whole[name].shape, parts) for name, parts in chunks.items()):
            sys.exit('the parts do not make up tensors')
        Reader(Path(folder), whole, chunks)
        return time.process_time() - started


def planned(count: int) -> tuple[int, float, float, float]:
    """(parts, MB of all plans, CPU seconds to make the plan of all, and to send it), for BEiT-L on so many ranks."""
    import torch
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
    from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

    whole = all_shapes()

    def plan(rank: int) -> SavePlan:
        items = []
        for name, shape in whole.items():
            rows = -(-shape[0] // count)
            start, end = min(rank * rows, shape[0]), min(rank * rows + rows, shape[0])
            offsets, sizes = torch.Size((start, *[0] * len(shape[1:]))), torch.Size((end - start, *shape[1:]))
            data = TensorWriteData(ChunkStorageMetadata(offsets, sizes), TensorProperties(), torch.Size(shape))
            items.append(WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data))
        return SavePlan(items)

    sent = [pickle.dumps(plan(rank)) for rank in range(count)]
    started = time.process_time()
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    plans, _ = planner.create_global_plan([pickle.loads(each) for each in sent])
    made = time.process_time()
    size = sum(len(pickle.dumps(each)) for each in plans)
    return len(whole) * count, size / 1e6, made - started, time.process_time() - made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--ranks', type=int, nargs='*', default=[2, 4])
    parser.add_argument('--blocks', type=int, default=5, help='of BEiT-L, 202 MB each (default 5)')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--plan', type=int, nargs='*', default=[64], metavar='RANKS')
    parser.add_argument('--markdown', action='store_true', help='tables in Markdown')
    parser.add_argument('--list', action='store_true', help='say what is timed, and time nothing')
    args = parser.parse_args()
    if args.list:
        print(', '.join(NAMES))
        return
    os.environ['OMP_NUM_THREADS'] = '1'
    print(
        f'{machine()}, load {os.getloadavg()[0]:.1f} before; medians of {args.rounds} rounds, quartiles\n', flush=True
    )
    for count in args.ranks:
        rows = []
        for name, rounds in measured(count, args).items():
            seconds, cpu, most = zip(*rounds)
            low, middle, high = (
                statistics.quantiles(seconds, n=4, method='inclusive') if args.rounds > 1 else seconds * 3
            )
            cells = [f'{middle:.2f}', f'{low:.2f} to {high:.2f}', f'{statistics.median(cpu):.2f}', f'{max(most):.0f}']
            rows.append([name, *cells])
        print(f'{count} ranks, {args.blocks * 202} MB together')
        print('\n'.join(aligned(['', 's', 'quartiles', 'CPU s', 'MiB'], rows, args.markdown)), end='\n\n', flush=True)
    for count in args.plan:
        parts, size, made, sent = planned(count)
        print(f'BEiT-L on {count} ranks, {parts:,} parts; CPU s of one rank')
        print(f'  the plan of all ranks, {size:.0f} MB, which ours does without: {made:.1f}, and {sent:.1f} to send it')
        print(f'  to learn what is in which shard, when a run goes on: {found(count):.1f}', flush=True)


if __name__ == '__main__':
    main()
