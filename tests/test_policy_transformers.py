from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from policy_fixtures import make_requests, write_model, write_tokenizer
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.policy import FinishReason, Policy, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.transformers_engine.kv_cache import BlockCache, RowCopy
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def open_policy(folder: Path, *, adapter: Path | None = None, **dials: object) -> TransformersPolicy:
    config = PolicyConfig.model_validate({"model": str(folder), "max_batch": 48, "device": "cpu"} | dials)
    codec = load_codec(folder, config)
    return TransformersPolicy(folder, adapter_dir=adapter, policy_id="test", config=config, codec=codec)


def one(ids: list[int], *, max_new_tokens: int = 8, name: str = "a", temperature: float = 0.0) -> SampleRequest:
    return SampleRequest(name, np.array(ids, dtype=np.int32), SamplingParams(max_new_tokens, temperature), 7)


def outcomes(policy: Policy, requests: list[SampleRequest], wave: int | None = None) -> dict[str, tuple[str, bytes]]:
    """Results when `wave` requests at a time are kept in flight; all at once when None."""
    done, waiting = {}, list(requests)
    while waiting or policy.num_in_flight:
        free = (wave or len(waiting)) - policy.num_in_flight
        policy.submit([waiting.pop(0) for _ in range(min(free, len(waiting)))])
        done.update({r.request_id: (r.finish_reason.value, r.token_ids.tobytes()) for r in policy.poll()})
    return done


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_greedy_tokens_equal_those_of_generate(tmp_path: Path, kind: str) -> None:
    policy = open_policy(write_model(tmp_path, kind))
    requests = make_requests(24, temperature=0.0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa")
    results = sample_all(policy, requests)
    for request in requests:
        ids = torch.from_numpy(request.token_ids.astype(np.int64))[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)[0]
        new = expected[ids.shape[1] :].tolist()
        result = results[request.request_id]
        assert result.finish_reason is (FinishReason.STOP if new[-1] == 1 else FinishReason.LENGTH)
        assert result.token_ids.tolist() == [token for token in new if token != 1]


def test_200_requests_batched_in_three_ways_give_the_same_rollouts(model_dir: Path) -> None:
    requests = make_requests(200)
    policy = open_policy(model_dir)
    assert policy.batch_invariant
    at_once = outcomes(policy, requests)
    assert policy.stats.tokens_reused > policy.stats.tokens_prefilled / 2
    few = outcomes(open_policy(model_dir, max_batch=24), requests[::-1], wave=19)
    mixed = outcomes(
        open_policy(model_dir, max_batch=33), [requests[i] for i in np.random.default_rng(3).permutation(200)]
    )
    assert len(at_once) == 200
    assert sum(at_once[name] != few[name] for name in at_once) == 0
    assert sum(at_once[name] != mixed[name] for name in at_once) == 0


def logits_of_a(policy: TransformersPolicy, waves: list[list[SampleRequest]]) -> list[bytes]:
    """The bits of all logits that request "a" was drawn from, while each wave is sampled in turn."""
    seen, draw = [], policy._draw

    def spy(logits: torch.Tensor, ready: np.ndarray) -> np.ndarray:
        slots = [s for s in ready if policy._table.requests[s].request_id == "a"]
        seen.extend(logits[slot].numpy().tobytes() for slot in slots)
        return draw(logits, ready)

    policy._draw = spy
    for wave in waves:
        sample_all(policy, wave)
    return seen


def test_logits_have_the_same_bits_with_and_without_a_reused_cache(model_dir: Path) -> None:
    long = one(list(range(2, 40)) * 2, max_new_tokens=20)
    alone = logits_of_a(open_policy(model_dir), [[long]])
    before = one(list(range(2, 40)) + [5] * 30, name="b", max_new_tokens=30)
    assert len(alone) == 20
    assert alone == logits_of_a(open_policy(model_dir), [[before], [long]])


def test_logits_have_the_same_bits_whether_few_rows_or_many_reach_the_blocks_of_the_longest(model_dir: Path) -> None:
    long, company = one(list(range(2, 40)) * 4, max_new_tokens=60), range(40)
    short = [one([3 + i % 30] * 9, name=f"short {i}", max_new_tokens=60) for i in company]
    as_long = [one([*range(2, 40 - i % 9)] * 4, name=f"long {i}", max_new_tokens=60) for i in company]
    alone, among_short, among_long = (
        logits_of_a(open_policy(model_dir), [[long, *others]]) for others in ([], short, as_long)
    )
    assert len(alone) > 40  # from the third block into the fourth
    assert alone == among_short == among_long


def test_rows_copied_all_at_once_equal_those_copied_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_lib.policy.transformers_engine.kv_cache.CPU_BLOCK", 4)
    rng = np.random.default_rng(0)
    copies = [RowCopy(0, 4, 9), RowCopy(1, 0, 6), RowCopy(4, 1, 9), RowCopy(0, 2, 3), RowCopy(4, 4, 9)]
    start = torch.from_numpy(rng.random((3, 6, 2, 4, 5)))  # blocks, rows, heads, positions, numbers
    held = {}
    for in_turn in (True, False):
        cache = BlockCache(6, torch.device("cpu"))
        cache.on_cpu = in_turn
        cache.keys[0], cache.values[0] = start.clone(), -start
        cache.copy_rows(copies)
        assert torch.equal(cache.values[0], -cache.keys[0])
        held[in_turn] = cache.keys[0].permute(1, 0, 3, 2, 4).flatten(1, 2)  # rows, positions, ...
    before = start.permute(1, 0, 3, 2, 4).flatten(1, 2)
    for row, origin, length in ((4, 0, 9), (0, 1, 6), (1, 0, 9), (2, 1, 3)):
        for rows in held.values():
            assert torch.equal(rows[row, :length], before[origin, :length])


def asking(requests: list[SampleRequest], **dials: float) -> list[SampleRequest]:
    """The same requests, which ask for log-probabilities."""
    return [replace(request, params=replace(request.params, logprobs=True, **dials)) for request in requests]


@pytest.mark.parametrize(
    "dials", [{"temperature": 0.0}, {"temperature": 1.5, "top_p": 0.9, "top_k": 20, "min_p": 0.01}]
)
def test_log_probabilities_equal_those_of_a_plain_forward_pass_however_tokens_are_drawn(
    model_dir: Path, dials: dict[str, float]
) -> None:
    requests = make_requests(24)
    silent = [replace(request, request_id=f"silent {request.request_id}") for request in requests]
    mixed = [each for pair in zip(silent, asking(requests, **dials), strict=True) for each in pair]
    results = sample_all(open_policy(model_dir), mixed)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    assert any(result.finish_reason is FinishReason.STOP for result in results.values())
    for request in requests:
        answer = results[request.request_id].token_ids
        ids = torch.from_numpy(np.concatenate([request.token_ids, answer]).astype(np.int64))[None]
        with torch.inference_mode():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        expected = logprobs[len(request.token_ids) - 1 : -1].gather(1, ids[0, len(request.token_ids) :, None])[:, 0]
        found = results[request.request_id].logprobs
        assert found.dtype == np.float32
        assert found == pytest.approx(expected.numpy(), abs=1e-5)
        assert results[f"silent {request.request_id}"].logprobs is None


def test_log_probabilities_have_the_same_bits_batched_in_three_ways(model_dir: Path) -> None:
    requests = asking(make_requests(100))
    found = []
    for max_batch, order in ((48, slice(None)), (24, slice(None, None, -1)), (5, slice(None))):
        results = sample_all(open_policy(model_dir, max_batch=max_batch), requests[order])
        found.append({name: result.logprobs.tobytes() for name, result in results.items()})
    assert found[0] == found[1] == found[2]


def test_nobody_computes_log_probabilities_that_nobody_asks_for(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    counted = "pipeline_lib.policy.transformers_engine.transformers_policy.token_logprobs"
    monkeypatch.setattr(counted, lambda logits, tokens: asked.append(len(tokens)) or torch.zeros(len(tokens)))
    policy, requests = open_policy(model_dir), make_requests(12)
    sample_all(policy, requests)
    assert (asked, policy._table.logprobs.shape[1]) == ([], 1)
    sample_all(policy, [*requests[1:], *asking(requests[:1])])
    assert set(asked) == {1}  # row of each pass


def test_reuse_copies_all_but_the_last_prompt_token_and_counts_both(model_dir: Path) -> None:
    policy = open_policy(model_dir)
    sample_all(policy, [one(list(range(2, 32)), name=str(i)) for i in range(3)])
    assert (policy.stats.tokens_prefilled, policy.stats.tokens_reused) == (30 + 1 + 1, 29 + 29)


def test_a_finished_sequence_can_be_copied_from_after_its_slot_went_to_another_request(model_dir: Path) -> None:
    alone, policy = open_policy(model_dir, max_batch=1), open_policy(model_dir, max_batch=1)
    first, other, again = list(range(2, 32)), list(range(40, 70)), [*range(2, 32), 33, 34]
    for name, prompt in (("a", first), ("b", other), ("c", again)):
        found = sample_all(policy, [one(prompt, name=name)])
    assert policy.stats.tokens_reused == 30
    assert np.array_equal(found["c"].token_ids, sample_all(alone, [one(again, name="c")])["c"].token_ids)


def test_idle_share_counts_rows_without_a_request(model_dir: Path) -> None:
    policy = open_policy(model_dir, max_batch=4)
    sample_all(policy, [one(list(range(2, 22)), max_new_tokens=5)])
    assert policy.stats.slot_steps == policy.stats.tokens_generated
    assert policy.stats.capacity_steps == 4 * policy.stats.slot_steps


def test_a_full_context_is_length_and_what_cannot_be_read_is_an_error(model_dir: Path) -> None:
    policy = open_policy(model_dir, max_context_tokens=32)
    results = sample_all(
        policy,
        [
            one([2] * 33, name="too long"),
            one([], name="empty"),
            one([2, 999], name="no such token"),
            one([2] * 32, name="full"),
            one([2] * 30, name="room for two", max_new_tokens=9),
        ],
    )
    reasons = {name: (r.finish_reason, len(r.token_ids)) for name, r in results.items()}
    assert reasons["empty"] == reasons["no such token"] == (FinishReason.ERROR, 0)
    assert reasons["full"] == reasons["too long"] == (FinishReason.LENGTH, 0)
    assert reasons["room for two"][1] <= 2


def test_logits_that_are_not_finite_end_that_request_alone(model_dir: Path) -> None:
    requests = make_requests(20)
    policy, clean = open_policy(model_dir), outcomes(open_policy(model_dir), requests)
    embedding, head = policy._runner.model.get_input_embeddings(), policy._runner.model.lm_head
    head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    embedding.weight[2] = torch.nan
    broken = one([2, 2, 2], name="broken")
    assert sample_all(policy, [broken])["broken"].finish_reason is FinishReason.ERROR
    safe = [r for r in requests if 2 not in r.token_ids and b"\x02\0\0\0" not in clean[r.request_id][1]]
    assert len(safe) >= 4
    assert outcomes(policy, [broken, *safe]) == {r.request_id: clean[r.request_id] for r in safe} | {
        "broken": ("error", b"")
    }


def test_a_request_id_in_flight_is_refused(model_dir: Path) -> None:
    policy = open_policy(model_dir)
    policy.submit([one([2, 3])])
    with pytest.raises(ValueError, match="'a' is in flight already"):
        policy.submit([one([2, 3])])


def test_an_adapter_is_merged_and_changes_the_tokens(model_dir: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    requests = make_requests(8, temperature=0.0)
    results = sample_all(open_policy(model_dir, adapter=tmp_path), requests)
    assert outcomes(open_policy(model_dir), requests) != outcomes(open_policy(model_dir, adapter=tmp_path), requests)
    ids = torch.from_numpy(requests[0].token_ids.astype(np.int64))[None]
    with torch.inference_mode():
        expected = adapted(input_ids=ids).logits[0, -1].argmax().item()
    assert [*results["r0"].token_ids.tolist(), 1][0] == expected


def test_weights_that_are_not_safetensors_are_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no adapter_model\.safetensors"):
        open_policy(model_dir, adapter=tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        open_policy(tmp_path / "nowhere")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    write_tokenizer(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        open_policy(tmp_path)


def test_a_window_shorter_than_the_context_hides_old_tokens(tmp_path: Path) -> None:
    folder = write_model(tmp_path, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    request = make_requests(3, temperature=0.0)[2]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.from_numpy(request.token_ids.astype(np.int64))[None]
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)[0]
    result = sample_all(open_policy(folder), [request])[request.request_id]
    assert result.token_ids.tolist() == [t for t in expected[ids.shape[1] :].tolist() if t != 1]


def test_bfloat16_runs_and_claims_no_batch_invariance(model_dir: Path) -> None:
    policy = open_policy(model_dir, dtype="bfloat16")
    assert not policy.batch_invariant
    assert len(outcomes(policy, make_requests(12))) == 12


def test_an_architecture_that_would_be_computed_wrongly_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": {"rope_type": "default"}}
    GptOssForCausalLM(GptOssConfig(**sizes, **heads, **experts)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"GptOssAttention cannot be sampled .*: its attention uses s_aux"):
        open_policy(tmp_path)


@pytest.mark.slow
def test_a_larger_model_is_batch_invariant_too(tmp_path: Path) -> None:
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    folder = write_model(tmp_path, **sizes, num_key_value_heads=4, max_position_embeddings=512)
    requests = make_requests(200, max_new_tokens=90)
    wide = outcomes(open_policy(folder, max_batch=128), requests)
    narrow = outcomes(open_policy(folder, max_batch=40), requests[::-1], wave=25)
    assert sum(wide[name] != narrow[name] for name in wide) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("block", [16, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_gives_the_same_kind_of_results(
    model_dir: Path, dtype: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_lib.policy.transformers_engine.kv_cache.CUDA_BLOCK", block)
    policy = open_policy(model_dir, device="cuda", dtype=dtype)
    assert not policy.batch_invariant
    results = outcomes(policy, make_requests(60))
    assert len(results) == 60
    if dtype == "float32":
        cpu = outcomes(open_policy(model_dir), make_requests(60, temperature=0.0))
        gpu = outcomes(policy, make_requests(60, temperature=0.0))
        assert sum(cpu[name] == gpu[name] for name in cpu) >= 54
