"""Engines that cannot be called: what they left of a pass is judged step by step, and a fault in it is ranked first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minimax_m2.harness.drift.answers import answers_of, exact_answers
from minimax_m2.harness.drift.asking import HOOKED
from minimax_m2.harness.drift.calls import Call
from minimax_m2.harness.drift.candidate import Candidate
from minimax_m2.harness.drift.faults import Fault, planted
from minimax_m2.harness.drift.hooks import heard
from minimax_m2.harness.drift.lockstep import ABSENT, ranked
from minimax_m2.harness.drift.naming import TAPS
from minimax_m2.harness.drift.recorded_calls import recorded_cells, recorded_steps
from minimax_m2.harness.drift.recording import recording_of
from minimax_m2.harness.drift.subjects import checkpoint_subject
from minimax_m2.harness.drift.trajectory import Subject, Trajectory, passed
from minimax_m2.harness.drift.transplant import Transplant

M2Check = Callable[..., CompletedProcess[str]]
Tensors = dict[str, Tensor]
LENGTH = 16
OUTPUTS = {
    "input_norm": ("input_norm", "entry"), "post_attention_norm": ("post_attention_norm", "middle"),
    "qk_norm_rope": ("query", "key", "value"), "router": ("routing_weights", "routing_ids"),
    "final_norm": ("final_norm", "stream"), "lm_head": ("logits",),
}  # fmt: skip


@pytest.fixture(scope="module")
def short() -> Subject:
    """One prefill, as a dump holds it."""
    return replace(checkpoint_subject(None, None, length=LENGTH), decoded=0)


def dumped(subject: Subject, candidate: Candidate) -> Tensors:
    """What an engine that computes as the candidate does would leave, under names of its own."""
    answers, found = answers_of(candidate), {"ids": subject.ids[None]}

    def watch(call: Call) -> object:
        returned = answers(call)
        values = returned if isinstance(returned, tuple) else (returned,)
        taps = OUTPUTS.get(call.step, (call.step,))
        where = f"layers.{call.layer}." if 0 <= call.layer < subject.config.num_hidden_layers else ""
        if call.step == "input_norm" and call.layer == 0:
            found["layers.0.entry"] = call.arguments["x"].clone()
        if returned is not None:
            found.update({f"{where}{tap}": value.clone() for tap, value in zip(taps, values, strict=False)})
        return returned

    with torch.inference_mode():
        # Parts are offered, so that keys and values come by.
        passed(subject, watch, offered=[op for op in candidate.offered() if op != "qk_norm_rope_cache"])
    return {name: value for name, value in found.items() if name.split(".")[-1] in TAPS}


def written(folder: Path, tensors: Tensors, *, without: str = "", more: str = "") -> Path:
    """A dump and the file that names its tensors."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "dump.safetensors")
    lines = [
        f'{tap} = "{"layers.{layer}." if entry.in_layer else ""}{tap}"'
        for tap, entry in TAPS.items()
        if tap not in ("q_norm", "k_norm", "router_logits", without)
    ]
    path = folder / "engine.toml"
    path.write_text("\n".join(['name = "engine"', 'dump = "dump.safetensors"', more, "[taps]", *lines]))
    return path


@pytest.fixture(scope="module")
def right_dump(short: Subject, clean: Candidate) -> Tensors:
    return dumped(short, clean)


def test_a_right_dump_is_wrong_nowhere(tmp_path: Path, right_dump: Tensors, m2check: M2Check) -> None:
    written(tmp_path, right_dump)
    done = m2check(tmp_path, "drift", "--candidate", "engine.toml", "--length", str(LENGTH))
    assert done.returncode == 0, done.stderr
    assert "all 35 places of engine are within their budgets" in done.stderr


@pytest.mark.parametrize("layer, name", [(2, "experts_exchanged"), (1, "gain_of_two_percent"), (0, "one_plus_weight")])
def test_a_fault_in_a_dump_is_ranked_first(
    tmp_path: Path, short: Subject, clean: Candidate, faults: dict[str, Fault], layer: int, name: str
) -> None:
    candidate = planted(clean, (layer, faults[name]))
    path = written(tmp_path, dumped(short, candidate))
    cells = recorded_cells(short, recording_of(path, short, folder=tmp_path), lambda text, share: None, explain=1)
    first, second = ranked(cells)[:2]
    assert first.is_wrong
    assert first.place == (layer, faults[name].step)
    # What the fault does to the steps behind it is not theirs.
    assert not second.is_wrong


def test_the_command_names_the_place_and_what_it_equals(
    tmp_path: Path, short: Subject, clean: Candidate, faults: dict[str, Fault], m2check: M2Check
) -> None:
    written(tmp_path, dumped(short, planted(clean, (2, faults["experts_exchanged"]))))
    words = ("--candidate", "engine.toml", "--length", str(LENGTH), "--lockstep")
    done = m2check(tmp_path, "drift", *words)
    verdict, evidence, command = done.stderr.strip().splitlines()[-3:]
    assert done.returncode == 1
    assert verdict.startswith("layer 2, experts: ")
    assert evidence == "y equals the reference after swapping experts 6 and 7"
    assert command.startswith("m2check drift --candidate engine.toml")


def test_steps_between_taps_that_nobody_recorded_are_told_not_judged(
    tmp_path: Path, short: Subject, right_dump: Tensors
) -> None:
    path = written(tmp_path, right_dump, without="middle")
    cells = list(recorded_cells(short, recording_of(path, short, folder=tmp_path), lambda text, share: None))
    absent = {cell.step: cell.evidence for cell in cells if cell.outcome == ABSENT}
    assert absent.keys() == {"input_norm", "post_attention_norm", "final_norm"}
    assert absent["post_attention_norm"] == ("not recorded: middle",)


NAMED = 'qkv = "layers.{layer}.qkv"'


@pytest.mark.parametrize("text, told", [
    (NAMED.replace("qkv =", "qvk ="), "'qvk' is no tap; taps are ids, embedding"),
    (NAMED.replace(".{layer}.", ".0."), "[taps] qkv = 'layers.0.qkv' must hold {layer}"),
    (NAMED.replace("layers", "layer"), "has no 'layer.0.qkv' (qkv of layer 0); nearest is 'layers.0.qkv'"),
    ('o_proj = "layers.{layer}.qkv"', "(o_proj of layer 0) has shape [16, 640]; expected [T, H] = [16, 256]"),
    ("qkv = 3", "[taps] qkv = 3; write a name in quotes"),
    ('logits = "layers.{layer}.qkv"', "stands in no layer and must not hold {layer}"),
    ("qkv = [", "is no TOML"),
])  # fmt: skip
def test_a_naming_file_that_is_wrong_is_one_sentence(
    tmp_path: Path, right_dump: Tensors, text: str, told: str, m2check: M2Check
) -> None:
    path = written(tmp_path, right_dump)
    path.write_text(f'dump = "dump.safetensors"\n[taps]\n{text}\n')
    done = m2check(tmp_path, "drift", "--candidate", "engine.toml", "--length", str(LENGTH))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("more, told", [
    ('heads_first = ["querry"]', "heads_first 'querry' is no tap"),
    ('layers = 4', "'layers' is unknown; a naming file has name, dump"),
    ('modules = "engine.py"', 'write dump = "FILE.safetensors" or modules = "FILE.py", one of them'),
    ('contract.linear = { sum = "bfloat16" }', "[contract.linear]: contract field linear.sum='bfloat16' is unknown"),
])  # fmt: skip
def test_a_head_that_is_wrong_is_one_sentence(
    tmp_path: Path, right_dump: Tensors, more: str, told: str, m2check: M2Check
) -> None:
    written(tmp_path, right_dump, more=more)
    done = m2check(tmp_path, "drift", "--candidate", "engine.toml", "--length", str(LENGTH))
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("spoilt, told", [
    (lambda dump: dump.pop("layers.3.o_proj"), "has no 'layers.3.o_proj' (o_proj of layer 3); nearest is"),
    (lambda dump: dump.update({"layers.4.qkv": dump["layers.3.qkv"].clone()}), "'layers.4.qkv' is there, but"),
    (lambda dump: dump.update({"ids": dump["ids"] + 1}), "the dump's ids are not the tokens asked for"),
    (lambda dump: dump.update({"layers.1.routing_ids": dump["layers.1.routing_ids"] + 9}), "experts are 0..15"),
    (lambda dump: dump.update({"layers.1.qkv": dump["layers.1.qkv"].float() * 1.001}), "numbers that bfloat16 cannot"),
])  # fmt: skip
def test_a_dump_that_is_not_the_model_s_is_one_sentence(
    tmp_path: Path, right_dump: Tensors, spoilt: Callable[[Tensors], object], told: str, m2check: M2Check
) -> None:
    dump = dict(right_dump)
    spoilt(dump)
    written(tmp_path, dump)
    done = m2check(tmp_path, "drift", "--candidate", "engine.toml", "--length", str(LENGTH))
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("words, told", [
    (("--pinned",), "its experts are chosen"),
    (("--plant", "1=x.py"), "nothing can be planted in it"),
    (("--reference", "plain"), "no other reference fed"),
])  # fmt: skip
def test_what_cannot_be_asked_of_a_record_is_said(
    tmp_path: Path, right_dump: Tensors, words: tuple[str, ...], told: str, m2check: M2Check
) -> None:
    written(tmp_path, right_dump)
    done = m2check(tmp_path, "drift", "--candidate", "engine.toml", "--length", str(LENGTH), *words)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("candidate", ["engine.toml", "transformers-modules"])
def test_a_right_record_leaves_no_drift_to_explain(
    tmp_path: Path, right_dump: Tensors, candidate: str, m2check: M2Check
) -> None:
    if candidate == "transformers-modules":
        pytest.importorskip("transformers")
    written(tmp_path, right_dump)
    done = m2check(tmp_path, "bisect", "model", "--candidate", candidate, "--length", str(LENGTH))
    assert done.returncode == 0, done.stderr
    assert "there is no drift to explain" in done.stderr


@pytest.mark.parametrize("planted_at", [
    {2: "experts_exchanged"}, {1: "bias_ignored"}, {0: "gate_and_up_exchanged", 3: "one_plus_weight"},
], ids=lambda at: "+".join(at.values()))  # fmt: skip
def test_a_record_s_drift_is_explained_by_its_faults(
    tmp_path: Path, short: Subject, clean: Candidate, faults: dict[str, Fault], planted_at: dict[int, str],
    m2check: M2Check,
) -> None:  # fmt: skip
    """The engine is not here: what its steps added to the formula is added to a run of the formula."""
    wrong = [(layer, faults[name]) for layer, name in planted_at.items()]
    written(tmp_path, dumped(short, planted(clean, *wrong)))
    done = m2check(tmp_path, "bisect", "model", "--candidate", "engine.toml", "--length", str(LENGTH), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert {tuple(place) for place in found["places"]} == {(layer, fault.step) for layer, fault in wrong}
    assert "all of the drift" in done.stderr


def test_a_record_of_which_no_step_is_whole_is_not_searched(
    tmp_path: Path, right_dump: Tensors, m2check: M2Check
) -> None:
    path = written(tmp_path, right_dump)
    path.write_text('dump = "dump.safetensors"\n[taps]\no_proj = "layers.{layer}.o_proj"\n')
    done = m2check(tmp_path, "bisect", "model", "--candidate", "engine.toml", "--length", str(LENGTH))
    assert (done.returncode, "name more [taps]" in done.stderr) == (2, True), done.stderr


def test_a_step_that_was_not_recorded_is_left_to_the_formula(
    tmp_path: Path, short: Subject, right_dump: Tensors
) -> None:
    path = written(tmp_path, right_dump, without="attention")
    moved = Transplant(short, recording_of(path, short, folder=tmp_path))
    assert {"attention", "linear"} & set(moved.offered) == {"linear"}
    call = Trajectory(short, offered=moved.offered).at((1, "attention"))[0]
    assert torch.equal(moved.answers(lambda place: True)(call), exact_answers(call))


def test_on_its_own_input_a_step_gives_what_was_recorded(tmp_path: Path, short: Subject, right_dump: Tensors) -> None:
    recording = recording_of(written(tmp_path, right_dump), short, folder=tmp_path)
    steps = {(step.layer, step.name): step for step in recorded_steps(short, recording)}
    answers = Transplant(short, recording).answers(lambda place: True)
    found = answers(steps[2, "o_proj"].call())
    assert torch.equal(found, recording.at("o_proj", 2))
    weights, ids = answers(steps[2, "router"].call())
    assert torch.equal(ids.sort(-1).values, recording.at("routing_ids", 2).sort(-1).values)
    assert torch.equal(weights.sort(-1).values, recording.at("routing_weights", 2).sort(-1).values)


def test_a_record_cannot_be_called_by_itself(tmp_path: Path, right_dump: Tensors, m2check: M2Check) -> None:
    written(tmp_path, right_dump)
    m2check(tmp_path, "drift", "--candidate", "engine.toml", "--length", str(LENGTH), "--lockstep")
    (path,) = (tmp_path / "runs").glob("*.drift.json")
    done = m2check(tmp_path, "repro", str(path.relative_to(tmp_path)), "--layer", "2", "--op", "experts")
    assert (done.returncode, "ask m2check drift, or m2check bisect model, of it" in done.stderr) == (2, True)


def test_transformers_modules_are_wrong_nowhere_by_hooks(tmp_path: Path, short: Subject) -> None:
    pytest.importorskip("transformers")
    recording = recording_of(HOOKED["transformers-modules"], short, folder=tmp_path)
    cells = list(recorded_cells(short, recording, lambda text, share: None))
    assert [cell for cell in cells if cell.is_wrong] == []
    assert {cell.step for cell in cells if cell.outcome == ABSENT} == {"attention"}
    assert {"q_norm", "k_norm", "rope"} <= {cell.step for cell in cells if cell.outcome != ABSENT}


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.idle = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


def test_a_hook_keeps_what_went_in_and_what_came_out() -> None:
    model, x = Doubled(), torch.arange(3.0)
    found = heard(model, ["inner:input", ""], lambda: model(x), told="engine.toml")
    assert torch.equal(found["inner:input"], x)
    assert torch.equal(found[""], 2 * x)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name, told", [
    ("iner", "no module 'iner'; nearest is 'inner'"),
    ("idle", "no tensor came by at 'idle': the module was not called"),
    ("inner:output.3", "no tensor came by"),
    ("inner:middle", "write PATH, PATH:input or PATH:output.1"),
])  # fmt: skip
def test_a_module_that_cannot_be_heard_is_one_sentence(name: str, told: str) -> None:
    model = Doubled()
    with pytest.raises(ValueError, match=told):
        heard(model, [name], lambda: model(torch.zeros(1)), told="engine.toml")
