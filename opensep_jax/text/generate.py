"""A language model that writes: many continuations of one shared prefix, free or by a grammar.

A continuation is a function of its own prefix, tokens and grammar: it is padded to sizes that
depend on these alone, in batches of constant size, so company does not change its tokens.
"""

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from opensep_jax import sharding
from opensep_jax.checkpoint import weights
from opensep_jax.models.convert import convert_onto_devices
from opensep_jax.models.gguf_file import read_gguf
from opensep_jax.models.llama import (
    TENSOR_AXES,
    Cache,
    Llama,
    LlamaConfig,
    abstract_params,
    empty_prefix,
)
from opensep_jax.models.safetensors import read_safetensors, safetensors_files
from opensep_jax.models.tables import LLAMA_TABLE, llama_gguf_table
from opensep_jax.text import decoding
from opensep_jax.text.tokenizer import ChatTokenizer, read_tokenizer, tokenizer_from_gguf

BATCH = 32  # rows that write together
PREFILL_ROWS = 8  # rows per call before that: enough to fill a matrix unit, with little padding
_PREFIXES = 4  # prefixes whose keys and values are kept
# Static sizes, in tokens: multiples for the prefix and the new tokens, powers of two for the rest.
_PREFIX_STEP = 64
_NEW_STEP = 16
_LEAST_SUFFIX = 16
_LEAST_SLOTS = 64
_LEAST_STATES = 256
_LEAST_CHOICES = 16


@dataclasses.dataclass(frozen=True)
class Grammar:
    """A finite automaton over token ids; a sequence starts in state 0.

    Attributes:
        tokens: int32 [S, K], ids allowed in each state; -1 is an unused slot.
        next: int32 [S, K], state that each leads to; -1 where the sequence ends with it.
    """

    tokens: np.ndarray
    next: np.ndarray

    def check(self, vocab_size: int) -> None:
        """Raises ValueError if the automaton cannot be followed by a model of `vocab_size`."""
        if self.tokens.ndim != 2 or self.tokens.shape != self.next.shape:
            raise ValueError(f"grammar of shapes {self.tokens.shape} and {self.next.shape}")
        used = self.tokens >= 0
        if not used[0].any():
            raise ValueError("grammar allows nothing in state 0")
        if self.tokens.max() >= vocab_size or self.next[used].max() >= len(self.tokens):
            raise ValueError(
                f"grammar names token {self.tokens.max()} of {vocab_size} and state "
                f"{self.next[used].max()} of {len(self.tokens)}"
            )
        reached = np.unique(self.next[used & (self.next >= 0)])
        dead = reached[~used[reached].any(axis=1)]
        if dead.size:
            raise ValueError(f"grammar leads to states that allow nothing: {dead.tolist()}")


@dataclasses.dataclass(frozen=True)
class _Row:
    """One continuation to be written, and the static sizes that it asks for."""

    number: int
    ids: Sequence[int]
    grammar: Grammar | None

    @functools.cached_property
    def prefill_slots(self) -> int:
        """Half powers of two as well: most of the work is here."""
        size = _power(len(self.ids), _LEAST_SUFFIX)
        return size * 3 // 4 if len(self.ids) <= size * 3 // 4 > _LEAST_SUFFIX else size

    @functools.cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Slots for the row's tokens, states and choices of its grammar."""
        slots = _power(len(self.ids), _LEAST_SLOTS)
        if self.grammar is None:
            return slots, 0, 0
        states, choices = self.grammar.tokens.shape
        return slots, _power(states, _LEAST_STATES), _power(choices, _LEAST_CHOICES)


class LanguageModel:
    """A pretrained decoder with its tokenizer.

    Attributes:
        id: Family, size and content hash of the weights, such as `llama-30x576-0a1b2c3d4e5f6071`;
            the same weights have the same id wherever they lie.
        chat_template: Jinja source of the checkpoint's template; None where it has none.
        max_tokens: Longest sequence, prefix and new tokens included.
        bos: Id to put in front of a sequence; None where the model wants none.
        eos: Ids that end an answer.
    """

    def __init__(
        self,
        id: str,
        network: Llama,
        params: dict,
        tokenizer: ChatTokenizer,
        mesh: Mesh,
        batch: int = BATCH,
    ) -> None:
        """Takes what `load_language_model` has read.

        Args:
            id: See the class.
            network: The network.
            params: Its parameters, split over `mesh`.
            tokenizer: Its tokenizer.
            mesh: Where it runs.
            batch: Rows that write together; a multiple of the mesh's parts of a batch.
        """
        parts = sharding.batch_parts(mesh)
        if batch < 1 or batch % parts:
            raise ValueError(f"batch={batch} is not divisible by {parts} parts of the mesh")
        self.id = id
        self.chat_template = tokenizer.chat_template
        self.max_tokens = network.config.max_positions
        self.bos = tokenizer.bos
        self.eos = tokenizer.eos
        self.encode = tokenizer.encode
        self.decode = tokenizer.decode
        self.render_chat = tokenizer.render_chat
        self._network = network
        self._params = params
        self._mesh = mesh
        self._batch = batch
        self._prefill_rows = min(batch, math.lcm(PREFILL_ROWS, parts))
        self._prefixes: collections.OrderedDict[tuple[int, ...], Cache] = collections.OrderedDict()

    def generate(
        self,
        prefix: Sequence[int],
        suffixes: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        grammars: Sequence[Grammar] | None = None,
    ) -> list[list[int]]:
        """Continues `prefix + suffix` for each suffix.

        Args:
            prefix: Token ids that all share; run once and remembered. May be empty.
            suffixes: Token ids of each, at least one.
            max_new_tokens: Most new tokens of each.
            stop: Ids that end a continuation, wherever they appear.
            temperature: 0 takes the likeliest token; above, tokens are drawn.
            top_p: When drawing, the likeliest tokens that make up this share, in (0, 1].
            seed: Of the draws, which also depend on a suffix's place in the list.
            grammars: An automaton for each suffix: only what it allows is written, and only that
                is scored.

        Returns:
            New tokens of each suffix in order, without stop tokens. The token that ends a grammar
            is kept unless it is in `stop`.

        Raises:
            ValueError: A suffix is empty or too long, or a grammar cannot be followed.
        """
        if grammars is not None and len(grammars) != len(suffixes):
            raise ValueError(f"{len(grammars)} grammars for {len(suffixes)} suffixes")
        if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"max_new_tokens={max_new_tokens}, temperature={temperature}, top_p={top_p}"
            )
        rows = [
            _Row(i, ids, grammars[i] if grammars is not None else None)
            for i, ids in enumerate(suffixes)
        ]
        for row in rows:
            self._check(row, len(prefix), max_new_tokens)
        if not rows:
            return []
        shared = self._prefix(tuple(prefix)), np.int32(len(prefix))
        draw = decoding.Draw(np.uint32(seed), np.float32(temperature), np.float32(top_p))
        stop_J = np.full(_power(len(stop), 4), -1, np.int32)
        stop_J[: len(stop)] = stop
        pending = []
        for members in self._batches(rows):
            slots, states, choices = members[0].sizes
            room = -(-max_new_tokens // _NEW_STEP) * _NEW_STEP
            out_BN = decoding.decode(
                self._network,
                self._mesh,
                self._params,
                *shared,
                self._prefill(members, shared, slots + room),
                np.int32(max_new_tokens),
                stop_J,
                self._automata(members, states, choices) if states else None,
                draw,
                slots_before=slots,
                sample=temperature > 0,
            )
            pending.append((members, out_BN))
        answers: list[list[int]] = [[] for _ in rows]
        for members, out_BN in pending:
            for row, out_N in zip(members, np.asarray(out_BN), strict=False):
                answers[row.number] = out_N[out_N >= 0].tolist()
        return answers

    def _check(self, row: _Row, prefix_length: int, max_new_tokens: int) -> None:
        where = f"suffix {row.number}"
        if not len(row.ids):
            raise ValueError(f"{where} is empty")
        total = prefix_length + len(row.ids) + max_new_tokens
        if total > self.max_tokens:
            raise ValueError(
                f"{where}: {prefix_length} tokens of prefix, {len(row.ids)} of its own and "
                f"{max_new_tokens} new ones exceed the model's {self.max_tokens}"
            )
        if row.grammar is not None:
            try:
                row.grammar.check(self._network.config.vocab_size)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error

    def _prefix(self, ids: tuple[int, ...]) -> Cache:
        """Keys and values of a prefix, from memory where it was used lately."""
        if ids not in self._prefixes:
            self._prefixes[ids] = self._run_prefix(ids)
            if len(self._prefixes) > _PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(ids)
        return self._prefixes[ids]

    def _run_prefix(self, ids: tuple[int, ...]) -> Cache:
        if not ids:
            return empty_prefix(self._network.config, self._network.dtype)
        ids_1P = np.zeros((1, -(-len(ids) // _PREFIX_STEP) * _PREFIX_STEP), np.int32)
        ids_1P[0, : len(ids)] = ids
        return decoding.run_prefix(self._network, self._mesh, self._params, ids_1P)

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Rows that write together: of the same static sizes, alike in length."""
        groups: dict[tuple[int, int, int], list[_Row]] = {}
        for row in sorted(rows, key=lambda row: row.prefill_slots):
            groups.setdefault(row.sizes, []).append(row)
        for members in groups.values():
            yield from _chunks(members, self._batch)

    def _prefill(
        self, members: list[_Row], shared: tuple[Cache, np.ndarray], slots: int
    ) -> decoding.Batch:
        """A batch of the rows, each run up to its last token."""
        batch = decoding.empty_batch(self._network, self._mesh, self._batch, slots)
        lengths: dict[int, list[tuple[int, _Row]]] = {}
        for at, row in enumerate(members):
            lengths.setdefault(row.prefill_slots, []).append((at, row))
        for L, placed in lengths.items():
            for chunk in _chunks(placed, self._prefill_rows):
                ids_BL = np.zeros((self._prefill_rows, L), np.int32)
                lengths_B, numbers_B = np.zeros((2, self._prefill_rows), np.int32)
                at_B = np.full(self._prefill_rows, self._batch, np.int32)  # dropped where unused
                for i, (at, row) in enumerate(chunk):
                    ids_BL[i, : len(row.ids)] = row.ids
                    lengths_B[i], numbers_B[i], at_B[i] = len(row.ids), row.number, at
                ids_BL, lengths_B = self._split(ids_BL), self._split(lengths_B)
                states_BC, cache = decoding.prefill(
                    self._network, self._mesh, self._params, *shared, ids_BL, lengths_B
                )
                done = decoding.Batch(states_BC, lengths_B, self._split(numbers_B), cache)
                batch = decoding.insert(self._mesh, batch, done, at_B)
        return batch

    def _automata(self, members: list[_Row], states: int, choices: int) -> decoding.Automata:
        shape = (self._batch, states, choices)
        automata = decoding.Automata(*(np.full(shape, -1, np.int32) for _ in range(2)))
        for i, row in enumerate(members):
            S, K = row.grammar.tokens.shape
            automata.tokens_BSK[i, :S, :K] = row.grammar.tokens
            automata.next_BSK[i, :S, :K] = row.grammar.next
        return decoding.Automata(*map(self._split, automata))

    def _split(self, array: np.ndarray) -> jax.Array:
        """The array with its rows over the mesh."""
        return sharding.place(array, sharding.batch_sharding(self._mesh))


def load_language_model(
    name: str = "smollm2", *, mesh: Mesh | None = None, dtype: str = "float32", batch: int = BATCH
) -> LanguageModel:
    """Loads a pretrained decoder of the LLaMA family.

    Args:
        name: Weights by name (see `opensep_jax.checkpoint.weights.resolve`): "smollm2", a hub id, a
            local folder of safetensors or with one GGUF file, or a `.gguf` file.
        mesh: Heads, MLP and vocabulary are split over its `tensor` axis, rows over the others; by
            default one device.
        dtype: Of parameters and matrix products, "float32" or "bfloat16".
        batch: Rows that write together. It is constant, and so part of what determines the last
            bits; a single caption costs as much as a full batch.

    Returns:
        The model. While it loads, the host holds one published tensor beside the parameters.

    Raises:
        ValueError: The name is unknown, the weights are of another kind, or the mesh does not fit.
        WeightsError: The weights could not be downloaded.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; known: 'bfloat16', 'float32'")
    kind = jnp.dtype(dtype)
    if mesh is None:
        mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
    path = Path(name).expanduser()
    path = path if path.suffix == ".gguf" and path.is_file() else weights.resolve(name)
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(files) == 1:
        opened = read_gguf(files[0], kind)
        config = opened.llama_config()
        table = llama_gguf_table(config.heads, config.kv_heads)
        tensors, tokenizer = opened.tensors, tokenizer_from_gguf(opened.metadata)
    else:
        files, table, tensors = safetensors_files(path), LLAMA_TABLE, read_safetensors(path)
        config = LlamaConfig.from_hf(json.loads((path / "config.json").read_text("utf-8")))
        tokenizer = read_tokenizer(path)
    abstract = abstract_params(config, kind)
    params = convert_onto_devices(tensors, table, abstract, params_layout(config, abstract, mesh))
    digest = weights.content_hash(files)
    model_id = f"llama-{config.layers}x{config.width}-{digest[:16]}"
    return LanguageModel(model_id, Llama(config, kind), params, tokenizer, mesh, batch)


def params_layout(config: LlamaConfig, abstract: dict, mesh: Mesh) -> dict:
    """Shardings of a decoder's parameters: whole heads on each chip of the tensor axis.

    Raises:
        ValueError: The tensor axis does not divide the key-value heads.
    """
    parts = mesh.shape["tensor"]
    if config.kv_heads % parts:
        best = math.gcd(config.kv_heads, mesh.size)
        raise ValueError(
            f"mesh.tensor={parts} does not divide the model's {config.kv_heads} key-value heads; "
            f"use mesh.tensor={best} and put the other chips on mesh.data={mesh.size // best}"
        )
    return sharding.tensor_sharding(abstract, mesh, TENSOR_AXES)


def _power(count: int, least: int) -> int:
    """The power of two that holds `count`, at least `least`."""
    return max(least, 1 << (count - 1).bit_length()) if count else least


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
