"""The record of calls: a cache and an account that processes share, and the evidence behind
scores."""

import multiprocessing
import sqlite3

import pytest

from bitlens.comsem.calls import Calls, Judgement, key_of
from bitlens.comsem.judges import Question, Verdict, judge_prompt
from bitlens.comsem.openai_judge import OpenAIJudge
from bitlens.comsem.openai_server import OpenAIServer
from bitlens.errors import BitlensError, Interrupted
from language_model_server import LanguageModelServer

PROMPT = judge_prompt("animals", ["a «cat» came"])
KEY = key_of("judge", PROMPT, {})
SEEDED = key_of("judge", PROMPT, {"seed": 1})
QUESTIONS = [Question("animals", f"«cat» {i}") for i in range(12)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calls.sqlite"


def test_what_sqlite_says_of_a_damaged_file_may_be_no_text(path):
    Calls(path).close()
    content = path.read_bytes()
    assert b"CREATE TABLE calls" in content
    path.write_bytes(content.replace(b"CREATE TABLE calls", b"CREATE\xa6TABLE calls"))
    with pytest.raises(BitlensError, match="cannot be used: 'utf-8' codec"):
        Calls(path)


def test_an_answer_is_kept_with_all_that_led_to_it(path):
    with Calls(path) as calls:
        assert calls.get(SEEDED) is None
        number = calls.reserve(SEEDED, "judge", PROMPT, {"seed": 1}, 0.5)
        assert calls.get(SEEDED) is None, "it is under way"
        assert calls.spent() == (1, 0, 0, 0.5)
        calls.note(number, answer="yes", input_tokens=30, output_tokens=2, cost=0.1, seconds=1.5)
        assert calls.spent() == (1, 30, 2, 0.1)
    with Calls(path) as calls:
        assert calls.get(SEEDED) == (number, "yes")
        others = [
            ("other", PROMPT, {"seed": 1}),
            ("judge", PROMPT[:0], {"seed": 1}),
            ("judge", PROMPT, {"seed": 2}),
        ]
        assert not any(calls.get(key_of(*other)) for other in others)
    with sqlite3.connect(path) as db:
        (row,) = db.execute("SELECT judge, messages, parameters, answer, seconds FROM calls")
        assert row[0] == "judge"
        assert "«cat»" in row[1] or "\\u00abcat\\u00bb" in row[1]
        assert row[2:] == ('{"seed": 1}', "yes", 1.5)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_calls_without_an_answer_cost(path):
    with Calls(path, max_cost=1.0, max_calls=3) as calls:
        lost, refused, _under_way = (
            calls.reserve(KEY, "judge", PROMPT, {}, 0.25) for _ in range(3)
        )
        with pytest.raises(Interrupted, match="max_calls 3; raise it"):
            calls.reserve(KEY, "judge", PROMPT, {}, 0.0)
        calls.note(lost, failure="status 500")
        calls.release(refused)
        assert calls.spent() == (2, 0, 0, 0.5)
        with pytest.raises(Interrupted, match=r"max_cost 1, of which 0.5 is spent"):
            calls.reserve(KEY, "judge", PROMPT, {}, 0.51)
        calls.put(KEY, "local", PROMPT, "yes 0.5", 0.1)
        assert calls.spent() == (2, 0, 0, 0.5), "nothing to pay"
        calls.reserve(KEY, "judge", PROMPT, {}, 0.5)
    with Calls(path, max_calls=3) as calls, pytest.raises(Interrupted):
        calls.reserve(KEY, "judge", PROMPT, {}, 0.0)


def test_judgements_lead_back_to_the_sentences(path):
    with LanguageModelServer(
        lambda prompt: "1. yes\n2. no" if "2. " in prompt else "yes"
    ) as server:
        with Calls(path) as calls:
            judge = OpenAIJudge(OpenAIServer("rule", server.url), calls, 2)
            found = judge.answer(QUESTIONS)
            made = [
                Judgement(7, q.explanation, q.text, i, "hard", v)
                for i, (q, v) in enumerate(zip(QUESTIONS, found, strict=True))
            ]
            calls.record("run", judge.name, made)
            calls.record("run", judge.name, made)
            other = Judgement(3, "verbs", "«a»", 5, "random", Verdict(None, -0.5))
            calls.record("run", judge.name, [other])
            calls.record("other", judge.name, made[:2])
        with sqlite3.connect(path) as db:
            rows = db.execute("SELECT * FROM judgements WHERE run = 'run' ORDER BY latent, row")
            assert rows.fetchall() == [
                ("run", judge.name, *judgement[:5], *judgement.verdict[:3])
                for judgement in [other, *made]
            ]
            query = "SELECT text, messages, answer FROM judgements JOIN calls ON call = calls.id"
            joined = db.execute(f"{query} WHERE run = 'run'").fetchall()
        assert len(joined) == len(QUESTIONS)
        assert all(
            text.split()[1] in messages and answer == "1. yes\n2. no"
            for text, messages, answer in joined
        )


def test_a_kind_that_is_none_is_refused(path):
    with Calls(path) as calls:
        good = Judgement(0, "x", "«x»", 0, "positive", Verdict(True))
        with pytest.raises(BitlensError, match="CHECK"):
            calls.record("run", "judge", [good, good._replace(row=1, kind="soft")])
        rows = calls._execute("SELECT * FROM judgements").fetchall()
        assert rows == [], "all or nothing"


VERSION_1 = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, judge TEXT NOT NULL, messages TEXT NOT NULL,
    parameters TEXT NOT NULL,
    sent REAL NOT NULL, seconds REAL, answer TEXT, failure TEXT, input_tokens INTEGER, output_tokens
    INTEGER,
    cost REAL                   -- until the answer comes, the most it can be; NULL: nothing to pay
);
CREATE INDEX calls_by_key ON calls (key);
CREATE TABLE judgements (run TEXT NOT NULL, judge TEXT NOT NULL);
PRAGMA user_version = 1
"""


def test_answers_of_a_record_that_kept_cut_ones_are_not_believed(path):
    """Version 1 had no sign of it."""
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_1)
        values = (KEY, "judge", "[]", "{}", 0.0, 1.0, "<think>no", 0.25)
        db.execute(
            "INSERT INTO calls (key, judge, messages, parameters, sent, seconds, answer, cost) "
            "VALUES (?,?,?,?,?,?,?,?)",
            values,
        )
    for _ in range(2):
        with Calls(path) as calls:
            assert calls.get(KEY) is None
            assert calls.spent().cost == 0.25, "it was paid nevertheless"
            assert calls._execute("SELECT answer FROM calls").fetchall() == [("<think>no",)], (
                "and is evidence"
            )


def test_files_of_others_are_left_alone(path, tmp_path):
    Calls(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(BitlensError, match="newer bitlens"):
        Calls(path)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE precious (x)")
    with pytest.raises(BitlensError, match="another program's"):
        Calls(foreign)
    text = tmp_path / "text"
    text.write_text("no database, but a text of some length" * 50)
    for bad in (text, tmp_path / "nowhere" / "calls.sqlite"):
        with pytest.raises(BitlensError, match="record of calls"):
            Calls(bad)
    assert text.read_text().startswith("no database")


def answer_all(path, url, barrier):
    barrier.wait()
    with Calls(path) as calls:
        judge = OpenAIJudge(OpenAIServer("rule", url, concurrency=2), calls, 1)
        assert all(verdict.yes for verdict in judge.answer(QUESTIONS))


def spend_all(path, barrier, spent):
    barrier.wait()
    with Calls(path, max_calls=100, max_cost=60) as calls:
        try:
            while True:
                number = calls.reserve(KEY, "judge", PROMPT, {}, 1.0)
                calls.note(number, answer="yes", input_tokens=1, output_tokens=1, cost=0.5)
                spent.value += 1
        except Interrupted:
            pass


def in_processes(n, target, *arguments):
    forks = multiprocessing.get_context("fork")
    barrier = forks.Barrier(n)
    counts = [forks.Value("i", 0) for _ in range(n)]
    rest = [(counts[i],) if target is spend_all else () for i in range(n)]
    processes = [
        forks.Process(target=target, args=(*arguments, barrier, *rest[i])) for i in range(n)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [count.value for count in counts]


@pytest.mark.slow
def test_processes_share_answers(path):
    with LanguageModelServer(lambda prompt: "yes") as server:
        in_processes(1, answer_all, path, server.url)
        assert len(server.requests) == len(QUESTIONS)
        in_processes(3, answer_all, path, server.url)
        assert len(server.requests) == len(QUESTIONS)


@pytest.mark.slow
def test_processes_share_limits(path):
    counts = in_processes(4, spend_all, path)
    with Calls(path) as calls:
        assert calls.spent() == (100, 100, 100, 50.0)
    assert sum(counts) == 100
