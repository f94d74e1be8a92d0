"""LightGCN: matrix factorisation whose vectors are averaged over the graph of who took what.

Source: He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recdistill.data.dataset import Sequences
from recdistill.models.base import Batch, UserModel
from recdistill.models.layers import init_weights
from recdistill.settings import Settings


class LightGCNConfig(Settings):
    """The size of the table, and how far it is averaged."""

    dim: PositiveInt = 64
    """Width of user and item vectors (D)."""
    n_layers: PositiveInt = 3
    """Steps over the graph (K)."""
    init_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the initial vectors."""


class LightGCN(UserModel, name="lightgcn"):
    """A vector for each user and item, averaged over their neighbours in the graph of training interactions.

    Items (0…N, 0 for padding) and users are the nodes of one graph and the rows of one table, in that order. Averaging
    takes far longer than looking up a vector, so its result is kept: in training until a gradient has flown through it,
    which is once a step, otherwise until weights are loaded or the mode changes. The graph is saved with the weights.
    """

    Config = LightGCNConfig
    config: LightGCNConfig
    starts: Tensor
    neighbours: Tensor
    weights: Tensor

    def __init__(self, config: LightGCNConfig, n_items: int, train: Sequences) -> None:
        super().__init__(config, n_items, train)
        self.embedding = nn.Embedding(n_items + 1 + self.n_users, config.dim, padding_idx=0)
        init_weights(self, std=config.init_std)
        with torch.no_grad():
            self.embedding.weight[0] = 0
        self._kept: tuple[Tensor, int] | None = None
        items, offsets = train.flat()
        users = np.repeat(np.arange(len(train)), np.diff(offsets))
        taken = np.unique(np.stack([users, items]), axis=1).astype(np.int32)
        for name in ("starts", "neighbours", "weights"):
            self.register_buffer(name, None, persistent=False)
        self.set_extra_state(torch.from_numpy(taken))

    def get_extra_state(self) -> Tensor:
        """Return the graph: ``(2, E)`` int32, the user and the item of each edge."""
        return self.taken

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a graph as `get_extra_state` gives it."""
        self.taken = state.cpu()
        users, items = self.taken.long()
        adjacency = normalised_adjacency(users, items, n_users=self.n_users, n_items=self.n_items)
        device, dtype = self.embedding.weight.device, self.embedding.weight.dtype
        self.starts, self.neighbours = adjacency.crow_indices().to(device), adjacency.col_indices().to(device)
        self.weights = adjacency.values().to(device, dtype)
        self._forget()

    def encode(self, batch: Batch) -> Tensor:
        """Return the averaged vector of each user, ``(B, D)``."""
        return self._table()[self.n_items + 1 + self._users(batch)]

    def item_embeddings(self) -> Tensor:
        """Return ``(N+1, D)`` averaged item vectors."""
        return self._table()[: self.n_items + 1]

    def _table(self) -> Tensor:
        """Return the averaged vectors of all nodes, ``(N+1+U, D)``, from the last call where they still hold.

        Fused optimisers do not count up a tensor's version, so this alone does not tell that weights have changed.
        """
        weight = self.embedding.weight
        with_gradient = weight.requires_grad and torch.is_grad_enabled()
        table, version = self._kept or (None, -1)
        if table is None or version != weight._version or (with_gradient and not table.requires_grad):
            table = self._averaged()
            if with_gradient or not self.training:
                self._kept = table, weight._version
        return table if with_gradient else table.detach()

    def _averaged(self) -> Tensor:
        adjacency = _sparse(self.starts, self.neighbours, self.weights)
        weight, n_layers = self.embedding.weight, self.config.n_layers
        table: Tensor = _Propagate.apply(weight, adjacency, n_layers, self._forget)  # type: ignore[no-untyped-call]
        return table

    def _forget(self) -> None:
        self._kept = None

    def train(self, mode: bool = True) -> LightGCN:
        """Set the mode, as in torch; a change of it forgets the averaged vectors."""
        if mode != self.training:
            self._forget()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LightGCN:
        self._forget()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


def normalised_adjacency(users: Tensor, items: Tensor, *, n_users: int, n_items: int) -> Tensor:
    r"""Weigh each edge of the graph of users and items by the degrees of its ends.

    .. math:: \hat A = D^{-1/2} A D^{-1/2}, \quad \hat A_{ui} = \frac{1}{\sqrt{|N_u|} \sqrt{|N_i|}}

    Args:
        users: ``(E,)`` int64 user of each edge, in 0…U−1.
        items: ``(E,)`` int64 item of each edge, in 1…N; each pair once.
        n_users: U.
        n_items: N.

    Returns:
        ``(N+1+U, N+1+U)`` sparse (CSR) symmetric matrix; items first, then users.

    Source: He et al., SIGIR 2020, the matrix form of section 3.1.
    """
    n_nodes = n_items + 1 + n_users
    nodes = users + n_items + 1
    rows, columns = torch.cat([items, nodes]), torch.cat([nodes, items])
    degrees = torch.bincount(rows, minlength=n_nodes).float()
    order = (rows * n_nodes + columns).argsort()
    rows, columns = rows[order], columns[order]
    starts = torch.cat([rows.new_zeros(1), degrees.long().cumsum(0)])
    return _sparse(starts, columns, (degrees[rows] * degrees[columns]).rsqrt())


def _sparse(starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Make a square sparse matrix of where its rows start, and the column and the value of each entry."""
    shape = (len(starts) - 1, len(starts) - 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def propagate(embeddings: Tensor, adjacency: Tensor, n_layers: int) -> Tensor:
    r"""Average each node's vector with what reaches it in one step over the graph, in two, and so on.

    .. math:: \frac{1}{K+1} \sum_{k=0}^{K} \hat A^k E

    Args:
        embeddings: ``(M, D)`` a vector for each node, E.
        adjacency: ``(M, M)`` weights of the edges.
        n_layers: K.

    Returns:
        ``(M, D)``.

    Source: He et al., SIGIR 2020, the layer combination of section 3.1 with the paper's equal weights, 1/(K+1).
    """
    total, layer = embeddings.clone(), embeddings
    for _ in range(n_layers):
        layer = adjacency @ layer
        total += layer
    return total.div_(n_layers + 1)


class _Propagate(torch.autograd.Function):
    """`propagate`, which is linear and symmetric, so that it is its own gradient; that calls ``used``."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, adjacency: Tensor, n_layers: int, used: Callable[[], None]) -> Tensor:
        ctx.adjacency, ctx.n_layers, ctx.used = adjacency, n_layers, used
        return propagate(embeddings, adjacency, n_layers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.used()
        return propagate(grad, ctx.adjacency, ctx.n_layers), None, None, None
