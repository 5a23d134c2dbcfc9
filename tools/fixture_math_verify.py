"""Writes fixtures/math_verify/pairs.json: pairs of (gold, answer) with the verdict of the Python package math-verify.

The pairs are written by hand, by kind, so that a disagreement says something. Needs: pip install math-verify.
Run from the repository root: python tools/fixture_math_verify.py
"""

import importlib.metadata
import json
import pathlib

from math_verify import parse, verify

PAIRS = {
    "fraction": [
        (r"\frac{1}{2}", "0.5"), (r"\frac{1}{2}", "1/2"), (r"\frac{1}{2}", r"\frac12"), (r"\frac{1}{2}", r"\dfrac{2}{4}"),
        (r"\frac{3}{4}", "0.75"), (r"\frac{3}{4}", r"\frac{4}{3}"), (r"-\frac{3}{4}", r"\frac{-3}{4}"),
        (r"-\frac{3}{4}", r"-0.75"), (r"\frac{7}{3}", r"2\frac{1}{3}"), (r"\frac{1}{3}", "0.33"), (r"\frac{1}{3}", "0.3333"),
        (r"\frac{22}{7}", r"\pi"), ("3/4", r"\frac{6}{8}"), (r"\frac{a}{b}", r"\frac{b}{a}"), (r"\frac{10}{5}", "2"),
        (r"\frac{1}{2}", "2"), (r"\frac{5}{6}", r"\frac{10}{12}"), (r"\frac{5}{6}", r"\tfrac{5}{6}"),
    ],
    "number": [
        ("5", "5"), ("5", "5.0"), ("5", "05"), ("5", "6"), ("1000", "1,000"), ("1000", r"1{,}000"), ("-3", "3"), ("-3", "-3"),
        ("0", "0"), ("0", "-0"), ("12", "x=12"), ("2", "x=12"), ("1", "10"), ("10", "1"), ("2.5", r"\frac{5}{2}"),
        ("1234567", "1,234,567"), ("0.1", ".1"), ("100", "1e2"), ("7", r"\boxed{7}"), ("7", r"$7$"), ("7", r"\(7\)"),
        ("3.14", r"\pi"), ("1000000", "10^6"), ("0.5", "50"), ("36", "36^{\\circ}"), ("90", r"90^\circ"), ("45", "45°"),
        ("120", "120 "), ("8", "eight"), ("15", "15."), ("42", "forty-two"),
    ],
    "percent": [("50", r"50\%"), ("0.5", r"50\%"), (r"50\%", "0.5"), ("12.5", r"12.5\%"), ("25", "25%"), ("0.25", "25%")],
    "root": [
        (r"\sqrt{2}", r"\frac{2}{\sqrt{2}}"), (r"2\sqrt{3}", r"\sqrt{12}"), (r"2\sqrt{3}", r"\sqrt{13}"), (r"\sqrt{2}", "1.414"),
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}"), (r"\sqrt{2}-1", r"\frac{1}{1+\sqrt{2}}"), (r"3", r"\sqrt{9}"),
        (r"\sqrt[3]{27}", "3"), (r"\sqrt[3]{2}", r"2^{1/3}"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        (r"\sqrt{6}", r"\sqrt{2}\sqrt{3}"), (r"\sqrt{6}", r"\sqrt{2}+\sqrt{4}"), (r"5\sqrt{2}", r"\sqrt{50}"),
        (r"\sqrt{2}", "sqrt(2)"), (r"2\sqrt{5}", r"2 \sqrt 5"),
    ],
    "constant": [
        (r"\pi", "π"), (r"2\pi", r"\pi + \pi"), (r"\frac{\pi}{2}", r"0.5\pi"), (r"\pi", "3.14159"), (r"3\pi", r"9.4248"),
        (r"e^2", r"e \cdot e"), (r"\pi^2", r"\pi \cdot \pi"), (r"4\pi", r"\pi"), (r"\ln(e)", "1"), (r"\sin(\pi)", "0"),
        (r"\cos(0)", "1"), (r"\log(100)", "2"), (r"2^{10}", "1024"), (r"2^{-1}", "0.5"),
    ],
    "polynomial": [
        ("x^2+2x+1", "(x+1)^2"), ("2x+3", "3+2x"), ("2x", "2y"), ("x^2", "2x"), ("(x-1)(x+1)", "x^2-1"), ("x^2-1", "x^2+1"),
        (r"\frac{x}{2}", "0.5x"), ("2(x+y)", "2x+2y"), ("x^3", r"x \cdot x \cdot x"), ("a+b", "b+a"), ("xy", "yx"), ("ab", "a*b"),
        ("x", "1x"), ("3x-5", "3x - 5"), ("3x-5", "5-3x"), (r"\frac{x^2-1}{x-1}", "x+1"), ("x^{2}y", "yx^2"), ("n(n+1)/2", r"\frac{n(n+1)}{2}"),
    ],
    "equation": [
        ("x=2", "2"), ("2", "x = 2"), ("y=2x+1", "2x+1"), ("y=2x+1", "y = 1 + 2x"), ("x=2", "x=3"), ("y = 3", "x = 3"),
    ],
    "tuple": [
        ("(1,2)", "(1,2)"), ("(1,2)", r"\left(1, 2\right)"), ("(1,2)", "(2,1)"), ("(1,2,3)", "(1,2)"), (r"(\frac{1}{2},3)", "(0.5,3)"),
        ("(0,0)", "(0, 0)"), ("(-1,4)", "(-1, 4)"), ("(-1,4)", "(1,4)"),
    ],
    "interval": [
        ("[1,2]", "[1,2]"), ("[1,2]", "(1,2)"), ("(1,2]", "(1, 2]"), (r"(-\infty,3)", r"\left(-\infty, 3\right)"),
        (r"[0,\infty)", r"[0, \infty)"), (r"[0,\infty)", r"(0, \infty)"),
        (r"(-\infty,0)\cup(1,2)", r"(1,2)\cup(-\infty,0)"), (r"(-\infty,0)\cup(1,2)", r"(-\infty,0)"),
    ],
    "set": [
        (r"\{1,2\}", r"\{2,1\}"), (r"\{1,2\}", r"\{1,2,3\}"), (r"\{1,2\}", "1,2"), (r"\{1,2\}", "1, 2"), ("1,2", "2,1"),
        (r"\{-3,3\}", r"\pm 3"), (r"\pm 3", r"3, -3"), (r"2\pm\sqrt{3}", r"2+\sqrt{3}, 2-\sqrt{3}"), (r"\{5\}", "5"),
        (r"\{1,2\}", r"\{1\}"),
    ],
    "absolute": [("3", "|-3|"), ("|x|", "x"), (r"|x-1|", r"|1-x|")],
    "unit": [("5", r"5\text{ cm}"), ("5", "5 cm"), ("12", r"12\text{ square units}"), ("10", r"10\mathrm{~m}"), ("$20", "20"), ("20", r"\$20")],
    "wrapping": [
        ("7", r"The answer is \boxed{7}"), ("7", r"\boxed{6} or \boxed{7}"), (r"\frac{1}{2}", r"$\boxed{\frac{1}{2}}$"), ("7", r"\boxed{}"),
        ("7", ""), ("7", "7 or 8"), ("7", "I think it is 7"), ("3", "1 2 3"),
    ],
    "hostile": [
        ("1", r"\frac{1}{0}"), ("1", "nan"), ("1", "inf"), ("1", "((((((1"), ("2", "1+1"), ("4", "2+2"), ("6", "3!"), ("12", "3*4"),
        ("1", "1_000"), ("1", "1,23"),
    ],
}


def main():
    rows = []
    for kind, pairs in PAIRS.items():
        for gold, answer in pairs:
            try:
                verdict = bool(verify(parse(f"${gold}$"), parse(answer if "boxed" in answer or answer == "" else f"${answer}$")))
            except Exception as error:  # the package may refuse; that is a verdict too
                print("refused", gold, answer, error)
                verdict = False
            rows.append({"kind": kind, "gold": gold, "answer": answer, "math_verify": verdict})
    folder = pathlib.Path("fixtures/math_verify")
    folder.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in ["math-verify", "sympy", "latex2sympy2_extended"]}
    lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps(versions)
    (folder / "pairs.json").write_text(f'{{\n  "versions": {head},\n  "pairs": [\n{lines}\n  ]\n}}\n')
    print(len(rows), "pairs")


if __name__ == "__main__":
    main()
