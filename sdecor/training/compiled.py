"""A compiled training step before it runs: memory, operations, time, collectives, and the largest batch that fits.

All numbers are those of one device. They come from the compiler, not from a run: a time is an estimate.
"""

import functools
import importlib.metadata
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sdecor.core import files

GIB = 2**30


class Chip(NamedTuple):
    """The published figures of an accelerator.

    Attributes:
      name: short name.
      memory: bytes.
      flops: peak operations per second in bfloat16.
      bandwidth: bytes per second from and to the memory.
      link: bytes per second that a chip sends to its neighbours, over all links, in one direction; None if unknown.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float | None = None


# By the device kind that JAX reports. Sources, read in November 2026: docs.cloud.google.com/tpu/docs/ v4, v5e, v5p, v6e
# and tpu7x; the link of v4 from its all-reduce bandwidth per pod, 1.1 PB/s for 4,096 chips. The compiler keeps a part
# of a v5e's memory: it offers 15.75 of 16 GiB.
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 32 * GIB, 275e12, 1200e9, 269e9),
    "TPU v5 lite": Chip("v5e", 15.75 * GIB, 197e12, 819e9, 200e9),
    "TPU v5": Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9),
    "TPU v5p": Chip("v5p", 95 * GIB, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 32 * GIB, 918e12, 1638e9, 400e9),
}

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\]")
_NAME = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.-]+) = ")
_OPERATION = re.compile(r"\s*([a-z][a-z0-9-]*)\(")
_OPERAND = re.compile(r"%([\w.-]+)")
_CHAIN = re.compile(rf" ({'|'.join(COLLECTIVES)})\(.*chain_id=\"(\d+)\"")


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]


def count_collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Count the collectives of a compiled program's text: `count` and `bytes` by kind.

    The bytes of a collective are its data on one device, at the end where they are larger: the gathered result of an
    all-gather, the operand of a reduce-scatter. A collective that starts and ends in two instructions counts once, and
    so does one that the TPU compiler spreads over several fusions, which name a chain in common. The body of a loop
    counts once too, however often it runs.
    """
    found = [each for each in map(_parse, _one_of_each_chain(hlo.splitlines())) if each]
    shapes = {each.name: each.shape for each in found}
    ends = {each.operands[0]: each.shape for each in found if each.operation.endswith("-done") and each.operands}
    totals: dict[str, dict[str, int]] = {}
    for each in found:
        kind = each.operation.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        result = each.shape if kind == each.operation else ends.get(each.name, "")
        sent = sum(_bytes(shapes.get(name, "")) for name in each.operands)
        total = totals.setdefault(kind, {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += max(sent, _bytes(result))
    return dict(sorted(totals.items()))


def _one_of_each_chain(lines: Iterable[str]) -> Iterator[str]:
    """Yield all lines but the second and later ones of each chain of collectives."""
    seen = set()
    for line in lines:
        chain = _CHAIN.search(line)
        if chain is None or chain.groups() not in seen:
            yield line
        seen |= {chain.groups()} if chain else set()


def _parse(line: str) -> _Instruction | None:
    """Parse `%name = shape operation(operands), …`; return None for any other line."""
    named = _NAME.match(line)
    if not named:
        return None
    end = _close(line, named.end()) if line[named.end()] == "(" else line.find(" ", named.end())
    operation = _OPERATION.match(line, end)
    if end < 0 or not operation:
        return None
    operands = line[operation.end() : _close(line, operation.end() - 1)]
    return _Instruction(named[1], line[named.end() : end], operation[1], tuple(_OPERAND.findall(operands)))


def _close(text: str, opening: int) -> int:
    """Return the position after the bracket that closes the one at `opening`; -1 if there is none."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    return -1


def _bytes(shape: str) -> int:
    """Return the size of an array or tuple, such as `(f32[2,3]{1,0}, bf16[4]{0})`."""
    total = 0
    for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", shape)):  # a layout also has brackets
        bits = _BITS[dtype] if dtype in _BITS else int(re.search(r"\d+", dtype)[0])
        count = 1
        for size in sizes.replace("<=", "").split(","):
            count *= int(size) if size else 1
        total += -(-count * bits // 8)
    return total


def measure_memory(compiled: Any) -> dict[str, int] | None:
    """Return the bytes that a compiled program takes, by part, and their `peak`; None if the backend does not say.

    The state is donated: the new state lies in the memory of the old one. `own_results` are those beside it. `peak` is
    the sum, an upper bound.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "own_results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }
    return parts | {"peak": sum(parts.values())}


def count_operations(compiled: Any) -> dict[str, float | None]:
    """Return `flops`, `bytes` and the compiler's own `seconds` of a step; None where the compiler does not say."""
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    names = {"flops": "flops", "bytes": "bytes accessed", "seconds": "optimal_seconds"}
    return {name: analysis.get(key) for name, key in names.items()}


class Estimate(NamedTuple):
    """The estimated time of a step, in seconds, and its origin in words."""

    seconds: float | None
    origin: str


_COMPILERS = "the compiler's estimate"


def estimate_time(operations: Mapping[str, float | None], chip: Chip | None) -> Estimate:
    """Estimate the time of a step: the compiler's own figure, or the roofline where that figure is not credible.

    The roofline is the larger of operations / peak and bytes / bandwidth. No step is faster. The compiler's figure is
    credible from half the roofline, since the bytes are counted in two ways, to a hundred times it.
    """
    own, flops, moved = (operations[name] for name in ("seconds", "flops", "bytes"))
    if chip is None or not flops or not moved or min(flops, moved) < 0:
        if own is not None and own > 0:
            return Estimate(own, _COMPILERS)
        return Estimate(None, "unknown")
    roofline = max(flops / chip.flops, moved / chip.bandwidth)
    if own is None:
        return Estimate(roofline, "the roofline: the compiler has no estimate")
    if 0.5 * roofline <= own <= 100 * roofline:
        return Estimate(own, _COMPILERS)
    return Estimate(roofline, f"the roofline: the compiler's estimate, {own:.3g} s, is not credible")


def memory_of_device(device: jax.Device) -> float | None:
    """Return the memory of a device in bytes: as published, else as its driver reports; None if neither is known."""
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind].memory
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None


# "Ran out of memory on HBM, the total memory required for HLO temporaries (23.63G) exceeds available HBM (15.75G)." and
# "Ran out of memory in memory space hbm. Used 20.15G of 15.75G hbm."
_NEEDED = re.compile(r"([\d.]+)([KMGT]?)\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OutOfMemory(NamedTuple):
    """A refusal of the compiler: the program does not fit into the memory of the device.

    Attributes:
      needed: bytes that the program needs; None if the compiler does not say.
      limit: bytes that the device offers; None if the compiler does not say.
    """

    needed: float | None
    limit: float | None


def parse_refusal(error: Exception) -> OutOfMemory | None:
    """Return what a compiler's error says about memory; None for an error of another kind."""
    text = str(error)
    found = _NEEDED.search(text)
    if found:
        needed, limit = (float(found[i]) * _UNITS[found[i + 1].upper()] for i in (1, 3))
        return OutOfMemory(needed, limit)
    return OutOfMemory(None, None) if "RESOURCE_EXHAUSTED" in text else None


def largest_batch(
    memory_of: Callable[[int], tuple[bool, float | None]],
    *,
    too_large: int,
    needed: float | None,
    limit: float | None,
    unit: int,
    tries: int = 4,
) -> tuple[int, bool]:
    """Find the largest batch that fits, a multiple of `unit`, by few compilations.

    Memory is taken as linear in the batch. Each guess is compiled, and each compilation corrects the line. Where the
    line leads from one batch that does not fit to its neighbour, the next guess halves what is left.

    Args:
      memory_of: `batch -> (fits, bytes)`, a compilation; bytes may be None.
      too_large: a batch that does not fit.
      needed: bytes that it needs; None if unknown.
      limit: bytes of the device; None if unknown.
      unit: number of devices × micro-batches.
      tries: largest number of compilations.

    Returns:
      The largest batch that was compiled and fits, 0 if none did; and whether the next multiple is known not to fit.
    """
    fits, fails = 0, -(-too_large // unit)  # in units
    known, stuck = {fails: needed} if needed else {}, False
    while fails - fits > 1 and tries > 0:
        aimed = (fits + fails) // 2 if stuck else _guess(known, limit, fits, fails)
        guess = min(max(aimed, fits + 1), fails - 1)
        good, used = memory_of(guess * unit)
        stuck = not good and fails - guess < 0.1 * (fails - fits)  # memory is not linear here: halve the bracket
        fits, fails, tries = (guess, fails, tries - 1) if good else (fits, guess, tries - 1)
        if used:
            known[guess] = used
    return fits * unit, fails - fits == 1


def _guess(known: Mapping[int, float], limit: float | None, fits: int, fails: int) -> int:
    """Return where the line through two known sizes, or through one and the origin, reaches the limit."""
    if not known or not limit:
        return (fits + fails) // 2
    (first, at_first), (last, at_last) = min(known.items()), max(known.items())
    if len(known) == 1:
        return int(first * limit / at_first)
    slope = (at_last - at_first) / (last - first)
    return int(first + (limit - at_first) / slope) if slope > 0 else (fits + fails) // 2


class Compiled(NamedTuple):
    """A compiled program, the seconds that compiling took, and whether it was read from the cache instead."""

    program: jax.stages.Compiled
    seconds: float
    cached: bool


def compile_timed(lowered: jax.stages.Lowered) -> Compiled:
    """Compile a lowered program, or read it from JAX's compilation cache."""
    hits, start = _cache_hits(), time.perf_counter()
    before = len(hits)
    program = lowered.compile()
    return Compiled(program, time.perf_counter() - start, len(hits) > before)


@functools.cache
def _cache_hits() -> list[str]:
    """Return a list that grows with every program read from the compilation cache."""
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    return hits


def analyse(compiled: Compiled, *, images: int, device: jax.Device, devices: int = 1) -> dict[str, Any]:
    """Return all that is known of a compiled step, ready for JSON.

    Args:
      compiled: the compiled step.
      images: number of images of a step on one device.
      device: a device that it is compiled for.
      devices: number of devices.
    """
    chip, program = CHIPS.get(device.device_kind), compiled.program
    memory, operations = measure_memory(program), count_operations(program)
    limit, estimate = memory_of_device(device), estimate_time(operations, chip)
    rate = images * devices / estimate.seconds if estimate.seconds else None
    used = operations["flops"] / estimate.seconds / chip.flops if chip and estimate.seconds else None
    return {
        "memory": memory,
        "memory_limit": limit,
        "fits": None if limit is None or memory is None else memory["peak"] <= limit,
        "flops": operations["flops"],
        "bytes": operations["bytes"],
        "compiler_seconds": operations["seconds"],
        "estimated_seconds": estimate.seconds,
        "estimate": estimate.origin,
        "images_per_second": rate,
        "flop_utilisation": used,
        "collectives": count_collectives(program.as_text()),
        "compile_seconds": compiled.seconds,
        "from_cache": compiled.cached,
    }


class Plan(NamedTuple):
    """A training job that does not run yet.

    Attributes:
      title: name of the run.
      devices: all devices of the job, here or of a topology.
      batch_size: images of a step of one replica, over all devices.
      accumulate: micro-batches of a step.
      replicas: number of replicas.
      steps: number of steps of a call.
    """

    title: str
    devices: Sequence[jax.Device]
    batch_size: int
    accumulate: int
    replicas: int
    steps: int = 1

    def images(self, batch_size: int) -> int:
        """Return the images of a step on one device."""
        return batch_size * self.replicas // len(self.devices)


Lower = Callable[[str, int], jax.stages.Lowered]  # (training method, batch size)


def report(plan: Plan, methods: Sequence[str], lower: Lower, say: Callable[[str], None]) -> dict[str, Any]:
    """Compile the step of each training method, and return what it takes, ready for JSON.

    If a step does not fit, the largest batch that fits is searched for by a few more compilations.

    Args:
      plan: the job.
      methods: training methods; the first is the reference of the others.
      lower: `(method, batch size) -> lowered step`.
      say: prints a line of progress.
    """
    found = {}
    for method in methods:
        say(f"compiling the step of {method}")
        found[method] = _compile(plan, lower, method, plan.batch_size)
        if found[method]["fits"] is False:
            found[method]["largest_batch"] = _search(plan, lower, method, found[method], say)
    kind = plan.devices[0].device_kind
    chip = CHIPS.get(kind)
    return {
        "title": plan.title,
        "device": {"kind": kind, **(chip._asdict() if chip else {})},
        "devices": len(plan.devices),
        "processes": _hosts(plan),
        "batch_size": plan.batch_size,
        "accumulate": plan.accumulate,
        "replicas": plan.replicas,
        "methods": found,
        "versions": versions(),
        "about": describe_plan(plan),
        "remarks": _remarks(plan, found),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages, with that of the TPU compiler if it is here."""
    try:
        return files.versions() | {"libtpu": importlib.metadata.version("libtpu")}
    except importlib.metadata.PackageNotFoundError:
        return files.versions()


def _hosts(plan: Plan) -> int:
    return len({device.process_index for device in plan.devices})


def _compile(plan: Plan, lower: Lower, method: str, batch_size: int) -> dict[str, Any]:
    """Compile a step and analyse it; if the compiler refuses it for its memory, return what the compiler says."""
    lowered, start = lower(method, batch_size), time.perf_counter()
    device = plan.devices[0]
    try:
        compiled = compile_timed(lowered)
    except jax.errors.JaxRuntimeError as error:
        refusal = parse_refusal(error)
        if refusal is None:
            raise
        limit = refusal.limit or memory_of_device(device)
        seconds = time.perf_counter() - start
        return {"memory": {"peak": refusal.needed}, "memory_limit": limit, "fits": False, "compile_seconds": seconds}
    return analyse(compiled, images=plan.images(batch_size), device=device, devices=len(plan.devices))


def _search(plan: Plan, lower: Lower, method: str, refused: Mapping[str, Any], say: Callable[[str], None]) -> dict:
    """Return the largest batch of a method that fits, and whether the next one is known not to fit."""

    def memory_of(batch_size: int) -> tuple[bool, float | None]:
        tried = _compile(plan, lower, method, batch_size)
        say(f"batch {batch_size}: {show_bytes(tried['memory']['peak'])}, {'fits' if tried['fits'] else 'does not fit'}")
        return bool(tried["fits"]), tried["memory"]["peak"]

    needed, limit = refused["memory"]["peak"], refused["memory_limit"]
    say(f"batch {plan.batch_size}: {show_bytes(needed)} of {show_bytes(limit)}, does not fit")
    unit = len(plan.devices) * plan.accumulate
    size, exact = largest_batch(memory_of, too_large=plan.batch_size, needed=needed, limit=limit, unit=unit)
    return {"batch_size": size, "exact": exact}


def _remarks(plan: Plan, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what the reader of the numbers has to know."""
    remarks = []
    for method, each in found.items():
        if "largest_batch" in each:
            size, exact = each["largest_batch"].values()
            fit = f"{size} is the largest that fits" if exact else f"{size} fits, and a larger one may"
            none = "not even one image per device and micro-batch fits" if exact else "nor do the smaller ones tried"
            does_not = f"{method}: a batch of {plan.batch_size} does not fit"
            remarks.append(f"{does_not}; {fit if size else none} (config.train.batch_size)")
        elif each["estimate"] not in ("unknown", _COMPILERS):
            remarks.append(f"{method}: the time is {each['estimate']}")
    if any(each.get("estimate") == "unknown" for each in found.values()):
        remarks.append(f"{plan.devices[0].device_kind}: no figures of this device are known, so no time is estimated")
    if plan.accumulate > 1:
        remarks.append(f"a loop's body counts once: FLOPs, bytes and time are of one micro-batch of {plan.accumulate}")
    if plan.steps > 1:
        remarks.append(f"the memory is that of a call of {plan.steps} steps; the compiler counts one of them")
    return [*remarks, *_ABOUT]


_ABOUT = (
    "all rows are of one step on one device, unless they say otherwise; docs/scaling.md explains them",
    "times are estimates, nothing was run; FLOPs are those that the compiler counts",
)


def describe_plan(plan: Plan) -> list[str]:
    """Return the job in lines: devices, processes, mesh, global and local batch."""
    count, hosts = len(plan.devices), _hosts(plan)
    micro = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
    several = f" for each of {plan.replicas} replicas" if plan.replicas > 1 else ""
    share, own = plan.batch_size // count, count // hosts
    return [
        f"{plan.title}: the step on {count} × {plan.devices[0].device_kind}",
        f"processes: {hosts}, each with {own} device{'s' if own > 1 else ''}; mesh: {count} along the batch",
        f"batch: {plan.batch_size} images{several}, {share} per device{micro}",
    ]


def describe_step(compiled: Compiled, what: str = "step") -> str:
    """Return a line about a compiled step: the time that compiling took, and the memory of a device."""
    verb = "read from the compilation cache" if compiled.cached else "compiled"
    memory = measure_memory(compiled.program)
    if memory is None:
        return f"{what}: {verb} in {compiled.seconds:.1f} s"
    parts = ", ".join(f"{name} {show_bytes(memory[name])}" for name in ("arguments", "temporaries"))
    return f"{what}: {verb} in {compiled.seconds:.1f} s; at most {show_bytes(memory['peak'])} on each device ({parts})"


def state_bytes(state: Any) -> int:
    """Return the bytes of a state's arrays on one device."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def show_bytes(count: float | None) -> str:
    """Return a size as text, such as "5.1 GiB"."""
    if count is None:
        return "unknown"
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def describe(report: Mapping[str, Any]) -> str:
    """Return the table of `--compile_only`: one row per number, one column per training method."""
    methods = report["methods"]
    rows = [["", *methods], *([label, *map(show, methods.values())] for label, show in _ROWS.items())]
    kinds = sorted({kind for each in methods.values() for kind in each.get("collectives", ())})
    rows += [[kind, *(_collective(each, kind) for each in methods.values())] for kind in kinds]
    first = next(iter(methods.values()))
    if len(methods) > 1:
        rows += [[label, *(_ratio(each, first, key) for each in methods.values())] for label, key in _RATIOS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([*report["about"], "", *aligned, "", *report["remarks"]])


def _number(key: str, pattern: str, scale: float = 1.0) -> Callable[[Mapping[str, Any]], str]:
    return lambda each: "unknown" if each.get(key) is None else pattern.format(each[key] * scale)


def _part(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda each: show_bytes((each.get("memory") or {}).get(name))


def _fits(each: Mapping[str, Any]) -> str:
    return {True: "yes", False: "NO", None: "unknown"}[each["fits"]]


_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "fits": _fits,
    "peak, at most": _part("peak"),
    "· arguments": _part("arguments"),
    "· results beside the state": _part("own_results"),
    "· temporaries": _part("temporaries"),
    "· program": _part("program"),
    "memory of a device": lambda each: show_bytes(each["memory_limit"]),
    "GFLOPs": _number("flops", "{:,.4g}", 1e-9),
    "GB read and written": _number("bytes", "{:,.4g}", 1e-9),
    "estimated ms of a step": _number("estimated_seconds", "{:,.4g}", 1e3),
    "estimated images/s, all devices": _number("images_per_second", "{:,.0f}"),
    "estimated FLOP utilisation": _number("flop_utilisation", "{:.1%}"),
    "time of compiling, s": _number("compile_seconds", "{:,.1f}"),
}
_RATIOS = {"× FLOPs": "flops", "× bytes": "bytes", "× estimated time": "estimated_seconds"}


def _collective(each: Mapping[str, Any], kind: str) -> str:
    found = each.get("collectives", {}).get(kind)
    return f"{found['count']} with {show_bytes(found['bytes'])}" if found else "–"


def _ratio(each: Mapping[str, Any], first: Mapping[str, Any], key: str) -> str:
    return f"{each[key] / first[key]:.2f}" if each.get(key) and first.get(key) else "unknown"


def parameter_count(state: Any) -> int:
    """Return the number of parameters of a state."""
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))
