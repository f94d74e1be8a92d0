"""RecTools' fast module: its FlatSASRecNet and its sequence builder in a plain loop; prints the seconds of an epoch.

The module ships no trainer for this network, so the loop is the shortest that trains it.
"""

from __future__ import annotations

import torch
from benchmarks.peers.driver import DIM, LEARNING_RATE, N_BLOCKS, N_HEADS, Arguments, Histories, check_finite, report
from benchmarks.peers.machine import StepClock
from rectools.fast_transformers import FlatSASRecNet, SequenceBatchDataset, build_sequences
from torch.nn import functional as F

BATCH_SIZE = 128
"""Users a step, as in RecTools' own trainer."""
DROPOUT = 0.2


def main() -> None:
    arguments = Arguments.parse(__doc__)
    torch.set_num_threads(arguments.threads)
    users, items, positions = map(torch.from_numpy, Histories.read(arguments.sequences).without_newest(2).flat())
    inputs, targets, known_items, _ = build_sequences(users, items, positions, arguments.max_len)
    loader = torch.utils.data.DataLoader(SequenceBatchDataset(inputs, targets), batch_size=BATCH_SIZE, shuffle=True)
    net = FlatSASRecNet(len(known_items), DIM, N_BLOCKS, N_HEADS, arguments.max_len, DROPOUT)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    net.train()
    clock = StepClock(arguments.seconds)
    done = clock.tick()
    while not done:
        for batch in loader:
            logits = net(batch)  # (B, L, N): column 0 is item 1
            loss = F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten() - 1, ignore_index=-1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if done := clock.tick():
                break
    check_finite(loss.item(), "RecTools' fast module")
    report(
        "rectools",
        seconds=clock.step_seconds * len(loader),
        load=clock.load,
        steps_per_epoch=len(loader),
        steps_measured=len(clock.steps),
    )


if __name__ == "__main__":
    main()
