"""The estimate of a run, as text for a terminal."""

from typing import TYPE_CHECKING

from deepspec.gates.detectable import limits
from deepspec.planning.estimate import CODECS
from deepspec.planning.results import Estimate, GpuEstimate, MemoryEstimate, PlaceEstimate
from deepspec.units import in_units
from flows.cli.terminal import say

if TYPE_CHECKING:
    from rich.console import Console


def show(estimate: Estimate, console: "Console") -> None:
    """The estimate for people, in lines of 80 characters at most, long paths excepted."""
    say(console, *_lines(estimate))


def _lines(found: Estimate) -> list[str]:
    states, sizes = found.states, found.states.bytes_by_layout
    lines = [
        f"{found.recipe} on {found.target}",
        _row("data", f"{found.conversations:,} conversations of {found.mean_tokens:,.0f} tokens"),
        _row("", f"{found.tokens:,} tokens, {states.captured_tokens:,} of them trained on"),
        _row("states", f"{in_units(sizes['reference_bf16']):>10}  in the reference layout (bf16)"),
    ]
    for codec in (codec for codec in CODECS if codec in sizes):
        chosen = "  <- states.codec" if codec == states.codec else ""
        lines.append(_row("", f"{in_units(sizes[codec]):>10}  ours, {codec}{chosen}"))
    recommended = found.recommendation
    lines += _wrapped("advice", f"{recommended.mode}. {recommended.reason}")
    if recommended.mode != states.mode:
        lines.append(_row("", f"states.mode={states.mode} is what the recipe says"))
    work = ", ".join(f"{name} {flops:.2g}" for name, flops in found.flops.items())
    lines.append(_row("work", f"{work} floating point operations"))
    lines += _time(found.gpu)
    if found.memory is not None:
        lines += _memory(found.memory, found.gpu)
    if found.gate is not None:
        assumed = "" if found.gate.measured else " If prompts differ as the demo's do."
        lines += _wrapped("gate", f"{limits(found.gate, found.wanted_tau_gain)}{assumed}")
    for engine, reason in (found.not_loaded or {}).items():
        lines += _wrapped("REFUSED", f"whatever is trained, for {engine} cannot load it: {reason}.")
    if found.room is not None:
        lines += _place("room", "store", found.room.store) + _place("", "home", found.room.home)
    return lines


def _time(gpu: GpuEstimate | None) -> list[str]:
    if gpu is None:
        return [_row("time", "say --gpu NAME --num-gpus N for hours")]
    hours = ", ".join(f"{name} {value:,.1f} h" for name, value in gpu.hours.items())
    assumed = f"at {gpu.assumed_utilisation:.0%} of peak (assumed)"
    lines = [_row("time", hours), _row("", f"on {gpu.num_gpus} x {gpu.name} {assumed}")]
    if gpu.cost is not None:
        lines.append(_row("cost", f"{gpu.cost:,.0f} {gpu.currency} for {gpu.gpu_hours:,.0f} GPU hours"))
    return lines


def _memory(taken: MemoryEstimate, gpu: GpuEstimate | None) -> list[str]:
    parts, batch = taken.training, taken.micro_batch
    size = f"{batch.tokens:,} tokens, {batch.documents:,} documents"
    lines = [
        _row("memory", f"{in_units(taken.training_bytes):>10}  each training process, on {taken.device}"),
        _row("", f"{in_units(parts.weights_gradients_moments_bytes):>10}    weights, gradients, moments"),
        _row("", f"{in_units(parts.tables_bytes + parts.target_bytes):>10}    of the target"),
        _row("", f"{in_units(parts.largest_moment_bytes):>10}    a micro-batch of {size}"),
        _row("", f"{in_units(taken.capture_bytes):>10}  the capture of states"),
    ]
    if fits := taken.fits:
        one = f"the {in_units(fits.gpu_bytes)} of one {gpu.name if gpu else ''}"
        for what, fit in (("training", fits.training), ("capture", fits.capture)):
            lines.append(_row("", f"{what} {'fits into' if fit else 'does NOT fit into'} {one}"))
        if not fits.training:
            lines.append(_row("", f"lower {' or '.join(fits.lower)},"))
            lines.append(_row("", "or set run.recompute_activations=true or run.parallel=fsdp"))
    return lines


def _place(title: str, name: str, place: PlaceEstimate) -> list[str]:
    free = "free space not known" if place.free_bytes is None else f"{in_units(place.free_bytes)} free"
    short = "  NOT ENOUGH" if place.enough is False else ""
    return [_row(title, f"{name} needs {in_units(place.needed_bytes)}, {free}{short}"), _row("", f"  {place.place}")]


def _row(name: str, text: str) -> str:
    return f"{name:<8}{text}".rstrip()


def _wrapped(name: str, text: str) -> list[str]:
    import textwrap

    first, *rest = textwrap.wrap(text, 72)
    return [_row(name, first), *(_row("", line) for line in rest)]
