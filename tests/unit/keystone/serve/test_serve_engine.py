"""The engine on nano: answers equal those of plain `generate`, whatever joins, leaves, breaks or is cut off."""

import threading
from collections import deque
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from serving_parts import PATIENCE, Gate, Listener, ask, engine_of

import keystone
from keystone.loader import LoadedModel
from keystone.serve.errors import BusyError, LimitError, ModelFailedError, StoppingError, TimeLimitError
from keystone.serve.generation import Event, GenerationRequest, Piece
from keystone.serve.limits import Limits
from keystone.serve.sampling import Sampling

PROMPTS = (
    "def add(a, b):\n",
    "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n",
    "class Point:\n    def __init__(self, x, y):\n",
    'def keep_even(values):\n    """Return the even ones."""\n',
)


@pytest.fixture(scope="module")
def nano(nano_archive: Path) -> LoadedModel:
    loaded = keystone.load("nano", archive=nano_archive, quantization="none", device="cpu")
    loaded.model.float()  # so that a batch and a single row differ too little to change a token
    return loaded


def tokens(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text)["input_ids"])


def greedy(loaded: LoadedModel, text: str, count: int = 24) -> GenerationRequest:
    return GenerationRequest(tokens(loaded, text), count, sampling=Sampling(temperature=0))


def long_text(loaded: LoadedModel, count: int) -> tuple[int, ...]:
    ids = tokens(loaded, "\n".join(PROMPTS))
    return (ids * (count // len(ids) + 1))[:count]


def test_answers_of_a_batch_equal_plain_generate(nano: LoadedModel) -> None:
    expected = nano.complete(PROMPTS, max_new_tokens=24)
    with engine_of(nano) as engine:
        gate = Gate(engine)
        listeners = [ask(engine, greedy(nano, text))[1] for text in PROMPTS]
        gate.open()
        assert [listener.wait().text() for listener in listeners] == expected
        assert engine.running == 0


def test_requests_join_while_others_run(nano: LoadedModel) -> None:
    expected = nano.complete(PROMPTS, max_new_tokens=24)
    with engine_of(nano) as engine:
        listeners: list[Listener] = []
        for text in PROMPTS:
            if listeners:
                listeners[-1].next()  # the one before is answering by now
            listeners.append(ask(engine, greedy(nano, text))[1])
        assert [listener.wait().text() for listener in listeners] == expected


def test_requests_that_come_together_are_one_prefill(nano: LoadedModel) -> None:
    calls: list[tuple[int, ...]] = []
    called = threading.Event()

    def see(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
        calls.append(tuple(named["input_ids"].shape))
        called.set()

    hook = nano.model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        # It waits for as many as it can run, so that nothing here depends on how fast they come.
        with engine_of(nano, Limits(streams=len(PROMPTS)), gather=PATIENCE) as engine:
            listeners = [ask(engine, greedy(nano, PROMPTS[0], 2))[1]]
            assert not called.wait(0.2)
            listeners += [ask(engine, greedy(nano, text, 2))[1] for text in PROMPTS[1:]]
            for each in listeners:
                each.wait()
    finally:
        hook.remove()
    assert calls[0] == (len(PROMPTS), max(len(tokens(nano, text)) for text in PROMPTS))


def test_nobody_waits_for_more_when_the_engine_is_to_stop_or_has_a_job(nano: LoadedModel) -> None:
    with engine_of(nano, gather=PATIENCE) as engine:
        listener = ask(engine, greedy(nano, PROMPTS[0], 2))[1]
        engine.run(lambda: None).result(PATIENCE / 2)
        listener.wait()
        listener = ask(engine, greedy(nano, PROMPTS[0], 2))[1]
        engine.close(seconds=PATIENCE / 2)
        assert listener.wait().endings


def test_a_seed_gives_the_same_text_in_any_company(nano: LoadedModel) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=11)
    request = GenerationRequest(tokens(nano, PROMPTS[0]), 24, sampling=sampling)
    with engine_of(nano) as engine:
        alone = ask(engine, request)[1].wait().text()
        gate = Gate(engine)
        others = [ask(engine, GenerationRequest(tokens(nano, text), 30))[1] for text in PROMPTS]
        again = ask(engine, request)[1]
        other_seed = ask(engine, GenerationRequest(request.prompt, 24, sampling=Sampling(seed=12)))[1]
        gate.open()
        assert again.wait().text() == alone
        assert other_seed.wait().text() != alone
        for each in others:
            each.wait()


def test_choices_share_a_prompt_and_differ(nano: LoadedModel) -> None:
    request = GenerationRequest(tokens(nano, PROMPTS[1]), 16, sampling=Sampling(seed=3), choices=3)
    with engine_of(nano) as engine:
        first, second = ask(engine, request)[1].wait(), ask(engine, request)[1].wait()
        texts = [first.text(choice) for choice in range(3)]
        assert len(set(texts)) == 3
        assert texts == [second.text(choice) for choice in range(3)]
        assert engine.counters.prompt_tokens == 2 * len(request.prompt)


def test_stop_strings_end_an_answer_and_are_not_sent(nano: LoadedModel) -> None:
    (whole,) = nano.complete(PROMPTS[:1], max_new_tokens=24)
    stop = whole[5:9]
    with engine_of(nano) as engine:
        request = GenerationRequest(tokens(nano, PROMPTS[0]), 24, (stop,), Sampling(temperature=0, scores=True))
        heard = ask(engine, request)[1].wait()
        assert heard.text() == whole[: whole.index(stop)]
        assert heard.endings[0].reason == "stop"
        shown = [score.token for piece in heard.pieces for score in piece.scores]
        assert heard.text().startswith(nano.tokenizer.decode(shown))


def test_scores_are_the_models_own(nano: LoadedModel) -> None:
    ids = tokens(nano, PROMPTS[2])
    with torch.inference_mode():
        expected = nano.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    with engine_of(nano) as engine:
        request = GenerationRequest(ids, 1, sampling=Sampling(temperature=0, scores=True, alternatives=3))
        (score,) = [each for piece in ask(engine, request)[1].wait().pieces for each in piece.scores]
    best = expected.topk(3)
    assert score.token == int(best.indices[0])
    assert [token for token, _ in score.alternatives] == best.indices.tolist()
    assert score.logprob == pytest.approx(float(best.values[0]), abs=1e-4)


def test_a_long_prompt_runs_in_chunks_between_steps_of_others(nano: LoadedModel) -> None:
    calls: list[int] = []
    hook = nano.model.register_forward_pre_hook(
        lambda _, args, named: calls.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        with engine_of(nano, Limits(chunk=64)) as engine:
            request = GenerationRequest(tokens(nano, PROMPTS[0]), 40, sampling=Sampling(temperature=0), ignore_end=True)
            short = ask(engine, request)[1]
            short.next()
            long = ask(engine, GenerationRequest(long_text(nano, 500), 2, sampling=Sampling(temperature=0)))[1]
            short.wait(), long.wait()
    finally:
        hook.remove()
    assert max(calls) == 64
    chunks = [place for place, size in enumerate(calls) if size > 1][1:]
    assert len(chunks) == 8
    assert all(later - earlier == 2 for earlier, later in pairwise(chunks))


def test_a_shared_beginning_is_computed_once_and_changes_nothing(nano: LoadedModel) -> None:
    shared = long_text(nano, 300)
    first, second = shared + tokens(nano, PROMPTS[0]), shared + tokens(nano, PROMPTS[1])
    sampling = Sampling(temperature=0.8, seed=5, scores=True)
    with engine_of(nano, Limits(prefix_bytes=0)) as engine:
        plain = ask(engine, GenerationRequest(second, 12, sampling=sampling))[1].wait()
    with engine_of(nano) as engine:
        ask(engine, GenerationRequest(first, 4))[1].wait()
        generation, heard = ask(engine, GenerationRequest(second, 12, sampling=sampling))
        heard.wait()
        assert generation.timing.reused == 256
        assert heard.text() == plain.text()
        assert [p.scores for p in heard.pieces] == [p.scores for p in plain.pieces]
        assert 0 < engine.held_bytes <= engine.limits.prefix_bytes
        engine.forget(()).result()
        assert engine.held_bytes == 0


def test_remembered_beginnings_stay_within_their_budget(nano: LoadedModel) -> None:
    budget = 8 << 20
    with engine_of(nano, Limits(prefix_bytes=budget)) as engine:
        for start in range(5):
            ask(engine, GenerationRequest(long_text(nano, 320)[start:], 1))[1].wait()
            engine.run(lambda: None).result()  # the round that answered is over, and its batch gone
            assert 0 < engine.held_bytes <= budget


def test_who_is_cancelled_leaves_and_the_others_go_on(nano: LoadedModel) -> None:
    expected = nano.complete(PROMPTS[:1], max_new_tokens=24)
    with engine_of(nano) as engine:
        gate = Gate(engine)
        leaving, _ = ask(engine, GenerationRequest(tokens(nano, PROMPTS[1]), 900, ignore_end=True))
        staying = ask(engine, greedy(nano, PROMPTS[0]))[1]
        gate.open()
        staying.next()
        leaving.cancel()
        assert staying.wait().text() == expected[0]
        engine.run(lambda: None).result()
        ask(engine, greedy(nano, PROMPTS[0], 1))[1].wait()
        assert engine.running == 0


def test_who_leaves_while_others_with_other_adapters_step_harms_nobody(nano: LoadedModel) -> None:
    expected = nano.complete(PROMPTS[:1], max_new_tokens=24)
    with engine_of(nano) as engine:
        gate = Gate(engine)
        staying, leaving = Listener(), Listener()
        heard: list[Event] = []
        asked = replace(greedy(nano, PROMPTS[0]), variant=("one",))
        gone = replace(greedy(nano, PROMPTS[1], 900), variant=("other",), ignore_end=True)

        def leave(event: Event) -> None:
            heard.append(event)
            if len(heard) == 5:  # in the middle of a round, before the other batch has its turn
                generation.cancel()
            staying(event)

        engine.submit(asked, leave)
        generation = engine.submit(gone, leaving)
        gate.open()
        assert staying.wait().text() == expected[0]
        assert staying.error is None and not engine.counters.failed
        ask(engine, greedy(nano, PROMPTS[0], 1))[1].wait()
        assert engine.running == 0


def test_an_engine_outlives_a_round_that_breaks(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = nano.complete(PROMPTS[:1], max_new_tokens=24)
    with engine_of(nano) as engine:
        with monkeypatch.context() as broken:
            broken.setattr(engine._rounds, "_fill", deque().pop)
            fault = ask(engine, greedy(nano, PROMPTS[0]))[1].wait().error
        assert isinstance(fault, ModelFailedError) and "pop from an empty deque" in str(fault)
        assert ask(engine, greedy(nano, PROMPTS[0]))[1].wait().text() == expected[0]


def test_a_request_that_cannot_even_start_fails_alone(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = nano.complete(PROMPTS[:1], max_new_tokens=24)
    with engine_of(nano) as engine:
        gate = Gate(engine)
        find = engine._rounds.prefixes.find

        def refuse(variant: tuple[str, ...], prompt: tuple[int, ...]) -> object:
            return find(variant, prompt) if not variant else {}[variant]

        monkeypatch.setattr(engine._rounds.prefixes, "find", refuse)
        bad = ask(engine, replace(greedy(nano, PROMPTS[1]), variant=("bad",)))[1]
        good = ask(engine, greedy(nano, PROMPTS[0]))[1]
        gate.open()
        assert isinstance(bad.wait().error, ModelFailedError)
        assert good.wait().text() == expected[0]


def test_a_batch_that_breaks_harms_only_who_broke_it(nano: LoadedModel) -> None:
    poison = 4000
    expected = nano.complete(PROMPTS[:3], max_new_tokens=24)

    def break_down(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
        past = named["past_key_values"]
        if poison in named["input_ids"] and (past.seen or named["input_ids"].shape[0] == 1):
            raise RuntimeError("poisoned")

    hook = nano.model.register_forward_pre_hook(break_down, with_kwargs=True)
    try:
        with engine_of(nano) as engine:
            gate = Gate(engine)
            listeners = [ask(engine, greedy(nano, text))[1] for text in PROMPTS[:3]]
            # Its first own token is the poison: it breaks in the middle of a batched step.
            bad = ask(engine, GenerationRequest(tokens(nano, PROMPTS[3]), 9, sampling=Sampling(bias={poison: 1e4})))[1]
            gate.open()
            assert [listener.wait().text() for listener in listeners] == expected
            assert isinstance(bad.wait().error, ModelFailedError)
            assert engine.counters.recovered >= 4
    finally:
        hook.remove()


def test_a_listener_that_fails_counts_as_gone(nano: LoadedModel) -> None:
    def gone(_: object) -> None:
        raise RuntimeError("loop is closed")

    with engine_of(nano) as engine:
        generation = engine.submit(GenerationRequest(tokens(nano, PROMPTS[0]), 900), gone)
        assert (
            ask(engine, greedy(nano, PROMPTS[1]))[1].wait().text() == nano.complete(PROMPTS[1:2], max_new_tokens=24)[0]
        )
        assert generation.cancelled


def test_a_full_queue_says_when_to_come_back_and_clients_take_turns(nano: LoadedModel) -> None:
    order: list[str] = []
    with engine_of(nano, Limits(queued=4, streams=1)) as engine:
        gate = Gate(engine)
        waiting = []
        for client in ("a", "a", "a", "b"):
            listener = Listener()

            def hear(event: object, client: str = client, listener: Listener = listener) -> None:
                if isinstance(event, Piece) and not listener.events.qsize():
                    order.append(client)
                listener(event)

            engine.submit(GenerationRequest(tokens(nano, PROMPTS[0]), 1, client=client, ignore_end=True), hear)
            waiting.append(listener)
        with pytest.raises(BusyError) as refused:
            engine.submit(greedy(nano, PROMPTS[0]), Listener())
        assert refused.value.retry_after >= 1
        gate.open()
        for listener in waiting:
            listener.wait()
    assert order == ["a", "b", "a", "a"]


def test_limits_name_what_is_too_long(nano: LoadedModel) -> None:
    with engine_of(nano, Limits(output_tokens=10, prompt_tokens=20)) as engine:
        with pytest.raises(LimitError, match="21 tokens"):
            engine.submit(GenerationRequest(long_text(nano, 21), 1), Listener())
        with pytest.raises(LimitError, match="max_tokens is 11"):
            engine.submit(GenerationRequest(long_text(nano, 5), 11), Listener())
    with engine_of(nano, Limits(cache_bytes=1 << 20)) as engine, pytest.raises(LimitError, match="do not fit"):
        engine.submit(GenerationRequest(long_text(nano, 600), 100), Listener())


def test_cache_memory_is_bounded_by_letting_requests_wait(nano: LoadedModel) -> None:
    limits = Limits(cache_bytes=3 << 20, prefix_bytes=0)
    most = 0
    with engine_of(nano, limits) as engine:
        gate = Gate(engine)
        request = GenerationRequest(long_text(nano, 100), 20, ignore_end=True)
        listeners = [ask(engine, request)[1] for _ in range(6)]
        gate.open()
        for listener in listeners:
            while len(listener.endings) < 1:
                listener.next()
                most = max(most, engine.held_bytes)
        assert all(listener.endings[0].tokens == 20 for listener in listeners)
    assert 0 < most <= limits.cache_bytes


def test_time_runs_out_by_the_clock_it_was_given(nano: LoadedModel) -> None:
    now = [0.0]
    with engine_of(nano, Limits(seconds=5), clock=lambda: now[0]) as engine:
        listener = ask(engine, GenerationRequest(tokens(nano, PROMPTS[0]), 900, ignore_end=True))[1]
        listener.next()
        now[0] = 6.0
        assert isinstance(listener.wait().error, TimeLimitError)


def test_closing_finishes_what_runs_and_refuses_the_rest(nano: LoadedModel) -> None:
    with engine_of(nano) as engine:
        listener = ask(engine, greedy(nano, PROMPTS[0]))[1]
        closing = threading.Thread(target=engine.close, kwargs={"seconds": 60.0})
        closing.start()
        assert listener.wait().error is None
        closing.join()
        with pytest.raises(StoppingError):
            engine.submit(greedy(nano, PROMPTS[0]), Listener())
    with engine_of(nano) as engine:
        listener = ask(engine, GenerationRequest(tokens(nano, PROMPTS[0]), 900, ignore_end=True))[1]
        engine.close()
        assert isinstance(listener.wait().error, StoppingError)
