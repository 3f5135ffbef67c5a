"""Bench "states": bytes, reading and capture of target states.

Three parts.

* Files of random states, larger in a few channels as real ones are, in every codec: their bytes, and how fast they are
  read and decoded to bfloat16, against `cat` of the same files; the page cache is dropped before each run of either.
  `read_to_cat` reads them in the order of the files, as `cat` does, `read_to_cat_shuffled` in a training's. They lie
  in the current folder: where that is in memory, nothing is measured. Small files may come from the disk's own cache,
  which is faster than they can be checked and decoded.
* Capture by a target shaped like the demo's: which share of the time is the target's forward.
* What codecs cost: total variation between the target's distributions from exact final states and from decoded ones,
  at tokens that the target itself has drawn.

Shapes: T tokens of a document, L layers, D hidden, N tokens.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from deepspec.bench import measuring
from deepspec.data.tokens.encode import mask_to_runs
from deepspec.errors import DeepspecError
from deepspec.states.capture.survey import Survey
from deepspec.states.capture.writer import RunTarget, gather_shards, write_shards, write_states
from deepspec.states.config import Config
from deepspec.states.format.codecs import CODECS
from deepspec.states.format.layout import has_final
from deepspec.states.order import pack
from deepspec.states.reader import StateReader
from deepspec.states.token_documents import Document
from deepspec.targets.directory import read_spec
from deepspec.targets.model import Target, TargetOutput

_LENGTHS = (64, 1024)
_PROMPT_SHARE = 0.25
_OUTLIERS = 8
_OUTLIER_FACTOR = 100.0
_BATCH_TOKENS = 4096
_DRAWN_ROWS = 32
_WEIGHTY_BYTES = 1 << 20
_DROPS = 20
_DEMO: Mapping[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 20,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 704,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
_DEMO_LAYERS = (3, 10, 17)


@dataclass(frozen=True)
class Sizes:
    """What is measured; see `add_arguments`."""

    tokens: int
    hidden: int
    layers: int
    capture_tokens: int
    target: str
    device: str
    folder: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of this bench."""
    parser.add_argument("--tokens", type=measuring.positive, default=131072, help="tokens in the files (%(default)s)")
    parser.add_argument("--hidden", type=measuring.positive, default=1024, help="numbers per state (%(default)s)")
    parser.add_argument("--layers", type=measuring.positive, default=5, help="captured layers (%(default)s)")
    parser.add_argument(
        "--capture-tokens", type=measuring.positive, default=32768, help="tokens that are captured (%(default)s)"
    )
    parser.add_argument(
        "--target", help="directory of the target that is captured; default: the demo's, or a random one"
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bench's document."""
    with tempfile.TemporaryDirectory(prefix="bench-states-", dir=Path.cwd()) as folder:
        sizes = Sizes(
            tokens=options.tokens,
            hidden=options.hidden,
            layers=options.layers,
            capture_tokens=options.capture_tokens,
            target=options.target or _demo_target(),
            device=options.device,
            folder=folder,
        )
        files = {codec: RandomFiles(sizes, codec) for codec in CODECS}
        read = {codec: _read_and_cat(made, options.repeat) for codec, made in files.items()}
        warm_up = replace(sizes, folder=str(Path(folder) / "small"), tokens=_BATCH_TOKENS)
        RandomFiles(warm_up, "bf16")
        peak = measuring.extra_peak_bytes(prepare, sizes, warm_up, "ours", "cpu")
        target = _load_target(sizes)
        _capture(target, replace(sizes, capture_tokens=min(1024, sizes.capture_tokens)), Path(folder))
        shares = [_capture(target, sizes, Path(folder)) for _ in range(options.repeat)]
        quality = _total_variation(target, sizes)
    bytes_of = {codec: made.size for codec, made in files.items()}
    rates = {codec: (median["ours"], median["reference"]) for codec, median in read.items()}
    shuffled = (read["bf16"]["shuffled"], read["bf16"]["reference"])
    kept = {name: value for name, value in asdict(sizes).items() if name not in ("device", "folder")}
    return {
        "bench": "states",
        "device": measuring.device_name(options.device),
        "sizes": {**kept, "threads": torch.get_num_threads(), "repeat": options.repeat},
        "ours": {
            "bytes": bytes_of,
            "read_bytes_per_second": {codec: round(rate[0]) for codec, rate in rates.items()},
            "read_extra_peak_bytes": peak,
            "capture_tokens_per_second": round(statistics.median(rate for _, rate in shares), 1),
        },
        "reference": {"read_bytes_per_second": {codec: round(rate[1]) for codec, rate in rates.items()}},
        "ratio": {
            "bytes_int8": measuring.ratio(bytes_of["int8"], bytes_of["bf16"]),
            "bytes_int4": measuring.ratio(bytes_of["int4"], bytes_of["bf16"]),
            "read_to_cat": measuring.ratio(*rates["bf16"]),
            "read_to_cat_int8": measuring.ratio(*rates["int8"]),
            "read_to_cat_shuffled": measuring.ratio(*shuffled),
            "read_to_cat_int4": measuring.ratio(*rates["int4"]),
        },
        "capture_target_share": round(statistics.median(share for share, _ in shares), 4),
        "quality": quality,
    }


class RandomFiles:
    """A folder of random states, written by the writer of real ones.

    Attributes:
        folder: where.
        size: bytes of all files.
        decoded: bytes of its states in bfloat16.
    """

    def __init__(self, sizes: Sizes, codec: str, *, row_group_tokens: int = 4096) -> None:
        root = Path(sizes.folder)
        root.mkdir(exist_ok=True)
        tokens = root / "tokens.parquet"
        documents = _write_tokens(tokens, sizes.tokens, vocab_size=1000)
        self.folder = root / codec
        self.folder.mkdir()
        config = Config.model_validate({"codec": codec, "row_group_tokens": row_group_tokens})
        survey = Survey.of(tokens, config)
        origin = _Random(sizes)
        write_shards(survey, self.folder, range(survey.places.num_shards), origin=origin, config=config)
        gather_shards(
            survey,
            self.folder,
            self.folder,
            layer_ids=origin.layer_ids,
            hidden_size=origin.hidden_size,
            config=config,
        )
        self.size = sum(path.stat().st_size for path in self.paths())
        finals = sum(int(has_final(supervised_T).sum()) for supervised_T in documents)
        self.decoded = 2 * sizes.hidden * (sizes.tokens * sizes.layers + finals)

    def paths(self) -> list[Path]:
        """Its files."""
        return sorted(self.folder.iterdir())


class _Random:
    """A `StateOrigin` of random numbers; a few channels are a hundred times larger than the rest."""

    stretch_tokens = _BATCH_TOKENS

    def __init__(self, sizes: Sizes) -> None:
        self.layer_ids = tuple(range(sizes.layers))
        self.hidden_size = sizes.hidden
        generator = torch.Generator().manual_seed(0)
        self._factors_D = torch.ones(sizes.hidden)
        self._factors_D[torch.randperm(sizes.hidden, generator=generator)[:_OUTLIERS]] = _OUTLIER_FACTOR

    def states(self, documents: Any) -> Any:
        """One batch of all the documents."""
        tokens = sum(len(document.input_ids_T) for document in documents)
        generator = torch.Generator().manual_seed(documents[0].index)
        drawn = torch.randn(tokens, len(self.layer_ids) + 1, self.hidden_size, generator=generator)
        states_TCD = (drawn * self._factors_D).bfloat16()
        yield list[Document](documents), states_TCD[:, :-1], states_TCD[:, -1]


def _write_tokens(path: Path, num_tokens: int, *, vocab_size: int) -> list[npt.NDArray[np.bool_]]:
    """A tokens file of random documents; returns their loss masks."""
    random = np.random.default_rng(0)
    ids, masks = [], []
    while num_tokens:
        length = min(num_tokens, int(random.integers(*_LENGTHS)))
        ids.append(random.integers(0, vocab_size, size=length, dtype=np.int32))
        masks.append(np.arange(length) >= int(_PROMPT_SHARE * length))
        num_tokens -= length
    lists = pa.list_(pa.int32())
    runs = [mask_to_runs(mask) for mask in masks]
    pq.write_table(pa.table({"input_ids": pa.array(ids, lists), "mask_runs": pa.array(runs, lists)}), path)
    return masks


def _read_and_cat(files: RandomFiles, repeat: int) -> dict[str, float]:
    """Bytes per second of both sides, medians of runs that take turns; each starts without cached pages."""
    sides: dict[str, tuple[int, Callable[[], None]]] = {
        "ours": (files.decoded, lambda: _read(files.folder, shuffled=False)),
        "shuffled": (files.decoded, lambda: _read(files.folder, shuffled=True)),
        "reference": (files.size, lambda: _read_with_cat(files.paths())),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeat + 1):
        for side, (_, run) in sides.items():
            _drop_cached_pages(files.paths())
            start = time.perf_counter()
            run()
            if turn:
                seconds[side].append(time.perf_counter() - start)
    return {side: size / statistics.median(seconds[side]) for side, (size, _) in sides.items()}


def _read(folder: Path, *, shuffled: bool) -> None:
    """Every document once, in the order of the files as `cat` reads them, or in that of a training."""
    reader = StateReader(folder)
    documents = list(range(reader.num_documents))
    if shuffled:
        documents = reader.order(0).documents(0, reader.num_documents).tolist()
    lengths = [int(reader.num_tokens_of[number]) for number in documents]
    batches = [[documents[place] for place in places] for places in pack(lengths, _BATCH_TOKENS)]
    reader.read_ahead(batches[0])
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        reader.read_ahead(following)
        reader.with_states(reader.tokens(batch))


def _read_with_cat(paths: list[Path]) -> None:
    command = ["cat", *map(str, paths)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _drop_cached_pages(paths: list[Path]) -> None:
    """Make the kernel forget what it keeps of these files; pages that are not on the disk yet would stay.

    Raises:
        DeepspecError: this system cannot be asked to, or keeps them all the same.
    """
    if not hasattr(os, "posix_fadvise"):
        raise DeepspecError("cached pages of a file cannot be dropped here.", remedy="Measure on Linux.")
    gc.collect()  # pages that an unused reader still maps would stay
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            for _ in range(_DROPS):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if path.stat().st_size < _WEIGHTY_BYTES or not _is_cached(file.fileno()):
                    break
                time.sleep(0.05)  # a page that is on its way stays until it has arrived
            else:
                raise DeepspecError(
                    "the kernel keeps cached pages that posix_fadvise should have dropped.",
                    where=str(path),
                    remedy="Measure in a folder that is on a disk.",
                )
    time.sleep(0.05)
    for path in paths:  # the question itself makes the kernel read ahead
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_cached(file: int) -> bool:
    """Whether the middle of a file can be read without waiting for its disk."""
    try:
        return os.preadv(file, [bytearray(1)], os.fstat(file).st_size // 2, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    except OSError:  # a file system that cannot tell
        return False


def prepare(sizes: Sizes, side: str) -> measuring.Run:
    """One pass over the bf16 files in `sizes.folder`, for the measurement of memory."""
    del side
    return lambda: _read(Path(sizes.folder) / "bf16", shuffled=True)


class _Timed(Target):
    """A target that knows how long its forwards took."""

    seconds = 0.0

    def forward(self, *arguments: Any, **more: Any) -> TargetOutput:
        """See `Target.forward`."""
        start = time.perf_counter()
        output = super().forward(*arguments, **more)
        measuring.finish(str(self.device))
        self.seconds += time.perf_counter() - start
        return output


def _demo_target() -> str:
    """The demo's target in the home folder, or "random" where there is none."""
    path = Path(os.environ.get("DEEPSPEC_HOME", ".deepspec")) / "demo" / "target"
    return str(path) if (path / "config.json").is_file() else "random"


def _load_target(sizes: Sizes) -> _Timed:
    """The target of a measurement; a random one is written to the measurement's folder."""
    path = Path(sizes.target)
    if sizes.target == "random":
        path = Path(sizes.folder) / "target"
        _write_random_target(path)
    layers = tuple(layer for layer in _DEMO_LAYERS if layer < read_spec(path).num_layers - 1) or (-1,)
    dtype = "bfloat16" if torch.device(sizes.device).type == "cuda" else "float32"
    target = _Timed.load(path, device=sizes.device, dtype=dtype, layer_ids=layers)
    if not isinstance(target, _Timed):
        raise TypeError(f"expected a target that is timed, got {type(target).__name__}")
    return target


def _write_random_target(folder: Path) -> None:
    """A target shaped like the demo's, with random weights."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_DEMO), encoding="utf-8")
    width, head = _DEMO["hidden_size"], _DEMO["head_dim"]
    queries, keys, inner = (
        _DEMO["num_attention_heads"] * head,
        _DEMO["num_key_value_heads"] * head,
        _DEMO["intermediate_size"],
    )
    matrices = {"self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width)}
    matrices |= {"self_attn.v_proj": (keys, width), "self_attn.o_proj": (width, queries)}
    matrices |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    norms = {"self_attn.q_norm": head, "self_attn.k_norm": head}
    norms |= {"input_layernorm": width, "post_attention_layernorm": width}
    generator = torch.Generator().manual_seed(0)
    weights = {"model.embed_tokens.weight": torch.randn(_DEMO["vocab_size"], width, generator=generator)}
    weights["model.norm.weight"] = torch.ones(width)
    for layer in range(_DEMO["num_hidden_layers"]):
        below = f"model.layers.{layer}"
        for name, shape in matrices.items():
            weights[f"{below}.{name}.weight"] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
        weights |= {f"{below}.{name}.weight": torch.ones(size) for name, size in norms.items()}
    weights["model.embed_tokens.weight"] *= width**-0.5  # as the demo's target begins
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _capture(target: _Timed, sizes: Sizes, folder: Path) -> tuple[float, float]:
    """One capture with the codec bf16: the share of its time that the target's forward took, and tokens per second."""
    tokens = folder / "captured.parquet"
    _write_tokens(tokens, sizes.capture_tokens, vocab_size=target.spec.vocab_size)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        target.seconds = 0.0
        start = time.perf_counter()
        write_states(tokens, Path(out), origin=RunTarget(target, _BATCH_TOKENS), config=Config())
        seconds = time.perf_counter() - start
    return target.seconds / seconds, sizes.capture_tokens / seconds


def _total_variation(target: Target, sizes: Sizes) -> dict[str, float]:
    """Mean over positions of ½ Σ_v |p_v - p'_v|, p from the final states and p' from decoded ones."""
    with torch.no_grad():
        final_N1D = _drawn_states(target, min(_BATCH_TOKENS, sizes.capture_tokens)).unsqueeze(1).bfloat16()
        exact_NV = target.logits(final_N1D[:, 0].to(target.dtype)).float().softmax(-1)
        found = {}
        for name in ("int8", "int4"):
            decoded_N1D = torch.empty(final_N1D.shape, dtype=torch.bfloat16)
            codec = CODECS[name]["final"]
            codec.decode_into(codec.encode(final_N1D), decoded_N1D)
            other_NV = target.logits(decoded_N1D[:, 0].to(target.device, target.dtype)).float().softmax(-1)
            found[f"tv_{name}"] = round(float((exact_NV - other_NV).abs().sum(-1).mean()) / 2, 6)
    return found


def _drawn_states(target: Target, num_tokens: int) -> torch.Tensor:
    """Final states [N, D] at tokens that the target drew after a random first one: what it is made for."""
    rows = min(_DRAWN_ROWS, num_tokens)
    generator = torch.Generator(device=target.device).manual_seed(0)
    ids_B1 = torch.randint(0, target.spec.vocab_size, (rows, 1), generator=generator, device=target.device)
    steps = max(1, num_tokens // rows)
    cache = target.allocate_cache(rows, steps)
    found = []
    for _ in range(steps):
        final_BD = target.forward(ids_B1, cache=cache).final_BQD[:, -1]
        found.append(final_BD)
        ids_B1 = torch.multinomial(target.logits(final_BD).float().softmax(-1), 1, generator=generator)
    return torch.cat(found)


def lines(document: Mapping[str, Any]) -> list[list[str]]:
    """The document as a table for people."""
    ours, ratio = document["ours"], document["ratio"]
    cat = document["reference"]["read_bytes_per_second"]
    rows = [["", *CODECS]]
    rows.append(["bytes to bf16", "1", f"{ratio['bytes_int8']:.3f}", f"{ratio['bytes_int4']:.3f}"])
    for name, rates in (("decoded MiB/s", ours["read_bytes_per_second"]), ("cat MiB/s", cat)):
        rows.append([name, *(f"{rates[codec] / 2**20:.0f}" for codec in CODECS)])
    reads = [ratio[name] for name in ("read_to_cat", "read_to_cat_int8", "read_to_cat_int4")]
    rows.append(["read to cat", *(f"{value:.2f}" for value in reads)])
    quality = document["quality"]
    rows.append(["total variation", "0", f"{quality['tv_int8']:.2%}", f"{quality['tv_int4']:.2%}"])
    rows.append(["capture in target", f"{document['capture_target_share']:.1%}", "", ""])
    return rows
