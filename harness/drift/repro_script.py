"""One step of a provider on the inputs beside this file: ends in 1 where it is wrong, in 125 where it cannot be run.

Needs torch, safetensors and the provider; a file named on the command line stands for it. A provider is code and runs.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

meta = json.loads(Path(__file__).with_name("meta.json").read_text())
inputs, right = (load_file(Path(__file__).with_name(f"{name}.safetensors")) for name in ("inputs", "expected"))
fails, known = meta["fails"], meta["provider"]
broken = 125
try:
    if file := (sys.argv[1:] or [known["file"]])[0]:
        spec: Any = importlib.util.spec_from_file_location("provider", file)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        find: Any = vars(module).get
    else:
        from minimax_m2.harness.cli import built_in

        (provider := built_in(known["name"])).enter(known["variant"]).__enter__()
        find = provider.functions
    function, broken = find(meta["op"]), 1 if fails["test"] == "call" else 125
    plain = {k: getattr(torch, v["dtype"]) if isinstance(v, dict) else v for k, v in meta["plain"].items()}
    given: dict[str, Any] = {}
    for name in meta["arguments"]:
        parts = {k.partition(".")[2]: v for k, v in {**plain, **inputs}.items() if k.split(".")[0] == name}
        given[name] = find(meta["packs"][name])(**parts) if name in meta["packs"] else parts[""]
    order = meta["positional"]
    returned = function(*(given[n] for n in order), **{n: given[n] for n in given if n not in order})
except Exception as raised:
    sys.exit((sys.stderr.write(f"{known['name']}: {type(raised).__name__}: {raised}\n"), broken)[1])
returned = returned if isinstance(returned, tuple) else (returned,) * (returned is not None)
outputs = dict(zip(meta["outputs"], (*returned, *(given[n] for n in meta["written"])), strict=True))
wrong = torch.tensor(False)
if fails["test"] == "routing":
    ids, weights = outputs["ids"].long(), outputs["weights"].double()
    score, reach = right["selection"], right["reach"]
    inside = torch.zeros_like(reach, dtype=torch.bool).scatter(1, ids.clamp(0, reach.shape[1] - 1), True)
    beaten = (score - reach).masked_fill(inside, -torch.inf).amax(1)
    wrong = (score + reach).masked_fill(~inside, torch.inf).amin(1) < beaten
    best, own = right["ids"].argsort(1), ids.argsort(1)
    error = (right["weights"].gather(1, best) - weights.gather(1, own)).abs().amax(1)
    wrong |= (right["ids"].gather(1, best) == ids.gather(1, own)).all(1) & ~(error <= fails["limit"])
elif fails["test"] != "call":
    value, sigma, limit = (right[f"{fails['output']}.{part}"] for part in ("value", "sigma", "limit"))
    actual = outputs[fails["output"]].double()
    error = torch.where(value.isnan() & actual.isnan(), 0.0, actual - value)
    z, along = (torch.where(sigma > 0, x / sigma, 0.0) for x in (error, value))
    square = z.square().reshape(-1, z.shape[-1])
    found = {"mean": square.mean(), "row": square.mean(-1).max(), "column": square.mean(0).max()}
    seen = found.get(fails["test"], (z * along).sum().abs() / along.norm())
    wrong = ~(error.abs() <= limit if fails["test"] == "element" else seen <= fails["limit"])
sys.exit("wrong: " + "; ".join(meta["evidence"]) if bool(wrong.any()) else 0)
