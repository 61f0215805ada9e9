"""Reads a compiled program for TPUs: the compiler's cycles, and what goes between chips."""

import dataclasses
import re
from collections.abc import Iterator

_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast)(-start|-done)?"
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)=\{?([^,}]+(?:, %[^,}]+)*)"
)
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BITS = re.compile(r"(?:bf|f|s|u|c)(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips.

    Attributes:
        kind: `all-reduce`, `all-gather`, ...
        bytes: of the larger of what a chip gives and what it gets, in one step.
        asynchronous: it has a beginning and an end with other work scheduled in between.
        enclosed_cycles: estimated cycles of that work; collectives under way together count the
            same work.
    """

    kind: str
    bytes: int
    asynchronous: bool
    enclosed_cycles: int


@dataclasses.dataclass(frozen=True)
class Program:
    """What one chip does in one step.

    Attributes:
        cycles: sum of the compiler's estimates; it has none for collectives and for copies between
            memories, so this is a lower bound.
        collectives: in the order in which they begin.
    """

    cycles: int
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    cycles: int
    trips: int
    channel: str | None


def read_program(text: str) -> Program:
    """Program out of the text of a scheduled module (`jax.stages.Compiled.as_text`)."""
    computations, entry = _read(text)
    cycles, collectives = 0, []

    def run(name: str, times: int) -> None:
        nonlocal cycles
        schedule = computations[name]
        cycles += times * sum(instruction.cycles for instruction in schedule)
        found = _collectives(schedule, computations)
        collectives.extend(
            dataclasses.replace(
                one, bytes=times * one.bytes, enclosed_cycles=times * one.enclosed_cycles
            )
            for one in found
        )
        for instruction in schedule:
            if instruction.opcode in ("while", "call", "conditional"):
                for called in instruction.called:
                    run(called, times * instruction.trips)

    run(entry, 1)
    return Program(cycles, tuple(collectives))


def _read(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions of every computation in their order, and the name of the first to run."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if line.endswith("{") and (begin := _COMPUTATION.match(line)):
            current = computations[begin[2]] = []
            entry = begin[2] if begin[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(*found.groups()))
    return computations, entry


def _instruction(name: str, shape: str, opcode: str, rest: str) -> _Instruction:
    operands, _, attributes = rest.partition(")")
    cycles, trips = _CYCLES.search(attributes), _TRIPS.search(attributes)
    channel = _CHANNEL.search(attributes)
    return _Instruction(
        name=name,
        shape=shape,
        opcode=opcode,
        operands=tuple(_OPERAND.findall(operands)),
        called=tuple(
            called.strip(" %")
            for group in _CALLED.findall(attributes)
            for called in group.split(",")
        ),
        cycles=int(cycles[1]) if cycles else 0,
        trips=int(trips[1]) if trips else 1,
        channel=channel[1] if channel else None,
    )


def _collectives(
    schedule: list[_Instruction], computations: dict[str, list[_Instruction]]
) -> list[Collective]:
    """Collectives of one schedule: alone, as start and done, or spread over fusions."""
    places: dict[str, list[int]] = {}
    moved: dict[str, tuple[str, int]] = {}
    under_way: dict[str, str] = {}
    for place, instruction in enumerate(schedule):
        if instruction.opcode.endswith(("-done", "-update")):
            key = under_way.get(instruction.operands[0])
            if key is not None:
                under_way[instruction.name] = key
                places[key].append(place)
                if _COLLECTIVE.fullmatch(instruction.opcode):
                    moved[key] = (moved[key][0], _bytes(instruction.shape))
            continue
        for inner, body in _within(instruction, schedule, computations):
            key = inner.channel or inner.name
            under_way[instruction.name] = key
            moved.setdefault(key, (_COLLECTIVE.fullmatch(inner.opcode)[1], _moved(inner, body)))
            places.setdefault(key, []).append(place)
    return [
        Collective(
            *moved[key],
            asynchronous=at[-1] > at[0],
            enclosed_cycles=sum(i.cycles for i in schedule[at[0] + 1 : at[-1]]),
        )
        for key, at in places.items()
    ]


def _within(
    instruction: _Instruction,
    schedule: list[_Instruction],
    computations: dict[str, list[_Instruction]],
) -> Iterator[tuple[_Instruction, list[_Instruction]]]:
    """The collectives that an instruction is or that its fusion holds, with their computation."""
    if _COLLECTIVE.fullmatch(instruction.opcode):
        yield instruction, schedule
    elif instruction.opcode in ("fusion", "async-start"):
        for called in instruction.called:
            for inner in computations[called]:
                yield from _within(inner, computations[called], computations)


def _moved(collective: _Instruction, body: list[_Instruction]) -> int:
    given = sum(_bytes(other.shape) for other in body if other.name in collective.operands)
    return max(given, _bytes(collective.shape))


def _bytes(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    total = 0
    for dtype, axes in _ARRAY.findall(shape):
        bits = _BITS.match(dtype)
        elements = 1
        for axis in filter(None, axes.split(",")):
            elements *= int(axis)
        total += elements * (int(bits[1]) if bits else 8) // 8
    return total
