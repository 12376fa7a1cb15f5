"""Train the demo model from nothing on a CPU and write its folder: python tools/demo_model/train.py."""

from __future__ import annotations

import argparse
import ctypes
import math
import random
import tempfile
import time
from pathlib import Path

import torch
from batches import IGNORED, Encoder, batches, wanted_places
from folder import check_template, make_tokenizer, write_folder
from network import Network, Shape
from talks import draw_talk
from tokenizers import Tokenizer
from torch import distributed, multiprocessing
from torch.nn import functional

_SHOWN = 50


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return a linear warm-up over 2% of the steps, then a cosine down to a hundredth of `peak`."""
    warm = max(1, steps // 50)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, because returning it takes a third of the time."""
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        allocator.mallopt(mmap_max, 0)
        allocator.mallopt(trim_threshold, 2**31 - 1)
        allocator.mallopt(top_pad, 2**28)


def optimizer_of(network: Network, rate: float) -> torch.optim.Optimizer:
    """Return AdamW with weight decay only for matrices."""
    matrices = [p for p in network.parameters() if p.dim() > 1]
    scales = [p for p in network.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def share_gradients(network: Network, workers: int) -> None:
    """Replace the gradients of this worker by the mean of all workers' gradients."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = (flat / workers).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train(network: Network, encode: Encoder, worker: int, args: argparse.Namespace) -> None:
    """Train `network` in place for `args.steps` steps; only the answers count in the loss."""
    optimizer = optimizer_of(network, args.rate)
    source = batches(random.Random(f"{args.seed} {worker}"), encode, args.batch)
    began, seen, total = time.monotonic(), 0, 0.0
    for step in range(args.steps):
        ids, targets, positions = next(source)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        places = wanted_places(targets)
        logits = network(ids, positions, places)
        loss = functional.cross_entropy(logits, targets.flatten()[places], ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        share_gradients(network, args.workers)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seen += ids.numel() * args.workers
        total += loss.item()
        if worker == 0 and (step + 1) % _SHOWN == 0:
            seconds = time.monotonic() - began
            mean, speed = total / _SHOWN, seen / seconds
            print(f"step {step + 1:5d}  loss {mean:.4f}  {seconds:5.0f} s  {speed:6.0f} tokens/s", flush=True)
            total = 0.0


def work(worker: int, tokenizer_text: str, meeting: str, args: argparse.Namespace) -> None:
    """Train in step with the other workers, each with its own talks; the first worker writes the model."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    place = f"file://{meeting}"
    distributed.init_process_group("gloo", init_method=place, rank=worker, world_size=args.workers)
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_str(tokenizer_text)
    network = Network(Shape(vocab_size=tokenizer.get_vocab_size()))
    if worker == 0:
        print(f"{sum(p.numel() for p in network.parameters())} parameters, {network.shape.vocab_size} tokens")
    train(network, Encoder(tokenizer), worker, args)
    if worker == 0:
        write_folder(args.out, network, tokenizer)
    distributed.destroy_process_group()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train the demo model and write its folder.")
    default = Path(__file__).resolve().parents[2] / "mlxk2" / "demo"
    parser.add_argument("--out", type=Path, default=default, help="the folder to write")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=2048, help="tokens in a worker's batch")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each core")
    parser.add_argument("--merged", type=int, default=1000, help="tokens of the byte-level part")
    return parser.parse_args()


def main() -> None:
    """Make the tokenizer, train the network, write the folder."""
    args = arguments()
    rng = random.Random(args.seed + 1)
    sample = [draw_talk(rng) for _ in range(20_000)]
    check_template(sample[:2000])
    tokenizer = make_tokenizer(sample, args.merged)
    with tempfile.TemporaryDirectory() as folder:
        shared = (tokenizer.to_str(), f"{folder}/meeting", args)
        multiprocessing.spawn(work, shared, nprocs=args.workers)


if __name__ == "__main__":
    main()
