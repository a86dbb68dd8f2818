"""Text as it streams: no half characters, no stop strings, and in the end exactly what a decoder would say."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from keystone.nano.tokenizer import load_tokenizer
from keystone.serve.generation import Piece
from keystone.serve.streams import Mailbox
from keystone.serve.text import REPLACEMENT, Detokeniser, StopFilter, decode

NANO = load_tokenizer()


def streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    stream = Detokeniser(tokenizer)
    return [*(stream.feed(token) for token in ids), stream.flush()]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_pieces_add_up_to_the_text_and_no_character_comes_in_halves(text: str) -> None:
    ids = NANO(text, add_special_tokens=False)["input_ids"]
    pieces = streamed(NANO, ids)
    assert "".join(pieces) == decode(NANO, ids)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(7, 4095), max_size=80))
def test_any_tokens_add_up_to_what_they_decode_to(ids: list[int]) -> None:
    assert "".join(streamed(NANO, ids)) == decode(NANO, ids)


def test_a_character_of_four_bytes_waits_for_all_of_them() -> None:
    ids = NANO("\U0001f600", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert streamed(NANO, ids) == ["", "", "", "\U0001f600", ""]


def test_an_unfinished_character_shows_at_the_end_only() -> None:
    ids = NANO("a\u20ac", add_special_tokens=False)["input_ids"][:-1]
    pieces = streamed(NANO, ids)
    assert "".join(pieces) == f"a{REPLACEMENT}"
    assert REPLACEMENT not in "".join(pieces[:-1])


def test_broken_bytes_for_ever_do_not_make_the_window_grow() -> None:
    lead = NANO("\u20ac", add_special_tokens=False)["input_ids"][0]
    ids = [lead] * 300
    stream = Detokeniser(NANO)
    longest = 0
    text = ""
    for token in ids:
        text += stream.feed(token)
        longest = max(longest, len(stream._ids))
    assert text + stream.flush() == decode(NANO, ids)
    assert longest <= 65


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_a_stop_string_is_never_sent_however_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    stream = StopFilter(stops)
    sent = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        sent += stream.feed(text[start:end])
        assert not any(stop in sent for stop in stops)
    sent += "" if stream.stopped else stream.flush()
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert (stream.stopped is not None) == bool(found)
    assert not any(stop in sent for stop in stops)
    assert text.startswith(sent)
    if not found:
        assert sent == text


@pytest.mark.parametrize("stops", [(), ("",)])
def test_no_stop_string_holds_nothing_back(stops: tuple[str, ...]) -> None:
    assert StopFilter(stops).feed("anything") == "anything"


def test_one_wake_up_brings_all_that_came_together() -> None:
    calls = 0

    async def listen() -> list[int]:
        nonlocal calls
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()
        real = loop.call_soon_threadsafe

        def counted(*args: object) -> object:
            nonlocal calls
            calls += 1
            return real(*args)

        loop.call_soon_threadsafe = counted
        box = Mailbox(loop)
        for number in range(5):
            box.post(queue, number, Piece(number, "x"))
        heard = [(await queue.get())[0] for _ in range(5)]
        thread = threading.Thread(target=lambda: [box.post(queue, 9, Piece(9, "y")) for _ in range(500)])
        thread.start()
        late = [await queue.get() for _ in range(500)]
        thread.join()
        assert len(late) == 500
        return heard

    assert asyncio.run(listen()) == [0, 1, 2, 3, 4]
    assert 2 <= calls <= 501
    assert mailbox_of_a_closed_loop_says_so()


def mailbox_of_a_closed_loop_says_so() -> bool:
    loop = asyncio.new_event_loop()
    box, queue = Mailbox(loop), asyncio.Queue()
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            box.post(queue, 0, Piece(0, "x"))
    return True
