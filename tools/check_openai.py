"""Speaks to `foveate serve` with OpenAI's own Python client and with curl.

    python tools/check_openai.py path/to/foveate MODEL

MODEL is anything that `foveate serve` takes and that sees pictures (`minnow`, say). Asks whole, streamed, about a
picture, with several answers, with a stop text, many at once, and wrongly; demands that whole and streamed answers agree,
that equal seeds agree, and that every refusal arrives as the client's typed error.
"""

import base64
import concurrent.futures
import io
import json
import signal
import subprocess
import sys

import openai
from PIL import Image


def picture():
    """A red square on white, as a data URL."""
    image = Image.new("RGB", (128, 128), "white")
    image.paste((220, 30, 30), (40, 40, 90, 90))
    kept = io.BytesIO()
    image.save(kept, "PNG")
    return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()


def main():
    binary, model = sys.argv[1:3]
    words = [binary, "serve", model, "--port", "0", "--name", "served", "--max-new-tokens", "64", "--api-key", "k"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        url = line.split(" answers at ")[1].split(" ")[0]
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        assert [card.id for card in client.models.list()] == ["served"]
        assert client.models.retrieve("served").owned_by == "foveate"

        question = [
            {"type": "image_url", "image_url": {"url": picture()}},
            {"type": "text", "text": "What is shown?"},
        ]
        ask = {"model": "served", "messages": [{"role": "user", "content": question}], "max_tokens": 32}
        whole = client.chat.completions.create(**ask, temperature=0)
        print("about a picture:", repr(whole.choices[0].message.content), whole.usage)
        pieces = client.chat.completions.create(
            **ask, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        pieces = list(pieces)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert streamed == whole.choices[0].message.content, streamed
        assert pieces[-1].usage == whole.usage

        several = [client.chat.completions.create(**ask, n=3, seed=7, logprobs=True) for _ in range(2)]
        texts = [[choice.message.content for choice in answer.choices] for answer in several]
        assert texts[0] == texts[1] and len(texts[0]) == 3
        assert all(token.logprob <= 0 for token in several[0].choices[0].logprobs.content)

        text = whole.choices[0].message.content
        if len(text) > 4:
            stop = text[2:4]
            cut = client.chat.completions.create(**ask, temperature=0, stop=[stop]).choices[0]
            assert cut.message.content == text[: text.index(stop)] and cut.finish_reason == "stop"

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(client.chat.completions.create, **ask, temperature=0) for _ in range(8)]
            assert {answer.result().choices[0].message.content for answer in asked} == {text}

        refusals = [
            (openai.NotFoundError, {**ask, "model": "other"}),
            (openai.BadRequestError, {**ask, "max_tokens": 65}),
            (openai.BadRequestError, {**ask, "tools": [{"type": "function", "function": {"name": "f"}}]}),
            (openai.BadRequestError, {**ask, "messages": [{"role": "user", "content": "<image>"}]}),
        ]
        for kind, wrong in refusals:
            try:
                client.chat.completions.create(**wrong)
            except kind as error:
                print("refused:", error.status_code, error.body["message"])
            else:
                raise AssertionError(f"{wrong} was answered")
        try:
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        except openai.AuthenticationError:
            pass
        else:
            raise AssertionError("a wrong key was accepted")

        body = json.dumps({**ask, "temperature": 0})
        curl = ["curl", "-sS", f"{url}/chat/completions", "-H", "Authorization: Bearer k", "-d", "@-"]
        answer = json.loads(subprocess.run(curl, input=body, capture_output=True, text=True, check=True).stdout)
        assert answer["choices"][0]["message"]["content"] == text
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
        print("all agreed")
    finally:
        server.kill()


if __name__ == "__main__":
    main()
