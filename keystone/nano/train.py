"""Train keystone-nano, the base that ships, from scratch: `python -m keystone.nano.train OUT --minutes 90`.

A run is bounded by time, not by a step count: the learning rate is warmed up, held, and brought down over the last
part of the given minutes, whatever number of steps that is on the machine at hand. The number of steps taken, the
tokens seen and the loss along the way are written beside the weights, so the model card can say what happened.

Two optimisers share the work: Muon for the layers' matrices, which learn in fewer tokens that way, and AdamW for
embeddings, norms and gates. Rows are packed from whole documents with an end token between them.
"""

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW, Muon

from keystone.model import KeystoneConfig, KeystoneForCausalLM
from keystone.nano.corpus import exercise_documents, stdlib_documents
from keystone.nano.tokenizer import END_ID, PAD_ID, load_tokenizer

CONTEXT = 256


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, but the machine's speed.

    Attributes:
        minutes: wall clock the run may take.
        rows: rows of `CONTEXT` tokens in a step.
        exercise_share: part of the tokens that come from generated exercises; the rest is library source.
        muon_rate: peak learning rate of the layers' matrices.
        adam_rate: peak learning rate of embeddings, norms and gates.
        warmup_steps: steps over which the rates rise.
        decay_share: part of the run over which the rates fall to zero at its end.
        seed: of the weights and of the order of documents.
    """

    minutes: float = 90.0
    rows: int = 16
    exercise_share: float = 0.7
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 50
    decay_share: float = 0.5
    seed: int = 20261122


def nano_config() -> KeystoneConfig:
    """The shape of keystone-nano: 6.8 million parameters in bf16 are 13.5 MB."""
    return KeystoneConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        plt_num_loops=2,
        plt_emb_scale=0.707,
        plt_hidden_scale=0.053,
        plt_window_size=[64, 0],
        plt_normalize_per_loop=True,
        plt_gate_use_hidden_states=True,
        dtype="bfloat16",
    )


class PackedRows:
    """An endless stream of rows `[rows, CONTEXT + 1]`, packed from two kinds of documents at a fixed share."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._tokenizer = load_tokenizer()
        library = [document.text for document in stdlib_documents("train")]
        self._library = [self._encode(text) for text in library]
        self._random = random.Random(recipe.seed)  # noqa: S311 - an order of documents, not a secret
        self._tokens_of_kind = {"library": 0, "exercises": 0}
        self._sources = {"library": self._library_tokens(), "exercises": self._exercise_tokens()}

    def _encode(self, text: str) -> list[int]:
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"], END_ID]

    def _library_tokens(self) -> Iterator[list[int]]:
        while True:
            order = list(range(len(self._library)))
            self._random.shuffle(order)
            for index in order:
                yield from _pieces([END_ID, *self._library[index]])

    def _exercise_tokens(self) -> Iterator[list[int]]:
        seed = self._recipe.seed
        while True:
            row: list[int] = [END_ID]
            for document in exercise_documents(2000, seed):
                row += self._encode(document.text)
                if len(row) > CONTEXT:
                    yield row[: CONTEXT + 1]
                    row = [END_ID]
            seed += 1

    def next(self) -> Tensor:
        """One step's rows, `[rows, CONTEXT + 1]`."""
        return torch.tensor([self._row() for _ in range(self._recipe.rows)])

    def _row(self) -> list[int]:
        taken = self._tokens_of_kind
        total = sum(taken.values())
        kind = "exercises" if taken["exercises"] <= self._recipe.exercise_share * total else "library"
        taken[kind] += CONTEXT
        return next(self._sources[kind])

    @property
    def tokens_of_kind(self) -> dict[str, int]:
        """Tokens handed out so far, by kind of document."""
        return dict(self._tokens_of_kind)


def _pieces(tokens: Sequence[int]) -> Iterator[list[int]]:
    """Cut a long document into rows that share one token, so that every token is predicted once."""
    for start in range(0, len(tokens) - CONTEXT, CONTEXT):
        yield list(tokens[start : start + CONTEXT + 1])


def optimizers(model: KeystoneForCausalLM, recipe: Recipe) -> tuple[Muon, AdamW]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "_proj." in name]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    muon = Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, momentum=0.95)
    adam = AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return muon, adam


def rate_factor(step: int, elapsed_share: float, recipe: Recipe) -> float:
    """Learning-rate factor: a linear rise, a plateau, a linear fall to zero at the end of the time."""
    rise = min(1.0, (step + 1) / recipe.warmup_steps)
    fall = min(1.0, max(0.0, 1.0 - elapsed_share) / recipe.decay_share)
    return rise * fall


@dataclass(frozen=True)
class Progress:
    """One line of the training log."""

    step: int
    tokens: int
    minutes: float
    loss: float


def train(recipe: Recipe, out: Path) -> list[Progress]:
    """Train for the recipe's minutes and leave weights, configuration and log in `out`.

    Returns:
        The log, one entry for every 20 steps.
    """
    torch.manual_seed(recipe.seed)
    model = KeystoneForCausalLM(nano_config()).float().train()
    rows = PackedRows(recipe)
    both = optimizers(model, recipe)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in both]
    log: list[Progress] = []
    out.mkdir(parents=True, exist_ok=True)
    started, step, recent, saved = time.monotonic(), 0, [], 0.0
    while (share := (time.monotonic() - started) / 60 / recipe.minutes) < 1.0:
        batch = rows.next()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = rate_factor(step, share, recipe)
        for optimizer, rates in zip(both, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        step += 1
        if step % 20 == 0:
            minutes = (time.monotonic() - started) / 60
            log.append(
                Progress(step, step * recipe.rows * CONTEXT, round(minutes, 2), round(sum(recent) / len(recent), 4))
            )
            recent = []
            click.echo(f"step {step}  {log[-1].tokens:,} tokens  {minutes:.1f} min  loss {log[-1].loss:.3f}")
            if minutes - saved >= 10:
                saved = minutes
                save(model, recipe, log, rows.tokens_of_kind, out / "checkpoint")
    save(model, recipe, log, rows.tokens_of_kind, out)
    return log


def save(model: KeystoneForCausalLM, recipe: Recipe, log: list[Progress], kinds: dict[str, int], out: Path) -> None:
    """Write bf16 weights, configuration and the training log; the model itself is left as it is."""
    out.mkdir(parents=True, exist_ok=True)
    tied = set(model.all_tied_weights_keys)
    weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(out)
    record = {"recipe": asdict(recipe), "tokens_of_kind": kinds, "log": [asdict(entry) for entry in log]}
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--minutes", default=Recipe.minutes, show_default=True, help="Wall clock the run may take.")
@click.option("--muon-rate", default=Recipe.muon_rate, show_default=True, help="Peak rate of the layers' matrices.")
@click.option("--rows", default=Recipe.rows, show_default=True, help="Rows of 256 tokens in a step.")
def main(out: Path, minutes: float, muon_rate: float, rows: int) -> None:
    """Train keystone-nano from scratch into OUT."""
    train(Recipe(minutes=minutes, muon_rate=muon_rate, rows=rows), out)


if __name__ == "__main__":
    main()
