"""Memory per chip of a LLaMA decoder that is split over a TPU slice, without a TPU.

    python -m benchmarks.llama_memory [--model llama3_8b] [--topology v5e:2x4 --tensor 8]

Compiles the three programs of generation (prefix, prefill, decode) ahead of time for the slice, on
shapes alone, and prints what the compiler reserves on each chip. Needs the `tpu` extra.
"""

import argparse
import os

# The compiler for TPUs asks a TPU machine's server about itself unless told that there is none.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs: no chip to quarrel over
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from opensep_jax import sharding
from opensep_jax.models.llama import LLAMA_CONFIGS, Cache, Llama, abstract_params
from opensep_jax.text import decoding
from opensep_jax.text.generate import BATCH, PREFILL_ROWS, params_layout

GIB = 2**30
V5E_BYTES = 16 * GIB  # of one chip's memory


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="benchmarks.llama_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--model", default="llama3_8b", choices=sorted(LLAMA_CONFIGS))
    flags.add_argument("--topology", default="v5e:2x4")
    flags.add_argument("--tensor", type=int, default=8, help="chips per model; the rest is data")
    flags.add_argument("--batch", type=int, default=BATCH, help="rows that write together")
    flags.add_argument("--prefix", type=int, default=1024, help="tokens of the shared prefix")
    flags.add_argument("--suffix", type=int, default=128, help="tokens of a row")
    flags.add_argument("--new", type=int, default=512, help="new tokens of a row")
    return flags


def tpu_mesh(topology: str, tensor: int) -> Mesh:
    """Mesh over a described slice: `tensor` chips per model, the rest on the data axis."""
    described = topologies.get_topology_desc(topology, platform="tpu")
    return sharding.make_mesh(data=-1, fsdp=1, tensor=tensor, devices=described.devices)


def programs(
    network: Llama, mesh: Mesh, *, batch: int, prefix: int, suffix: int, new: int
) -> dict[str, jax.stages.Lowered]:
    """The programs of generation for one set of static sizes, lowered on shapes alone."""

    def shapes(tree: object, layout: object) -> object:
        if isinstance(layout, jax.sharding.Sharding):
            layout = jax.tree.map(lambda _: layout, tree)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout
        )

    def integers(*shape: int, split: bool = True) -> jax.ShapeDtypeStruct:
        layout = sharding.batch_sharding(mesh) if split else sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout)

    c = network.config
    abstract = abstract_params(c, network.dtype)
    params = shapes(abstract, params_layout(c, abstract, mesh))
    keys = jax.ShapeDtypeStruct((c.layers, c.kv_heads, prefix, c.head_width), network.dtype)
    shared = shapes(Cache(keys, keys), decoding.prefix_layout(mesh))
    rows = max(PREFILL_ROWS, sharding.batch_parts(mesh))
    of_batch = jax.eval_shape(lambda: decoding.empty_batch(network, mesh, batch, suffix + new))
    scalar = integers(split=False)
    real = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    draw = decoding.Draw(jax.ShapeDtypeStruct((), jnp.uint32, sharding=real.sharding), real, real)
    lower_decode = decoding.decode.lower(
        network,
        mesh,
        params,
        shared,
        scalar,
        shapes(of_batch, decoding.batch_layout(mesh)),
        scalar,
        integers(4, split=False),
        None,
        draw,
        slots_before=suffix,
        sample=False,
    )
    return {
        "prefix": decoding.run_prefix.lower(
            network, mesh, params, integers(1, prefix, split=False)
        ),
        "prefill": decoding.prefill.lower(
            network, mesh, params, shared, scalar, integers(rows, suffix), integers(rows)
        ),
        "decode": lower_decode,
    }


def main() -> None:
    """Compiles and prints."""
    args = parser().parse_args()
    config = LLAMA_CONFIGS[args.model]
    network = Llama(config, jnp.dtype(jnp.bfloat16))
    mesh = tpu_mesh(args.topology, args.tensor)
    sizes = {"batch": args.batch, "prefix": args.prefix, "suffix": args.suffix, "new": args.new}
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config, jnp.bfloat16)))
    print(
        f"{args.model}: {count:,} parameters in bfloat16, {2 * count / GIB:.2f} GiB; "
        f"{args.topology}: data {mesh.shape['data']} x tensor {mesh.shape['tensor']}; {sizes}"
    )
    print("GiB per chip: program, arguments, temporary, total, share of a v5e chip's 16 GiB")
    for name, lowered in programs(network, mesh, **sizes).items():
        memory = lowered.compile().memory_analysis()
        arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = arguments + temporary + fresh
        print(
            f"{name:8} {arguments / GIB:6.2f} {temporary / GIB:6.2f} {total / GIB:6.2f}"
            f" {total / V5E_BYTES:6.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
