"""The estimate of a run, as text for a terminal."""

from typing import TYPE_CHECKING, Any

from deepspec.planning.estimate import CODECS, in_units

if TYPE_CHECKING:
    from rich.console import Console


def show(estimated: dict[str, Any], console: "Console") -> None:
    """The estimate for people, in lines of 80 characters at most (long paths apart)."""
    for line in _lines(estimated):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(found: dict[str, Any]) -> list[str]:
    states, sizes = found["states"], found["states"]["bytes"]
    lines = [
        f"{found['recipe']} on {found['target']}",
        _row("data", f"{found['conversations']:,} conversations of {found['mean_tokens']:,.0f} tokens"),
        _row("", f"{found['tokens']:,} tokens, {states['captured_tokens']:,} of them trained on"),
        _row("states", f"{in_units(sizes['reference_bf16']):>10}  in the reference layout (bf16)"),
    ]
    for codec in (codec for codec in CODECS if codec in sizes):
        chosen = "  <- states.codec" if codec == states["codec"] else ""
        lines.append(_row("", f"{in_units(sizes[codec]):>10}  ours, {codec}{chosen}"))
    recommended = found["recommendation"]
    lines += _wrapped("advice", f"{recommended['mode']}. {recommended['reason']}")
    if recommended["mode"] != states["mode"]:
        lines.append(_row("", f"states.mode={states['mode']} is what the recipe says"))
    work = ", ".join(f"{name} {flops:.2g}" for name, flops in found["flops"].items())
    lines.append(_row("work", f"{work} floating point operations"))
    gpu = found.get("gpu")
    if gpu:
        hours = ", ".join(f"{name} {value:,.1f} h" for name, value in gpu["hours"].items())
        lines.append(_row("time", f"{hours}"))
        lines.append(_row("", f"on {gpu['num']} x {gpu['name']} at {gpu['assumed_utilisation']:.0%} of peak (assumed)"))
        if gpu["cost"] is not None:
            lines.append(_row("cost", f"{gpu['cost']:,.0f} {gpu['currency']} for {gpu['gpu_hours']:,.0f} GPU hours"))
    else:
        lines.append(_row("time", "say --gpu NAME --num-gpus N for hours"))
    taken = found["memory"]
    parts = taken["training"]
    batch = taken["micro_batch"]
    lines.append(
        _row("memory", f"{in_units(taken['training_bytes']):>10}  each training process, on {taken['device']}")
    )
    lines.append(_row("", f"{in_units(parts['weights_gradients_moments']):>10}    weights, gradients, moments"))
    lines.append(_row("", f"{in_units(parts['tables'] + parts['target']):>10}    of the target"))
    size = f"{batch['tokens']:,} tokens, {batch['documents']:,} documents"
    lines.append(_row("", f"{in_units(parts['largest_moment']):>10}    a micro-batch of {size}"))
    lines.append(_row("", f"{in_units(taken['capture_bytes']):>10}  the capture of states"))
    fits = taken.get("fits")
    if fits:
        for what in ("training", "capture"):
            fit = "fits into" if fits[what] else "does NOT fit into"
            lines.append(
                _row("", f"{what} {fit} the {in_units(fits['gpu_bytes'])} of one {gpu['name'] if gpu else ''}")
            )
        if not fits["training"]:
            lines.append(_row("", f"lower {' or '.join(fits['lower'])},"))
            lines.append(_row("", "or set run.recompute_activations=true or run.parallel=fsdp"))
    for name, place in found["room"].items():
        free = "free space not known" if place["free_bytes"] is None else f"{in_units(place['free_bytes'])} free"
        short = "  NOT ENOUGH" if place["enough"] is False else ""
        lines.append(
            _row("room" if name == "store" else "", f"{name} needs {in_units(place['needed_bytes'])}, {free}{short}")
        )
        lines.append(_row("", f"  {place['place']}"))
    return lines


def _row(name: str, text: str) -> str:
    return f"{name:<8}{text}".rstrip()


def _wrapped(name: str, text: str) -> list[str]:
    import textwrap

    first, *rest = textwrap.wrap(text, 72)
    return [_row(name, first), *(_row("", line) for line in rest)]
