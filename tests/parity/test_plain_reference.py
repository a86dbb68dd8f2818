"""Every way to compute a sequence gives the logits of the plain reference: in one pass, in chunks, token by token in
parallel or loop after loop, alone or in a batch whose sequences come and go.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from plain_plt import Plain, plain_logits
from torch import Tensor

from keystone import KeystoneCache, KeystoneConfig, KeystoneForCausalLM
from keystone.model.modeling import DecodeMode, decoding

BAR = 2e-4
VOCABULARY = 60
PAD = 59
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a schedule of many calls shrinks for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@st.composite
def configurations(draw: st.DrawFn) -> KeystoneConfig:
    heads = draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3), (6, 2)]))
    bias = draw(st.booleans())
    theta = draw(st.sampled_from([100.0, 10000.0]))
    inside = draw(st.booleans())
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}} if inside else {"rope_theta": theta}
    return KeystoneConfig(
        vocab_size=VOCABULARY,
        hidden_size=draw(st.sampled_from([12, 24])),
        intermediate_size=20,
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=draw(st.sampled_from([4, 10])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-3])),
        initializer_range=0.25,
        attention_bias=bias,
        attention_output_bias=draw(st.sampled_from([None, False, True])),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        plt_num_loops=draw(st.sampled_from([1, 2, 2, 3, 4])),
        plt_emb_scale=draw(st.sampled_from([None, 0.7, 1.0])),
        plt_hidden_scale=draw(st.sampled_from([None, 0.0, 0.3])),
        plt_window_size=[draw(st.sampled_from([0, 1, 2, 4, 7, 64])), 0],
        plt_normalize_per_loop=draw(st.booleans()),
        plt_gate_use_hidden_states=draw(st.booleans()),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
        **rope,
    )


def built(config: KeystoneConfig, seed: int, attention: str = "sdpa") -> KeystoneForCausalLM:
    """Random weights; norms, biases and the padding row too, which would otherwise start as ones and zeros."""
    torch.manual_seed(seed)
    model = KeystoneForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.4)
        model.model.embed_tokens.weight[PAD].normal_()
    model.set_attn_implementation(attention)
    return model


def reference(model: KeystoneForCausalLM, ids_T: Tensor) -> Tensor:
    config = model.config
    plain = Plain(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        loops=config.plt_num_loops,
        window_keys=config.plt_window_size[0] + 1,
        embedding_scale=1.0 if config.plt_emb_scale is None else config.plt_emb_scale,
        hidden_scale=1.0 if config.plt_hidden_scale is None else config.plt_hidden_scale,
        normalize_per_loop=config.plt_normalize_per_loop,
        gate_reads_hidden_states=config.plt_gate_use_hidden_states,
        eps=config.rms_norm_eps,
        theta=config.rope_parameters["rope_theta"],
    )
    return plain_logits(dict(model.state_dict()), plain, ids_T)


def assert_close(ours: Tensor, expected: Tensor, said: object = "") -> None:
    assert ours.shape == expected.shape, said
    assert float((ours.double() - expected).abs().max()) <= BAR * max(1.0, float(expected.abs().max())), said


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: two threads would wait for each other most of the time."""
    held = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(held)


def drawn_ids(length: int, seed: int) -> Tensor:
    return torch.randint(0, PAD, (length,), generator=torch.Generator().manual_seed(seed))


@QUICK
@given(configurations(), st.integers(1, 30), st.integers(0, 999), st.sampled_from(["sdpa", "eager"]))
def test_one_pass(config: KeystoneConfig, length: int, seed: int, attention: str) -> None:
    model, ids = built(config, seed, attention), drawn_ids(length, seed)
    with torch.inference_mode():
        for use_cache in (False, True):
            assert_close(model(ids[None], use_cache=use_cache).logits[0], reference(model, ids))


@QUICK
@given(
    configurations(),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(0, 999),
    st.sampled_from(["parallel", "sequential"]),
    st.sampled_from(["sdpa", "eager"]),
)
def test_any_chunks(config: KeystoneConfig, chunks: list[int], seed: int, mode: DecodeMode, attention: str) -> None:
    model, ids = built(config, seed, attention), drawn_ids(sum(chunks), seed)
    cache = KeystoneCache(config)
    with torch.inference_mode(), decoding(model, mode):
        logits = [model(part[None], past_key_values=cache).logits[0] for part in ids.split(chunks)]
    assert_close(torch.cat(logits), reference(model, ids))


@dataclass
class Sequence:
    """One sequence's whole stream, how much of it was fed, and the logits that came back."""

    ids: Tensor
    fed: int = 0
    logits: list[Tensor] = field(default_factory=list)


def feed(
    model: KeystoneForCausalLM, cache: KeystoneCache, batch: list[Sequence], counts: list[int], shuffle: int
) -> None:
    """One call that brings each sequence so many tokens, its pads in places that a seed draws."""
    width = max(1, *counts)
    generator = torch.Generator().manual_seed(shuffle)
    ids = torch.full((len(batch), width), PAD)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, (sequence, count) in enumerate(zip(batch, counts, strict=True)):
        places = torch.randperm(width, generator=generator)[:count].sort().values
        ids[row, places] = sequence.ids[sequence.fed : sequence.fed + count]
        mask[row, places] = 1
        sequence.fed += count
    real = None if bool(mask.all()) else mask
    logits = model(ids, attention_mask=real, past_key_values=cache).logits
    for row, sequence in enumerate(batch):
        sequence.logits.append(logits[row, mask[row].bool()])


class Crowd:
    """A batch in one cache, those who left it with caches of their own, and what may happen to them."""

    def __init__(self, model: KeystoneForCausalLM, data: st.DataObject, seed: int) -> None:
        self.model, self.data, self.seed = model, data, seed
        self.everybody: list[Sequence] = []
        self.away: list[tuple[Sequence, KeystoneCache]] = []
        self.batch = [self.newcomer() for _ in range(data.draw(st.integers(1, 3)))]
        self.cache = KeystoneCache(model.config)

    def newcomer(self) -> Sequence:
        self.everybody.append(Sequence(drawn_ids(60, 1000 * self.seed + len(self.everybody))))
        return self.everybody[-1]

    def feed(self) -> None:
        counts = [self.data.draw(st.integers(0, 5)) for _ in self.batch]
        feed(self.model, self.cache, self.batch, counts, self.data.draw(st.integers(0, 99)))

    def step(self) -> None:
        feed(self.model, self.cache, self.batch, [1 for _ in self.batch], 0)

    def join(self) -> None:
        """A new sequence comes in, or one that left comes back."""
        if self.away and self.data.draw(st.booleans()):
            sequence, alone = self.away.pop()
        else:
            sequence, alone = self.newcomer(), KeystoneCache(self.model.config)
            feed(self.model, alone, [sequence], [self.data.draw(st.integers(1, 9))], 0)
        self.cache = KeystoneCache.merge([self.cache, alone])
        self.batch.append(sequence)

    def leave(self) -> None:
        if len(self.batch) > 1:
            row = self.data.draw(st.integers(0, len(self.batch) - 1))
            alone = self.cache.fork()
            alone.select([row])
            self.away.append((self.batch.pop(row), alone))
            self.cache.remove(row)

    def swap(self) -> None:
        order = self.data.draw(st.permutations(range(len(self.batch))))
        self.cache.select(order)
        self.batch = [self.batch[row] for row in order]

    def branch(self) -> None:
        if len(self.batch) < 4:
            first = self.batch[0]
            twin = Sequence(first.ids.clone(), first.fed, list(first.logits))
            twin.ids[twin.fed :] = drawn_ids(60, self.seed + 7)[twin.fed :]
            self.everybody.append(twin)
            self.cache.select([*range(len(self.batch)), 0])
            self.batch.append(twin)


EVENTS = st.sampled_from(["feed", "feed", "step", "step", "step", "join", "leave", "swap", "branch"])


@settings(QUICK, max_examples=100)
@given(configurations(), st.data(), st.integers(0, 999), st.sampled_from(["sdpa", "eager"]))
def test_a_batch_whose_sequences_come_and_go(
    config: KeystoneConfig, data: st.DataObject, seed: int, attention: str
) -> None:
    """Chunks of any size, pads anywhere, steps in either mode; sequences join late, leave, come back, branch."""
    model = built(config, seed, attention)
    with torch.inference_mode():
        crowd = Crowd(model, data, seed)
        crowd.feed()
        for event in data.draw(st.lists(EVENTS, min_size=3, max_size=12)):
            with decoding(model, data.draw(st.sampled_from(["parallel", "sequential"]))):
                getattr(crowd, event)()
    for index, sequence in enumerate(crowd.everybody):
        if sequence.fed:
            expected = reference(model, sequence.ids[: sequence.fed])
            assert_close(torch.cat(sequence.logits), expected, f"sequence {index}")


@QUICK
@given(configurations(), st.integers(1, 6), st.integers(1, 25), st.integers(0, 999), st.data())
def test_going_back_and_on_another_way(
    config: KeystoneConfig, block: int, length: int, seed: int, data: st.DataObject
) -> None:
    """A shared prefix is reused at the snapshots at block boundaries; elsewhere the model computes the rest again."""
    model, ids = built(config, seed), drawn_ids(length, seed)
    cache = KeystoneCache(config, block=block)
    with torch.inference_mode():
        for part in ids.split(data.draw(st.integers(1, length))):
            model(part[None], past_key_values=cache)
        assert cache.snapshots == tuple(range(block, length + 1, block))
        for turn in range(3):
            keep = data.draw(st.integers(0, length))
            other = torch.cat([ids[:keep], drawn_ids(7, seed + turn + 1)])
            forked = cache.fork(keep) if keep in cache.snapshots else cache.fork()
            model.model.rewind(forked, ids[None], keep)
            assert forked.lengths in {(keep,), ()}
            logits = [model(part[None], past_key_values=forked).logits[0] for part in other[keep:].split([4, 1, 1, 1])]
            assert_close(torch.cat(logits), reference(model, other)[keep:])
        # What was done to the copies has not reached the original.
        more = drawn_ids(3, seed + 9)
        logits = model(more[None], past_key_values=cache).logits[0]
        assert_close(logits, reference(model, torch.cat([ids, more]))[length:])


@pytest.mark.parametrize(
    "mistake", ["shift", "window", "scale", "eps", "global keys", "gate"], ids=lambda name: name.replace(" ", "-")
)
def test_the_reference_tells_mistakes_apart(mistake: str) -> None:
    """Each change of the rules moves the reference itself by far more than the bar."""
    config = KeystoneConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, initializer_range=0.25, plt_emb_scale=0.7, plt_hidden_scale=0.3,
        plt_window_size=[4, 0], bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model, ids = built(config, 3), drawn_ids(20, 3)
    right = reference(model, ids)
    changes = {"window": {"plt_window_size": [3, 0]}, "scale": {"plt_emb_scale": 0.71}, "eps": {"rms_norm_eps": 1e-3}}
    if mistake in changes:
        for name, value in changes[mistake].items():
            setattr(config, name, value)
    elif mistake == "shift":
        config.plt_hidden_scale = 0.0
    elif mistake == "global keys":
        config.plt_num_loops = 1
    else:
        with torch.no_grad():
            model.model.layers[0].self_attn.plt_gate.bias.add_(0.1)
    assert float((reference(model, ids) - right).abs().max()) > 5 * BAR
