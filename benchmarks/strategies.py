"""A step of pre-training on several ranks, DDP against FSDP2: seconds and memory of a rank.

    python benchmarks/strategies.py [--ranks 2] [--arch base] [--batch 2] [--rounds 9] [--amp] [--checkpointing]

Ranks are processes that talk by gloo, or GPUs and NCCL where there are as many. All strategies live in the same
processes and take turns; speed is the median over rounds of DDP's seconds by theirs. Bytes are those of parameters,
gradients and the optimizer's state on one rank, after a step. On CUDA the peak of a step is said too.
"""

import argparse
import os
import socket
import statistics
import time
import warnings

STRATEGIES = ('ddp', 'fsdp2')
WIDTHS = {'deit-tiny': 192, 'deit-small': 384, 'base': 768, 'large': 1024}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ranks', type=int, default=2)
    parser.add_argument('--arch', default='base', choices=WIDTHS)
    parser.add_argument('--batch', type=int, default=2, help='images of a rank')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--amp', action='store_true', help='bf16')
    parser.add_argument('--checkpointing', action='store_true', help='of activations')
    parser.add_argument('--list', action='store_true', help='say what is compared, and end')
    return parser.parse_args()


def candidate(strategy: str, args: argparse.Namespace, device: str):
    """(model, optimizer, step) of a strategy."""
    import torch

    from beit_mm.engine.sharding import mesh_of, shard
    from beit_mm.registry import MODELS

    torch.manual_seed(0)
    backbone = dict(type='BEiTViT', arch=args.arch, variant='beit_plus', out_type='raw', final_norm=True)
    backbone.update(with_mask_token=True, with_cp=args.checkpointing)
    model = MODELS.build(
        dict(
            type='MaskedImageModel',
            backbone=backbone,
            target=dict(type='PixelTarget', patch_size=16),
            head=dict(type='PixelHead', embed_dims=WIDTHS[args.arch], num_pixels=768),
        )
    ).to(device)
    wrapped = model
    if strategy == 'fsdp2':
        shard(model, mesh_of(device, None), args.amp)
    else:
        ids = [torch.cuda.current_device()] if device == 'cuda' else None
        wrapped = torch.nn.parallel.DistributedDataParallel(model, ids, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    mask = torch.arange(196, device=device).lt(75).view(1, 14, 14).expand(args.batch, -1, -1)
    batch = dict(patches=torch.randn(args.batch, 3, 224, 224, device=device), mask=mask)
    autocast = torch.autocast(device, torch.bfloat16, enabled=args.amp)

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            losses = wrapped(mode='loss', **batch)
        losses['loss_mim'].backward()
        optimizer.step()
        if device == 'cuda':
            torch.cuda.synchronize()

    return model, optimizer, step


def work(rank: int, args: argparse.Namespace, port: int) -> None:
    import torch

    device = 'cuda' if torch.cuda.device_count() >= args.ranks else 'cpu'
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(args.ranks))
    if device == 'cuda':
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated')
    warnings.filterwarnings('ignore', message='FSDP2-wrapped module')  # changed in place, which none of ours is
    torch.distributed.init_process_group('nccl' if device == 'cuda' else 'gloo')
    import beit_mm.models  # noqa: F401  (registers)
    from beit_mm.engine.finite import local

    made = {name: candidate(name, args, device) for name in STRATEGIES}
    seconds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    peaks = dict.fromkeys(STRATEGIES, 0)
    for turn in range(args.rounds + 1):  # the first is for warming up
        for name in STRATEGIES if turn % 2 else STRATEGIES[::-1]:
            torch.distributed.barrier()
            if device == 'cuda':
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            made[name][2]()
            seconds[name].append(time.perf_counter() - start)
            peaks[name] = torch.cuda.max_memory_allocated() if device == 'cuda' else 0
    if rank == 0:
        what = f'BEiT-{args.arch}, {args.ranks} ranks of {args.batch} images on {device}, '
        print(f'{what}{"bf16" if args.amp else "float32"}{", activations computed twice" * args.checkpointing}')
        print(
            f'{"":8}{"s a step":>10}{"speed":>8}{"MiB of parameters":>20}{"gradients":>12}{"optimizer":>12}{"peak":>8}'
        )
    for name, (model, optimizer, _) in made.items():
        ratios = [one / own for one, own in zip(seconds['ddp'][1:], seconds[name][1:], strict=True)]
        parameters = [local(parameter) for parameter in model.parameters()]
        gradients = [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
        moments = [local(value) for state in optimizer.state.values() for value in state.values()]
        sizes = [sum(one.nbytes for one in part) / 2**20 for part in (parameters, gradients, moments)]
        if rank == 0:
            median = statistics.median(seconds[name][1:])
            shown = f'{peaks[name] / 2**20:8.0f}' if peaks[name] else f'{"-":>8}'
            print(
                f'{name:8}{median:10.3f}{statistics.median(ratios):8.2f}{sizes[0]:20.0f}{sizes[1]:12.0f}{sizes[2]:12.0f}{shown}'
            )
    torch.distributed.destroy_process_group()


def main() -> None:
    args = arguments()
    if args.list:
        print(f'a step of pre-training: {", ".join(STRATEGIES)}')
        return
    import torch.multiprocessing

    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        port = listening.getsockname()[1]
    torch.multiprocessing.spawn(work, (args, port), args.ranks)


if __name__ == '__main__':
    main()
