"""RecBole's SASRec with its cross-entropy over all items; prints the seconds of an epoch.

The model, the batches and the optimiser are RecBole's; the loop is the body of its trainer's epoch, with a clock.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarks.peers.driver import DIM, LEARNING_RATE, N_BLOCKS, N_HEADS, Arguments, Histories, check_finite, report
from benchmarks.peers.machine import StepClock
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

NAME = "sequences"


def batch_size(max_len: int) -> int:
    """RecBole's default, 2048 sequences, up to length 50; beyond, what an ordinary memory holds."""
    return 2048 if max_len <= 50 else 512


def write_interactions(histories: Histories, folder: Path) -> None:
    """Write RecBole's own file format."""
    users, items, positions = histories.flat()
    (folder / NAME).mkdir()
    with (folder / NAME / f"{NAME}.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(f"{u}\t{i}\t{p}\n" for u, i, p in zip(users, items, positions, strict=True))


def settings(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """The common size, leave-one-out, and RecBole's defaults."""
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "use_gpu": False,
        "gpu_id": "",
        "MAX_ITEM_LIST_LENGTH": arguments.max_len,
        "train_batch_size": batch_size(arguments.max_len),
        "learning_rate": LEARNING_RATE,
        "n_layers": N_BLOCKS,
        "n_heads": N_HEADS,
        "hidden_size": DIM,
        "inner_size": arguments.inner_dim,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "metrics": ["NDCG"],
        "valid_metric": "NDCG@10",
        "show_progress": False,
        "state": "WARNING",
    }


def main() -> None:
    arguments = Arguments.parse(__doc__)
    if arguments.loss != "full-softmax":
        raise SystemExit("RecBole's SASRec has no sampled softmax")
    warnings.filterwarnings("ignore")
    sys.argv = sys.argv[:1]  # RecBole reads the command line as settings of its own
    histories = Histories.read(arguments.sequences)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):  # it logs into the current folder
        write_interactions(histories, Path(name))
        config = Config(model="SASRec", dataset=NAME, config_dict=settings(arguments, Path(name)))
        init_seed(config["seed"], config["reproducibility"])
        torch.set_num_threads(arguments.threads)
        batches, _, _ = data_preparation(config, create_dataset(config))
        model = get_model(config["model"])(config, batches._dataset)
        optimiser = get_trainer(config["MODEL_TYPE"], config["model"])(config, model).optimizer
    model.train()
    clock = StepClock(arguments.seconds)
    done = clock.tick()
    while not done:
        for batch in batches:
            optimiser.zero_grad()
            loss = model.calculate_loss(batch)
            check_finite(loss.item(), "RecBole")  # its trainer looks at every step, too
            loss.backward()
            optimiser.step()
            if done := clock.tick():
                break
    report(
        "recbole",
        seconds=clock.step_seconds * len(batches),
        load=clock.load,
        steps_per_epoch=len(batches),
        steps_measured=len(clock.steps),
    )


if __name__ == "__main__":
    main()
