"""A training step as one rank among many would take it, simulated: the bytes that it holds, and those that it sends.

The model's own forward and backward pass run on tensors without memory (FakeTensorMode), sharded as by `--strategy
fsdp2`, over a process group of which no other member exists (torch's `fake` backend). A ledger sees every operation:
what each result's storage takes until it is freed, and what each collective is given. On real tensors and with real
ranks it counts the same (tests/test_scale.py).

What a card holds beside this: the CUDA context, kernels' own buffers, and what the allocator cannot use.
"""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from mmengine.config import Config
from torch import distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from beit_mm.benchmark.cost import build_on_meta
from beit_mm.engine.sharding import mesh_of, shard
from beit_mm.models.block import Attention
from beit_mm.ops import gelu_linear

aten = torch.ops.aten
SIZES = ('patches_size', 'tokens_size', 'grid', 'num_masked')  # of a sample, in the pipeline
SMALL = 1024  # bytes: collectives of single numbers, such as the count of masked patches
GATHER, SCATTER, REDUCE = 'all-gather', 'reduce-scatter', 'all-reduce'
COLLECTIVES = {'c10d::_allgather_base_': GATHER, 'c10d::_reduce_scatter_base_': SCATTER, 'c10d::allreduce_': REDUCE}


class Plan(NamedTuple):
    """How a step is taken. batch: images of a rank that pass the model at once. shard: over how many ranks parameters
    are split, 1 for DDP; where it is less than `ranks`, the rest are copies. checkpointing: of activations."""

    ranks: int
    batch: int
    shard: int = 1
    checkpointing: bool = False
    bf16: bool = True


class Taken(NamedTuple):
    """Bytes of one rank. kept: what the forward pass leaves for the backward pass, parameters in it that are gathered
    included. peak: the most at once, the optimizer's state included. sent: {collective: bytes of one step}, where each
    collective is a ring. calls: of each."""

    parameters: int
    tokenizer: int
    gradients: int
    optimizer: int
    buckets: int
    kept: int
    peak: int
    sent: dict[str, int]
    calls: dict[str, int]


class Ledger(TorchDispatchMode):
    """Counts storages that live, and what collectives are given. Of what depends on data, as masks do, it is told the
    outcome: masked patches of the batch, all samples kept by drop path."""

    def __init__(self, masked: int | None) -> None:
        super().__init__()
        self.masked = masked
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0
        self.given: list[tuple[str, int, int]] = []  # collective, bytes in, bytes out

    def hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = 0
        self._resize(key, storage.nbytes())
        weakref.finalize(storage, self._drop, key)

    def _resize(self, key: int, size: int) -> None:
        self.live += size - self.sizes[key]
        self.sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int) -> None:
        self.live -= self.sizes.pop(key)

    def __enter__(self) -> 'Ledger':
        plain = torch.UntypedStorage.resize_  # by which fully_shard frees what it has gathered

        def resize_(storage, size: int):
            result = plain(storage, size)
            if storage._cdata in self.sizes:
                self._resize(storage._cdata, size)
            return result

        self.patched = mock.patch.object(torch.UntypedStorage, 'resize_', resize_)
        self.patched.start()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        self.patched.stop()
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (name := COLLECTIVES.get(func._schema.name)) is not None:
            tensors = [one for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
            sizes = [one.numel() * one.element_size() for one in tensors]
            self.given.append((name, min(sizes), max(sizes)))
        if self.masked is not None:
            if func is aten.bincount.default:
                return torch.empty(args[2], dtype=torch.long)
            if func is aten.nonzero.default:
                count = self.masked if args[0].ndim > 1 else args[0].numel()
                return torch.empty(count, args[0].ndim, dtype=torch.long)
            if func is aten.index.Tensor:
                args = (args[0], [one for index in args[1] for one in self._found(index)])
        result = func(*args, **kwargs)
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.hold(one)
        return result

    def _found(self, index: torch.Tensor | None) -> list[torch.Tensor | None]:
        """The indices that a mask stands for."""
        if index is None or index.dtype != torch.bool:
            return [index]
        return [torch.empty(self.masked, dtype=torch.long) for _ in range(index.ndim)]

    def sent(self, replicas: int) -> tuple[dict[str, int], dict[str, int]]:
        """(bytes that this rank sends, number of calls) by collective. replicas: ranks of an all-reduce."""
        bytes_sent, calls = {}, {}
        for name, least, most in self.given:
            if most > SMALL:
                way = 2 * most * (replicas - 1) / replicas if name == REDUCE else most - least
                bytes_sent[name] = bytes_sent.get(name, 0) + round(way)
                calls[name] = calls.get(name, 0) + 1
        return bytes_sent, calls


def _attend_on_card(self: Attention, qkv: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention as on a card: the memory-efficient kernel, which torch takes there for a bias that learns."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    mask = None if bias is None else bias.unsqueeze(0).to(q.dtype).expand(len(q), -1, -1, -1)
    out = aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, 0.0, False, scale=self.scale)[0]
    return out.transpose(1, 2)


@contextlib.contextmanager
def group_of(ranks: int) -> Iterator[None]:
    """A process group of which this is the first rank, and no other exists."""
    dist.init_process_group('fake', rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _never(*_) -> bool:  # a Mock would keep what it is called with
    return False


def held(tensors) -> int:
    """Bytes of this rank's parts."""
    tensors = [one.to_local() if hasattr(one, 'to_local') else one for one in tensors if one is not None]
    return sum(one.numel() * one.element_size() for one in tensors)


def step(model: nn.Module, plan: Plan, batch: dict[str, torch.Tensor], masked: int | None) -> Taken:
    """One step of a model that learns from masked images: forward, backward, AdamW."""
    tokenizer = getattr(model.target, 'tokenizer', None)
    tokenizer = [] if tokenizer is None else [*tokenizer.parameters(), *tokenizer.buffers()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with Ledger(masked) as ledger:
        for one in [*model.parameters(), *model.buffers(), *tokenizer, *batch.values()]:
            ledger.hold(one.to_local() if hasattr(one, 'to_local') else one)
        before = ledger.live
        with torch.autocast('cpu', torch.bfloat16, enabled=plan.bf16):
            loss = model(mode='loss', **batch)['loss_mim']
        gc.collect()
        kept = ledger.live - before
        loss.backward()
    state = 2 * held(learning)  # AdamW's moments; it asks its count of steps for a number, which a fake one has not
    if masked is None:
        optimizer = torch.optim.AdamW(learning)
        optimizer.step()
        state = held(value for moments in optimizer.state.values() for value in moments.values() if value.ndim)
    gradients = held(parameter.grad for parameter in learning)
    sent, calls = ledger.sent(plan.ranks // plan.shard)
    buckets = 0
    if plan.shard == 1 and plan.ranks > 1:  # DDP's reducer: all gradients once, in buckets of its own
        buckets = gradients
        sent, calls = {REDUCE: round(2 * gradients * (plan.ranks - 1) / plan.ranks)}, {REDUCE: 0}
    parameters = held(model.parameters())
    return Taken(
        parameters, held(tokenizer), gradients, state, buckets, kept, ledger.peak + state + buckets, sent, calls
    )


def simulate(config: Config, plan: Plan, on_card: bool = True, real: bool = False) -> Taken:
    """What a step of a config's masked image modeling takes of a rank.

    on_card: with the attention of a card. real: with memory, on the CPU, in the process group that there is.
    """
    sizes = {}
    for transform in config.train_dataloader.dataset.pipeline:
        sizes.update({key: transform[key] for key in SIZES if key in transform})
    config.model.backbone.with_cp = plan.checkpointing
    images, masked = plan.batch, sizes['num_masked']
    with contextlib.ExitStack() as stack:
        # Without autocast it saves a block one of the two activations around its GELU; what is no plain tensor has none
        stack.enter_context(mock.patch.object(gelu_linear, 'takes', _never))
        if on_card:
            stack.enter_context(mock.patch.object(Attention, 'attend', _attend_on_card))
        if not real:
            stack.enter_context(group_of(plan.ranks))
        model, mesh = build_on_meta(config).train(), mesh_of('cpu', plan.shard if plan.shard > 1 else None)
        if not real:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for part in (model, getattr(model.target, 'tokenizer', None)):
            if part is not None:
                part.to_empty(device='cpu')
                for value in (*part.parameters(), *part.buffers()):
                    value.data.zero_()
        if plan.shard > 1:
            shard(model, mesh, plan.bf16)
        mask = torch.zeros(images, sizes['grid'][0] * sizes['grid'][1], dtype=torch.bool)
        mask[:, :masked] = True
        batch = dict(
            patches=torch.zeros(images, 3, *[sizes['patches_size']] * 2),
            tokens_view=torch.zeros(images, 3, *[sizes['tokens_size']] * 2),
            mask=mask.view(images, *sizes['grid']),
        )
        return step(model, plan, batch, None if real else masked * images)
