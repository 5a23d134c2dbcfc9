"""Reward functions in the form that TRL takes, for trl_reward.py."""


def contains_answer(completions, answer, **_):
    """1 where the right answer stands anywhere in the completion."""
    return [1.0 if gold in completion else 0.0 for completion, gold in zip(completions, answer)]


def only_numbers(completions, answer_type, **_):
    """No score for questions whose answer is no number."""
    print("what a function prints does no harm")
    return [len(c) / 100 if kind == "number" else None for c, kind in zip(completions, answer_type)]
