"""The table of families and checks in docs/checkpoints.md, from what the tests measure.

    python tools/family_table.py [path/to/foveate]

Runs the tests that compare with `transformers` (fixtures by tools/make_fixtures.py) and collects the lines
`measured | CHECK | MODEL | VALUE` that they print. With a program named, tools/check_peft.py is run on every checkpoint
as well; without one, the last column keeps what the page says. A test that fails ends this script, and the page stays.
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "checkpoints.md"
BEGIN, END = "<!-- made by tools/family_table.py -->\n", "<!-- end -->"
TESTS = [
    ["-p", "foveate-train", "--test", "prompt", "equal_transformers"],
    ["-p", "foveate-model", "--test", "parity"],
]
CHECKS = {
    "prompts": "prompts equal",
    "pixels": "pixels equal",
    "log-probabilities": "log-probability",
    "entropy": "entropy",
    "gradients": "gradients, relative",
    "greedy answers": "greedy answers equal",
    "ten AdamW steps": "loss, ten AdamW steps",
    "saved again": "tensors saved again",
    "peft": "PEFT: both ways, merged",
}


def measure():
    """Values by model and check."""
    found = {}
    for test in TESTS:
        words = ["cargo", "test", *test, "--", "--nocapture", "--test-threads", "1"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        for line in done.stdout.splitlines():
            # Output of the test harness may stand before it on the same line.
            if "measured | " in line:
                check, model, value = line.split("measured | ")[1].split(" | ")
                found.setdefault(model, {})[check] = value
    return found


def old(page):
    """The last column of the table as it is."""
    rows = page.split(BEGIN)[1].split(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row]
    return {row[0].strip("`"): row[-1] for row in cells}


def main():
    page = PAGE.read_text()
    found = measure()
    kept = old(page)
    for model, values in found.items():
        if len(sys.argv) > 1:
            import check_peft

            values["peft"] = check_peft.check(pathlib.Path(sys.argv[1]), ROOT / "fixtures" / "models" / model)
        else:
            values["peft"] = kept.get(model, "")
        print(model, values)
    head = ["checkpoint", *CHECKS.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for model, values in found.items():
        lines.append("| " + " | ".join([f"`{model}`", *(values.get(check, "") for check in CHECKS)]) + " |")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
