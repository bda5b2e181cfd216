"""The explorer: what its server answers and refuses, and what its page shows, by mouse and by keyboard."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from browser import opened
from makers import encoder_decoder, make
from served import TOKEN, served
from starlette.testclient import TestClient
from vocabularies import names_tokenizer, reader

import interp
from interp.errors import ConfigError, OutputError
from interp.heads.detectors import Material, measured
from interp.hooked.model import HookedModel
from interp.ui.explorer import finder, sight, worker
from interp.ui.explorer.answers import answers
from interp.ui.explorer.pace import Pace
from interp.ui.explorer.serve import serve
from interp.ui.explorer.server import LARGEST_BODY, make_app
from interp.variants.granularity import variants

PORT = 8000
HOST = f"127.0.0.1:{PORT}"
HEADERS = {"host": HOST, "origin": f"http://{HOST}", "x-interp-token": TOKEN}
PROMPT, SECOND = "3 4 5 6 3 4", "3 4 9 6 3 4"
SCENE = {"prompt": PROMPT, "second": SECOND, "edits": ["L1H0:zero", "L0H1:patch"]}


@pytest.fixture(scope="module")
def client(toy: HookedModel) -> Iterator[TestClient]:
    app = make_app(toy, loaded='interp.load("toy")', token=TOKEN, port=PORT)
    with TestClient(app, base_url=f"http://{HOST}") as made:
        yield made


def post(client: TestClient, what: str, **given: Any) -> Any:
    answer = client.post(f"/api/{what}", json=given, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    return answer.json()


def edited_logits(toy: HookedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits after SCENE's prompt, before and after its edits, by hooks that are written out."""
    ids, second = (torch.tensor([[int(one) for one in text.split()]]) for text in (PROMPT, SECOND))
    _, cache = toy.run_with_cache(second)

    def zero(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value[:, :, 0] = 0
        return value

    def patch(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value[:, :, 1] = cache["z", 0][:, :, 1]
        return value

    with torch.no_grad():
        hooks = [("blocks.1.attn.hook_z", zero), ("blocks.0.attn.hook_z", patch)]
        return toy(ids)[0, -1], toy.run_with_hooks(ids, fwd_hooks=hooks)[0, -1]


def test_an_edit_is_shown_beside_the_models_own_run(client: TestClient, toy: HookedModel) -> None:
    told = post(client, "look", scene=SCENE, parts=["compare", "next_token", "attention", "lens"])
    assert told["ids"] == [int(one) for one in PROMPT.split()]
    assert [part["view"] for part in told["parts"]] == ["compare", "next_token", "attention", "lens"]
    before, after = (one.softmax(-1) for one in edited_logits(toy))
    compared = told["parts"][0]
    for row in compared["rows"]:
        assert row["before"] == pytest.approx(float(before[int(row["token"])]), rel=1e-4, abs=1e-9)
        assert row["after"] == pytest.approx(float(after[int(row["token"])]), rel=1e-4, abs=1e-9)
    last = compared["layers"][-1]
    first = int(before.argmax())
    assert compared["first"] == str(first)
    assert last["first"] == pytest.approx([float(before[first]), float(after[first])], rel=1e-4)
    assert compared["divergence"] == pytest.approx(float((before * (before / after).log()).sum()), rel=1e-2, abs=1e-7)
    assert told["parts"][1]["labels"][0] == str(int(after.argmax()))
    plain = post(client, "look", scene={"prompt": PROMPT}, parts=["compare", "next_token"])
    assert [part["view"] for part in plain["parts"]] == ["next_token"]


def test_edits_and_prompts_are_compared(client: TestClient, toy: HookedModel) -> None:
    def before_and_after(**fields: Any) -> tuple[dict[str, list[float]], Any]:
        (part,) = post(client, "look", scene={"prompt": PROMPT, "second": SECOND, **fields}, parts=["compare"])["parts"]
        return {row["token"]: [row["before"], row["after"]] for row in part["rows"]}, part

    one, two = SCENE["edits"]
    alone = {edit: before_and_after(edits=[edit])[0] for edit in (one, two)}
    found, part = before_and_after(edits=[one], kept=[two], beside="kept")
    assert part["with"] == "the kept edits"
    for token in found.keys() & alone[one].keys() & alone[two].keys():
        assert found[token] == pytest.approx([alone[two][token][1], alone[one][token][1]], rel=1e-4)
    found, part = before_and_after(edits=[], beside="second")
    assert part["with"] == "the second prompt"
    with torch.no_grad():
        second, first = (toy(torch.tensor([[int(one) for one in text.split()]]))[0, -1] for text in (SECOND, PROMPT))
    for token, pair in found.items():
        assert pair == pytest.approx([float(one.softmax(-1)[int(token)]) for one in (second, first)], rel=1e-4)


def test_the_map_is_the_sweeps_and_its_cost_is_said_before(client: TestClient, toy: HookedModel) -> None:
    scene = {"prompt": PROMPT, "second": SECOND, "answers": ["5", "9"]}
    plan = post(client, "plan", scene=scene)
    assert plan["cells"] == toy.cfg.n_layers * toy.cfg.n_heads and plan["operations"] > 0 and plan["seconds"] > 0
    pairs = interp.PromptPairs.from_tokens(
        [[int(one) for one in PROMPT.split()]], [[int(one) for one in SECOND.split()]], answers=[(5, 9)]
    )
    heads = variants(toy, pairs, site="z", by="head")
    expected = interp.plan_sweep(toy, pairs, heads, base="clean", source="corrupt")
    assert expected.packed and plan["operations"] == expected.operations  # one pass, not a forward for each head
    told = post(client, "map", scene=scene)
    assert told["answers"] == plan["answers"] == ["5", "9"]
    values = told["part"]["maps"][0]["values"]
    found = np.frombuffer(base64.b64decode(values["data"]), dtype="<f4").reshape(values["shape"])
    script = told["script"].replace('interp.show(table).save("patching.html")', "")
    names: dict[str, Any] = {}
    exec(script.replace("source=", "progress=False, source="), names)
    np.testing.assert_allclose(found.ravel(), names["table"]["effect"].to_numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cut", ["resid_pre", "attn_out"])
def test_a_map_by_position_is_the_sweeps(cut: str, client: TestClient, toy: HookedModel) -> None:
    scene = {"prompt": PROMPT, "second": SECOND, "answers": ["5", "9"]}
    assert post(client, "plan", scene=scene, cut=cut)["cells"] == toy.cfg.n_layers * 6
    told = post(client, "map", scene=scene, cut=cut)
    assert told["by"] == "pos" and told["part"]["columns"] == PROMPT.split()
    values = told["part"]["maps"][0]["values"]
    found = np.frombuffer(base64.b64decode(values["data"]), dtype="<f4").reshape(values["shape"])
    names: dict[str, Any] = {}
    exec(told["script"].replace('interp.show(table).save("patching.html")', ""), names)
    np.testing.assert_allclose(found.ravel(), names["table"]["effect"].to_numpy(), rtol=1e-4, atol=1e-6)
    assert told["name"].format(row=1) in ("resid_pre 1", "attention 1")


def test_the_table_of_heads_has_scores_and_exact_effects(client: TestClient, toy: HookedModel) -> None:
    assert post(client, "plan_heads", scene={"prompt": PROMPT})["heads"] == 8
    told = post(client, "heads", scene={"prompt": PROMPT})
    assert told["heads"] == [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    ids = torch.tensor([[int(one) for one in PROMPT.split()]])
    with torch.no_grad():
        own = toy(ids)[0, -1].log_softmax(-1)
        first = int(own.argmax())
        for at, name in enumerate(told["heads"]):
            edit = interp.Edit("z", {"layer": int(name[1]), "head": int(name[3])}, "zero")
            pairs = interp.PromptPairs.from_tokens(ids.tolist())
            with interp.edited(toy, pairs, edit, base="clean"):
                without = toy(pairs.clean)[0, -1].log_softmax(-1)
            assert told["lost"][at] == pytest.approx(float(own[first] - without[first]), rel=1e-3, abs=1e-5)
    assert told["first"] == str(first)
    scores, _ = measured(Material(toy, None, n=4), ["induction"], ["patterns"], progress=False)
    means = scores.groupby(["layer", "head"])["effect"].mean()
    assert told["columns"]["induction"] == pytest.approx(means.tolist(), rel=1e-5)


def test_the_scores_of_heads_are_kept_until_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, stop = interp.load("toy"), [], threading.Event()
    monkeypatch.setattr(finder, "measured", lambda *_, **__: (made.append(1), measured(*_, **__))[1])
    ask = answers(model, "model")
    scene = {"scene": {"prompt": PROMPT}}
    first = ask["heads"](scene, stop)
    assert ask["heads"](scene, stop) == first and ask["plan_heads"](scene, stop)["seconds"] > 0
    other = ask["heads"]({"scene": {"prompt": SECOND}}, stop)
    assert other["columns"] == first["columns"] and other["lost"] != first["lost"] and len(made) == 1
    with torch.no_grad():
        model.blocks[0].attn.W_Q.mul_(2)
    assert ask["heads"](scene, stop)["columns"] != first["columns"] and len(made) == 2


def test_a_head_is_found_in_the_table(browser: Any, address: str) -> None:
    with opened(browser, link(address, prompt=PROMPT)) as shown:
        page = shown.page
        page.wait_for_selector("#at-lens:not([hidden])")
        page.click("#run-finder:not([disabled])")
        page.wait_for_selector("#finder-place table")
        page.get_by_role("button", name="induction", exact=True).click()
        chosen = page.locator("#finder-place tbody button").first
        name = chosen.inner_text()
        chosen.click()
        assert page.input_value("#part") == name
        assert page.inner_text("#at-attention .head-name") == name
        assert shown.violations() == []


def test_forecasts_learn_from_what_sweeps_took() -> None:
    pace = Pace()
    assert not pace.known and pace.expected("head", 2.0) == 2.0
    pace.took("head", 1.0, 4.0)
    assert pace.expected("head", 2.0) == pytest.approx(8.0)
    assert pace.expected("mlp_out", 2.0) == pytest.approx(8.0)  # at the pace of the last
    pace.took("mlp_out", 1.0, 1.0)
    pace.took("head", 1.0, 1.0)  # half of what was known stays, in the logarithm
    assert pace.expected("head", 2.0) == pytest.approx(4.0) and pace.expected("mlp_out", 2.0) == pytest.approx(2.0)


@pytest.mark.parametrize("answers", [["", ""], ["5", "9"]])
@pytest.mark.parametrize("edits", [[], ["L1H0:scale:0.5"], ["L0H1:patch", "L1H2:zero"]])
def test_the_script_shows_what_the_saved_page_shows(
    edits: list[str], answers: list[str], client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = {"prompt": PROMPT, "second": SECOND, "edits": edits, "answers": answers}
    page = post(client, "save", scene=scene)["page"]
    monkeypatch.chdir(tmp_path)
    exec(post(client, "script", scene=scene)["script"], {})

    def parts(text: str) -> Any:
        return json.loads(text.split('id="payload">')[1].split("</script>")[0])["parts"]

    assert parts((tmp_path / "explored.html").read_text(encoding="utf-8")) == parts(page)


def test_a_token_is_appended(client: TestClient, toy: HookedModel) -> None:
    order = edited_logits(toy)[1].sort(descending=True).indices
    for at in (0, 3):
        told = post(client, "continue", scene=SCENE, at=at)
        assert told == {"prompt": f"{PROMPT} {int(order[at])}", "alike": True}


REFUSED_SCENES = [
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": " "}, "the prompt is empty"),
    ({}, "the prompt is empty"),
    ({"prompt": "1 two"}, "token ids, such as '3 14 15', as this model has no tokenizer; 'two' is none"),
    ({"prompt": "1 " * 65}, "the prompt has 65 tokens, more than the model's context of 64"),
    ({"prompt": "64"}, "token id 64 of the prompt is out of range: this model's ids are 0 to 63"),
    ({"prompt": "1", "edits": ["L9H0:zero"]}, "layer 9 .* 0 to 1"),
    ({"prompt": "1", "edits": ["L0H9:zero"]}, "head 9 is not one of this model's 4"),
    ({"prompt": "1", "edits": ["L0Q9:zero"]}, "no part matches 'L0Q9'; did you mean"),
    ({"prompt": "1", "edits": ["logits:zero"]}, "logits has no single site"),
    ({"prompt": "1", "edits": ["L0H0:boil"]}, "PART:zero, PART:patch, PART:scale:NUMBER or PART:set:NUMBER"),
    ({"prompt": "1", "edits": ["L0H0:scale:nan"]}, "must be a finite number, not 'nan'"),
    ({"prompt": "1", "edits": ["L0H0:scale:x"]}, "must be a finite number, not 'x'"),
    ({"prompt": "1", "edits": ["L0H0:zero"] * 65}, "at most 64 edits, not 65"),
    ({"prompt": "1", "edits": "L0H0"}, "edits must be a list of texts"),
    ({"prompt": "1", "edits": [3]}, "each of edits must be text, not 3"),
    ({"prompt": "1 2", "edits": ["L0H0:patch"]}, "there is none: write one"),
    ({"prompt": "1 2", "second": "1", "edits": ["L0H0:patch"]}, "the prompt has 2 and the second prompt 1"),
    ({"prompt": 3}, "prompt must be text, not 3"),
    ({"promt": "1"}, "no field of a scene matches 'promt'; did you mean 'prompt'"),
    ({"prompt": "1", "answers": ["1"]}, "answers are two"),
    ({"prompt": "\ud800"}, "half of a character, at place 0"),
    ([], "a scene is an object with prompt, second, edits, answers, kept, beside"),
    ({"prompt": "1", "beside": "others"}, "no run to compare with matches 'others'"),
]


@pytest.mark.parametrize(("scene", "says"), REFUSED_SCENES)
def test_a_scene_that_cannot_be_shown_is_refused_in_words(scene: Any, says: str, client: TestClient) -> None:
    answer = client.post("/api/look", content=json.dumps({"scene": scene, "parts": ["next_token"]}), headers=HEADERS)
    assert answer.status_code == 422
    with pytest.raises(ValueError, match=says):
        raise ValueError(answer.json()["error"])


@pytest.mark.parametrize(
    ("what", "given", "says"),
    [
        ("look", {"scene": {"prompt": "1"}}, "'parts'"),
        ("look", {"scene": {"prompt": "1"}, "parts": ["lense"]}, "did you mean 'lens'"),
        ("look", {"scene": {"prompt": "1"}, "parts": [["lens"]]}, "no part matches"),
        (
            "look",
            {"scene": {"prompt": "1", "kept": ["L0H0:boil"], "beside": "kept"}, "parts": ["compare"]},
            "PART:zero",
        ),
        ("look", {"scene": {"prompt": "1", "beside": "second"}, "parts": ["compare"]}, "no second prompt"),
        ("look", [], "a request is an object with 'scene'"),
        ("continue", {"scene": {"prompt": "1"}, "at": 64}, "0 to 63, not 64"),
        ("continue", {"scene": {"prompt": "1"}, "at": True}, "at must be an integer"),
        ("map", {"scene": {"prompt": "1 2", "second": "1 2"}}, "two answers that differ"),
        ("map", {"scene": {"prompt": "1 2", "second": "1 3", "answers": ["x", ""]}}, "a token id, 0 to 63, not 'x'"),
        ("plan", {"scene": {"prompt": "1 2"}}, "there is none"),
        ("map", {"scene": {"prompt": "1 2", "second": "1 3"}, "cut": "resid_pr"}, "did you mean 'resid_pre'"),
        ("map", {"scene": {"prompt": "1 2", "second": "1 3"}, "cut": ["head"]}, "cut must be one of head"),
    ],
)
def test_other_requests_are_refused_in_words(what: str, given: Any, says: str, client: TestClient) -> None:
    answer = client.post(f"/api/{what}", json=given, headers=HEADERS)
    assert answer.status_code == 422 and says in answer.json()["error"], answer.text


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"x-interp-token": None}, 403, "the token is missing: open the address"),
        ({"x-interp-token": "wrong"}, 403, "the token is wrong"),
        ({"x-interp-token": "é".encode()}, 403, "the token is wrong"),
        ({"origin": None}, 403, f"must come from the page at http://{HOST}, not from None"),
        ({"origin": "http://evil.example"}, 403, "not from 'http://evil.example'"),
        ({"origin": "null"}, 403, "not from 'null'"),
        ({"origin": f"https://{HOST}"}, 403, "not from 'https"),
        ({"host": "evil.example"}, 403, f"the host must be {HOST}, not 'evil.example'"),
        ({"host": f"evil.example:{PORT}", "origin": f"http://evil.example:{PORT}"}, 403, "the host must be"),
        ({"host": "127.0.0.1:1"}, 403, "the host must be"),
        ({"content-length": str(LARGEST_BODY + 1)}, 413, f"at most {LARGEST_BODY:,} bytes"),
        ({"content-length": "-1"}, 413, "bytes"),
    ],
)
def test_only_its_own_page_may_ask(change: dict[str, Any], status: int, says: str, client: TestClient) -> None:
    headers = {name: value for name, value in (HEADERS | change).items() if value is not None}
    request = client.build_request("POST", "/api/about", content=b"{}", headers=headers)
    for name, value in change.items():
        if value is None and name in request.headers:
            del request.headers[name]
    answer = client.send(request)
    assert answer.status_code == status and says in answer.json()["error"], answer.text


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "must be JSON"),
        (b"", 400, "must be JSON"),
        (b"\xff\xfe", 400, "must be JSON"),
        (b"[" * 60_000, 400, "must be JSON"),
        (b" " * (LARGEST_BODY + 1), 413, "at most"),
        (iter([b" " * 40_000] * 3), 413, "at most"),  # of unsaid length
    ],
)
def test_bodies_are_limited_and_checked(body: Any, status: int, says: str, client: TestClient) -> None:
    answer = client.post("/api/look", content=body, headers=HEADERS)
    assert answer.status_code == status and says in answer.json()["error"], answer.text


def test_what_is_not_there_is_named_and_files_need_the_host_alone(client: TestClient) -> None:
    answer = client.post("/api/lok", json={}, headers=HEADERS)
    assert (
        answer.status_code == 404 and "'/api/lok'" in answer.json()["error"] and "/api/look" in answer.json()["error"]
    )
    answer = client.get("/api/look")
    assert answer.status_code == 405 and answer.json()["error"] == "/api/look does not take GET"
    assert client.get("/views/../server.py").status_code == client.get("/views/%2e%2e/show.py").status_code == 404
    for path in ("/", "/explorer.js", "/explorer.css", "/views/base.js", "/views/base.css"):
        answer = client.get(path)
        assert answer.status_code == 200 and TOKEN not in answer.text
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
    page = client.get("/").text
    assert "<script>" not in page and "style=" not in page and " onclick" not in page


def test_a_request_that_is_closed_stops_between_layers(toy: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = threading.Event(), []

    def endless(of: sight.Sight) -> None:
        began.set()
        try:
            while True:
                of.model(torch.tensor([[1, 2, 3]]))
                time.sleep(0.001)
        except worker.CancelledRequest:
            ended.append("stopped")
            raise

    monkeypatch.setitem(sight.PARTS, "lens", endless)
    with served(toy) as address:
        headers = HEADERS | {"host": address.removeprefix("http://"), "origin": address}
        scene = {"prompt": PROMPT}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/api/look", json={"scene": scene, "parts": ["lens"]}, headers=headers, timeout=0.5)
        assert began.is_set()
        # The next request is served at once, by the one thread that computes.
        answer = httpx.post(
            f"{address}/api/look", json={"scene": scene, "parts": ["next_token"]}, headers=headers, timeout=10
        )
        assert answer.status_code == 200 and ended == ["stopped"]


def test_a_map_that_is_closed_stops_between_chunks(toy: HookedModel) -> None:
    stop = threading.Event()
    given = worker.stoppable(stop)

    class Job:
        ran = 0

        def run(self, index: int) -> int:
            self.ran += 1
            stop.set()
            return index

    job = Job()
    with pytest.raises(worker.CancelledRequest):
        list(given(job, [0, 1, 2]))  # type: ignore[arg-type]
    assert job.ran == 1


def test_a_line_that_is_too_long_is_refused(toy: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MOST_WAITING", 0)
    app = make_app(toy, loaded="", token=TOKEN, port=PORT)
    with TestClient(app, base_url=f"http://{HOST}") as client:
        answer = client.post("/api/about", json={}, headers=HEADERS)
    assert answer.status_code == 503 and "wait already" in answer.json()["error"]


def test_a_hundred_requests_of_two_tabs_leave_nothing_behind(client: TestClient, toy: HookedModel) -> None:
    scenes = [SCENE, {"prompt": "7 8 9 7 8"}]
    first = [post(client, "look", scene=scene, parts=["compare", "next_token", "lens"]) for scene in scenes]
    for _ in range(10):
        post(client, "look", scene=SCENE, parts=["compare", "next_token", "lens"])
    held = psutil.Process().memory_info().rss
    for at in range(100):
        told = post(client, "look", scene=scenes[at % 2], parts=["compare", "next_token", "lens"])
        assert told == first[at % 2]
    assert psutil.Process().memory_info().rss - held < 8 * 2**20
    assert not any(point.has_hooks for point in toy.hook_dict.values())


def test_what_cannot_be_served_is_refused_in_words(toy: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def serving(model: HookedModel, port: int) -> None:
        serve(model, loaded="", port=port, browser=False, tell=lambda address: pytest.fail(address))

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=f"port {port} of 127.0.0.1 cannot be used: .*; --port 0 takes one"):
            serving(toy, port)
    for other in (make("bidirectional"), encoder_decoder("t5")):
        with pytest.raises(ConfigError, match="models of one stack that predict the next token"):
            serving(other, 0)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r"needs uvicorn, .*pip install 'interp\[explore\]'"):
        serving(toy, 0)


@pytest.mark.alone
def test_the_command_serves_this_machine_until_it_is_interrupted() -> None:
    words = [sys.executable, "-m", "analyses.cli", "explore", "--model", "toy", "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None and command.stderr is not None
        place, _, token = command.stdout.readline().strip().partition("/#token=")
        headers = HEADERS | {"host": place.removeprefix("http://"), "origin": place, "x-interp-token": token}
        told = httpx.post(f"{place}/api/about", json={}, headers=headers, timeout=30).json()
        script = httpx.post(f"{place}/api/script", json={"scene": {"prompt": "1 2"}}, headers=headers).json()["script"]
        command.send_signal(signal.SIGINT)
        ended = (command.wait(20), command.stderr.read(), command.stdout.read())
    assert ended == (0, "", "")
    kinds = [part.pop("kind") for part in told.pop("parts")]
    assert list(told.pop("maps")) == ["head", "resid_pre", "attn_out"]
    assert told == {
        "model": "toy",
        "layers": 2,
        "heads": 4,
        "context": 64,
        "text": False,
        "against": None,
        "tasks": ["induction", "modular_addition"],
    }
    assert kinds == ["head", "attention"]
    assert "interp.load('toy', dtype='float32')" in script


# The page


def link(address: str, **fields: str) -> str:
    return f"{address}/#{urllib.parse.urlencode({'token': TOKEN, **fields})}"


@pytest.fixture(scope="module")
def address(toy: HookedModel) -> Iterator[str]:
    with served(toy) as made:
        yield made


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (640, True)], ids=["wide-light", "narrow-dark"])
def test_the_page_draws_quietly_for_everybody(
    width: int, dark: bool, browser: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "expected", lambda *_: 0.5)  # quick enough for the map to begin by itself, on any machine
    place = link(address, prompt=PROMPT, second=SECOND, edits="L1H0:zero,L0H1:patch")
    with opened(browser, place, width=width, dark=dark) as shown:
        shown.page.wait_for_selector("#at-lens:not([hidden])")
        # The map is quick, so that it is drawn without a click.
        shown.page.wait_for_selector("#map-place canvas")
        shown.page.click("#python")
        shown.page.wait_for_selector("#script-place:not([hidden])")
        assert shown.violations() == [] and shown.sideways() == 0
        shown.clean(address)


def rows(shown: Any) -> dict[str, list[str]]:
    """The comparison: token to before, after and change."""
    found = shown.page.locator("#at-compare table").first.locator("tbody tr").all_inner_texts()
    return {row.split("\t")[0].strip(): row.split("\t")[1:4] for row in found}


def test_a_head_is_clicked_ablated_and_brought_back(browser: Any, address: str, toy: HookedModel) -> None:
    with opened(browser, link(address)) as shown:
        page = shown.page
        page.fill("#prompt", PROMPT)
        page.wait_for_selector("#at-lens:not([hidden])")
        assert "6 tokens of 64" in page.inner_text("#tokens")
        page.locator(".thumb").nth(toy.cfg.n_heads).click()  # L1H0
        assert page.input_value("#part") == "L1H0"
        page.click("#change button[value=zero]")
        page.wait_for_selector("#at-compare:not([hidden])")
        zero = interp.Variant([interp.Edit("z", {"layer": 1, "head": 0}, "zero")])
        pairs = interp.PromptPairs.from_tokens([[int(one) for one in PROMPT.split()]])
        with torch.no_grad(), interp.edited(toy, pairs, zero, base="clean"):
            after = toy(pairs.clean)[0, -1].softmax(-1)
        top = str(int(after.argmax()))
        assert float(rows(shown)[top][1].rstrip("%")) == pytest.approx(100 * float(after.max()), abs=0.051)
        assert "edits=L1H0%3Azero" in page.evaluate("location.hash")
        page.reload()  # the address restores the page
        page.wait_for_selector("#at-compare:not([hidden])")
        assert page.inner_text("#edits li").startswith("L1H0 zeroed")
        page.click("#edits button")
        page.wait_for_selector("#at-compare[hidden]", state="attached")
        page.click("#undo")
        page.wait_for_selector("#at-compare:not([hidden])")
        assert page.locator("#history button").all_inner_texts() == ["start", "without L1H0 zeroed"]
        # What the server refuses is told in words, and taken back.
        page.fill("#part", "L1H0")
        page.click("#change button[value=patch]", timeout=5000)
        page.wait_for_selector("#problem >> text=there is none: write one")
        page.wait_for_selector("#edits >> text=L1H0 zeroed")


def test_what_a_change_lacks_is_said_where_it_is_missing(browser: Any, address: str) -> None:
    with opened(browser, link(address, prompt=PROMPT)) as shown:
        page = shown.page
        page.wait_for_selector("#at-lens:not([hidden])")
        page.click("#change button[value=zero]")
        page.wait_for_selector("#problem >> text=Name a part first")
        assert page.evaluate("document.activeElement.id") == "part"
        page.fill("#part", "L0H0")
        page.fill("#factor", "")
        page.click("#change button[value=scale]")
        page.wait_for_selector("#problem >> text=Write the number")
        assert page.evaluate("document.activeElement.id") == "factor"
        assert page.locator("#edits li").count() == 0 and shown.complaints == []
        names = page.evaluate("[...document.querySelectorAll('[id]')].map(({ id }) => id)")
        assert len(names) == len(set(names))


def test_a_reader_is_told_what_is_waited_for(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/views/base.css") as shown:
        page, held = shown.page, []
        page.route("**/api/look", lambda route: held.append(route) if len(held) < 2 else route.continue_())
        page.goto(link(address, prompt=PROMPT))
        page.wait_for_selector("#status >> text=The model is computing …")
        held[0].continue_()
        page.wait_for_selector("#status >> text=The rest is being computed …")
        held[1].continue_()
        page.wait_for_selector("#views[aria-busy=false]")
        assert page.inner_text("#status").startswith("The next token took") and "rest" not in page.inner_text("#status")


def test_a_text_that_is_too_long_is_refused_and_never_cut(browser: Any, address: str) -> None:
    with opened(browser, link(address, prompt=PROMPT)) as shown:
        page = shown.page
        page.wait_for_selector("#at-walk:not([hidden])")
        for length, says in ((30_000, "more than the model's context of 64"), (LARGEST_BODY, "at most 65,536 bytes")):
            page.fill("#prompt", "3 " * length)
            page.wait_for_selector(f"#problem >> text={says}")
            assert len(page.input_value("#prompt")) == 2 * length
            assert page.locator("#at-next_token").is_hidden()
        page.fill("#prompt", PROMPT)
        page.wait_for_selector("#at-walk:not([hidden])")
        assert page.inner_text("#problem") == ""


def test_edits_are_kept_and_compared_with_others(browser: Any, address: str) -> None:
    with opened(browser, link(address, prompt=PROMPT, second=SECOND, edits="L1H0:zero")) as shown:
        page = shown.page
        page.wait_for_selector("#at-lens:not([hidden])")
        page.click("#keep")
        page.wait_for_selector("#kept >> text=Kept: L1H0 zeroed")
        page.wait_for_selector("#at-compare >> text=They are 0 nats apart")
        page.fill("#part", "L1H1")
        page.click("#change button[value=zero]")
        page.wait_for_selector("#at-compare >> text=Before: the kept edits")
        page.select_option("#beside", "second")
        page.wait_for_selector("#at-compare >> text=Before: the second prompt")
        page.reload()
        page.wait_for_selector("#at-compare >> text=Before: the second prompt")
        assert page.inner_text("#kept") == "Kept: L1H0 zeroed."
        assert shown.violations() == []


def test_a_cell_of_a_pattern_and_a_token_choose_what_is_changed(browser: Any, address: str) -> None:
    with opened(browser, link(address, prompt=PROMPT)) as shown:
        page = shown.page
        page.wait_for_selector("#at-lens:not([hidden])")
        page.locator(".thumb").nth(5).click()  # L1H1
        canvas = page.locator("#at-attention canvas.large")
        box = canvas.bounding_box()
        canvas.click(position={"x": 3, "y": box["height"] * 4.5 / 6})
        assert (page.input_value("#part"), page.input_value("#place")) == ("L1H1", "4")
        page.locator("#places button").nth(2).click()
        assert page.input_value("#place") == "2"
        page.fill("#factor", "-1")
        page.click("#change button[value=set]")
        page.wait_for_selector("#edits >> text=L1H1 at 2 set to -1")
        page.wait_for_selector("#at-compare:not([hidden])")
        page.fill("#part", "L0H1->logits")
        page.fill("#place", "")
        page.click("#change button[value=zero]")
        page.wait_for_selector("#edits >> text=L0H1 → logits zeroed")
        page.reload()
        page.wait_for_selector("#at-compare:not([hidden])")
        assert page.locator("#edits li").count() == 2


def test_tokens_are_appended_and_pages_saved(browser: Any, address: str, tmp_path: Path, toy: HookedModel) -> None:
    with opened(browser, link(address, prompt=PROMPT)) as shown:
        page = shown.page
        page.wait_for_selector("#at-lens:not([hidden])")
        page.locator("#at-next_token tbody button").nth(2).click()
        order = toy(torch.tensor([[int(one) for one in PROMPT.split()]]))[0, -1].sort(descending=True).indices
        third = str(int(order[2]))
        button = page.get_by_role("button", name=f"append {third}", exact=True)
        button.click()
        page.wait_for_selector(f"#history >> text={third} appended")
        assert page.input_value("#prompt") == f"{PROMPT} {third}"
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "explored.html")
        shown.clean(address)
    with opened(browser, tmp_path / "explored.html") as shown:
        shown.page.wait_for_selector(".thumb")
        shown.clean()


def test_the_page_is_walked_by_keyboard(browser: Any, address: str) -> None:
    with opened(browser, link(address, prompt=PROMPT, second=SECOND)) as shown:
        page = shown.page
        page.wait_for_selector("#run-map:not([disabled])")
        reached = []
        for _ in range(70):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        for name in ("prompt", "second", "part", "factor", "python", "save", "thumb", "run-map"):
            assert name in reached, reached
        page.focus("#part")
        page.keyboard.type("L0H2")
        page.keyboard.press("Enter")
        page.wait_for_selector("#at-compare:not([hidden])")
        assert page.inner_text("#edits li").startswith("L0H2 zeroed")


def test_an_old_link_asks_for_the_new_address(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/#token=old&prompt=3+4") as shown:
        page = shown.page
        page.wait_for_selector("#token-form:not([hidden])")
        assert "the token is wrong" in page.inner_text("#problem")
        assert shown.violations() == []
        page.fill("#address", link(address))
        page.click("#token-form button")
        page.wait_for_selector("#at-next_token:not([hidden])")
        assert page.input_value("#prompt") == "3 4"


def test_what_is_typed_before_the_server_answers_stays(browser: Any, address: str) -> None:
    with opened(browser, f"{address}/views/base.css") as shown:
        page, held = shown.page, []
        page.route("**/api/about", lambda route: held.append(route))
        page.goto(link(address))
        page.fill("#prompt", PROMPT)
        page.wait_for_timeout(600)  # longer than the page waits for another key
        page.type("#prompt", " 9")
        held[0].continue_()
        page.wait_for_selector("#tokens >> text=7 tokens of 64")
        assert page.input_value("#prompt") == f"{PROMPT} 9"


def test_text_that_is_typed_is_never_markup(browser: Any) -> None:
    text = "<script>document.title='owned'</script> \"quoted\" 🙂 שלום \u202eabc"
    with served(reader(names_tokenizer())) as address, opened(browser, link(address), width=640) as shown:
        shown.page.fill("#prompt", text)
        shown.page.wait_for_selector("#at-lens:not([hidden])")
        assert shown.violations() == []
        assert "owned" not in shown.page.title() and shown.sideways() == 0
        shown.clean(address)
