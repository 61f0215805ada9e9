"""Speed of the language model that parses captions, beside transformers and llama.cpp.

    python -m benchmarks.parsing_speed --captions CAPTIONS.csv [--number 60 --rounds 3 --core 0]

One process on one core, one thread each, the same weights (SmolLM2-135M-Instruct; llama.cpp keeps
its 4 bits, the others hold float32), the same prompts as token ids, contestants in turn in every
round. `constrained` is the decoding that `parse` uses; all others write freely and greedily until a
line ends. Needs torch; llama.cpp takes part where `llama-cpp-python` is installed. Prints medians
and ratios; seconds are of the processor, which other work on the machine disturbs least.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PREFILL = 512
BATCHES = (1, 8, 32)
NEW = 48  # most tokens of an answer
TORCH_BATCH = 32


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.parsing_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--captions", required=True, type=Path, help="CSV with a column `caption`")
    flags.add_argument("--number", type=int, default=60)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--core", type=int, default=0)
    flags.add_argument("--part", choices=("all", "model", "captions"), default="all")
    return flags


def pin(core: int) -> None:
    """One core and one thread, for all libraries that are imported afterwards."""
    os.sched_setaffinity(0, {core})
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
        + os.environ.get("XLA_FLAGS", "")
    )
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


class Torch:
    """transformers' decoder, filled with our parameters."""

    def __init__(self, model: object) -> None:
        """Takes a `LanguageModel` on the host's processor."""
        import numpy as np
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self._torch = torch
        c, params = model._network.config, model._params
        config = LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.width,
            intermediate_size=c.mlp_width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.kv_heads,
            max_position_embeddings=c.max_positions,
            rms_norm_eps=c.norm_epsilon,
            rope_theta=c.rope_base,
            tie_word_embeddings=c.tied,
        )
        names = {
            "input_layernorm": "attention_norm/scale",
            "self_attn.q_proj": "query/kernel",
            "self_attn.k_proj": "key/kernel",
            "self_attn.v_proj": "value/kernel",
            "self_attn.o_proj": "attention_out/kernel",
            "post_attention_layernorm": "mlp_norm/scale",
            "mlp.gate_proj": "mlp_gate/kernel",
            "mlp.up_proj": "mlp_up/kernel",
            "mlp.down_proj": "mlp_down/kernel",
        }
        tensors = {
            "model.embed_tokens": params["token"]["embedding"],
            "model.norm": params["norm"]["scale"],
        }
        for theirs, ours in names.items():
            module, leaf = ours.split("/")
            stacked = np.asarray(params["blocks"][module][leaf])
            for i, array in enumerate(stacked):
                tensors[f"model.layers.{i}.{theirs}"] = array.T
        state = {f"{k}.weight": torch.tensor(np.asarray(a)) for k, a in tensors.items()}
        self.network = LlamaForCausalLM(config).eval()
        lost, unknown = self.network.load_state_dict(state, strict=False)
        if unknown or lost != ["lm_head.weight"]:
            raise ValueError(f"parameters do not fit: {lost}, {unknown}")
        self.network.generation_config.pad_token_id = 0

    def prefill(self, ids: Sequence[int]) -> object:
        """Keys and values of a prefix, and the logits behind it."""
        return self.network(self._torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    def one_by_one(
        self, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], stop: Sequence[int]
    ) -> list[list[int]]:
        """`generate` as its manual has it, a caption at a time."""
        answers = []
        for suffix in suffixes:
            ids = self._torch.tensor([[*prefix, *suffix]])
            out = self.network.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=list(stop),
            )
            answers.append(_until(out[0, ids.shape[1] :].tolist(), stop))
        return answers

    def batched(
        self, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], stop: Sequence[int]
    ) -> list[list[int]]:
        """The prefix run once, its cache copied for each row; batches sorted by length."""
        held = self.prefill(prefix).past_key_values
        order = sorted(range(len(suffixes)), key=lambda i: len(suffixes[i]))
        answers: list[list[int]] = [[] for _ in suffixes]
        for start in range(0, len(order), TORCH_BATCH):
            rows = order[start : start + TORCH_BATCH]
            written = self.decode(held, len(prefix), [suffixes[i] for i in rows], NEW, stop)
            for i, out in zip(rows, written, strict=True):
                answers[i] = _until(out, stop)
        return answers

    def decode(
        self,
        held: object,
        held_length: int,
        suffixes: Sequence[Sequence[int]],
        new: int,
        stop: Sequence[int] = (),
    ) -> list[list[int]]:
        """Greedy tokens of one batch behind a cached prefix; padding stands on the left."""
        import copy

        torch = self._torch
        cache = copy.deepcopy(held)
        cache.batch_repeat_interleave(len(suffixes))
        longest = max(map(len, suffixes))
        ids = torch.zeros((len(suffixes), longest), dtype=torch.long)
        mask = torch.ones((len(suffixes), held_length + longest), dtype=torch.long)
        for row, suffix in enumerate(suffixes):
            ids[row, longest - len(suffix) :] = torch.tensor(suffix)
            mask[row, held_length : held_length + longest - len(suffix)] = 0
        positions = (mask.cumsum(1) - 1)[:, held_length:]
        ends = torch.tensor(list(stop), dtype=torch.long)
        done = torch.zeros(len(suffixes), dtype=torch.bool)
        columns = []
        while True:
            out = self.network(
                ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            columns.append(ids[:, 0])
            done |= torch.isin(ids[:, 0], ends)
            if len(columns) == new or bool(done.all()):
                return torch.stack(columns, 1).tolist()
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
            positions = positions[:, -1:] + 1


def _until(tokens: list[int], stop: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]


def llama_cpp(gguf: Path) -> Callable | None:
    """llama.cpp, which keeps what a prompt has in common with the one before; None if not here."""
    try:
        from llama_cpp import Llama
    except ImportError:
        print("llama.cpp: llama-cpp-python is not installed, left out", file=sys.stderr)
        return None
    network = Llama(str(gguf), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)

    def run(
        prefix: Sequence[int], suffixes: Sequence[Sequence[int]], stop: Sequence[int]
    ) -> list[list[int]]:
        answers = []
        for suffix in suffixes:
            written: list[int] = []
            for token in network.generate([*prefix, *suffix], temp=0.0):
                if token in stop or len(written) == NEW:
                    break
                written.append(token)
            answers.append(written)
        return answers

    return run


def timed(run: Callable, *args: object) -> tuple[float, object]:
    """Processor seconds of a call, and its result."""
    start = time.process_time()
    result = run(*args)
    return time.process_time() - start, result


def compare_model(
    model: object, torch_model: Torch, suffix: list[int], prefix: list[int], rounds: int
) -> None:
    """Tokens per second of both networks: a long prompt, and new tokens at several batches."""
    import jax
    import numpy as np

    from opensep_jax.text.generate import LanguageModel

    long = (prefix * (PREFILL // len(prefix) + 1))[:PREFILL]
    held = torch_model.prefill(prefix).past_key_values
    sizes = {
        batch: LanguageModel(
            model.id, model._network, model._params, _Silent(model), model._mesh, batch
        )
        for batch in BATCHES
    }

    def ours(batch: int, new: int) -> None:
        sizes[batch].generate(prefix, [suffix] * batch, max_new_tokens=new, stop=())

    def theirs(batch: int, new: int) -> None:
        torch_model.decode(held, len(prefix), [suffix] * batch, new)

    rates: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):  # the first one compiles and is not counted
        found = {}
        seconds, _ = timed(lambda: jax.block_until_ready(model._run_prefix(tuple(long))))
        found["JAX", f"prefill {PREFILL}"] = PREFILL / seconds
        found["torch", f"prefill {PREFILL}"] = PREFILL / timed(torch_model.prefill, long)[0]
        for batch in BATCHES:
            for name, run in (("JAX", ours), ("torch", theirs)):
                # The same work with 2 and with 34 tokens: the difference is 32 steps of decoding.
                few, many = (timed(run, batch, new)[0] for new in (2, 34))
                found[name, f"decode B{batch}"] = 32 * batch / max(many - few, 1e-9)
        if turn:
            for key, value in found.items():
                rates.setdefault(key, []).append(value)
    print("tokens per second        JAX    torch    ratio")
    for what in dict.fromkeys(what for _, what in rates):
        jax_rate, torch_rate = (statistics.median(rates[name, what]) for name in ("JAX", "torch"))
        ratio = np.median(np.divide(rates["JAX", what], rates["torch", what]))
        print(f"{what:20} {jax_rate:8.1f} {torch_rate:8.1f} {ratio:8.2f}", flush=True)


class _Silent:
    """What a `LanguageModel` needs of a tokenizer that is never asked."""

    def __init__(self, model: object) -> None:
        self.chat_template, self.bos, self.eos = None, model.bos, model.eos
        self.encode = self.decode = self.render_chat = None


def compare_captions(
    contestants: dict[str, Callable[[], list[list[int]]]], number: int, rounds: int
) -> None:
    """Seconds per caption of every contestant, and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    answers = {}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            spent, answers[name] = timed(run)
            if turn:
                seconds[name].append(spent / number)
    first = next(iter(contestants))
    print(f"\nseconds per caption ({number} captions, {rounds} rounds) and the ratio to {first!r}")
    for name, values in seconds.items():
        ratios = [b / a for a, b in zip(seconds[first], values, strict=True)]
        tokens = sum(map(len, answers[name])) / number
        same = sum(a == b for a, b in zip(answers["free"], answers[name], strict=True))
        print(
            f"{name:36} {statistics.median(values):7.3f} {statistics.median(ratios):6.2f}x  "
            f"{tokens:4.1f} tokens written, {same} answers as 'free'",
            flush=True,
        )


def main() -> None:
    """Loads everything and prints both comparisons."""
    args = parser().parse_args()
    pin(args.core)

    from opensep_jax.checkpoint import weights
    from opensep_jax.text.generate import load_language_model
    from opensep_jax.text.grammar import grammar, longest
    from opensep_jax.text.prompts import encode_task, load_tasks
    from opensep_jax.text.segments import segments

    with args.captions.open(newline="", encoding="utf-8") as stream:
        captions = [row["caption"].rstrip(".") for row in csv.DictReader(stream)][: args.number]
    model = load_language_model("smollm2")
    task = encode_task(load_tasks()["sources"].choose(5), model)
    suffixes = [task.suffix(model, caption) for caption in captions]
    torch_model = Torch(model)
    if args.part != "captions":
        compare_model(model, torch_model, suffixes[0], task.prefix, args.rounds)
    if args.part == "model":
        return

    def free() -> list[list[int]]:
        model._prefixes.clear()  # it counts for everybody, once
        return model.generate(task.prefix, suffixes, max_new_tokens=NEW, stop=task.ends)

    def constrained() -> list[list[int]]:
        model._prefixes.clear()
        grammars = [grammar(segments(c), model.encode, task.ends[0]) for c in captions]
        new = max(map(longest, grammars))
        options = {"max_new_tokens": new, "stop": task.ends, "grammars": grammars}
        return model.generate(task.prefix, suffixes, **options)

    prompts = (task.prefix, suffixes, task.ends)
    contestants = {"constrained": constrained, "free": free}
    gguf = next(weights.resolve("smollm2").glob("*.gguf"))
    if (peer := llama_cpp(gguf)) is not None:
        contestants["llama.cpp, prefix reused"] = lambda: peer(*prompts)
    contestants["transformers, prefix cache, batch 32"] = lambda: torch_model.batched(*prompts)
    contestants["transformers, one by one"] = lambda: torch_model.one_by_one(*prompts)
    compare_captions(contestants, len(captions), args.rounds)


if __name__ == "__main__":
    main()
