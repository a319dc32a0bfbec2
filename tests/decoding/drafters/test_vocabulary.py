import string
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from selftrain.decoding.drafters.protocol import Rows, Setting
from selftrain.decoding.drafters.spelling import by_spelling, spell, spellings
from selftrain.decoding.drafters.vocabulary import Translation, VocabularyDrafter
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.speculative import SpeculativeDecoder

TEXT = "the quick brown fox jumps over the lazy dog, then the dog quickly jumps on the fox. " * 4
TOKENIZERS = Path(__file__).parents[4] / "shared/data/tokenizers"
real_tokenizers = pytest.mark.skipif(
    not TOKENIZERS.exists(), reason=f"the shared data folder is absent: {TOKENIZERS}"
)


def trained(kind, vocab_size):
    """A BPE over TEXT with spaces written as in byte-level or sentencepiece vocabularies."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "metaspace", unk_token=None))
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )
        alphabet = ["▁", *string.ascii_letters]
    special = ["</s>"] if kind == "bytes" else ["<eos>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])


@pytest.fixture(scope="module")
def byte_level():
    return trained("bytes", 300)


@pytest.fixture(scope="module")
def metaspace():
    return trained("metaspace", 400)


@given(text=st.text(alphabet="the quick fox.Zé你\n", max_size=30))
def test_tokens_spell_the_text_that_they_encode(byte_level, metaspace, text):
    for tokenizer, prefix in ((byte_level, ""), (metaspace, " ")):
        spelled = spellings(tokenizer)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        got = b"".join(spelled[i] for i in ids).decode()
        assert got in (text, prefix + text)  # sentencepiece puts a space before words


def test_the_same_tokens_are_found_under_different_spellings(byte_level, metaspace):
    a, b = (by_spelling(spellings(t), 10**6) for t in (byte_level, metaspace))
    names = byte_level.convert_ids_to_tokens, metaspace.convert_ids_to_tokens
    assert names[0](a[b" the"]) == "Ġthe"
    assert names[1](b[b" the"]) == "▁the"
    assert names[1](b["end of sequence"]) == "<eos>"
    assert names[1](b[b"q"]) == "q", "a piece goes before a single byte"
    assert names[1](b[b"\n"]) == "<0x0A>"
    assert b"<0x0A>" not in b


@given(text=st.binary(max_size=12))
def test_spelling_with_other_tokens_keeps_the_bytes(text):
    ids = {bytes([b]): b for b in range(256)} | {b"ab": 300, b"abc": 301, b"bc": 302}
    spelled = {index: piece for piece, index in ids.items()}
    assert b"".join(spelled[i] for i in spell(text, ids, longest=3)) == text


def test_spelling_takes_the_longest_tokens_and_leaves_out_what_has_none():
    ids = {b"a": 0, b"b": 1, b"ab": 2, b"abc": 3}
    assert spell(b"abcab?a", ids, longest=3) == [3, 2, 0]


@pytest.mark.shared_data
@real_tokenizers
def test_gpt2_and_t5_share_what_they_should():
    gpt2, t5 = (AutoTokenizer.from_pretrained(TOKENIZERS / name) for name in ("gpt2", "t5"))
    translation = Translation(t5, gpt2, num_draft_ids=32100)
    for word in (" house", " wonderful", "ing"):
        (index,) = gpt2(word).input_ids
        name = word.replace(" ", "▁")
        assert translation.shared[index] == t5.convert_tokens_to_ids(name)
    assert translation.shared[gpt2.eos_token_id] == t5.eos_token_id
    # Counted without our tables: plain ASCII tokens agree up to the sign of a space.
    ours = {t.replace("Ġ", " ") for t in gpt2.get_vocab() if t.replace("Ġ", "").isascii()}
    theirs = {t.replace("▁", " ") for t in t5.get_vocab() if t.replace("▁", "").isascii()}
    spelled = spellings(gpt2)
    ascii_shared = [
        t for t in translation.shared if isinstance(spelled[t], bytes) and spelled[t].isascii()
    ]
    assert len(ascii_shared) == len(ours & theirs - set(t5.all_special_tokens)) > 10_000
    prompt = gpt2("translate English to German: The house is wonderful.").input_ids
    assert translation.prompt(prompt) == [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]


def test_prompts_begin_as_the_draft_wants_and_keep_special_tokens(byte_level, metaspace):
    translation = Translation(metaspace, byte_level, num_draft_ids=400)
    eos, new_eos = byte_level.eos_token_id, metaspace.eos_token_id
    words = byte_level(" the fox").input_ids
    got = translation.prompt([eos, *words, eos])
    assert (got[0], got[-1]) == (new_eos, new_eos)
    assert metaspace.decode(got[1:-1]).strip() == "the fox"
    assert translation.prompt([10**5]) == [0]


def model_of(make_llama, tokenizer, **settings):
    return make_llama(vocab_size=len(tokenizer), sharpness=2.5, **settings).double()


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_draft_has_read_every_row_in_its_own_tokens(
    make_llama, byte_level, metaspace, num_tokens
):
    """Random rows that gain random tokens, proposals among them: the logits that proposals are
    drawn from are those of an uncached forward over the translated row."""
    model = model_of(make_llama, metaspace, max_position_embeddings=512)
    drafter = VocabularyDrafter(model, metaspace, byte_level)
    translation, vocab = drafter.translation, len(byte_level)
    rng = torch.Generator().manual_seed(0)
    prompts = [byte_level(t).input_ids for t in ("the fox", "d", "jumps over the lazy dog")]
    tokens = torch.randint(vocab, (3, 80), generator=rng)
    lengths = torch.tensor([len(p) for p in prompts])
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    texts = [translation.prompt(p) for p in prompts]
    seen = []

    def pick(logits, slot):
        seen.append(logits)
        return logits.argmax(-1), logits

    params = SamplingParams(max_new_tokens=60)
    setting = Setting(prompts, 80, params, target=None, vocab_size=vocab)
    inverse = torch.tensor([translation.shared.get(t, -1) for t in range(vocab)])
    with torch.no_grad():
        session = drafter.start(setting)
        for _ in range(6):
            seen.clear()
            rows = Rows(tokens, lengths, torch.full((3,), 79), tuple(lengths.tolist()))
            draft = session.propose(rows, num_tokens, pick)
            assert torch.equal(draft.logits, torch.stack(seen, 1))
            for row, text in enumerate(texts):
                ahead = [translation.shared[t] for t in draft.tokens[row].tolist()]
                raw = model(input_ids=torch.tensor([[*text, *ahead[:-1]]])).logits[0, -num_tokens:]
                want = torch.where(inverse >= 0, raw[:, inverse.clamp(min=0)], -torch.inf)
                torch.testing.assert_close(draft.logits[row], want, atol=1e-9, rtol=0)
            keep = torch.randint(0, num_tokens + 1, (3, 1), generator=rng)
            slots = torch.arange(num_tokens)
            places = lengths.unsqueeze(1) + slots
            kept = torch.where(slots < keep, draft.tokens, tokens.gather(1, places))
            tokens.scatter_(1, places, kept)
            for row in range(3):
                gained = tokens[row, lengths[row] : lengths[row] + keep[row] + 1].tolist()
                texts[row] += translation.continuation(gained)
            lengths = lengths + keep.squeeze(1) + 1


def test_a_draft_that_is_the_target_in_other_words_is_accepted_whole(make_llama, char_tokenizer):
    """The same model under a shuffled vocabulary: only a faultless translation accepts all."""
    target = model_of(make_llama, char_tokenizer)
    vocab = len(char_tokenizer)
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(0))
    names = char_tokenizer.convert_ids_to_tokens(order.tolist())
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    shuffled = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    draft = model_of(make_llama, char_tokenizer)
    draft.load_state_dict(target.state_dict())
    draft.model.embed_tokens.weight.data = target.model.embed_tokens.weight.data[order].clone()
    draft.tie_weights()
    decoder = SpeculativeDecoder(
        target, VocabularyDrafter(draft, shuffled, char_tokenizer), num_draft_tokens=4
    )
    prompt = torch.tensor([char_tokenizer("what is 1+1?").input_ids, [7] * 12])
    for temperature in (0.0, 1.0):
        output = decoder.generate(
            prompt,
            params=SamplingParams(max_new_tokens=40, temperature=temperature, seed=1),
            eos_token_ids=(),
        )
        assert output.stats.accepted_fraction == 1.0


def test_rows_that_outgrow_the_draft_go_on_without_it(make_llama, byte_level, metaspace):
    target = model_of(make_llama, byte_level)
    draft = model_of(make_llama, metaspace, max_position_embeddings=24)
    decoder = SpeculativeDecoder(target, VocabularyDrafter(draft, metaspace, byte_level))
    plain = SpeculativeDecoder(
        target, VocabularyDrafter(draft, metaspace, byte_level), num_draft_tokens=0
    )
    ids = torch.tensor([byte_level("the fox the fox ju").input_ids, [70] * 5])
    params = SamplingParams(max_new_tokens=60, temperature=0)
    got = decoder.generate(ids, params=params, eos_token_ids=())
    assert got.new_tokens() == plain.generate(ids, params=params, eos_token_ids=()).new_tokens()
    assert 0 < got.stats.num_drafted < 2 * got.stats.num_target_calls


def test_what_cannot_work_is_named(make_llama, make_model, char_tokenizer, byte_level):
    with pytest.raises(TypeError, match="the draft cannot be used"):
        VocabularyDrafter(make_model("mistral"), char_tokenizer, byte_level)
    alone = Tokenizer(models.WordLevel({"xyz": 0}, unk_token="xyz"))
    with pytest.raises(ValueError, match="no token in common"):
        VocabularyDrafter(
            make_llama(), PreTrainedTokenizerFast(tokenizer_object=alone), char_tokenizer
        )
    drafter = VocabularyDrafter(make_llama(), char_tokenizer, byte_level)
    with pytest.raises(ValueError, match="target is on meta"):
        drafter.check(make_llama().to("meta"))
