"""Runs a TRL-style reward function as a reward plug-in.

Such a function takes lists named `prompts` and `completions`, and any columns of the data as keyword arguments, and
returns a list of numbers (or None). Name the file and the function:
    { kind = "process", name = "mine", command = ["python3", "trl_reward.py", "my_rewards.py:accuracy"] }

What the function gets for a question with n answers, each list n long:
    prompts       the question            completions   the answers
    answer, answer_type, rationale, facts, task, level, row     of the row
    and every field of the row's `meta`, so that `solution=` and the like arrive where a data file has them.
With --chat, prompts and completions come as lists of messages, as TRL passes them for conversational data.
"""

import argparse
import importlib.util
import json
import sys


def load(place: str):
    """The function named by FILE.py:FUNCTION."""
    path, _, name = place.partition(":")
    spec = importlib.util.spec_from_file_location("reward_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def call(function, asked: dict, chat: bool) -> list:
    """The function's scores for one question."""
    completions = asked["completions"]
    count = len(completions)
    columns = {name: [asked[name]] * count for name in ("answer", "answer_type", "rationale", "facts", "task", "level", "row")}
    columns |= {name: [value] * count for name, value in asked["meta"].items()}
    prompts = [asked["question"]] * count
    if chat:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
        completions = [[{"role": "assistant", "content": completion}] for completion in completions]
    scores = function(prompts=prompts, completions=completions, **columns)
    return [None if score is None else float(score) for score in scores]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("function", help="FILE.py:FUNCTION")
    parser.add_argument("--chat", action="store_true", help="pass lists of messages in place of texts")
    options = parser.parse_args()
    # A function that prints would break the protocol: its output goes to standard error.
    replies, sys.stdout = sys.stdout, sys.stderr
    function = load(options.function)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = {"id": asked["id"], "scores": call(function, asked, options.chat)}
        except Exception as error:  # one question without a score, not the end of the run
            reply = {"id": asked["id"], "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
