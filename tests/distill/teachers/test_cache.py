import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_teachers import HiddenTeacher

from selftrain.distill.targets import TopKTargets
from selftrain.distill.teachers import (
    CachedTeacher,
    CallableTeacher,
    encode_rows,
    write_teacher_cache,
)
from selftrain.errors import RunConflictError
from selftrain.training.batch import TokenRow, collate, scored_logits

MANY = [
    TokenRow(prompt_ids=tuple(range(3, 4 + i % 5)), completion_ids=tuple(range(10 + i, 14 + i)))
    for i in range(20)
]


def write(teacher, rows, folder, **options):
    return write_teacher_cache(teacher, rows, folder, show_progress=False, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_hidden_states_come_back_as_the_head_receives_them(teacher, rows, batch, tmp_path):
    source = HiddenTeacher(teacher)
    cached = write(source, rows, tmp_path)
    found, expected = cached.targets(batch), source.targets(batch)
    torch.testing.assert_close(found.hidden, expected.hidden)
    assert found.hidden.dtype == expected.hidden.dtype
    assert torch.equal(found.head.weight, expected.head.weight)
    torch.testing.assert_close(
        found.hidden @ found.head.weight.T, scored_logits(teacher, batch, slices_logits=False)
    )


def test_what_comes_back_is_bit_for_bit_what_was_asked(teacher, tmp_path):
    rows = [TokenRow(prompt_ids=(3, 4), completion_ids=(i, i + 1, i + 2)) for i in range(6, 10)]
    source = HiddenTeacher(teacher)
    expected = source.targets(collate(rows)).hidden
    found = write(source, rows, tmp_path, batch_size=4).targets(collate(rows)).hidden
    assert torch.equal(found, expected)


def test_top_tokens_come_back(teacher, rows, batch, tmp_path):
    cached = write(teacher, rows, tmp_path, kind="top_k", top_k=7)
    best = scored_logits(teacher, batch, slices_logits=False).log_softmax(-1).topk(7)
    found = cached.targets(batch)
    assert torch.equal(found.token_ids, best.indices)
    torch.testing.assert_close(found.log_probs, best.values)


@pytest.mark.parametrize("factor", [{"scale": 0.5}, {"softcap": 2.0}])
def test_top_tokens_of_hidden_states_go_through_scale_and_softcap(
    teacher, rows, batch, tmp_path, factor
):
    logits = scored_logits(teacher, batch, slices_logits=False)
    logits = logits * 0.5 if "scale" in factor else 2 * torch.tanh(logits / 2)
    cached = write(HiddenTeacher(teacher, **factor), rows, tmp_path, kind="top_k", top_k=7)
    best = logits.log_softmax(-1).topk(7)
    torch.testing.assert_close(cached.targets(batch).log_probs, best.values)


def test_log_probabilities_of_half_precision_teachers_are_not_rounded(make_llama, rows, tmp_path):
    source = HiddenTeacher(make_llama(seed=2, sharpness=6.0).bfloat16())
    batch = collate(rows)
    hidden, weight = source.targets(batch).hidden.double(), source.head.weight.double()
    exact = (hidden @ weight.T).log_softmax(-1)
    found = write(source, rows, tmp_path, kind="top_k", top_k=5).targets(batch)
    exact = exact.gather(-1, found.token_ids)
    torch.testing.assert_close(found.log_probs.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_vocabulary_in_pieces_is_a_whole_one(make_model, rows, tmp_path, monkeypatch):
    source = HiddenTeacher(make_model("gpt2"), softcap=3.0)
    source.head = replace(
        source.head, bias=torch.randn(64, generator=torch.Generator().manual_seed(0))
    )
    whole = write(source, rows, tmp_path / "whole", kind="top_k", top_k=9).targets(collate(rows))
    monkeypatch.setattr("selftrain.distill.teachers._answers._PIECE", 10)
    pieces = write(source, rows, tmp_path / "pieces", kind="top_k", top_k=9).targets(collate(rows))
    torch.testing.assert_close(pieces.log_probs, whole.log_probs)
    assert torch.equal(pieces.token_ids, whole.token_ids)


def test_the_best_of_a_top_k_teachers_tokens_are_kept(rows, batch, tmp_path):
    def fn(input_ids, attention_mask, positions):
        ids = torch.arange(5).expand(len(positions), 5)
        return ids, torch.tensor([0.1, 0.4, 0.2, 0.05, 0.15]).log().expand(len(positions), 5)

    found = write(CallableTeacher(fn), rows, tmp_path, kind="top_k", top_k=2).targets(batch)
    assert isinstance(found, TopKTargets)
    assert found.token_ids.tolist() == [[1, 2]] * len(batch.labels)


def test_the_head_keeps_bias_scale_and_softcap(make_model, rows, tmp_path):
    source = HiddenTeacher(make_model("gpt2"), scale=0.25, softcap=30.0)
    source.head = type(source.head)(source.head.weight, torch.arange(64.0), 0.25, 30.0)
    head = write(source, rows, tmp_path).targets(collate(rows)).head
    assert (head.scale, head.softcap) == (0.25, 30.0)
    assert torch.equal(head.bias, torch.arange(64.0))


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
def test_an_encoder_decoders_answers_come_back(make_model, rows, seq2seq_batch, tmp_path, kind):
    model = make_model("t5")
    expected = scored_logits(model, seq2seq_batch, slices_logits=False)
    if kind == "top_k":
        found = write(model, rows[:4], tmp_path, kind=kind, top_k=64).targets(seq2seq_batch)
        best = expected.log_softmax(-1).topk(64)
        torch.testing.assert_close(found.log_probs, best.values)
    else:
        found = write(HiddenTeacher(model), rows[:4], tmp_path).targets(seq2seq_batch)
        torch.testing.assert_close(found.hidden @ found.head.weight.T, expected)


def test_of_an_encoder_decoder_the_border_is_part_of_a_rows_name(make_model, tmp_path):
    row = TokenRow(prompt_ids=(5, 6, 7), completion_ids=(8, 9))
    moved = TokenRow(prompt_ids=(5, 6), completion_ids=(7, 8, 9))
    cached = write(make_model("t5"), [row], tmp_path, kind="top_k", top_k=3)
    with pytest.raises(ValueError, match="not among the 1 rows"):
        cached.targets(collate([moved], decoder_start_id=0))


def test_neither_order_nor_batches_nor_masks_matter(teacher, tmp_path):
    cached = write(HiddenTeacher(teacher), MANY, tmp_path, batch_size=3)
    chosen = [MANY[i] for i in (17, 2, 9)]
    masked = TokenRow(
        prompt_ids=MANY[4].prompt_ids,
        completion_ids=MANY[4].completion_ids,
        mask=(False, True, False, True),
    )
    batch = collate([*chosen, masked])
    expected = HiddenTeacher(teacher).targets(batch).hidden
    torch.testing.assert_close(cached.targets(batch).hidden, expected)


def test_a_longer_prompt_of_the_same_text_is_found_and_a_shorter_one_is_added(teacher, tmp_path):
    ids = (5, 6, 7, 8, 9, 10)
    short, long = (TokenRow(prompt_ids=ids[:n], completion_ids=ids[n:]) for n in (2, 4))
    source = HiddenTeacher(teacher)
    cached = write(source, [short], tmp_path / "a")
    torch.testing.assert_close(
        cached.targets(collate([long])).hidden, source.targets(collate([long])).hidden
    )
    cached = write(source, [long], tmp_path / "b")
    with pytest.raises(ValueError, match=r"with a longer prompt.*write_teacher_cache"):
        cached.targets(collate([short]))
    cached = write(source, [short], tmp_path / "b")
    torch.testing.assert_close(
        cached.targets(collate([short])).hidden, source.targets(collate([short])).hidden
    )


def test_the_same_text_is_asked_about_once(teacher, tmp_path):
    source = HiddenTeacher(teacher)
    assert len(write(source, MANY * 3, tmp_path)) == source.num_rows == len(MANY)


def test_rows_may_be_mappings(teacher, tmp_path):
    rows = [{"prompt_ids": [3, 4], "completion_ids": [5, 6]}]
    cached = write(HiddenTeacher(teacher), rows, tmp_path)
    assert len(cached.targets(collate([TokenRow(prompt_ids=(3, 4), completion_ids=(5, 6))])).hidden)


def test_a_data_sets_rows_become_the_tokens_of_training(char_tokenizer, student):
    dataset = [
        {"prompt": "2+2=", "completion": "4", "weight": 2.0},
        {"prompt_ids": [3, 4, 5, 6, 7], "completion_ids": [8, 1, 9]},
    ]
    rows = encode_rows(dataset, char_tokenizer, student=student, max_prompt_tokens=4)
    prompt = tuple(char_tokenizer("2+2=").input_ids)
    assert rows[0] == TokenRow(
        prompt_ids=prompt, completion_ids=(*char_tokenizer("4").input_ids, 1), weight=2.0
    )
    assert rows[1] == TokenRow(prompt_ids=(4, 5, 6, 7), completion_ids=(8, 1))
    with pytest.raises(ValueError, match="row 1 has no completion"):
        encode_rows([dataset[0], {"prompt": "a"}], char_tokenizer, student=student)


def test_an_interrupted_cache_is_finished_with_the_same_files(teacher, tmp_path):
    options = {"shard_tokens": 16, "batch_size": 2}
    write(HiddenTeacher(teacher), MANY, tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="killed"):
        write(HiddenTeacher(teacher, fail_after=10), MANY, tmp_path / "parts", **options)
    assert 0 < len(CachedTeacher(tmp_path / "parts")) < len(MANY)
    rest = HiddenTeacher(teacher)
    write(rest, MANY, tmp_path / "parts", **options)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert rest.num_rows == len(MANY) - 8


def test_a_finished_cache_asks_nothing_and_grows_by_new_rows_only(teacher, tmp_path):
    write(HiddenTeacher(teacher), MANY[:12], tmp_path)
    again = HiddenTeacher(teacher)
    write(again, MANY[:12], tmp_path)
    assert again.num_rows == 0
    grown = write(again, MANY, tmp_path)
    assert again.num_rows == 8
    torch.testing.assert_close(
        grown.targets(collate(MANY)).hidden, again.targets(collate(MANY)).hidden
    )


WORKER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
import torch
from selftrain.distill.teachers import CallableTeacher, write_teacher_cache
from selftrain.training.batch import TokenRow

def fn(input_ids, attention_mask, positions):
    time.sleep(float(sys.argv[2]))
    ids = input_ids.flatten()[positions, None]
    return ids, -ids.float() / 50

rows = [TokenRow(prompt_ids=(3,), completion_ids=(i, i + 1)) for i in range(4, 40)]
write_teacher_cache(CallableTeacher(fn), rows, sys.argv[1], kind="top_k", top_k=1, batch_size=1,
                    shard_tokens=4, show_progress=False)
"""


def test_a_writer_that_is_killed_leaves_whole_shards_and_continues(tmp_path):
    script = WORKER.format(path=sys.path)
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), "0.05"]
    running = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("shard-*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    kept = len(CachedTeacher(tmp_path / "killed"))
    assert 6 <= kept < 36
    names = {"sys": sys}
    for folder in ("killed", "whole"):
        sys.argv, before = ["-", str(tmp_path / folder), "0"], sys.argv
        try:
            exec(script, names)
        finally:
            sys.argv = before
    left = files(tmp_path / "killed")
    assert {k: v for k, v in left.items() if k[0] != "."} == files(tmp_path / "whole")


def test_a_row_that_is_not_there_is_named(teacher, tmp_path):
    cached = write(HiddenTeacher(teacher), MANY, tmp_path)
    row = TokenRow(prompt_ids=(40, 41, 42), completion_ids=(43, 44, 45, 46, 3, 4))
    with pytest.raises(ValueError, match=r"row 1 of the batch \(9 tokens: 40 41 42 43 44 45 46 3 "):
        cached.targets(collate([MANY[0], row]))


def test_a_batch_with_nothing_scored_gets_empty_targets(teacher, rows, tmp_path):
    found = write(HiddenTeacher(teacher), rows, tmp_path).targets(collate([rows[3]]))
    assert found.hidden.shape == (0, 32)


def test_half_precision_halves_the_bytes(teacher, tmp_path):
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        cached = write(HiddenTeacher(teacher), MANY, folder, dtype=dtype)
        assert cached.targets(collate(MANY)).hidden.dtype == dtype
        sizes.append(sum(p.stat().st_size for p in folder.glob("shard-*")))
    num_tokens = sum(len(row.completion_ids) for row in MANY)
    assert sizes[0] - sizes[1] == pytest.approx(num_tokens * 32 * 2, abs=64)  # the header's text


def test_another_teacher_kind_or_type_is_refused_with_the_difference(
    make_llama, teacher, rows, tmp_path
):
    write(teacher, rows, tmp_path, kind="top_k", top_k=4)
    with pytest.raises(RunConflictError, match="top_k: 4 -> 5"):
        write(teacher, rows, tmp_path, kind="top_k", top_k=5)
    with pytest.raises(RunConflictError, match=r"teacher\.fingerprint"):
        write(make_llama(seed=7), rows, tmp_path, kind="top_k", top_k=4)
    with pytest.raises(RunConflictError, match="dtype: None -> 'float64'"):
        write(teacher, rows, tmp_path, kind="top_k", top_k=4, dtype=torch.float64)


def test_another_head_is_refused(teacher, tmp_path):
    write(HiddenTeacher(teacher), MANY[:3], tmp_path)
    with pytest.raises(RunConflictError, match="another head"):
        write(HiddenTeacher(teacher, softcap=5.0), MANY, tmp_path)


def test_a_damaged_shard_is_named_with_the_way_out(teacher, tmp_path):
    write(HiddenTeacher(teacher), MANY, tmp_path)
    (path,) = tmp_path.glob("shard-*")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*Delete it"):
        CachedTeacher(tmp_path)


def test_an_attempt_that_came_to_nothing_does_not_bind(teacher, rows, tmp_path):
    with pytest.raises(ValueError, match="top_k=48 is more"):
        write(teacher, rows, tmp_path, kind="top_k", top_k=48)
    with pytest.raises(RuntimeError, match="killed"):
        write(HiddenTeacher(teacher, softcap=9.0, fail_after=1), MANY, tmp_path, batch_size=1)
    assert len(write(HiddenTeacher(teacher), MANY, tmp_path)) == len(MANY)


def test_a_cache_of_another_version_is_refused(teacher, rows, tmp_path):
    write(teacher, rows, tmp_path, kind="top_k", top_k=4)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ValueError, match="of version 2; version 1 is read here"):
        CachedTeacher(tmp_path)


def test_a_folder_without_a_cache_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        CachedTeacher(tmp_path)


def test_the_other_architecture_is_refused(teacher, rows, seq2seq_batch, tmp_path):
    cached = write(teacher, rows, tmp_path, kind="top_k", top_k=4)
    with pytest.raises(ValueError, match="of decoder-only models, the student is encoder-decoder"):
        cached.targets(seq2seq_batch)


def test_writing_leaves_the_model_as_it_was(make_llama, rows, tmp_path):
    model = make_llama().train()
    model.model.layers[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    write(model, rows, tmp_path, kind="top_k", top_k=4)
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_manifest_says_what_is_there(teacher, rows, tmp_path):
    write(teacher, rows, tmp_path, kind="top_k", top_k=4)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["kind"], manifest["top_k"] == ("top_k", 4)
    assert manifest["teacher"]["model"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "logits"}, "kind must be one of 'hidden', 'top_k'"),
        ({"top_k": 4}, 'no effect with kind="hidden"'),
        ({"kind": "top_k"}, "needs top_k"),
        ({"kind": "top_k", "top_k": 0}, "top_k must satisfy"),
        ({"kind": "top_k", "top_k": 4, "dtype": torch.bfloat16}, "dtype must be one of None, "),
        ({"kind": "top_k", "top_k": 48}, "top_k=48 is more than the 47 tokens"),
        ({"batch_size": 0}, "batch_size must satisfy"),
        ({"shard_tokens": 0}, "shard_tokens must satisfy"),
    ],
)
def test_bad_arguments_are_refused(teacher, rows, tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        write(teacher, rows, tmp_path, **options)


def test_hidden_states_of_a_teacher_that_gives_none_are_refused(teacher, rows, tmp_path):
    def fn(input_ids, attention_mask, positions):
        return teacher(input_ids=input_ids).logits.flatten(0, 1)[positions]

    with pytest.raises(ValueError, match=r'gives LogitTargets\. Use kind="top_k"'):
        write(CallableTeacher(fn), rows, tmp_path)


def test_rows_without_a_completion_are_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match="rows is empty"):
        write(teacher, [], tmp_path)
    with pytest.raises(ValueError, match="no row has a completion"):
        write(teacher, [TokenRow(prompt_ids=(3,))], tmp_path, kind="top_k", top_k=2)
