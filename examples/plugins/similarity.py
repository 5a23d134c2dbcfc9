"""A reward plug-in for free text where several wordings are right, as Curr-ReFT's unused caption task has it: 1 if the
answer is nearly the reference, 0.2 if it is close, else 0.

    { kind = "process", name = "similar", command = ["python3", "similarity.py", "0.95", "0.9"] }

Close is measured by the cosine between counts of letter triples, so that nothing has to be installed. For meaning in place
of spelling put an embedding model into `vector`; the two bounds were published for one, and are the arguments.
"""

import collections
import json
import math
import sys


def vector(text: str) -> collections.Counter:
    """How often each run of three characters occurs."""
    padded = f"  {' '.join(text.lower().split())}  "
    return collections.Counter(padded[i : i + 3] for i in range(len(padded) - 2))


def cosine(a: collections.Counter, b: collections.Counter) -> float:
    """1 for the same direction, 0 for nothing in common."""
    dot = sum(count * b[key] for key, count in a.items())
    size = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return dot / size if size else 0.0


def answer(completion: str) -> str:
    """What stands in the only answer tag or behind the last flag; nothing if there is neither."""
    if completion.count("<answer>") == 1 and completion.count("</answer>") == 1:
        return completion.split("<answer>")[1].split("</answer>")[0].strip()
    before, flag, after = completion.rpartition("Answer:")
    return after.strip() if flag else ""


def main() -> None:
    """Answers each line with one."""
    near, close = (float(bound) for bound in sys.argv[1:3]) if len(sys.argv) == 3 else (0.95, 0.9)
    for line in sys.stdin:
        asked = json.loads(line)
        gold = vector(asked["answer"])
        scores = []
        for completion in asked["completions"]:
            similarity = cosine(vector(text), gold) if (text := answer(completion)) else 0.0
            scores.append(1.0 if similarity > near else 0.2 if similarity > close else 0.0)
        print(json.dumps({"id": asked["id"], "scores": scores}), flush=True)


main()
