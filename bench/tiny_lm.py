"""`python -m bench.tiny_lm --out DIR`: a small but complete language model, for measurements on two cores.

The model has three layers of GPT-NeoX, 128 wide, and a BPE vocabulary of 8,000 tokens. It is pretrained on the
knowledge articles of the `wikipedia` asset. It is not a good language model, but its perplexity on the held-out
articles is meaningful, in contrast to that of the first layers of a larger model. The result is a Hugging Face folder
for `--backbone.name DIR`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from training.cli.common.command import run_command
from training.cli.common.numbers import Seed, finite
from training.cli.common.paths import output_folder
from training.cli.common.quiet import quiet_libraries
from training.data.general_text import held_out_articles, knowledge_articles, token_windows
from training.loop.schedule import rate_factor
from training.model.backbones import train_tokenizer
from training.outputs import write_json
from training.preservation.general import general_figures
from training.settings import MOST, MOST_THREADS

WINDOW = 128
BATCH = 16


def main(
    out: Annotated[Path, typer.Option(help="folder to write", callback=output_folder)],
    epochs: Annotated[
        float, typer.Option(min=0.001, max=MOST, callback=finite, help="passes over the text")
    ] = 10,
    learning_rate: Annotated[float, typer.Option(min=0, max=MOST, callback=finite)] = 2e-3,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS)] = 1,
    seed: Seed = 0,
) -> None:
    quiet_libraries()
    console = Console()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    articles = knowledge_articles()
    tokenizer = train_tokenizer([article.text for article in articles], 8000)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=512, hidden_dropout=0.1, attention_dropout=0.0, max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    windows = token_windows(tokenizer, articles, WINDOW)
    held_out = token_windows(tokenizer, held_out_articles(), WINDOW, 32768)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    total = round(epochs * len(windows) / BATCH)
    begin = time.perf_counter()
    order: list[int] = []
    rng = np.random.default_rng(seed)
    for step in range(total):
        if len(order) < BATCH:
            order = rng.permutation(len(windows)).tolist()
        chosen = [order.pop() for _ in range(BATCH)]
        ids = torch.from_numpy(windows[chosen])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor((step + 1) / total, 0.05, 0.05)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 200 == 0 or step + 1 == total:
            figures = general_figures(model, held_out, len(tokenizer))
            seconds = time.perf_counter() - begin
            console.print(
                f"step {step + 1} of {total}, {seconds:.0f} s: loss {loss.item():.3f}, held-out perplexity "
                f"{figures.perplexity:.1f}, accuracy {figures.accuracy:.3f}"
            )
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {"epochs": epochs, "windows": len(windows), "perplexity": figures.perplexity}
    write_json(out / "pretraining.json", record)


if __name__ == "__main__":
    run_command(main, "bench.tiny_lm")
