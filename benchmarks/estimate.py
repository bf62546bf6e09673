"""The TPU compiler's own estimate of a compiled program, from the text of the program.

The compiler writes the cycles that it expects beside each kernel. Its `cost_analysis` has no usable sum: for a large
program `optimal_seconds` is negative, and it counts a loop once.
"""

import pathlib
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from sdecor.training import compiled

CLOCKS = {"TPU v5 lite": 1.5e9}  # cycles per second, which follow from the peak: 4 units of 128², 197e12 operations
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_ARRAY = re.compile(r"[a-z][a-z0-9]*\[[0-9,<=]*\](\{[^{}]*\})?")
_NO_TRAFFIC = (
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "while",
    "conditional",
    "call",
    "custom-call",  # reserves memory, in a step without kernels of our own
)


class Estimate(NamedTuple):
    """Estimated cycles of a program, and the bytes that it moves from and to the chip's main memory."""

    cycles: float = 0
    bytes: float = 0

    def plus(self, other: "Estimate", times: int = 1) -> "Estimate":
        """Return the sum with `times` runs of another."""
        return Estimate(self.cycles + times * other.cycles, self.bytes + times * other.bytes)


def estimate(program: str, *, passes: int = 1) -> Estimate:
    """Sum the cycles, and the traffic with the main memory (HBM), of the kernels that a compiled program runs.

    The body of a loop counts `passes` times, since the text does not have the number of passes. Of the branches of a
    condition the one with the most cycles counts.

    Operands and results of a kernel count where they are in the main memory, and in full. Arrays in the chip's small
    memory (layout S(1)) do not count; a copy into it counts once. `cost_analysis` counts all of these, which makes two
    or three times the traffic out of an array that is copied first.
    """
    lines, entry, name = {}, "", ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            lines[name] = []
            entry = name if header[1] else entry
        elif name:
            lines[name].append(line)
    return _of_computation(entry, lines, {}, passes)


def _of_computation(name: str, lines: Mapping[str, list[str]], known: dict[str, Estimate], passes: int) -> Estimate:
    if name in known:
        return known[name]
    parsed = [(line, each) for line in lines[name] if (each := compiled._parse(line))]
    shapes = {each.name: each.shape for _, each in parsed}
    total = Estimate()
    for line, each in parsed:
        cycles = _CYCLES.search(line)
        moved = 0
        if each.operation.endswith("-done"):
            moved = compiled._bytes(each.shape)
        elif each.operation not in _NO_TRAFFIC and not each.operation.endswith("-start"):
            moved = sum(map(_bytes, (each.shape, *(shapes.get(operand, "") for operand in each.operands))))
        total = total.plus(Estimate(int(cycles[1]) if cycles else 0, moved))
        if each.operation not in ("while", "conditional", "call"):
            continue
        called = re.findall(r"%([\w.\-]+)", "".join(_CALLED.findall(line)))
        found = [_of_computation(other, lines, known, passes) for other in called]
        if found:
            total = total.plus(max(found), passes if each.operation == "while" else 1)
    known[name] = total
    return total


def _bytes(shape: str) -> int:
    """Return the bytes of the arrays of a shape that are in the main memory."""
    return sum(compiled._bytes(each[0]) for each in _ARRAY.finditer(shape) if "S(" not in (each[1] or ""))
