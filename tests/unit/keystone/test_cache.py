"""The cache's size, its snapshots, and what long prompts allocate. What it computes is for `tests/parity` to say."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import small_models
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from keystone import KeystoneCache, KeystoneConfig, KeystoneForCausalLM
from keystone.errors import InvalidInputError
from keystone.model import cache_bytes
from keystone.model.attention import QUERY_BLOCK, Reach

small_model = partial(small_models.small_model, pad_token_id=None)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def ids_of(tokens: int, sequences: int = 1) -> Tensor:
    return torch.randint(0, 96, (sequences, tokens), generator=torch.Generator().manual_seed(tokens))


def filled(model: KeystoneForCausalLM, tokens: int, **settings: Any) -> KeystoneCache:
    cache = KeystoneCache(model.config, **settings)
    model(ids_of(tokens), past_key_values=cache)
    return cache


def test_the_formula_at_full_size() -> None:
    """LoopCoder-V2 in bf16: 57,344 bytes a token and 3.7 MB; 114,688 a token if both loops kept all their keys."""
    config = KeystoneConfig(num_key_value_heads=8, head_dim=128, plt_num_loops=2, plt_window_size=[64, 0])
    assert cache_bytes(config, 1000) - cache_bytes(config, 0) == 57_344_000
    assert cache_bytes(config, 0) == 57_344 * 65 + 2 * 5120
    assert cache_bytes(config, 131_072, sequences=2) == 2 * cache_bytes(config, 131_072)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loops", [1, 2, 3])
@pytest.mark.parametrize("sequences", [1, 3])
def test_what_is_allocated_is_what_the_formula_says(dtype: torch.dtype, loops: int, sequences: int) -> None:
    model = small_model(plt_num_loops=loops, num_hidden_layers=3, plt_window_size=[64, 0]).to(dtype)
    cache = KeystoneCache(model.config, reserve=300)
    model(ids_of(290, sequences), past_key_values=cache)
    for step in range(10):
        model(ids_of(step + 1, sequences)[:, -1:], past_key_values=cache)
    assert cache.lengths == (300,) * sequences
    assert cache.nbytes() == cache_bytes(model.config, 300, dtype, sequences=sequences)


def test_decoding_leaves_little_room_empty_and_moves_the_keys_seldom() -> None:
    model = small_model()
    cache = filled(model, 100)
    addresses = set()
    for _ in range(300):
        model(torch.tensor([[5]]), past_key_values=cache)
        state = cache.states[0]
        assert state is not None
        addresses.add((state.kept[0].data_ptr(), state.kept[0].shape[2]))
    assert len(addresses) <= 8
    assert cache.nbytes() <= 1.3 * cache_bytes(model.config, 400, torch.float32)


def test_padding_takes_no_room() -> None:
    model = small_model()
    mask = torch.zeros(2, 50, dtype=torch.long)
    mask[0, -7:], mask[1, :5] = 1, 1
    cache = KeystoneCache(model.config)
    model(ids_of(50, 2), attention_mask=mask, past_key_values=cache)
    assert (cache.lengths, cache.get_seq_length()) == ((7, 5), 50)
    assert cache.nbytes() == cache_bytes(model.config, 7, torch.float32, sequences=2)


def test_crop_goes_to_snapshots_and_names_the_nearest_elsewhere() -> None:
    model = small_model()
    cache = filled(model, 23, block=5)
    assert cache.snapshots == (5, 10, 15, 20)
    with pytest.raises(InvalidInputError, match=r"cropped to 18.*at 15"):
        cache.crop(18)
    with pytest.raises(InvalidInputError, match=r"cropped to 4.*at 0"):
        cache.crop(-19)
    assert cache.seen == 23
    cache.crop(-8)
    assert (cache.seen, cache.lengths, cache.snapshots) == (15, (15,), (5, 10, 15))
    cache.crop(0)
    assert cache.seen == 15
    again = filled(model, 23).fork()
    again.reset()
    model(ids_of(23)[:, :15], past_key_values=again)
    expected = model(ids_of(9), past_key_values=again).logits
    torch.testing.assert_close(model(ids_of(9), past_key_values=cache).logits, expected, atol=2e-5, rtol=0)


def test_a_block_of_no_tokens_and_a_rewind_beyond_the_end_are_refused() -> None:
    model = small_model()
    with pytest.raises(InvalidInputError, match="block is 0"):
        KeystoneCache(model.config, block=0)
    with pytest.raises(InvalidInputError, match="cannot rewind"):
        model.model.rewind(filled(model, 4), ids_of(9), 5)


def test_what_cannot_be_merged_selected_or_continued() -> None:
    model = small_model()
    cache = filled(model, 4)
    with pytest.raises(InvalidInputError, match="hold sequences"):
        KeystoneCache.merge([cache, KeystoneCache(model.config)])
    with pytest.raises(InvalidInputError, match="hold sequences"):
        KeystoneCache.merge([])
    for other in (small_model().bfloat16(), small_model(plt_window_size=[4, 0]), small_model(num_hidden_layers=1)):
        with pytest.raises(InvalidInputError, match="different"):
            KeystoneCache.merge([cache, filled(other, 4)])
    for indices in ([], [1], [-1]):
        with pytest.raises(InvalidInputError, match="select"):
            cache.select(indices)
    with pytest.raises(InvalidInputError, match="1 sequences and this call brings 2"):
        model(ids_of(3, 2), past_key_values=cache)


def test_a_cache_of_inference_mode_goes_on_outside_of_it() -> None:
    model = small_model()
    cache, same = filled(model, 9), filled(model, 9)
    expected = model(ids_of(2), past_key_values=same).logits
    with torch.inference_mode(mode=False), torch.no_grad():
        torch.testing.assert_close(model(ids_of(2), past_key_values=cache).logits, expected)


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor made meanwhile holds."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("chunks", [[2048], [1024, 1024], [2047, 1]])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("window", [3, 64])
def test_a_long_prompt_makes_no_mask_of_prompt_times_prompt(chunks: list[int], padded: bool, window: int) -> None:
    model = small_model(plt_num_loops=2, plt_window_size=[window, 0])
    mask = torch.ones(1, 2048, dtype=torch.long)
    if padded:
        mask[:, :5] = 0
    cache, start = KeystoneCache(model.config), 0
    with Largest() as largest:
        for size in chunks:
            end = start + size
            part = mask[:, :end] if padded else None
            model(ids_of(2048)[:, start:end], attention_mask=part, past_key_values=cache, logits_to_keep=1)
            start = end
    assert largest.numbers <= 2048 * 256


def test_a_window_hands_a_block_only_the_keys_it_can_reach() -> None:
    handed: list[tuple[int, int]] = []

    def kernel(_: object, query: Tensor, key: Tensor, *__: object, **___: object) -> tuple[Tensor, None]:
        handed.append((query.shape[2], key.shape[2]))
        return query.transpose(1, 2), None

    reach = Reach(tokens=1000, ahead=9, window=10)
    query, key = torch.zeros(1, 2, 1000, 4), torch.zeros(1, 2, 1009, 4)
    assert reach.attend(kernel, torch.nn.Identity(), query, (key, key)).shape == (1, 1000, 2, 4)
    assert handed == [(rows, rows + 9) for rows in (QUERY_BLOCK, QUERY_BLOCK, QUERY_BLOCK, 1000 - 3 * QUERY_BLOCK)]
