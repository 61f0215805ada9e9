"""Cycles and collectives read from compiled programs (excerpts of what libtpu 0.0.42 prints)."""

from opensep_jax.planning.hlo import Collective, read_program

SPREAD = """\
HloModule jit_train_step, is_scheduled=true

%fused_start (param_0.1: bf16[3,3,16,8]) -> (bf16[3,3,16,8], bf16[3,3,16,16], u32[]) {
  %param_0.1 = bf16[3,3,16,8]{2,3,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[3,3,16,16]{2,3,1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=23, \
dimensions={3}, use_global_device_ids=true, frontend_attributes={chain_id="3"}
  ROOT %custom-call.1 = (bf16[3,3,16,8]{2,3,1,0}, bf16[3,3,16,16]{2,3,1,0}, u32[]{:S(2)}) \
custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%fused_done (param_0.2: bf16[3,3,16,8]) -> bf16[3,3,16,16] {
  %param_0.2 = bf16[3,3,16,8]{2,3,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.2 = bf16[3,3,16,16]{2,3,1,0:T(8,128)(2,1)} all-gather(%param_0.2), channel_id=23, \
dimensions={3}, use_global_device_ids=true, frontend_attributes={chain_id="3"}
  ROOT %custom-call.2 = bf16[3,3,16,16]{2,3,1,0} custom-call(%all-gather.2), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main.1 (x.1: f32[8,16], k.1: bf16[3,3,16,8]) -> f32[8,16] {
  %x.1 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %k.1 = bf16[3,3,16,8]{2,3,1,0:T(8,128)(2,1)} parameter(1)
  %begin = (bf16[3,3,16,8]{2,3,1,0}, bf16[3,3,16,16]{2,3,1,0}, u32[]{:S(2)}) fusion(%k.1), \
kind=kCustom, calls=%fused_start, backend_config={"window_config":{"estimated_cycles":"50"}}
  %fusion.1 = f32[8,16]{1,0:T(8,128)} fusion(%x.1), kind=kOutput, calls=%fused_other, \
backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"7000"},"other":"1"}
  %end = bf16[3,3,16,16]{2,3,1,0} fusion(%begin), kind=kCustom, calls=%fused_done
  %all-reduce.3 = (f32[100]{0:T(128)}, bf16[10,10]{1,0}, pred[]{:T(128)}) \
all-reduce(%a, %b, /*index=2*/%c), channel_id=4, to_apply=%add
  ROOT %copy.1 = f32[8,16]{1,0:T(8,128)} copy(%fusion.1), \
backend_config={"estimated_cycles":"300"}
}

%fused_other (p: f32[8,16]) -> f32[8,16] {
  ROOT %p = f32[8,16]{1,0} parameter(0)
}
"""

START_DONE = """\
HloModule jit_step, is_scheduled=true

%f (g: f32[64]) -> f32[64] {
  ROOT %g = f32[64]{0} parameter(0)
}

%body.1 (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], f32[64]) parameter(0)
  %grad = f32[64]{0} get-tuple-element(%p), index=1
  %start = f32[64]{0} all-reduce-start(%grad), channel_id=1, to_apply=%add
  %work = f32[64]{0} fusion(%grad), calls=%f, backend_config={"estimated_cycles":"40"}
  %done = f32[64]{0} all-reduce-done(%start)
  ROOT %out = (s32[], f32[64]) tuple(%i, %done)
}

%condition.1 (p.2: (s32[], f32[64])) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT, backend_config={"estimated_cycles":"1"}
}

%wrapped (q: bf16[32]) -> bf16[32] {
  %q = bf16[32]{0} parameter(0)
  ROOT %permuted = bf16[32]{0} collective-permute(%q), channel_id=3, source_target_pairs={{0,1}}
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %sent = ((bf16[32]{0}), bf16[32]{0}, s32[]) async-start(%x), calls=%wrapped
  %meanwhile = f32[64]{0} fusion(%x), calls=%f, backend_config={"estimated_cycles":"25"}
  %received = bf16[32]{0} async-done(%sent)
  %while.1 = (s32[], f32[64]) while(%t), condition=%condition.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"5"}}
  %cut = f32[8]{0} reduce-scatter(%x), channel_id=2, dimensions={0}, to_apply=%add
  ROOT %y = f32[64]{0} get-tuple-element(%while.1), index=1
}
"""


def test_a_collective_spread_over_fusions_is_one_and_encloses_what_runs_between():
    program = read_program(SPREAD)
    assert program.cycles == 7350
    assert program.collectives == (
        Collective("all-gather", 2 * 3 * 3 * 16 * 16, asynchronous=True, enclosed_cycles=7000),
        Collective("all-reduce", 4 * 100 + 2 * 100 + 1, asynchronous=False, enclosed_cycles=0),
    )


def test_loops_count_as_often_as_they_run_and_starts_find_their_ends():
    program = read_program(START_DONE)
    assert program.cycles == 5 * 41 + 25
    assert set(program.collectives) == {
        Collective("collective-permute", 2 * 32, True, 25),
        Collective("reduce-scatter", 4 * 64, False, 0),  # what a chip gives
        Collective("all-reduce", 5 * 4 * 64, True, 5 * 40),
    }
