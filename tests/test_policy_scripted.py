from dataclasses import replace

import numpy as np
import pytest

from pipeline_lib.policy import FinishReason, Policy, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.scripted import CharCodec, ScriptedPolicy

CODEC = CharCodec()


def count_up(prompt: str, prefix: str, seed: int) -> str:
    return f"{prompt}|{prefix}|{seed}"


def request(
    name: str, question: str = "q", prefix: str = "", *, seed: int = 0, max_new_tokens: int = 50
) -> SampleRequest:
    ids = np.concatenate([CODEC.encode_prompt(question), CODEC.encode(prefix)])
    return SampleRequest(name, ids, SamplingParams(max_new_tokens), seed)


def test_char_codec_example_and_round_trip() -> None:
    assert CODEC.encode_prompt("hi").tolist() == [0, 106, 107, 1]
    assert CODEC.decode(CODEC.encode_prompt("é\n√")) == "é\n√"
    assert CODEC.encode("").dtype == np.int32


def test_the_script_sees_prompt_prefix_and_seed() -> None:
    policy: Policy = ScriptedPolicy(count_up, CODEC)
    assert isinstance(policy, Policy)
    result = sample_all(policy, [request("a", "2+2", "so ", seed=9)])["a"]
    assert CODEC.decode(result.token_ids) == "2+2|so |9"
    assert result.finish_reason is FinishReason.STOP


def test_results_do_not_depend_on_capacity_or_order_but_arrival_does() -> None:
    requests = [request(str(i), f"q{i}", seed=i) for i in range(50)]
    wide, narrow = ScriptedPolicy(count_up, CODEC), ScriptedPolicy(count_up, CODEC, capacity=3, seed=5)
    first = {name: r.token_ids.tolist() for name, r in sample_all(wide, requests).items()}
    second = {name: r.token_ids.tolist() for name, r in sample_all(narrow, requests[::-1]).items()}
    assert first == second
    assert list(first) != sorted(first, key=int)
    assert narrow.stats.slot_steps <= narrow.stats.capacity_steps


def test_every_poll_brings_something_and_some_requests_stay_behind() -> None:
    policy = ScriptedPolicy(count_up, CODEC)
    policy.submit([request(str(i), seed=i) for i in range(30)])
    sizes = []
    while policy.num_in_flight:
        sizes.append(len(policy.poll()))
    assert len(sizes) > 1
    assert min(sizes) >= 1
    assert sum(sizes) == 30
    assert policy.poll() == []


@pytest.mark.parametrize(("room", "reason", "generated"), [(9, "length", 9), (10, "length", 10), (11, "stop", 11)])
def test_an_answer_of_ten_tokens_needs_room_for_its_end(room: int, reason: str, generated: int) -> None:
    policy = ScriptedPolicy(lambda *_: "x" * 10, CODEC)
    result = sample_all(policy, [request("a", max_new_tokens=room)])["a"]
    assert (result.finish_reason, len(result.token_ids)) == (reason, min(room, 10))
    assert policy.stats.tokens_generated == generated


def test_a_failed_script_is_an_error_and_an_overlong_prompt_leaves_no_room() -> None:
    policy = ScriptedPolicy(lambda prompt, *_: None if prompt == "fail" else "ok", CODEC, max_context_tokens=8)
    results = sample_all(policy, [request("a", "fail"), request("b", "much too long"), request("c")])
    assert [results[name].finish_reason for name in "abc"] == ["error", "length", "stop"]


def test_a_request_id_in_flight_is_refused() -> None:
    policy = ScriptedPolicy(count_up, CODEC)
    with pytest.raises(ValueError, match="'a' is in flight already"):
        policy.submit([request("a"), request("a")])


def test_log_probabilities_are_invented_by_the_requests_seed_where_asked() -> None:
    def asked(seed: int, max_new_tokens: int = 50) -> SampleRequest:
        plain = request("a", seed=seed, max_new_tokens=max_new_tokens)
        return replace(plain, params=replace(plain.params, logprobs=True))

    policy = ScriptedPolicy(lambda *_: "x" * 10, CODEC)
    first, again, other, short = (
        sample_all(policy, [each])["a"].logprobs for each in (asked(1), asked(1), asked(2), asked(1, 4))
    )
    assert (len(first), first.dtype, bool((first < 0).all())) == (10, np.float32, True)
    assert first.tolist() == again.tolist() != other.tolist()
    assert short.tolist() == first[:4].tolist()
    assert sample_all(policy, [request("a", seed=1)])["a"].logprobs is None
