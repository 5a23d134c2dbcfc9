"""A reward plug-in in plain Python: prefers answers of few words.

Foveate starts it once and writes one JSON line per question; it answers each with one line:
    in   {"id": 7, "question": "...", "answer": "5", "completions": ["...", "..."], ...}
    out  {"id": 7, "scores": [0.5, null]}
A score is a number, or null if there is none. Nothing else may go to standard output; standard error ends up in the
run's folder. In a recipe:
    { kind = "process", name = "short", command = ["python3", "short_answers.py"], weight = 0.2 }
"""

import json
import sys


def score(completion: str, most_words: int = 40) -> float:
    """1 for an empty answer, falling to 0 at `most_words`."""
    return max(0.0, 1.0 - len(completion.split()) / most_words)


for line in sys.stdin:
    asked = json.loads(line)
    scores = [score(completion) for completion in asked["completions"]]
    print(json.dumps({"id": asked["id"], "scores": scores}), flush=True)
