"""What is streamed is final: all of the output, in order, and nothing that is cut off later."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import TextIteratorStreamer, TextStreamer

from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.decoding.stopping import Stopping, StopScan
from selftrain.decoding.streaming import RowStream

ROWS = [[5, 6], [3, 4, 5], [9, 8, 7, 6], [4]]
IDS = torch.tensor([[0] * (4 - len(r)) + r for r in ROWS])
MASK = (IDS > 0).long()
CAT = "c\U0001f63aat"


class Recorder:
    """Keeps every call."""

    def __init__(self):
        self.calls = []

    def __call__(self, row, token_ids):
        self.calls.append((row, list(token_ids)))

    def row(self, row):
        return [t for r, tokens in self.calls if r == row for t in tokens]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def replay(stopping, tokens, lengths, *, budget=99):
    """Grow one row block by block as the engine does; return what came out, and what was kept."""
    recorder, new = Recorder(), []
    scan, stream = StopScan(stopping), RowStream(0, recorder, stopping)
    for length in [*lengths, len(tokens)]:
        block = tokens[len(new) : len(new) + length]
        new += block[: budget - len(new)]
        kept = scan.advance(new, budget=budget)
        if kept is not None:
            del new[kept:]
        before = len(recorder.calls)
        stream.put(new, done=kept is not None)
        assert len(recorder.calls) <= before + 1
        if kept is not None:
            return recorder.row(0), new
        if len(new) == len(tokens):
            break
    return recorder.row(0), None


blocks = st.lists(st.integers(1, 5), max_size=30)


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), min_size=1), blocks, st.integers(1, 12))
@example([6, 2, 4, 5], [2], 9)  # a token without text before a stop string
def test_nothing_that_is_cut_off_was_streamed(char_tokenizer, tokens, lengths, budget):
    stopping = Stopping(frozenset([1]), ("bc", "abb", "caab"), char_tokenizer)
    streamed, kept = replay(stopping, tokens, lengths, budget=budget)
    if kept is not None:
        assert streamed == kept
    else:
        assert streamed == tokens[: len(streamed)]


@given(st.data(), blocks)
def test_nor_where_characters_are_of_several_tokens(bpe_tokenizer, data, lengths):
    pieces = [*ids(bpe_tokenizer, CAT), *ids(bpe_tokenizer, " the cat"), 2]
    tokens = data.draw(st.lists(st.sampled_from(pieces), min_size=1))
    stop = (CAT, "t\U0001f63a", "he c")[data.draw(st.integers(0, 2)) :]
    streamed, kept = replay(Stopping(frozenset(), stop, bpe_tokenizer), tokens, lengths)
    if kept is not None:
        assert streamed == kept
    else:
        assert streamed == tokens[: len(streamed)]


@pytest.mark.parametrize("cut", range(1, 6))
def test_the_beginning_of_a_stop_string_waits_for_its_character(bpe_tokenizer, cut):
    """The stop string is "c" and a character of four tokens: neither part may leave."""
    tokens = ids(bpe_tokenizer, f"the {CAT} sat")
    stopping = Stopping(frozenset(), ("c\U0001f63a",), bpe_tokenizer)
    first = len(ids(bpe_tokenizer, "the ")) - 1
    streamed, kept = replay(stopping, tokens, [first + cut, 1, 1, 1, 1, 1])
    assert streamed == kept
    assert bpe_tokenizer.decode(kept) == "the "


def test_only_what_may_begin_a_stop_string_is_held_back(char_tokenizer):
    tokens = ids(char_tokenizer, "xyabxab")
    recorder = Recorder()
    stream = RowStream(3, recorder, Stopping(frozenset(), ("abc", "bcd"), char_tokenizer))
    for n in range(1, len(tokens) + 1):
        stream.put(tokens[:n], done=False)
    out = [(row, char_tokenizer.decode(t)) for row, t in recorder.calls]
    assert out == [(3, "x"), (3, "y"), (3, "abx")]
    stream.put(tokens, done=True)
    assert char_tokenizer.decode(recorder.row(3)) == "xyabxab"


def test_without_stop_strings_nothing_is_held_back_and_no_tokenizer_is_needed():
    recorder = Recorder()
    stream = RowStream(0, recorder, Stopping(frozenset([1])))
    stream.put([5, 6], done=False)
    stream.put([5, 6], done=False)  # nothing new: no call
    stream.put([5, 6, 7], done=True)
    assert recorder.calls == [(0, [5, 6]), (0, [7])]


def test_a_run_of_broken_characters_is_held_as_a_whole():
    """Byte fallback writes one mark a byte, for as long as the character is incomplete."""

    class Bytes:
        all_special_ids = ()

        def decode(self, token_ids, **_):
            try:
                return bytes(token_ids).decode()
            except UnicodeDecodeError as error:
                good = bytes(token_ids[: error.start]).decode()
                return good + "\ufffd" * (len(token_ids) - error.start)

    tokens = list("ab\U0001f63a".encode())
    for length in range(1, 6):
        stopping = Stopping(frozenset(), ("\U0001f63a",), Bytes())
        streamed, kept = replay(stopping, tokens, [length, 1, 1, 1, 1])
        assert streamed == kept == list(b"ab")


@pytest.mark.parametrize("verifier", ["token", "block", "coupled"])
@pytest.mark.parametrize("stop", [(), ("a", "b?", "c", "d1")])
def test_rows_arrive_whole_and_in_order(pair, char_tokenizer, stop, verifier):
    decoder = SpeculativeDecoder(
        *pair, tokenizer=char_tokenizer, num_draft_tokens=4, verifier=verifier
    )
    recorder = Recorder()
    params = SamplingParams(max_new_tokens=40, seed=3, stop=stop)
    output = decoder.generate(
        IDS,
        attention_mask=MASK,
        params=params,
        streamer=recorder,
        return_blocks=True,
        eos_token_ids=(7, 11),
    )
    for row, tokens in enumerate(output.new_tokens()):
        assert recorder.row(row) == tokens
        calls = sum(r == row for r, _ in recorder.calls)
        assert calls <= sum(b.row == row for b in output.blocks)
    assert all(tokens for _, tokens in recorder.calls)
    assert len(set(output.lengths.tolist())) > 1, "rows must end at different times"
    # In a block rows come in their order: the row falls only where the next block begins.
    falls = sum(a >= b for (a, _), (b, _) in zip(recorder.calls, recorder.calls[1:], strict=False))
    longest = max(sum(b.row == row for b in output.blocks) for row in range(4))
    assert falls < longest


def test_without_stop_strings_every_block_is_streamed_when_it_is_decided(pair):
    recorder = Recorder()
    output = SpeculativeDecoder(*pair, num_draft_tokens=3).generate(
        IDS[:1],
        attention_mask=MASK[:1],
        params=SamplingParams(max_new_tokens=20, seed=1),
        streamer=recorder,
        return_blocks=True,
        eos_token_ids=(),
    )
    emitted = [[*b.drafted[: b.num_accepted], b.next_token] for b in output.blocks]
    assert [tokens for _, tokens in recorder.calls] == emitted


def test_text_streamers_of_transformers_follow_a_single_row(pair, char_tokenizer):
    decoder = SpeculativeDecoder(*pair, tokenizer=char_tokenizer)
    params = SamplingParams(max_new_tokens=30, seed=2)
    for skip_prompt in (True, False):
        streamer = TextIteratorStreamer(char_tokenizer, skip_prompt=skip_prompt, timeout=10)
        output = decoder.generate(IDS[2:3], params=params, streamer=streamer, eos_token_ids=())
        begin = IDS.shape[1] if skip_prompt else 0
        assert "".join(streamer) == char_tokenizer.decode(output.sequences[0, begin:])


def test_text_streamers_print_what_is_kept(pair, char_tokenizer, capsys):
    decoder = SpeculativeDecoder(*pair, tokenizer=char_tokenizer, num_draft_tokens=6)
    free = decoder.generate(
        IDS[2:3], params=SamplingParams(max_new_tokens=30, seed=2), eos_token_ids=()
    )
    stop = char_tokenizer.decode(free.new_tokens()[0][10:13])
    params = SamplingParams(max_new_tokens=30, seed=2, stop=(stop,))
    output = decoder.generate(
        IDS[2:3],
        params=params,
        streamer=TextStreamer(char_tokenizer, skip_prompt=True),
        eos_token_ids=(),
    )
    assert capsys.readouterr().out == char_tokenizer.decode(output.new_tokens()[0]) + "\n"


def test_text_streamers_are_refused_for_several_rows(pair, char_tokenizer):
    with pytest.raises(ValueError, match=r"streamer is a TextStreamer, .* there are 4; pass a"):
        SpeculativeDecoder(*pair).generate(
            IDS, attention_mask=MASK, streamer=TextStreamer(char_tokenizer)
        )


def test_what_is_no_streamer_is_refused(pair):
    with pytest.raises(TypeError, match=r"streamer must be a function .* got int"):
        SpeculativeDecoder(*pair).generate(IDS, attention_mask=MASK, streamer=3)
