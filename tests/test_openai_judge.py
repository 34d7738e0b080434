"""Judges behind a server: one that misbehaves, refuses, dies; limits, costs and keys."""

import asyncio
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
import traceback

import pytest

from bitlens.comsem.calls import Calls
from bitlens.comsem.judges import Question, explain_prompt
from bitlens.comsem.openai_judge import OpenAIExplainer, OpenAIJudge
from bitlens.comsem.openai_server import OpenAIServer
from bitlens.errors import BitlensError, Interrupted
from language_model_server import LanguageModelServer, Reply, by_letter

KEY = "sk-a-key-that-must-stay-secret"
WORDS = ["ash", "bee", "ant", "cat", "arm", "dog", "axe", "elk", "air", "fox", "bat", "ale"]
QUESTIONS = [
    Question(letter, f"one «{word}» {i}") for letter in "ab" for i, word in enumerate(WORDS)
]
TRUTH = [question.text[5] == question.explanation for question in QUESTIONS]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """The client waits half a second before it tries again."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def calls(tmp_path):
    with Calls(tmp_path / "calls.sqlite") as record:
        yield record


def judge_of(server, calls, batch=4, **settings):
    settings = {"timeout": 5.0, "prices": (1.0, 2.0)} | settings
    return OpenAIJudge(OpenAIServer("rule", server.url, **settings), calls, batch)


def verdicts(judge, questions=QUESTIONS):
    return [verdict.yes for verdict in judge.answer(questions)]


def test_questions_are_asked_in_batches_of_one_explanation(calls):
    with LanguageModelServer(by_letter) as server:
        judge = judge_of(server, calls)
        assert verdicts(judge) == TRUTH
        assert len(server.requests) == 2 * 3
        for request in server.requests:
            assert request["model"] == "rule"
            assert request["temperature"] == 0
            assert 16 <= request["max_tokens"] <= 40
        sent = "\n".join(server.prompts)
        assert all(
            sent.count(json.dumps(question.text, ensure_ascii=False)) == 2 for question in QUESTIONS
        )
        assert server.keys == {"Bearer none"}
        explainer = OpenAIExplainer(judge.server, calls)
        assert explainer.explain([["«ant» one", "an «axe»"], ["«b»"]]) == ["a", "a"]
        assert server.prompts[-2:] != server.prompts[:2]
        assert {explain_prompt(["«b»"])[0]["content"]} < set(server.prompts)


def test_batches_do_not_depend_on_the_order_of_questions(calls):
    with LanguageModelServer(by_letter) as server:
        judge = judge_of(server, calls)
        judge.answer(QUESTIONS)
        assert verdicts(judge, QUESTIONS[::-1]) == TRUTH[::-1]
        assert verdicts(judge, QUESTIONS[:12] * 2) == TRUTH[:12] * 2
        assert len(server.requests) == 6


def test_what_could_not_be_read_is_asked_one_by_one(calls):
    def rambling(prompt):
        answer = by_letter(prompt)
        return answer.replace("2. no", "2. hard to say").replace("3. yes", "")

    with LanguageModelServer(rambling) as server:
        judge = judge_of(server, calls)
        found = judge.answer(QUESTIONS)
        assert [verdict.yes for verdict in found] == TRUTH
        assert len(server.requests) > 6
        singles = [prompt for prompt in server.prompts if "\nText: " in prompt]
        assert len(server.requests) == 6 + len(singles)
        assert len({verdict.call for verdict in found}) == 6 + len(singles)


@pytest.mark.slow
def test_an_answer_that_is_none_stays_none(calls):
    with LanguageModelServer(lambda prompt: "It depends.") as server:
        assert verdicts(judge_of(server, calls)) == [None] * len(QUESTIONS)
    with LanguageModelServer(
        lambda prompt: Reply(body='{"choices": [{"message": {"content": null}}]}')
    ) as server:
        assert verdicts(judge_of(server, calls, 1)) == [None] * len(QUESTIONS)


@pytest.mark.slow
def test_a_server_in_trouble_is_asked_again(calls):
    trouble = [
        Reply(status=500),
        Reply(status=503, body="<html>"),
        Reply(status=0),
        Reply(body="{not json"),
        Reply(body='{"choices": []}'),
        Reply(body="[]"),
        Reply(status=408),
        Reply(delay=1.5),
    ]
    with LanguageModelServer(by_letter, trouble) as server:
        judge = judge_of(server, calls, concurrency=2, attempts=9, timeout=1.0)
        assert verdicts(judge) == TRUTH
        assert len(server.requests) == 6 + len(trouble)
    assert calls.spent().calls == 6 + len(trouble), "each of them may have been charged"


@pytest.mark.slow
def test_a_server_that_says_when_is_obeyed(calls):
    when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - 60))
    replies = [
        Reply(status=429, headers={"Retry-After": "0.5"}),
        Reply(status=429, headers={"Retry-After": when}),
    ]
    arrivals = []

    def rule(prompt):
        arrivals.append(time.monotonic())
        return by_letter(prompt)

    with LanguageModelServer(rule, iter(replies)) as server:
        start = time.monotonic()
        verdicts(judge_of(server, calls), QUESTIONS[:3])
        assert arrivals[0] - start > 0.5
        assert len(server.requests) == 3
    assert calls.spent().calls == 1, "a refusal costs nothing"
    tomorrow = Reply(status=429, headers={"Retry-After": "86400"})
    with (
        LanguageModelServer(lambda prompt: tomorrow) as server,
        pytest.raises(BitlensError, match=r"no answer \(status 429"),
    ):
        judge_of(server, calls).answer([Question("a", "«new»")])


def thinking(words, end="</think>"):
    """Answers by letter after so many words of a thought."""
    return lambda prompt: "<think>" + "no, " * words + end + by_letter(prompt)


def answers(calls):
    return [
        row[0]
        for row in calls._execute("SELECT answer FROM calls WHERE answer IS NOT NULL").fetchall()
    ]


@pytest.mark.slow
def test_answers_that_are_cut_off_are_not_kept_but_asked_for_with_more_tokens(calls):
    with LanguageModelServer(thinking(300)) as server:
        judge = judge_of(server, calls, concurrency=2)
        assert verdicts(judge) == TRUTH
        assert sorted(set(server.limits)) == [32, 512]
        assert server.limits.count(32) <= 2, (
            "once it is known how much is needed, it is asked for at once"
        )
        assert all("</think>" in answer for answer in answers(calls))
        assert calls.spent()[:3] == (len(server.requests), *server.tokens), (
            "those that were cut off are paid, too"
        )
        before = len(server.requests)
        assert verdicts(judge_of(server, calls)) == TRUTH
        assert OpenAIExplainer(judge.server, calls).explain([["«b»"]]) == ["a"]
        assert server.limits[before:] == [60, 512]
    with LanguageModelServer(thinking(300)) as server:
        assert verdicts(judge_of(server, calls, answer_tokens=400)) == TRUTH
        assert set(server.limits) == {400}


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        thinking(99_000),
        thinking(3, end=""),
        lambda prompt: Reply("word " * 99_000),
        lambda prompt: Reply("no " * 99_000, finish=None),
    ],
    ids=["long", "open", "rambling", "no reason"],
)
def test_what_comes_to_no_end_is_unfinished_and_not_paid_for_again(calls, rule):
    with LanguageModelServer(rule) as server:
        judge = judge_of(server, calls)
        found = judge.answer(QUESTIONS[:6])
        assert {(verdict.yes, verdict.finished) for verdict in found} == {(None, False)}
        assert max(server.limits) == 4096
        assert answers(calls) == []
        assert OpenAIExplainer(judge.server, calls).explain([["«b»"]]) == [""]
        before = len(server.requests)
        assert judge_of(server, calls).answer(QUESTIONS[:6]) == found
        assert judge.estimate(QUESTIONS[:6]).calls == 0
        assert len(server.requests) == before
        server.rule = thinking(5000)
        assert verdicts(judge_of(server, calls, answer_tokens=9000), QUESTIONS[:6]) == TRUTH[:6], (
            "more is allowed now"
        )


@pytest.mark.slow
def test_longer_answers_may_take_longer(calls):
    def slow(prompt):
        return Reply(thinking(300)(prompt), delay=0.7)

    with LanguageModelServer(slow) as server:
        judge = judge_of(server, calls, answer_tokens=2048, timeout=0.5, attempts=1)
        assert verdicts(judge, QUESTIONS[:3]) == TRUTH[:3]
        with pytest.raises(BitlensError, match=r"no answer in 0\.5 s"):
            judge_of(server, calls, answer_tokens=512, timeout=0.5, attempts=1).answer(
                [Question("a", "«new»")]
            )


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "model_length"])
def test_a_cut_by_any_name_is_one(calls, reason):
    with LanguageModelServer(by_letter, [Reply("1. yes\n2. n", finish=reason)]) as server:
        assert verdicts(judge_of(server, calls), QUESTIONS[:2]) == TRUTH[:2]
        assert server.limits == [16, 512]


def test_a_killed_run_does_not_ask_again_for_what_was_cut_off(calls):
    with LanguageModelServer(
        thinking(300), [Reply(), *[Reply(status=401, body="{}")] * 9]
    ) as server:
        server.first = iter(
            [Reply("<think>" + "hm " * 99, finish="length"), Reply(status=401, body="{}")]
        )
        with pytest.raises(BitlensError, match="401"):
            judge_of(server, calls, concurrency=1).answer(QUESTIONS[:3])
        assert verdicts(judge_of(server, calls), QUESTIONS[:3]) == TRUTH[:3]
        assert server.limits == [24, 512, 512]


@pytest.mark.parametrize("reason", ["stop", "eos", None])
def test_whole_answers_are_kept_whatever_the_server_calls_their_end(calls, reason):
    with LanguageModelServer(
        lambda prompt: Reply(by_letter(prompt), finish=reason, usage=reason != "eos")
    ) as server:
        assert verdicts(judge_of(server, calls)) == TRUTH
        assert len(server.requests) == len(answers(calls)) == 6


def test_a_filtered_answer_is_none_and_not_asked_for_again(calls):
    with LanguageModelServer(lambda prompt: Reply("yes", finish="content_filter")) as server:
        (found,) = judge_of(server, calls, 1).answer(QUESTIONS[:1])
        assert (found.yes, found.finished, len(server.requests)) == (None, True, 1)


@pytest.mark.slow
def test_models_that_refuse_max_tokens_or_a_temperature_get_what_they_want(calls):
    with LanguageModelServer(thinking(300), refuses=("max_tokens", "temperature")) as server:
        judge = judge_of(server, calls, concurrency=2)
        assert verdicts(judge) == TRUTH
        answered = [request for request in server.requests if not server.refuses & set(request)]
        assert len(server.requests) - len(answered) <= 4
        assert {request["max_completion_tokens"] for request in answered} == {32, 512}
        assert calls.spent().calls == len(answered), "a refusal costs nothing"
        assert judge.estimate(QUESTIONS).calls == 0
    with LanguageModelServer(by_letter, refuses=("temperature",)) as server:
        with pytest.raises(BitlensError, match="does not support 0"):
            judge_of(server, calls, parameters={"temperature": 0.5}).answer(QUESTIONS)
        assert len(server.requests) <= 6, "what the user asked for is not left out"


def test_more_tokens_than_a_model_can_write_leave_answers_unfinished(calls):
    with LanguageModelServer(thinking(900), longest=600) as server:
        found = judge_of(server, calls).answer(QUESTIONS[:2])
        assert not any(verdict.finished for verdict in found)
    with (
        LanguageModelServer(by_letter, longest=8) as server,
        pytest.raises(BitlensError, match="too large"),
    ):
        judge_of(server, calls).answer(QUESTIONS[:2])


def test_thoughts_that_use_up_the_limit_are_a_status_of_400_at_openai(calls):
    message = "Could not finish the message because max_tokens or model output limit was reached."
    exhausted = Reply(status=400, body=json.dumps({"error": {"message": message}}))
    with LanguageModelServer(by_letter, [exhausted]) as server:
        assert verdicts(judge_of(server, calls), QUESTIONS[:2]) == TRUTH[:2]
        assert server.limits == [16, 512]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_one_sentence_and_not_repeated(calls, status):
    refusal = Reply(status=status, body='{"error": {"message": "No such thing.\\nSorry."}}')
    with LanguageModelServer(lambda prompt: refusal) as server:
        with pytest.raises(BitlensError) as caught:
            judge_of(server, calls, concurrency=1).answer(QUESTIONS)
        assert f"status {status} No such thing. Sorry" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert ("OPENAI_API_KEY" in str(caught.value)) == (status in (401, 403))
        assert len(server.requests) == 1
    assert calls.spent() == (0, 0, 0, 0.0)


def test_a_server_that_dies_leaves_what_it_said(calls):
    with LanguageModelServer(by_letter) as server:
        asked = iter(range(3))
        server.rule = lambda prompt: (
            Reply(status=0) if next(asked, None) is None else by_letter(prompt)
        )
        with pytest.raises(BitlensError, match="connection was lost"):
            judge_of(server, calls, concurrency=2, attempts=2).answer(QUESTIONS)
        server.rule, before = by_letter, len(server.requests)
        assert verdicts(judge_of(server, calls)) == TRUTH
        assert len(server.requests) - before == 3
        url, judge = server.url, judge_of(server, calls, attempts=2)
    before = calls.spent()
    with pytest.raises(
        BitlensError,
        match=r"rule at .* gave no answer \(no connection\), though it was asked up to 2",
    ) as caught:
        judge.answer([Question("a", "«gone»")])
    assert url in str(caught.value)
    assert verdicts(judge) == TRUTH
    assert calls.spent() == before, "who never heard a prompt cannot charge for it"


@pytest.mark.slow
def test_no_more_calls_are_under_way_than_allowed(calls):
    with LanguageModelServer(lambda prompt: Reply(by_letter(prompt), delay=0.02)) as server:
        verdicts(judge_of(server, calls, 1, concurrency=3))
        assert server.most_under_way == 3


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"max_calls": 5}, {"max_cost": 0.0015}])
def test_no_limit_is_exceeded_by_calls_at_once(tmp_path, limit):
    trouble = [Reply(status=500), Reply(status=0), Reply(status=429)]
    with LanguageModelServer(
        lambda prompt: Reply(by_letter(prompt), delay=0.01), trouble
    ) as server:
        with Calls(tmp_path / "calls.sqlite", **limit) as calls:
            judge = judge_of(server, calls, 1)
            with pytest.raises(Interrupted, match=next(iter(limit))):
                judge.answer(QUESTIONS)
            spent, before = calls.spent(), len(server.requests)
            assert before == spent.calls + 1, "one was refused"
            assert 5 <= spent.calls <= limit.get("max_calls", 23)
            assert (
                (server.tokens[0] + 2 * server.tokens[1]) / 1e6
                < spent.cost
                <= limit.get("max_cost", math.inf)
            )
            with pytest.raises(Interrupted, match="raise it to go on"):
                judge.answer(QUESTIONS)
            assert len(server.requests) == before, "the limit was used up"
        with Calls(tmp_path / "calls.sqlite") as calls:
            assert verdicts(judge_of(server, calls, 1)) == TRUTH
        assert len(server.requests) - before == len(QUESTIONS) - (spent.calls - 2), (
            "two brought no answer"
        )


def test_usage_and_cost_add_up(calls):
    with LanguageModelServer(by_letter) as server:
        judge = judge_of(server, calls, prices=(3.0, 15.0))
        expected = judge.estimate(QUESTIONS)
        assert expected.calls == 6
        judge.answer(QUESTIONS)
        spent = calls.spent()
        assert spent[:3] == (6, *server.tokens)
        assert spent.cost == pytest.approx(
            (3 * server.tokens[0] + 15 * server.tokens[1]) / 1e6, rel=1e-12
        )
        size = sum(math.ceil(len(prompt) / 4) for prompt in server.prompts)
        assert expected == (
            6,
            size,
            4 * len(QUESTIONS),
            pytest.approx((3 * size + 15 * 4 * len(QUESTIONS)) / 1e6),
        )
        assert judge.estimate(QUESTIONS) == (0, 0, 0, 0.0)
        explainer = OpenAIExplainer(judge.server, calls)
        assert explainer.estimate([["«a»"], ["«b»"]])[0] == 2
    with LanguageModelServer(lambda prompt: Reply("yes", usage=False)) as server:
        judge_of(server, calls, prices=(4.0, 0.0)).answer([Question("a", "«b»")])
        guess = math.ceil(len(server.prompts[0]) / 4)
        assert calls.spent().input_tokens - spent.input_tokens == guess


def test_the_key_stays_where_it_is(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    replies = [Reply(status=429, body=echo), Reply(status=500, body=echo)]
    shown = []
    with (
        LanguageModelServer(by_letter, replies) as server,
        Calls(tmp_path / "calls.sqlite") as calls,
    ):
        judge = judge_of(server, calls, key_variable="OTHER_KEY")
        assert verdicts(judge) == TRUTH
        assert server.keys == {f"Bearer {KEY}"}
        for status in (400, 401, 500):
            server.rule = lambda prompt, status=status: Reply(status=status, body=echo)
            with pytest.raises(BitlensError) as caught:
                judge_of(server, calls, key_variable="OTHER_KEY", attempts=2).answer(
                    [Question("new", f"«{status}»")]
                )
            shown += [repr(caught.value), "".join(traceback.format_exception(caught.value))]
        shown += [repr(judge.server), judge.name, str(vars(judge))]
        monkeypatch.setenv("OTHER_KEY", f"{KEY}é")
        with pytest.raises(BitlensError, match="OTHER_KEY holds no key") as caught:
            judge.answer([Question("newer", "«b»")])
        shown.append("".join(traceback.format_exception(caught.value)))
        shown += [path.read_bytes().decode(errors="replace") for path in tmp_path.iterdir()]
    assert any("calls" in text for text in shown)
    assert caplog.text, "the client's own log is looked at"
    shown += [path.read_bytes().decode(errors="replace") for path in tmp_path.iterdir()]
    for text in (*shown, caplog.text, *capfd.readouterr()):
        assert KEY not in text
        assert "sk-of-another-server" not in text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base_url": "localhost:8000"}, "base_url is an address"),
        ({"base_url": f"http://user:{KEY}@localhost/v1"}, "base_url is an address"),
        ({"base_url": f"http://localhost/v1?key={KEY}"}, "base_url is an address"),
        ({"concurrency": 0}, "at least 1"),
        ({"parameters": {"max_tokens": None}}, "max_completion_tokens"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(BitlensError, match=sentence) as caught:
        OpenAIServer("rule", **settings)
    assert KEY not in str(caught.value)


def test_limits_of_cost_need_prices(tmp_path):
    with (
        LanguageModelServer(by_letter) as server,
        Calls(tmp_path / "calls.sqlite", max_cost=1) as calls,
    ):
        with pytest.raises(BitlensError, match="needs prices"):
            judge_of(server, calls, prices=None).answer(QUESTIONS)
        assert not server.requests


def test_parameters_are_sent_and_tell_judges_apart(calls):
    with LanguageModelServer(by_letter) as server:
        other = judge_of(
            server, calls, parameters={"max_tokens": None, "max_completion_tokens": 900, "seed": 3}
        )
        other.answer(QUESTIONS[:1])
        assert "max_tokens" not in server.requests[0]
        assert server.requests[0]["max_completion_tokens"] == 900
        plain = judge_of(server, calls)
        plain.answer(QUESTIONS[:1])
        assert len(server.requests) == 2
        assert plain.name != other.name


SCRIPT = """
import signal
import sys

# a shell may have it ignored in the background
signal.signal(signal.SIGINT, signal.default_int_handler)
from bitlens.comsem.calls import Calls
from bitlens.comsem.judges import Question
from bitlens.comsem.openai_judge import OpenAIJudge
from bitlens.comsem.openai_server import OpenAIServer

questions = [Question("a", f"one «ant» {i}") for i in range(30)]
with Calls(sys.argv[1]) as calls:
    judge = OpenAIJudge(OpenAIServer("rule", sys.argv[2], concurrency=4, prices=(1, 1)), calls, 1)
    assert all(verdict.yes for verdict in judge.answer(questions))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_without_paying_twice(tmp_path, stop):
    answered = []

    def slow(prompt):
        time.sleep(0.1)
        answered.append(prompt)
        return "yes"

    with LanguageModelServer(slow) as server:
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "calls.sqlite"), server.url]
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(answered) < 8 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, stop)
        assert process.wait(60) != 0
        with Calls(tmp_path / "calls.sqlite") as calls:
            sent = calls.spent().calls
        assert len(server.requests) <= sent <= 16, "a call is on record before it is sent"
        subprocess.run(arguments, check=True)
        counts = [server.prompts.count(prompt) for prompt in set(server.prompts)]
        assert len(counts) == 30
        assert sum(counts) - 30 <= 4, "only those under way are sent again"
        before = len(server.requests)
        subprocess.run(arguments, check=True)
        assert len(server.requests) == before


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_answers_and_keeps_those_that_came(tmp_path):
    answered = iter(["yes"] * 4)
    with LanguageModelServer(
        lambda prompt: Reply("yes", delay=0 if next(answered, "") else 30)
    ) as server:
        path = tmp_path / "calls.sqlite"
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path), server.url], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while len(server.requests) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) != 0
        with Calls(path) as calls:
            assert answers(calls) == ["yes"] * 4
            assert calls.spent().calls == 8


def test_a_notebook_can_ask(calls):
    """Its thread has an event loop that runs already."""

    async def cell():
        return verdicts(judge_of(server, calls))

    with LanguageModelServer(by_letter) as server:
        assert asyncio.run(cell()) == TRUTH


def completion(message, **more):
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], **more})


@pytest.mark.parametrize(
    "usage",
    [
        "?",
        [3, 4],
        7,
        {"prompt_tokens": -(10**6), "completion_tokens": -9},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 2.5},
    ],
)
def test_counts_of_tokens_that_make_no_sense_are_guessed(calls, usage):
    body = completion({"content": "yes"}, usage=usage)
    with LanguageModelServer(lambda prompt: Reply(body=body)) as server:
        (verdict,) = judge_of(server, calls, prices=(4.0, 1.0)).answer([Question("a", "«b»")])
        assert verdict.yes
        assert calls.spent().input_tokens == math.ceil(len(server.prompts[0]) / 4)
        assert 0 < calls.spent().cost < 1e-3


def test_answers_in_parts_are_read(calls):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "no"}]},
        {"type": "text", "text": "yes"},
    ]
    with LanguageModelServer(lambda prompt: Reply(body=completion({"content": parts}))) as server:
        assert judge_of(server, calls).answer([Question("a", "«b»")])[0].yes
        assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_an_answer_of_thoughts_alone_is_not_kept(calls, name):
    """As of servers that take everything for a thought which never saw its end."""
    thought = completion({"content": None, name: "Well, yes."})
    with LanguageModelServer(by_letter, [Reply(body=thought)]) as server:
        judge = judge_of(server, calls)
        assert judge.answer([Question("a", "«a»")])[0].yes is not None
        assert len(server.requests) == 2
        server.rule = lambda prompt: Reply(body=thought)
        (verdict,) = judge.answer([Question("a", "«z»")])
        assert verdict.yes is None
        assert not verdict.finished


@pytest.mark.parametrize(
    "error", [{"message": f"Insufficient credits of {KEY}", "code": 402}, "Insufficient credits"]
)
def test_an_error_with_a_status_of_200_is_said(calls, monkeypatch, error):
    monkeypatch.setenv("OTHER_KEY", KEY)
    with LanguageModelServer(lambda prompt: Reply(body=json.dumps({"error": error}))) as server:
        with pytest.raises(BitlensError, match="Insufficient credits") as caught:
            judge_of(server, calls, key_variable="OTHER_KEY", attempts=2).answer(
                [Question("a", "«b»")]
            )
        assert KEY not in str(caught.value)
        assert len(server.requests) == 2
